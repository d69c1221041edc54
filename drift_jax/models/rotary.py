"""Rotary position embedding, and the two ways in which the models here stretch it for long texts.

Pair i of a head turns by position * frequency_i. A scaling slows the pairs that turn less than
about once over the length that the model was first trained on, since longer texts would bring them
to angles that it has not seen.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

Angles = tuple[jax.Array, jax.Array]  # cosine and sine, [token, 1, head_dim/2] each


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1 and later.

    Attributes:
      factor: how much slower the slowest pairs turn.
      low_freq_factor: pairs with fewer turns than this over the original length are slowed in full.
      high_freq_factor: pairs with more turns than this stay as they are.
      original_max_position_embeddings: length of the first training, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071).

    Attributes:
      factor: how much slower the slowest pairs turn.
      original_max_position_embeddings: length of the first training, in tokens.
      beta_fast: pairs with more turns than this over that length stay as they are.
      beta_slow: pairs with fewer turns than this are slowed in full.
      attention_factor: multiplies cosine and sine, hence the attention scores by its square; None
        is the paper's 0.1 ln(factor) + 1.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


Scaling = Llama3Scaling | YarnScaling


def frequencies(head_dim: int, theta: float, scaling: Scaling | None = None) -> jax.Array:
    """Radians a token by which each pair of a head turns. [head_dim/2] float32"""
    half = head_dim // 2
    plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return plain
    kept = (
        _llama3_kept(plain, scaling)
        if isinstance(scaling, Llama3Scaling)
        else _yarn_kept(half, theta, scaling)
    )
    return plain * (kept + (1 - kept) / scaling.factor)


def _llama3_kept(plain: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    """Share of each pair's frequency that stays: linear in its turns over the original length."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    return jnp.clip((turns - scaling.low_freq_factor) / span, 0, 1)


def _yarn_kept(half: int, theta: float, scaling: YarnScaling) -> jax.Array:
    """Share of each pair's frequency that stays: linear in the index of the pair."""

    def pair_with(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return half * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), 2 * half - 1)
    # Both ends may fall on one pair: the ramp is then a step behind it.
    slowed = (jnp.arange(half, dtype=jnp.float32) - first) / max(last - first, 1e-3)
    return 1 - jnp.clip(slowed, 0, 1)


def attention_factor(scaling: Scaling | None) -> float:
    """What cosine and sine are multiplied by."""
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0


def angles(
    positions: jax.Array, head_dim: int, theta: float, scaling: Scaling | None = None
) -> Angles:
    """Cosine and sine of each position's rotation. [token] -> two [token, 1, head_dim/2]"""
    turned = positions[..., None, None].astype(jnp.float32) * frequencies(head_dim, theta, scaling)
    size = attention_factor(scaling)
    cos, sin = jnp.cos(turned), jnp.sin(turned)
    return (cos, sin) if size == 1 else (cos * size, sin * size)


def rotate(x: jax.Array, turn: Angles) -> jax.Array:
    """Turns [token, heads, head_dim]; pairs are (i, i + head_dim/2)."""
    cos, sin = turn
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
