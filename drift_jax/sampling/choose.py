"""From logits to one token: truncation by top-k and top-p, and a draw by inversion.

Drawing by inversion needs two uniforms a row where Gumbel noise needs one a vocabulary entry; two
levels (first a block of entries, then the entry in it) keep float32 fine enough for rare tokens of
a large vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 64  # vocabulary entries a block of the two-level draw


class Choice(NamedTuple):
    """A drawn token with what the untempered, untruncated distribution says of it."""

    token: jax.Array  # [rows] int32
    log_prob: jax.Array  # [rows] nats, temperature 1, full vocabulary
    entropy: jax.Array  # [rows] nats, temperature 1, full vocabulary


def choose(
    logits: jax.Array,
    uniforms: jax.Array,
    *,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array,
) -> Choice:
    """Draws a token a row.

    The training setting (temperature 1, everything kept) reads the logits once: one exponential an
    entry gives the blocks' weights of the draw, the log-prob and the entropy alike.

    Args:
      logits: [rows, vocab], float32
      uniforms: two numbers in [0, 1) a row. [rows, 2]
      temperature: scalar; 0 takes the largest logit.
      top_p: scalar in (0, 1]; 1 keeps everything.
      top_k: integer scalar; 0 keeps everything.
    """
    below = _blocks(logits - logits.max(axis=-1, keepdims=True), -jnp.inf)  # [rows, block, BLOCK]
    weights = jnp.exp(below)
    sums = weights.sum(axis=-1)  # [rows, block]
    total = sums.sum(axis=-1)
    log_total = jnp.log(total)
    weighted = jnp.sum(jnp.where(weights > 0, weights * below, 0), axis=(-1, -2))

    def plain() -> jax.Array:
        return _draw(sums, below, uniforms, jnp.exp)

    def tempered() -> jax.Array:
        probs = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6))
        return invert(truncate(probs, top_p, top_k), uniforms)

    everything = (temperature == 1) & (top_p >= 1) & (top_k <= 0)
    mode = jnp.where(temperature <= 0, 2, jnp.where(everything, 0, 1))
    token = jax.lax.switch(mode, (plain, tempered, lambda: _largest(below)))
    picked = _entry(below, token // BLOCK, token % BLOCK)
    return Choice(
        token.astype(jnp.int32), picked - log_total, jnp.maximum(log_total - weighted / total, 0)
    )


def invert(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """The token at which the cumulated weights pass a uniform draw, in two levels. [rows]

    Args:
      weights: non-negative, not necessarily normalised. [rows, vocab]
      uniforms: the first picks a block of `BLOCK` entries, the second the entry in it. [rows, 2]
    """
    blocks = _blocks(weights, 0)
    return _draw(blocks.sum(axis=-1), blocks, uniforms, lambda inside: inside)


def _draw(
    sums: jax.Array,
    blocks: jax.Array,
    uniforms: jax.Array,
    weigh: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """`invert`, given the blocks' sums and how the entries of a chosen block weigh."""
    block = _pass(sums, uniforms[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _pass(weigh(inside), uniforms[:, 1])


def _blocks(values: jax.Array, fill: float) -> jax.Array:
    """[rows, vocab] -> [rows, block, BLOCK], filled up at the end."""
    rows, vocab = values.shape
    padding = ((0, 0), (0, -vocab % BLOCK))
    return jnp.pad(values, padding, constant_values=fill).reshape(rows, -1, BLOCK)


def _entry(blocks: jax.Array, block: jax.Array, inside: jax.Array) -> jax.Array:
    """One entry a row. [rows]"""
    return blocks[jnp.arange(blocks.shape[0]), block, inside]


def _largest(blocks: jax.Array) -> jax.Array:
    """Index of the largest entry, the first of equals; by blocks, since XLA:CPU's argmax is slow
    over a vocabulary. [rows]"""
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + jnp.argmax(inside, axis=-1)


def _pass(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """First index of positive weight whose cumulated weight exceeds the draw. [rows]"""
    cumulated = jnp.cumsum(weights, axis=-1)
    target = uniform[:, None] * cumulated[:, -1:]
    passed = (cumulated > target) & (weights > 0)
    # Rounding may leave no entry above the target; the last one of positive weight is meant then.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(passed.any(axis=-1), jnp.argmax(passed, axis=-1), last)


def truncate(probs: jax.Array, top_p: jax.Array, top_k: jax.Array) -> jax.Array:
    """Zero outside the `top_k` largest entries and outside the smallest set of mass `top_p`.

    Both sets are "everything at least as large as a threshold". The thresholds are found by
    bisection on the bits of the floats (which order like the non-negative numbers they encode):
    exact after 31 halvings, without sorting the vocabulary. Entries that tie with the threshold
    stay. top_p is taken of what top_k left, as `transformers` does.

    Args:
      probs: [rows, vocab] float32
      top_p: scalar in (0, 1].
      top_k: integer scalar, 0 for all.
    """

    def likeliest(probs: jax.Array) -> jax.Array:
        count = jnp.minimum(top_k, probs.shape[-1])
        return jnp.where(probs >= _largest_threshold(probs, jnp.ones_like(probs), count), probs, 0)

    def nucleus(probs: jax.Array) -> jax.Array:
        mass = top_p * jnp.sum(probs, axis=-1, keepdims=True)
        return jnp.where(probs >= _largest_threshold(probs, probs, mass), probs, 0)

    # A search that is switched off is not run.
    probs = jax.lax.cond(top_k > 0, likeliest, lambda probs: probs, probs)
    return jax.lax.cond(top_p < 1, nucleus, lambda probs: probs, probs)


def _largest_threshold(probs: jax.Array, amounts: jax.Array, target: jax.Array) -> jax.Array:
    """Largest t with sum(amounts where probs >= t) >= target. [rows, 1]"""
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the condition holds at low and fails at high
        middle = low + (high - low) // 2
        reached = jnp.sum(jnp.where(bits >= middle, amounts, 0), axis=-1, keepdims=True) >= target
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    rows = probs.shape[0]
    one_above = jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)
    bounds = (jnp.zeros((rows, 1), jnp.int32), jnp.full((rows, 1), one_above))
    low, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    return jax.lax.bitcast_convert_type(low, jnp.float32)
