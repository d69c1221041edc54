"""Whether runs may be compared: the same start, problems, order, rollouts, steps and evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.record import Record

Block = Mapping[str, Record]  # the runs of one variant and seed, by method

VERDICT = (
    "all runs of a block (variant and seed) had the same base weights, training problems, order of "
    "problems, rollouts per step, number of steps, and evaluation"
)

# Not part of the question: how often something is written, and how many rows go at a time.
_FREE = ("evaluation.problems_per_batch", "evaluation.teacher_samples")


def check(blocks: Iterable[Block]) -> None:
    """Refuses runs that were not given the same.

    Raises:
      ConfigError: naming two runs, and what differs between them.
    """
    problems: dict[str, Record] = {}
    for block in blocks:
        runs = list(block.values())
        for run in runs:
            for what, ours, theirs in _given(run, runs[0]):
                if ours != theirs:
                    raise ConfigError(
                        f"no fair comparison: {what} of {run.name} is {_short(ours)}, of "
                        f"{runs[0].name} {_short(theirs)}; move the record of one of them away"
                    )
            first = problems.setdefault(run.variant, run)
            if first.problem_ids != run.problem_ids:
                raise ConfigError(
                    f"no fair comparison: {run.name} and {first.name} were evaluated on other "
                    "problems; move the record of one of them away"
                )


def _given(run: Record, other: Record) -> list[tuple[str, Any, Any]]:
    """What both were given, side by side."""
    names = {
        "base": "the fingerprint of the base weights",
        "problems": "the fingerprint of the training problems",
        "order": "the fingerprint of the problems' order",
        "rollouts_per_step": "the number of rollouts per step",
        "steps": "the number of steps",
        "split": "the evaluated split",
        "samples": "the number of samples per evaluated problem",
        "eval_steps": "the list of evaluated steps",
        "problem_ids": "the list of evaluated problems",
    }
    pairs = [(what, getattr(run, name), getattr(other, name)) for name, what in names.items()]
    asked = [_evaluation(one) for one in (run, other)]
    pairs += [(name, asked[0][name], asked[1][name]) for name in asked[0]]
    return pairs


def _evaluation(run: Record) -> dict[str, Any]:
    """The settings that an evaluation depends on."""
    values = configs.flatten(configs.default()) | run.config
    return {
        name: value
        for name, value in values.items()
        if (name.startswith("evaluation.") and name not in _FREE)
        or name in ("rollout.max_new_tokens", "data.max_prompt_tokens", "data.thinking")
    }


def differences(runs: Sequence[Record]) -> dict[str, list[Any]]:
    """Fields in which the configurations of the runs differ, a value a run."""
    defaults = configs.flatten(configs.default())
    values = [defaults | run.config for run in runs]
    names = dict.fromkeys(name for one in values for name in one)
    side_by_side = {name: [one.get(name) for one in values] for name in names}
    return {
        name: found
        for name, found in side_by_side.items()
        if any(value != found[0] for value in found)
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
