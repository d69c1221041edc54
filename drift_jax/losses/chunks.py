"""Work on the tokens of a batch, a chunk at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sweep(
    one_chunk: Callable[[Any, Any], tuple[Any, Any]],
    totals: Any,
    tokens: Any,
    *,
    shape: tuple[int, ...],
    chunk: int,
) -> tuple[Any, Any]:
    """One loop over all tokens, with sums that pass through it and results of every token.

    Chunks are read from their place and results written to theirs: to cut the arrays up first, and
    put the results together afterwards, would copy all hidden states.

    Args:
      one_chunk: (totals, tokens of a chunk) -> (totals, results of its tokens). The arrays of both
        trees of tokens are [tokens of a chunk, ...].
      totals: sums before the first chunk.
      tokens: tree of arrays, [*shape, ...].
      shape: axes of the batch.
      chunk: most tokens at a time.

    Returns:
      The totals, and the results, [*shape, ...]. What fills up the last chunk is zeros, and belongs
      to no result, but is part of the totals: give it weights of 0.
    """
    layout = _Layout(shape, chunk)
    views = jax.tree.map(layout.split, tokens)

    def of_chunk(c: jax.Array | int) -> Any:
        return jax.tree.map(
            lambda view: jax.lax.dynamic_index_in_dim(view, c, axis=1, keepdims=False), views
        )

    def put(c: jax.Array, places: Any, results: Any) -> Any:
        return jax.tree.map(
            lambda place, x: jax.lax.dynamic_update_index_in_dim(place, x, c, axis=1),
            places,
            results,
        )

    def step(c: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        totals, places = carry
        totals, results = one_chunk(totals, of_chunk(c))
        return totals, put(c, places, results)

    _, shapes = jax.eval_shape(one_chunk, totals, jax.eval_shape(lambda: of_chunk(0)))
    places = jax.tree.map(
        lambda x: jnp.zeros((layout.size, layout.chunks, *x.shape[1:]), x.dtype), shapes
    )
    totals, places = jax.lax.fori_loop(0, layout.chunks, step, (totals, places))
    return totals, jax.tree.map(layout.join, places)


class _Layout:
    """How tokens [...] are cut into chunks of one size, at most `chunk`, and put together again.

    Chunk c takes tokens c, c + chunks, c + 2 chunks, ...: if the number of chunks divides the
    length of a row, every chunk has as many tokens of each row, and a batch whose rows lie on
    several devices gives all of them the same share of every chunk, without moving anything. Such a
    number is preferred as long as it is less than twice the fewest; then one that divides the
    number of tokens, because padding copies the hidden states.
    """

    def __init__(self, shape: tuple[int, ...], chunk: int):
        self.shape, self.tokens = shape, math.prod(shape)
        row_length = math.prod(shape[1:])
        fewest = max(-(-self.tokens // chunk), 1)
        numbers = range(fewest, 2 * fewest)
        even = (n for whole in (row_length, self.tokens) for n in numbers if whole % n == 0)
        self.chunks = next(even, fewest)
        self.size = -(-self.tokens // self.chunks)

    def split(self, x: jax.Array) -> jax.Array:
        """[..., *rest] -> [size, chunks, *rest], with zeros after the last token."""
        x = x.reshape(self.tokens, *x.shape[len(self.shape) :])
        missing = self.chunks * self.size - self.tokens
        if missing:
            x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(self.size, self.chunks, *x.shape[1:])

    def join(self, x: jax.Array) -> jax.Array:
        """[size, chunks, *rest] -> [..., *rest]."""
        rest = x.shape[2:]
        return x.reshape(-1, *rest)[: self.tokens].reshape(*self.shape, *rest)
