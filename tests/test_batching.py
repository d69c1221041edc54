"""Padding, buckets and the alignment of student and teacher on the response."""

import numpy as np
import pytest

from drift_jax import batching
from drift_jax.types import Rollouts

PROMPTS = [np.array([11, 12, 13], np.int32), np.array([21], np.int32)]  # two problems
CONTEXTS = [np.array([11, 91, 92, 13], np.int32), None, np.array([21, 93], np.int32), None]
RESPONSES = [[5, 6, 2], [7, 2], [2], [8, 9, 10, 6]]  # the last one is cut at the limit
LIMIT = 6  # room that the sampler kept for a response


def rollouts(responses=RESPONSES, limit=LIMIT) -> Rollouts:
    tokens = np.zeros((len(responses), limit), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, response in enumerate(responses):
        tokens[row, : len(response)], mask[row, : len(response)] = response, True
    log_probs = np.where(mask, -0.5 - np.arange(limit), 0).astype(np.float32)
    return Rollouts(tokens, mask, log_probs, -log_probs, np.ones(len(responses), bool))


def make(teacher_prompts=CONTEXTS, sampled=None, prompts=PROMPTS, **changes) -> batching.Batch:
    settings = {
        "advantages": np.array([[0.5, -0.5], [0.25, -0.25]]),
        "policy_weight": np.array([[1.0, 0.0], [0.5, 0.0]]),
        "distill_weight": np.array([[0.0, 0.0], [1.0, 0.0]]),
        "gate": np.array([[True, False], [False, False]]),
        "prompt_buckets": (4, 8),
        "teacher_buckets": (5, 9),
        "response_buckets": (4, 6),
    }
    sampled = rollouts() if sampled is None else sampled
    return batching.make(prompts, sampled, teacher_prompts, **settings | changes)


def test_prompts_end_and_responses_begin_at_the_same_column():
    batch = make()
    np.testing.assert_array_equal(
        batch.student_tokens[0],
        [
            [0, 11, 12, 13, 5, 6, 2, 0],
            [0, 11, 12, 13, 7, 2, 0, 0],
            [0, 0, 0, 21, 2, 0, 0, 0],
            [0, 0, 0, 21, 8, 9, 10, 6],
        ],
    )
    np.testing.assert_array_equal(
        batch.student_mask[0],
        np.array(
            [
                [0, 1, 1, 1, 1, 1, 1, 0],
                [0, 1, 1, 1, 1, 1, 0, 0],
                [0, 0, 0, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 1, 1, 1],
            ],
            bool,
        ),
    )


def test_a_row_without_teacher_gets_its_own_prompt():
    np.testing.assert_array_equal(
        make().teacher_tokens[0],
        [
            [0, 11, 91, 92, 13, 5, 6, 2, 0],
            [0, 0, 11, 12, 13, 7, 2, 0, 0],
            [0, 0, 0, 21, 93, 2, 0, 0, 0],
            [0, 0, 0, 0, 21, 8, 9, 10, 6],
        ],
    )


@pytest.mark.parametrize("teacher_buckets", [(5,), (9,), (40,)])
def test_teacher_and_student_agree_on_the_last_columns(teacher_buckets):
    batch = make(teacher_buckets=teacher_buckets)
    time = batch.response.shape[-1]
    for tokens, mask in (
        (batch.student_tokens, batch.student_mask),
        (batch.teacher_tokens, batch.teacher_mask),
    ):
        np.testing.assert_array_equal(tokens[..., -time:], batch.response)
        np.testing.assert_array_equal(mask[..., -time:], batch.response_mask)
        # The column before holds the last token of a prompt, which predicts the first sampled one.
        assert mask[..., -time - 1].all()


def test_the_stop_token_is_part_of_the_response():
    batch = make()
    lengths = batch.response_mask[0].sum(axis=1)
    assert lengths.tolist() == [len(response) for response in RESPONSES]
    last = batch.response[0][np.arange(4), lengths - 1]
    assert last.tolist() == [2, 2, 2, 6]


def test_what_lies_behind_a_response_is_not_carried_along():
    sampled = rollouts()
    sampled.tokens = np.where(sampled.mask, sampled.tokens, 77)
    dirty = make(sampled=sampled)
    clean = make()
    np.testing.assert_array_equal(dirty.student_tokens, clean.student_tokens)
    np.testing.assert_array_equal(dirty.teacher_tokens, clean.teacher_tokens)


def test_without_teachers_there_are_no_teacher_arrays():
    batch = make(teacher_prompts=None)
    assert batch.teacher_tokens is None and batch.teacher_mask is None
    np.testing.assert_array_equal(batch.student_tokens, make().student_tokens)


def test_a_bucket_is_the_smallest_that_holds_the_longest():
    assert [batching.bucket(length, (4, 8), "it") for length in (0, 1, 4, 5, 8)] == [4, 4, 4, 8, 8]
    longer = [np.arange(5, dtype=np.int32), PROMPTS[1]]
    assert make(prompts=longer).student_tokens.shape[-1] == 8 + 4
    assert make(teacher_prompts=[np.arange(6), None, None, None]).teacher_tokens.shape[-1] == 9 + 4
    # The sampler's room does not count, the longest response does.
    assert make().response.shape[-1] == 4
    assert make(sampled=rollouts([[1] * 5] * 4)).response.shape[-1] == 6


def test_a_response_bucket_may_be_longer_than_the_samplers_room():
    batch = make(response_buckets=(8,))
    assert batch.response.shape[-1] == batch.sampler_log_probs.shape[-1] == 8
    assert not batch.response_mask[..., LIMIT:].any()
    np.testing.assert_array_equal(batch.response[..., :4], make().response)


def test_rows_are_problem_major_and_micro_batches_are_cut_in_order():
    whole, halves = make(), make(micro_batch=2)
    assert whole.advantages.tolist() == [[0.5, -0.5, 0.25, -0.25]]
    assert halves.advantages.tolist() == [[0.5, -0.5], [0.25, -0.25]]
    for name, array in whole._asdict().items():
        part = getattr(halves, name)
        assert part.shape[:2] == (2, 2) and array.shape[:2] == (1, 4), name
        np.testing.assert_array_equal(part.reshape(array.shape), array, err_msg=name)


def test_every_array_has_the_type_that_the_update_is_compiled_for():
    integers = {"student_tokens", "teacher_tokens", "response"}
    flags = {"student_mask", "teacher_mask", "response_mask"}
    flags |= {"policy_rows", "distill_rows", "taught", "fresh"}
    for name, array in make(gate=np.zeros((2, 2)))._asdict().items():
        expected = "int32" if name in integers else "bool" if name in flags else "float32"
        assert array.dtype == expected, name


def test_log_probs_stay_with_their_tokens():
    batch = make()
    np.testing.assert_array_equal(batch.sampler_log_probs[0, 3], [-0.5, -1.5, -2.5, -3.5])
    np.testing.assert_array_equal(batch.sampler_log_probs[0, 1], [-0.5, -1.5, 0, 0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt_buckets": (1, 2)}, "a prompt of 3 tokens exceeds the largest bucket, 2; add a"),
        ({"teacher_buckets": (3,)}, "a teacher prompt of 4 tokens exceeds the largest bucket, 3"),
        ({"response_buckets": (2, 3)}, "a response of 4 tokens exceeds the largest bucket, 3"),
        ({"micro_batch": 3}, "4 rows do not divide into micro-batches of 3; use a divisor"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_one_teacher_prompt_a_row_is_asked_for():
    with pytest.raises(ValueError):
        make(teacher_prompts=CONTEXTS[:3])
