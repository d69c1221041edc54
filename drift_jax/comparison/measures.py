"""What a run is worth, problem by problem, so that runs can be averaged, resampled and paired."""

from collections.abc import Mapping

import numpy as np

from drift_jax import statistics
from drift_jax.record import Record

# Budget of a run -> the measure that compares at equal amounts of it.
EQUAL = {"tokens": "equal_tokens", "flops": "equal_compute"}


def measures(run: Record, budgets: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The measures of a run. float64 [problem] each.

    * last: mean@k of the last evaluation.
    * peak: mean@k of the best evaluation, chosen on the problems that it is measured on, so
      optimistic; the interval does not know of the choice.
    * best: best@k of the last evaluation.
    * area: mean@k averaged over the steps (trapezoids between evaluations).
    * equal_tokens, equal_compute: mean@k at a given budget, linear between evaluations.

    Args:
      run: of which.
      budgets: amount by name of the budget, at most what the run consumed.
    """
    means, steps = run.eval_means, np.array(run.eval_steps, np.float64)
    span = steps[-1] - steps[0]
    widths = np.diff(steps)[:, None]
    area = (widths * (means[1:] + means[:-1]) / 2).sum(axis=0) / span if span else means[-1]
    found = {
        "last": means[-1],
        "peak": means[means.mean(axis=1).argmax()],
        "best": statistics.best_at_k(run.final_rewards, run.samples).per_problem,
        "area": area,
    }
    for name, measure in EQUAL.items():
        found[measure] = at_budget(means, run.budgets[name], budgets[name])
    return found


def at_budget(means: np.ndarray, consumed: np.ndarray, budget: float) -> np.ndarray:
    """Scores at a budget, linear between the evaluations before and after it.

    Args:
      means: [evaluation, problem]
      consumed: up to each evaluation, rising. [evaluation]
      budget: outside of `consumed` the nearest evaluation counts.
    """
    position = np.interp(budget, consumed, np.arange(len(consumed)))
    before = int(position)
    after = min(before + 1, len(means) - 1)
    return means[before] + (position - before) * (means[after] - means[before])


def common_budgets(block: Mapping[str, Record]) -> dict[str, float]:
    """The largest budgets that all runs of a block reached."""
    return {name: min(float(run.budgets[name][-1]) for run in block.values()) for name in EQUAL}


def steps_to(run: Record, level: float) -> float | None:
    """The step at which the mean first reaches a level, linear between evaluations; None: never."""
    means = run.eval_means.mean(axis=1)
    reached = np.flatnonzero(means >= level - 1e-9)  # a mean of 0.6's may round below 0.6
    if not len(reached):
        return None
    index = int(reached[0])
    if index == 0:
        return float(run.eval_steps[0])
    between = (level - means[index - 1]) / (means[index] - means[index - 1])
    first, second = run.eval_steps[index - 1 : index + 1]
    return float(first + between * (second - first))
