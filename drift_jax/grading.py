"""From sampled tokens to texts and rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from drift_jax.data import prompting
from drift_jax.rewards import grader_for
from drift_jax.rewards.pool import RewardPool
from drift_jax.types import Problem, Rollouts, Score


class RewardsFailed(RuntimeError):
    """A reward function failed on every response of a step; the message has one cause."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A group of graded responses a problem, [problem, group] each.

    Attributes:
      responses: decoded text without special tokens. [problem][group]
      rewards: float64.
      predictions: the answer that the grader read. [problem][group]
      well_formed: bool, whether it had the asked form.
      lengths: response tokens, the stop token included.
      entropies: mean token entropy, in nats.
      finished: bool, False where the response was cut at the limit.
      failures: a cause for each response on which a user's reward function failed; its reward is 0.
      feedback: what the grader said was wrong, blank where nothing. [problem][group]; None where
        nobody asked.
    """

    responses: list[list[str]]
    rewards: np.ndarray
    predictions: list[list[str]]
    well_formed: np.ndarray
    lengths: np.ndarray
    entropies: np.ndarray
    finished: np.ndarray
    failures: tuple[str, ...] = ()
    feedback: list[list[str]] | None = None


class Grader:
    """Scores responses; use it as a context manager, which closes the pool.

    Without a pool each problem is graded by the verifier of its task, in this process: that takes
    microseconds and never fails. With one, by the user's function in the pool's processes.
    """

    def __init__(self, pool: RewardPool | None = None) -> None:
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()

    def score(
        self, problems: Sequence[Problem], responses: Sequence[Sequence[str]]
    ) -> list[list[Score]]:
        """Scores of the responses to each problem. [problem][group]"""
        if self._pool is None:
            return [
                [grader_for(problem.task)(response, problem.answer) for response in group]
                for problem, group in zip(problems, responses, strict=True)
            ]
        pairs = [
            (response, problem.answer)
            for problem, group in zip(problems, responses, strict=True)
            for response in group
        ]
        scores = iter(self._pool.score(pairs))
        return [[next(scores) for _ in group] for group in responses]


def grade(
    tokenizer: Any,
    problems: Sequence[Problem],
    rollouts: Rollouts,
    grader: Grader | None = None,
) -> Answers:
    """Decodes the rollouts of each problem and scores them.

    Args:
      tokenizer: of the policy.
      problems: in the order of the rollouts' rows.
      rollouts: problem-major rows.
      grader: scores the texts; None is the verifier of each problem's task.

    Raises:
      RewardsFailed: the reward function failed on all of them; training on zeros would be silent.
    """
    shape = (len(problems), len(rollouts.tokens) // len(problems))
    texts = [
        prompting.decode(tokenizer, tokens[:length])
        for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
    ]
    responses = [texts[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
    scores = (grader or Grader()).score(problems, responses)
    failures = tuple(one.feedback for group in scores for one in group if one.failed)
    if failures and len(failures) == len(texts):
        raise RewardsFailed(
            f"all {len(texts)} calls of the reward function failed, the first one so: "
            f"{failures[0]}; mend it and run the same command again"
        )
    return Answers(
        responses=responses,
        rewards=np.array([[one.reward for one in group] for group in scores], np.float64),
        predictions=[[one.prediction for one in group] for group in scores],
        well_formed=np.array([[one.well_formed for one in group] for group in scores], bool),
        lengths=rollouts.lengths.reshape(shape),
        entropies=rollouts.mean_entropy.reshape(shape),
        finished=rollouts.finished.reshape(shape),
        failures=failures,
        feedback=[[score.feedback for score in group] for group in scores],
    )
