"""A sweep over chunks visits every token once and puts each result in its token's place."""

import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.losses.chunks import sweep


@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 3, 4), (2, 0)])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_results_lie_where_their_tokens_do_and_totals_count_each_once(shape, chunk):
    numbers = jnp.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)
    pairs = jnp.stack([numbers, -numbers], axis=-1)

    def one_chunk(total, tokens):
        number, pair = tokens
        assert len(number) <= chunk
        return total + number.sum(), {"twice": 2 * number, "pair": pair[:, ::-1]}

    total, results = sweep(one_chunk, 0.0, (numbers, pairs), shape=shape, chunk=chunk)
    np.testing.assert_array_equal(total, numbers.sum())
    np.testing.assert_array_equal(results["twice"], 2 * numbers)
    np.testing.assert_array_equal(results["pair"], pairs[..., ::-1])


@pytest.mark.parametrize(
    "shape, chunk, size",
    [
        ((4, 12), 24, 24),  # 2 chunks, half of each row
        ((4, 12), 10, 8),  # 6 chunks, a sixth of each row, where 5 would do
        ((2, 7), 6, 5),  # 3 chunks, the last padded: no number from 3 to 5 divides 7 or 14
        ((35,), 10, 7),  # one row of many: 5 chunks divide it, 4 do not
        ((7,), 4, 4),  # 2 chunks, the last padded with one token
    ],
)
def test_chunks_take_as_much_of_every_row_where_their_number_can(shape, chunk, size):
    seen = []

    def one_chunk(total, tokens):
        seen.append(tokens.shape[0])
        return total, tokens

    sweep(one_chunk, None, jnp.zeros(shape), shape=shape, chunk=chunk)
    assert set(seen) == {size}
