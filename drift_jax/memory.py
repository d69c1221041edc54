"""What a run remembers between steps on the host: pass rates, success buffer, teacher schedule.

Its state is a piece of JSON and goes into the checkpoint beside the device state.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drift_jax import teacher
from drift_jax.buffer import SuccessBuffer
from drift_jax.decayed_counts import DecayedCounts
from drift_jax.difficulty import PassRates
from drift_jax.grading import Answers
from drift_jax.teacher_schedule import TeacherSchedule


@dataclass
class Memory:
    """What one step leaves for the next.

    Attributes:
      pass_rates: of every problem seen (DRIFT Eq. 8, or the release's decayed counts).
      buffer: successes (Eqs. 17-22).
      tokens_total: tokens sampled so far.
      best_validation: highest mean reward on the validation problems; None before any.
      schedule: when the self-teacher follows the student.
      reset_every: steps between two resets of the pass rates; 0 is never.
      reset_after: steps before the first interval begins, those of the warm-up.
    """

    pass_rates: PassRates | DecayedCounts
    buffer: SuccessBuffer
    tokens_total: int = 0
    best_validation: float | None = None
    schedule: TeacherSchedule = field(default_factory=TeacherSchedule)
    reset_every: int = 0
    reset_after: int = 0

    def visit(self, problem_ids: Sequence[str], is_correct: np.ndarray, *, step: int) -> np.ndarray:
        """Pass rates after the groups of a step; where a reset is due it comes first.

        Args:
          problem_ids: of the step. [problem].
          is_correct: which rollouts succeeded. bool [problem, group].
          step: training step, from 1.

        Returns:
          float64 [problem].
        """
        passed = step - self.reset_after
        if self.reset_every and passed > 0 and passed % self.reset_every == 0:
            self.pass_rates.clear()
        return self.pass_rates.visit(problem_ids, is_correct, step=step)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "pass_rates": self.pass_rates.state_dict(),
            "buffer": self.buffer.state_dict(),
            "tokens_total": self.tokens_total,
            "best_validation": self.best_validation,
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of `state_dict`.

        A state from before there were schedules has none; then the schedule stays as it is, which
        is right for a moving average and for a frozen teacher: they remember nothing.

        Raises:
          ValueError: a part is not the state of that part; it names which and what was expected.
        """
        self.pass_rates.load_state_dict(state["pass_rates"])
        self.buffer.load_state_dict(state["buffer"])
        self.tokens_total = int(state["tokens_total"])
        best = state["best_validation"]
        self.best_validation = None if best is None else float(best)
        if "schedule" in state:
            self.schedule.load_state_dict(state["schedule"])

    def is_best(self, validation: float) -> bool:
        """Takes note of a validation score; whether it is the highest so far, or equals it."""
        if self.best_validation is not None and validation < self.best_validation:
            return False
        self.best_validation = validation
        return True

    def keep_successes(
        self,
        problem_ids: Sequence[str],
        answers: Answers,
        *,
        step: int,
        sibling: str,
        success_threshold: float,
    ) -> int:
        """Offers a step's successes to the buffer, preferred ones first (DRIFT Eqs. 18, 21-22).

        Returns how many are stored now.
        """
        added = 0
        for row, problem_id in enumerate(problem_ids):
            order = teacher.preference_order(
                answers.rewards[row],
                answers.entropies[row],
                answers.lengths[row],
                sibling=sibling,
                success_threshold=success_threshold,
            )
            for rollout in order:
                added += self.buffer.add(
                    problem_id,
                    answers.responses[row][rollout],
                    answers.rewards[row, rollout],
                    step=step,
                    token_length=int(answers.lengths[row, rollout]),
                    entropy=float(answers.entropies[row, rollout]),
                )
        return added


def draws(seed: int, step: int, *purpose: int) -> Callable[[str], np.random.Generator]:
    """Random numbers of a buffer draw: a function of (seed, step, problem id) alone (B5).

    Draws for another purpose than teaching name it by a number, and are independent of those.
    """

    def rng_for(problem_id: str) -> np.random.Generator:
        digest = hashlib.blake2b(problem_id.encode(), digest_size=8).digest()
        return np.random.default_rng([seed, step, int.from_bytes(digest, "little"), *purpose])

    return rng_for
