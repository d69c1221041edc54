"""From logits to one token: truncation by top-k and top-p, and a draw by inversion.

Drawing by inversion needs two uniforms a row where Gumbel noise needs one a vocabulary entry; two
levels (first a block of entries, then the entry in it) keep float32 fine enough for rare tokens of
a large vocabulary.
"""

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

    Args:
      logits: [rows, vocab], float32
      uniforms: two numbers in [0, 1) a row. [rows, 2]
      temperature: scalar; 0 takes the largest logit.
      top_p: scalar in (0, 1]; 1 keeps everything.
      top_k: integer scalar; 0 keeps everything.
    """
    log_probs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1, where=log_probs > -jnp.inf)
    tempered = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6))
    # Training keeps everything: the search for thresholds is then not run.
    kept = jax.lax.cond(
        (top_p < 1) | (top_k > 0), lambda p: truncate(p, top_p, top_k), lambda p: p, tempered
    )
    token = jnp.where(temperature > 0, invert(kept, uniforms), jnp.argmax(logits, axis=-1))
    picked = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    return Choice(token.astype(jnp.int32), picked, entropy)


def invert(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """The token at which the cumulated weights pass a uniform draw, in two levels. [rows]

    Args:
      weights: non-negative, not necessarily normalised. [rows, vocab]
      uniforms: the first picks a block of `BLOCK` entries, the second the entry in it. [rows, 2]
    """
    rows, vocab = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(rows, -1, BLOCK)
    block = _pass(blocks.sum(axis=-1), uniforms[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _pass(inside, uniforms[:, 1])


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
    count = jnp.where(top_k > 0, jnp.minimum(top_k, probs.shape[-1]), probs.shape[-1])
    probs = jnp.where(probs >= _largest_threshold(probs, jnp.ones_like(probs), count), probs, 0)
    mass = top_p * jnp.sum(probs, axis=-1, keepdims=True)
    return jnp.where(probs >= _largest_threshold(probs, probs, mass), probs, 0)


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
