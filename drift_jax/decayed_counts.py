"""Pass rates from decayed counts of successes and failures: the estimate of the authors' release.

The DRIFT paper smooths the rate itself (Eq. 8, `difficulty.PassRates`). The pseudo-code that its
authors published counts instead: successes and failures of a problem fade with the steps since its
last visit, a Beta prior stands behind them, and a rate with little evidence shrinks to one half.
Host side, plain Python.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class DecayedCounts:
    """The estimated pass rate of every problem seen so far.

        k = decay ^ (steps since the last visit)
        s = k s + successes,   f = k f + failures
        raw = (s + prior) / (s + f + 2 prior)
        r = c raw + (1 - c) / 2   with   c = (s + f) / (s + f + shrink)

    Args:
      decay: weight of a count after one training step, in [0, 1]. The release has 0.85: a problem
        met again after an epoch of 16 steps keeps 7 % of its past.
      prior: pseudo-counts of a success and of a failure each, at least 0.
      shrink: number of rollouts at which half of the weight is still on 1/2; 0 trusts any count.
    """

    def __init__(self, decay: float = 0.85, prior: float = 1.0, shrink: float = 8.0) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"count_decay is {decay}; use a value in [0, 1]")
        if prior < 0 or shrink < 0:
            raise ValueError(f"prior is {prior} and shrink {shrink}; use counts of at least 0")
        self.decay, self.prior, self.shrink = decay, prior, shrink
        self._counts: dict[str, tuple[float, float, int]] = {}  # successes, failures, last step

    def __len__(self) -> int:
        """Number of problems seen so far."""
        return len(self._counts)

    def visit(self, problem_ids: Sequence[str], is_correct: np.ndarray, *, step: int) -> np.ndarray:
        """Takes in the groups of a step and returns the estimated rates.

        Args:
          problem_ids: persistent ids, `task/split/idx`. [problem]. A problem that occurs twice is
            visited twice, in order.
          is_correct: which rollouts succeeded. bool [problem, group].
          step: training step, not before that of the last visit.

        Returns:
          r, this visit included. float64 [problem], in [0, 1].

        Raises:
          ValueError: the shapes do not fit, or the step lies before one already seen.
        """
        is_correct = np.asarray(is_correct, bool)
        if is_correct.ndim != 2 or len(is_correct) != len(problem_ids):
            raise ValueError(
                f"got outcomes of shape {is_correct.shape} for {len(problem_ids)} ids; pass"
                " [problem, group]"
            )
        rates = np.empty(len(problem_ids))
        for row, problem_id in enumerate(problem_ids):
            successes, failures, last = self._counts.get(problem_id, (0.0, 0.0, step))
            if step < last:
                raise ValueError(f"{problem_id!r} was seen in step {last}, after step {step}")
            kept, right = self.decay ** (step - last), int(is_correct[row].sum())
            successes = kept * successes + right
            failures = kept * failures + is_correct.shape[1] - right
            self._counts[problem_id] = (successes, failures, step)
            rates[row] = self._rate(successes, failures)
        return rates

    def clear(self) -> None:
        """Forgets all problems."""
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """All counts, ready for JSON; a round trip through text is exact."""
        return {"counts": {problem: list(counts) for problem, counts in self._counts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces all counts by those of `state_dict`.

        Raises:
          ValueError: the state is not one that `state_dict` gives; the counts are left untouched.
        """
        counts = state.get("counts")
        if not isinstance(counts, Mapping):
            raise ValueError(
                f"pass rates have the keys {sorted(state)}, expected 'counts'"
                " (difficulty.estimate=beta); keep the estimate of the run, or start a new one"
            )
        loaded = {}
        for problem_id, entry in counts.items():
            try:
                successes, failures, last = entry
                loaded[str(problem_id)] = (float(successes), float(failures), int(last))
                valid = min(float(successes), float(failures), int(last)) >= 0
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise ValueError(
                    f"counts of {problem_id!r} are {entry!r}; expected successes, failures, step"
                )
        self._counts = loaded

    def _rate(self, successes: float, failures: float) -> float:
        seen = successes + failures
        pseudo = seen + 2 * self.prior
        raw = (successes + self.prior) / pseudo if pseudo > 0 else 0.5
        confidence = seen / (seen + self.shrink) if seen > 0 else 0.0
        return min(max(confidence * raw + (1 - confidence) / 2, 0.0), 1.0)
