"""From sampled tokens to texts and rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drift_jax.data import prompting
from drift_jax.rewards import grader_for
from drift_jax.types import Problem, Rollouts


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
      derived: bool, whether the derivation is right; None where the task cannot check one.
    """

    responses: list[list[str]]
    rewards: np.ndarray
    predictions: list[list[str]]
    well_formed: np.ndarray
    lengths: np.ndarray
    entropies: np.ndarray
    finished: np.ndarray
    derived: np.ndarray | None = None


def grade(tokenizer: Any, problems: Sequence[Problem], rollouts: Rollouts) -> Answers:
    """Decodes the rollouts of each problem and scores them with the task's verifier.

    Args:
      tokenizer: of the policy.
      problems: in the order of the rollouts' rows.
      rollouts: problem-major rows.
    """
    shape = (len(problems), len(rollouts.tokens) // len(problems))
    texts = [
        prompting.decode(tokenizer, tokens[:length])
        for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
    ]
    responses = [texts[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
    scores = [
        [grader_for(problem.task)(response, problem.answer) for response in group]
        for problem, group in zip(problems, responses, strict=True)
    ]
    derived = [[score.derived for score in group] for group in scores]
    checked = all(flag is not None for group in derived for flag in group)
    return Answers(
        responses=responses,
        rewards=np.array([[score.reward for score in group] for group in scores], np.float64),
        predictions=[[score.prediction for score in group] for group in scores],
        well_formed=np.array([[score.well_formed for score in group] for group in scores], bool),
        lengths=rollouts.lengths.reshape(shape),
        entropies=rollouts.mean_entropy.reshape(shape),
        finished=rollouts.finished.reshape(shape),
        derived=np.array(derived, bool) if checked else None,
    )
