"""Shapes, the queue and the table of rows: no device."""

import numpy as np
import pytest

from drift_jax.sampling import schedule
from drift_jax.sampling.schedule import Queue, Table, shapes


def made(problems=32, group_size=8, longest=600, **settings):
    settings = {
        "row_buckets": (16, 64, 256),
        "cache_buckets": (128, 256),
        "max_rows": 256,
        "multiple": 1,
    } | settings
    return shapes(problems, group_size, longest, **settings)


def test_a_call_starts_on_the_rung_that_holds_it():
    assert made().rows == (16, 64, 256)
    assert made(problems=5).rows == (16, 64)
    assert made(problems=2).rows == (16,)
    assert not made().queued


def test_more_rollouts_than_rows_wait_for_the_largest_batch():
    assert made(problems=33).rows == (16, 64, 256)
    assert made(problems=33).queued


def test_without_buckets_there_are_as_many_rows_as_rollouts():
    assert made(problems=5, row_buckets=()).rows == (40,)
    assert made(problems=50, row_buckets=()).rows == (256,)


def test_rows_that_do_not_divide_over_the_devices_are_left_out():
    assert made(row_buckets=(12, 64, 256), multiple=8).rows == (64, 256)


def test_caches_end_with_the_longest_response_and_are_never_longer():
    assert made().slots == (128, 256, 600)
    assert made(longest=200).slots == (128, 200)
    assert made(longest=128).slots == (128,)
    assert made(longest=100, cache_buckets=()).slots == (100,)


def test_the_queue_gives_long_prompts_first_and_every_rollout_once():
    prompts = [np.full(length, length) for length in (3, 9, 5, 9, 2)]
    queue = Queue(prompts, 2, (4, 10))
    seen = []
    while queue:
        width = queue.width
        chunk = queue.take(3, (2, 8))
        assert chunk.tokens.shape == chunk.mask.shape == (2, width)
        seen += [(int(chunk.problems[place]), int(index)) for place, index in chunk.rollouts]
        lengths = chunk.mask.sum(axis=1)
        assert [len(prompts[i]) for i in chunk.problems] == list(lengths)
    assert seen == [(i, rollout) for i in (1, 3, 2, 0, 4) for rollout in range(2)]
    assert queue.width == 0


def test_a_large_chunk_holds_prompts_of_one_bucket():
    prompts = [np.ones(length) for length in (9, 9, 9, 3)]
    chunk = Queue(prompts, 1, (4, 10)).take(4, (1, 4))
    assert chunk.tokens.shape == (4, 10)
    assert len(chunk.rollouts) == 3  # the short prompt waits for its own
    assert list(chunk.problems) == [0, 1, 2, 0]


def test_a_prompt_over_the_largest_bucket_is_refused_before_anything_runs():
    with pytest.raises(
        ValueError, match="a prompt has 5 tokens but the largest prompt bucket is 4"
    ):
        Queue([np.ones(5)], 1, (4,))


def test_moving_keeps_the_busy_rows_and_their_distance_to_the_clock():
    table = Table(
        owner=np.array([7, -1, 3, -1]),
        first=np.array([4, 0, 9, 0]),
        start=np.array([8, 0, 12, 0]),
        clock=15,
        slots=20,
    )
    assert table.shift(keep=0) == 4
    assert table.shift(keep=12) == 3
    moved, source, keep = table.moved(rows=3, shift=4, slots=16)
    assert list(source) == [0, 2, 0] and list(keep) == [True, True, False]
    assert list(moved.owner) == [7, 3, -1]
    assert list(moved.clock - moved.start[:2]) == [7, 3]
    assert list(moved.first[:2]) == [0, 5]
    assert (moved.clock, moved.slots) == (11, 16)


def test_chunk_sizes_are_those_that_the_queue_may_take():
    one = made()
    assert schedule.chunk_sizes(one, 32, prompt_buckets=1) == (32,)
    assert schedule.chunk_sizes(one, 32, prompt_buckets=2) == (4, 32)
    assert schedule.chunk_sizes(made(problems=40), 40, prompt_buckets=1) == (4, 32)
