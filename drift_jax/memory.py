"""What a run remembers between steps on the host: pass rates and the success buffer.

Its state is a piece of JSON and goes into the checkpoint beside the device state.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drift_jax import teacher
from drift_jax.buffer import SuccessBuffer
from drift_jax.difficulty import PassRates
from drift_jax.grading import Answers


@dataclass
class Memory:
    """Pass rates (DRIFT Eq. 8), success buffer (Eqs. 17-22), and what the run has come to so far.

    Attributes:
      tokens_total: tokens sampled.
      best_validation: highest mean reward on the validation problems; None before any.
    """

    pass_rates: PassRates
    buffer: SuccessBuffer
    tokens_total: int = 0
    best_validation: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "pass_rates": self.pass_rates.state_dict(),
            "buffer": self.buffer.state_dict(),
            "tokens_total": self.tokens_total,
            "best_validation": self.best_validation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of `state_dict`."""
        self.pass_rates.load_state_dict(state["pass_rates"])
        self.buffer.load_state_dict(state["buffer"])
        self.tokens_total = int(state["tokens_total"])
        best = state["best_validation"]
        self.best_validation = None if best is None else float(best)

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


def draws(seed: int, step: int) -> Callable[[str], np.random.Generator]:
    """Random numbers of a buffer draw: a function of (seed, step, problem id) alone (B5)."""

    def rng_for(problem_id: str) -> np.random.Generator:
        digest = hashlib.blake2b(problem_id.encode(), digest_size=8).digest()
        return np.random.default_rng([seed, step, int.from_bytes(digest, "little")])

    return rng_for
