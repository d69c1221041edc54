"""From prompts and rollouts to padded arrays, teacher and student aligned on the response.

Prompts end and responses begin at the same column in every row:

    student   [ . . prompt | response . . ]      prompt left-padded, response right-padded
    teacher   [ prompt with sibling | response . . ]

so the hidden states that predict the response are the same slice of both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drift_jax.types import Rollouts


class Batch(NamedTuple):
    """One update's rows, split into micro-batches. A pytree on the host and on the device alike."""

    student_tokens: np.ndarray  # [micro, row, prompt + time] int32
    student_mask: np.ndarray  # [micro, row, prompt + time] bool
    teacher_tokens: (
        np.ndarray | None
    )  # [micro, row, teacher prompt + time] int32; None: no teacher is run
    teacher_mask: np.ndarray | None  # same shape, bool
    response: np.ndarray  # [micro, row, time] int32, the sampled tokens
    response_mask: np.ndarray  # [micro, row, time] bool
    sampler_log_probs: np.ndarray  # [micro, row, time] float32, nats
    advantages: np.ndarray  # [micro, row] float32
    policy_weight: np.ndarray  # [micro, row] float32, u of the objective
    distill_weight: np.ndarray  # [micro, row] float32, v of the objective
    gate: np.ndarray  # [micro, row] float32, how far token weights may act (beta, DRIFT Eq. 16)
    policy_rows: np.ndarray  # [micro, row] bool, rows that the policy term's normaliser counts
    distill_rows: np.ndarray  # [micro, row] bool, the same for the distillation term
    taught: np.ndarray  # [micro, row] bool, whether the teacher's prompt shows it anything
    fresh: np.ndarray  # [micro, row] bool, sampled in this step; False: replayed from the buffer


def bucket(length: int, buckets: Sequence[int], what: str) -> int:
    """The smallest bucket that holds `length`.

    Raises:
      ValueError: if none does, with both numbers.
    """
    for size in buckets:
        if length <= size:
            return size
    raise ValueError(
        f"{what} of {length} tokens exceeds the largest bucket, {buckets[-1]}; add a larger bucket"
    )


def left_pad(sequences: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, the last token of every sequence in the last column. [sequence, width]

    Raises:
      ValueError: if a sequence is empty; there is nothing to continue.
    """
    tokens = np.zeros((len(sequences), width), np.int32)
    mask = np.zeros((len(sequences), width), bool)
    for row, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(f"prompt {row} is empty; expected at least one token")
        tokens[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = True
    return tokens, mask


def join(
    prompts: Sequence[np.ndarray], response: np.ndarray, mask: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts, right-padded responses: tokens and mask. [row, width + time]"""
    tokens = np.zeros((len(prompts), width + response.shape[1]), np.int32)
    real = np.zeros(tokens.shape, bool)
    tokens[:, :width], real[:, :width] = left_pad(prompts, width)
    tokens[:, width:] = np.where(mask, response, 0)
    real[:, width:] = mask
    return tokens, real


def make(
    prompts: Sequence[np.ndarray],
    rollouts: Rollouts,
    teacher_prompts: Sequence[np.ndarray | None] | None,
    *,
    advantages: np.ndarray,
    policy_weight: np.ndarray,
    distill_weight: np.ndarray,
    gate: np.ndarray,
    policy_rows: np.ndarray | bool = True,
    distill_rows: np.ndarray | bool = True,
    fresh: np.ndarray | bool = True,
    prompt_buckets: Sequence[int],
    teacher_buckets: Sequence[int],
    response_buckets: Sequence[int],
    micro_batch: int = 0,
) -> Batch:
    """Pads one step's samples to the next buckets and splits them into micro-batches.

    Args:
      prompts: student prompt of each problem, in token ids.
      rollouts: problem-major rows.
      teacher_prompts: prompt with the teacher's context a row; None for a row without teacher,
        which then gets the student's prompt and no weight. None altogether: no teacher is run.
      advantages: [problem, group]
      policy_weight: [problem, group]
      distill_weight: [problem, group]
      gate: [problem, group], from 0 to 1
      policy_rows: rows that the policy term's normaliser counts. [problem, group] or one for all
      distill_rows: the same for the distillation term.
      fresh: rows sampled in this step, not replayed. [problem, group] or one for all
      prompt_buckets: lengths to which student prompts are padded, ascending.
      teacher_buckets: the same for teacher prompts.
      response_buckets: the same for responses.
      micro_batch: rows a micro-batch; 0 is all of them.

    Raises:
      ValueError: if something exceeds its largest bucket, or the rows do not divide.
    """
    rows = len(rollouts.tokens)
    group_size = rows // len(prompts)
    micro_batch = micro_batch or rows
    if rows % micro_batch:
        raise ValueError(
            f"{rows} rows do not divide into micro-batches of {micro_batch}; use a divisor"
        )
    time = bucket(int(rollouts.lengths.max()), response_buckets, "a response")
    response, mask = _fit(rollouts.tokens, time), _fit(rollouts.mask, time)
    each_row = [prompt for prompt in prompts for _ in range(group_size)]
    width = bucket(max(map(len, prompts)), prompt_buckets, "a prompt")
    student_tokens, student_mask = join(each_row, response, mask, width)
    teacher_tokens = teacher_mask = None
    if teacher_prompts is not None:
        contexts = [
            own if given is None else given
            for own, given in zip(each_row, teacher_prompts, strict=True)
        ]
        width = bucket(max(map(len, contexts)), teacher_buckets, "a teacher prompt")
        teacher_tokens, teacher_mask = join(contexts, response, mask, width)

    def split(array: np.ndarray) -> np.ndarray:
        return array.reshape(rows // micro_batch, micro_batch, *array.shape[1:])

    def column(values: np.ndarray | bool, dtype: type) -> np.ndarray:
        each: np.ndarray = np.asarray(values, dtype)
        return split(np.full(rows, each) if each.ndim == 0 else each.reshape(rows))

    taught = [context is not None for context in teacher_prompts or [None] * rows]

    return Batch(
        student_tokens=split(student_tokens),
        student_mask=split(student_mask),
        teacher_tokens=None if teacher_tokens is None else split(teacher_tokens),
        teacher_mask=None if teacher_mask is None else split(teacher_mask),
        response=split(response),
        response_mask=split(mask),
        sampler_log_probs=split(_fit(rollouts.log_probs, time)),
        advantages=column(advantages, np.float32),
        policy_weight=column(policy_weight, np.float32),
        distill_weight=column(distill_weight, np.float32),
        gate=column(gate, np.float32),
        policy_rows=column(policy_rows, bool),
        distill_rows=column(distill_rows, bool),
        taught=column(np.array(taught), bool),
        fresh=column(fresh, bool),
    )


def _fit(array: np.ndarray, time: int) -> np.ndarray:
    """Cuts or zero-pads the last axis to `time`; what is cut holds no token."""
    return np.pad(array[:, :time], ((0, 0), (0, max(0, time - array.shape[1]))))
