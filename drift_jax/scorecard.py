"""An evaluation as a table that can be trusted: intervals, baselines, sub-tasks, and a paired test.

What a score is worth depends on what is beside it: what guessing gives on the same problems, how
many answers could not be read, how wide the interval over problems is, and which rows are known to
be leaked or unsolvable.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drift_jax import statistics
from drift_jax.grading import Grader
from drift_jax.statistics import Estimate
from drift_jax.types import Problem

_OPTION = re.compile(r"^[A-Z]: ", re.MULTILINE)

# Test rows of the published split that say less than they seem to. The first repeats a training row
# word for word; no response can score on the others under the reference grader.
LEAKED = frozenset({"material/test/365"})
UNSOLVABLE = frozenset({"tooluse/test/4072", "tooluse/test/4079"})


def guessing_baseline(problems: Sequence[Problem]) -> float | None:
    """Expected score of picking an option at random; None where the answer is no option.

    Args:
      problems: the evaluated ones; options are the lines "A: ..." of the last message.
    """
    options = [len(_OPTION.findall(problem.messages[-1]["content"])) for problem in problems]
    return float(np.mean([1 / count for count in options])) if all(options) else None


def majority_baseline(
    problems: Sequence[Problem], training: Sequence[Problem], grader: Grader | None = None
) -> tuple[str, float] | None:
    """The most frequent training answer, and the score of always giving it.

    None where no answer stands for more than a tenth of the training problems.

    Args:
      problems: the evaluated ones.
      training: of the same task.
      grader: scores them; None is the task's own verifier.
    """
    answer, count = Counter(problem.answer for problem in training).most_common(1)[0]
    if count < 0.1 * len(training):
        return None
    scores = (grader or Grader()).score(problems, [[answer]] * len(problems))
    return answer, float(np.mean([one.reward for [one] in scores]))


def estimates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """mean@k, best@k, worst@k, maj@k and pass@1, k being the samples of each problem.

    Args:
      rows: one a problem, with `rewards` and `predictions` a sample.
    """
    rewards = np.array([row["rewards"] for row in rows], np.float64)
    k = rewards.shape[1]
    predictions = [row["predictions"] for row in rows]
    found = {
        f"mean@{k}": statistics.mean_at_k(rewards),
        f"best@{k}": statistics.best_at_k(rewards, k),
        f"worst@{k}": statistics.worst_at_k(rewards, k),
        f"maj@{k}": statistics.majority_at_k(predictions, rewards, k),
    }
    solved = rewards >= 0.5
    for draws in sorted({1, min(4, k), k}):
        found[f"pass@{draws}"] = statistics.pass_at_k(solved, draws)
    return found


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of samples that could not be read, and that were cut at the limit; mean length."""
    return {
        "malformed": float(1 - np.mean([row["well_formed"] for row in rows])),
        "truncated": float(1 - np.mean([row["finished"] for row in rows])),
        "length": float(np.mean([row["lengths"] for row in rows])),
    }


def paired_test(
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """Difference of two evaluations of the same problems, and its two-sided p-value.

    The p-value is that of a sign-flip permutation test over problems: how often differences of this
    size arise when each problem's sign is a coin toss.

    Args:
      rows, others: rows of two evaluations; they are matched by id.
      draws: number of permutations.
      seed: of the permutations.

    Raises:
      ValueError: if they do not evaluate the same problems.
    """
    other_by_id = {row["id"]: row for row in others}
    ids = [row["id"] for row in rows]
    if set(ids) != set(other_by_id):
        missing = sorted(set(ids) ^ set(other_by_id))
        raise ValueError(
            f"the two evaluations differ in {len(missing)} problems, {missing[0]!r} for one; "
            "compare evaluations of the same split"
        )
    ours = np.array([np.mean(row["rewards"]) for row in rows])
    theirs = np.array([np.mean(other_by_id[name]["rewards"]) for name in ids])
    difference = ours - theirs
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(difference)))
    flipped = np.abs((signs * difference).mean(axis=1))
    # One is added to both, for the permutation that was observed: a p-value is never 0.
    extreme = np.sum(flipped >= abs(difference.mean()) - 1e-12)
    p_value = (1 + int(extreme)) / (1 + draws)
    return statistics.paired_difference(ours, theirs), p_value


def text(
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    training: Sequence[Problem],
    grader: Grader | None = None,
) -> str:
    """The whole scorecard, a line each.

    Args:
      rows: one an evaluated problem, in the order of `problems`.
      problems: the evaluated ones.
      training: of the same task, for the majority baseline.
      grader: scores its answers; None is the task's own verifier.
    """
    lines = [f"{len(rows)} problems, {len(rows[0]['rewards'])} samples each"]
    lines += [
        f"  {name:<9} {value}  std {value.std:.3f}" for name, value in estimates(rows).items()
    ]
    found = rates(rows)
    lines.append(
        f"  malformed {found['malformed']:.3f}, truncated {found['truncated']:.3f}, "
        f"mean length {found['length']:.1f} tokens"
    )
    guess = guessing_baseline(problems)
    if guess is not None:
        lines.append(f"  baseline: guessing an option {guess:.3f}")
    majority = majority_baseline(problems, training, grader)
    if majority is not None:
        lines.append(f"  baseline: always answering {majority[0]!r} {majority[1]:.3f}")
    levels = dict.fromkeys(row["level"] for row in rows)
    if len(levels) > 1:
        for level in levels:
            group = np.array([row["rewards"] for row in rows if row["level"] == level])
            lines.append(
                f"  {level or '(none)'}: {statistics.mean_at_k(group)}, {len(group)} problems"
            )
    for known, words in ((LEAKED, "also in the training split"), (UNSOLVABLE, "unsolvable here")):
        if flagged := sorted(known & {row["id"] for row in rows}):
            lines.append(f"  {words}: {', '.join(flagged)}")
    return "\n".join(lines)
