"""Keys and values of past tokens, and the attention that reads them.

One buffer a layer, never stacked: inside a `while_loop` XLA then updates each in place, where a
stacked cache would be copied every step. The layouts (keys `[rows, kv_heads, head_dim, slots]`,
values `[rows, kv_heads, slots, head_dim]`) make both products of a decoding step contiguous; they
are a private detail of this module.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class LayerCache:
    """Keys and values of one layer."""

    key: jax.Array  # [rows, kv_heads, head_dim, slots]
    value: jax.Array  # [rows, kv_heads, slots, head_dim]

    @property
    def slots(self) -> int:
        """Length of the buffer."""
        return self.value.shape[2]


def causal_mask(mask: jax.Array) -> jax.Array:
    """Which keys each query may see: real tokens not after it, and always itself.

    The diagonal is kept for padding too: a row of attention without any visible key has no softmax.

    Args:
      mask: which tokens are real. [batch, time] bool

    Returns:
      [batch, 1, query, key] bool.
    """
    time = mask.shape[-1]
    causal = jnp.tril(jnp.ones((time, time), bool))
    return ((causal & mask[:, None, :]) | jnp.eye(time, dtype=bool))[:, None]


def attend_rows(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visible: jax.Array,
    window: int | None,
) -> jax.Array:
    """Attention of whole rows, without a cache.

    Args:
      query: [batch, time, heads, head_dim]
      key, value: [batch, time, kv_heads, head_dim]
      visible: which keys each query may see, from `causal_mask`.
      window: see only this many of the last tokens, the query's own included; None is no limit.
        The distance is that of columns, which is that of tokens as padding stands at the ends only.

    Returns:
      Like `query`.
    """
    # A static window, not part of the mask: fused kernels skip what lies outside it.
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(query, key, value, mask=visible, local_window_size=local)


def visible_slots(first: jax.Array, slot: jax.Array, slots: int, window: int | None) -> jax.Array:
    """Which slots the token at `slot` sees: those of its row, itself included. [rows, slots] bool

    Args:
      first: slot of each row's first token; the row is contiguous from there. [rows]
      slot: scalar, the slot of the present token.
      slots: length of the cache.
      window: as in `attend_rows`.
    """
    if window is not None:
        first = jnp.maximum(first, slot - window + 1)
    index = jnp.arange(slots)
    return (index >= first[:, None]) & (index <= slot)


def empty(rows: int, kv_heads: int, head_dim: int, slots: int, dtype: jnp.dtype) -> LayerCache:
    """A cache of zeros."""
    return LayerCache(
        key=jnp.zeros((rows, kv_heads, head_dim, slots), dtype),
        value=jnp.zeros((rows, kv_heads, slots, head_dim), dtype),
    )


def from_prefill(key: jax.Array, value: jax.Array) -> LayerCache:
    """The cache of whole prompts. key and value: [problem, time, kv_heads, head_dim]"""
    return LayerCache(key=key.transpose(0, 2, 3, 1), value=value.transpose(0, 2, 1, 3))


def insert(
    cache: LayerCache, prompts: LayerCache, chosen: jax.Array, fresh: jax.Array, end: jax.Array
) -> LayerCache:
    """Writes prompts into the slots before `end`.

    Args:
      cache: of all rows.
      prompts: a row a problem.
      chosen: the problem of each row. [rows]
      fresh: which rows are written; the others keep what they have. [rows] bool
      end: scalar, at least the prompts' padded length.
    """

    def write(old: jax.Array, prompts: jax.Array, axis: int) -> jax.Array:
        start, width = end - prompts.shape[axis], prompts.shape[axis]
        kept = jax.lax.dynamic_slice_in_dim(old, start, width, axis)
        new = jnp.where(fresh[:, None, None, None], prompts[chosen], kept)
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

    return LayerCache(
        key=write(cache.key, prompts.key, 3), value=write(cache.value, prompts.value, 2)
    )


def moved(cache: LayerCache, rows: jax.Array, shift: jax.Array, slots: int) -> LayerCache:
    """Some rows of a cache, without its first `shift` slots, made `slots` long."""

    def take(old: jax.Array, axis: int) -> jax.Array:
        room = [(0, slots if i == axis else 0) for i in range(old.ndim)]
        return jax.lax.dynamic_slice_in_dim(jnp.pad(old[rows], room), shift, slots, axis)

    return LayerCache(key=take(cache.key, 3), value=take(cache.value, 2))


def append(cache: LayerCache, key: jax.Array, value: jax.Array, slot: jax.Array) -> LayerCache:
    """Writes one token of every row at `slot`. key and value: [rows, kv_heads, head_dim]

    The slot is the same for all rows, yet they are written one by one: as an update of one slice,
    XLA:CPU would fuse it into the products that read the cache, compute it a second time for the
    next step, and copy both buffers four times a step.
    """
    rows = jnp.arange(key.shape[0])
    written = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}
    return LayerCache(
        key=cache.key.at[rows, :, :, slot].set(key, **written),
        value=cache.value.at[rows, :, slot].set(value, **written),
    )


def attend(cache: LayerCache, query: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of one new token a row over its cache; softmax in float32.

    Args:
      cache: keys and values, the new token's included.
      query: [rows, heads, head_dim]
      visible: which slots hold a token that the new one sees. [rows, slots] bool

    Returns:
      [rows, heads, head_dim].
    """
    rows, heads, head_dim = query.shape
    kv_heads = cache.key.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(grouped, cache.key, preferred_element_type=wide) * head_dim**-0.5
    scores = jnp.where(visible[:, None, None, :], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return jnp.matmul(weights, cache.value).reshape(query.shape)
