"""Which generated worlds may take part in a comparison: the findability gate.

A method can learn a hidden fact from reward only if it meets a success that needs the fact. Where
the base policy practically never produces one, the end of a run counts facts that nobody could
find, and says nothing about methods. So a world takes part if every fact is findable:

    sum over the training problems that need the fact of  rollouts x success rate  >=  5

where the success rate is that of the base policy before any training, and the rollouts are those
that a problem gets in the first half of a run. A fact that just passes is missed there by one run
in 150 (e^-5), if the policy stood still.

The criterion looks at the world and its base policy and at no method. It was fixed before any
method was run. Success means a right answer; where the task can check the derivation, a lucky guess
does not count.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

EXPECTED_SUCCESSES = 5.0


@dataclass(frozen=True)
class Finding:
    """How findable a hidden fact is.

    Attributes:
      fact: what must be known.
      problems: training problems that need it.
      best: success rate of the easiest of them.
      successes: successes to expect that need it.
    """

    fact: Hashable
    problems: int
    best: float
    successes: float

    @property
    def found(self) -> bool:
        """Whether the fact is findable."""
        return self.successes >= EXPECTED_SUCCESSES


def rollouts_per_problem(
    *, steps: int, problems_per_step: int, group_size: int, train_problems: int
) -> int:
    """Rollouts that a training problem gets in the first half of a run."""
    steps_per_epoch = train_problems // problems_per_step
    return (steps // 2) // steps_per_epoch * group_size


def findings(
    needs: Sequence[Sequence[Hashable]], rates: np.ndarray, rollouts: int
) -> list[Finding]:
    """How findable each fact is, the least findable first.

    Args:
      needs: the facts of each training problem.
      rates: success rate of the base policy on each. [problem], in [0, 1].
      rollouts: rollouts of each problem.
    """
    rates = np.asarray(rates, np.float64)
    if rates.shape != (len(needs),) or not np.all((rates >= 0) & (rates <= 1)):
        raise ValueError(
            f"findings: got rates of shape {rates.shape} for {len(needs)} problems; pass one rate "
            "from 0 to 1 a problem"
        )
    by_fact: dict[Hashable, list[float]] = {}
    for facts, rate in zip(needs, rates.tolist(), strict=True):
        for fact in set(facts):
            by_fact.setdefault(fact, []).append(rate)
    found = [
        Finding(fact, len(own), max(own), rollouts * sum(own)) for fact, own in by_fact.items()
    ]
    return sorted(found, key=lambda finding: (finding.successes, str(finding.fact)))
