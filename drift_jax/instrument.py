"""Which worlds of a generated task may take part in a comparison, and why.

    python -m drift_jax.instrument --config=configs/instrument.py:task=toolsteps --worlds=0:8

By default from the rates of the demonstrations, which a base policy imitates: seconds, no model.
With --bases=runs/toolsteps{world}/model the base policy of each world is measured instead (64
samples of every training problem), together with what its self-teacher gains from a solution and
from a sibling. The criterion is in drift_jax/findability.py; no method enters it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from drift_jax import assemble, command, examination, findability, models
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data import generated
from drift_jax.findability import Finding
from drift_jax.types import Problem

WORLDS = flags.DEFINE_string("worlds", "0:8", "Worlds to look at: first:end, or one.")
BASES = flags.DEFINE_string("bases", "", "Model folders, with {world} for the number of the world.")

SAMPLE_SETS = 8  # of GATE_SAMPLES each
SHOWN = 3  # facts that are printed a world


def report(config: Any, bases: str) -> list[str]:
    """The lines about one world, the first with the verdict."""
    task, world = _world(config)
    problems: Sequence[Problem] = task.problems(world, "train")
    rollouts = _rollouts(config, problems)
    if bases:
        config = configs.assign(
            config.copy_and_resolve_references(),
            {"model.init": "checkpoint", "model.path": bases.format(world=config.data.world_seed)},
        )
        mesh = assemble.make_mesh(config)
        tokenizer = assemble.open_tokenizer(config)
        model, params = assemble.open_model(config, tokenizer, mesh)
        problems, rates = sampled_rates(config, model, params, tokenizer, mesh)
        gate = examination.measure_gate(config, model, params, tokenizer, mesh)
        assert gate is not None  # a generated task has written-out solutions
        taught = [str(gate), sibling_gain(config, model, params, tokenizer, mesh)]
        usable = gate.passed
    else:
        rates = np.array([task.success_rate(world, problem) for problem in problems])
        taught, usable = [], True
    needs = [task.facts(world, problem) for problem in problems]
    found = findability.findings(needs, rates, rollouts)
    missing = sum(not finding.found for finding in found)
    verdict = "takes part" if usable and not missing else "is left out"
    lines = [
        f"world {config.data.world_seed} {verdict}: {missing} of {len(found)} facts cannot be"
        f" found; success by level {_by_level(problems, rates)}",
        *(_describe(finding) for finding in found[:SHOWN]),
    ]
    return [lines[0], *(f"    {line}" for line in [*lines[1:], *taught])]


def sampled_rates(
    config: Any, model: models.ModelConfig, params: Any, tokenizer: Any, mesh: Mesh
) -> tuple[Sequence[Problem], np.ndarray]:
    """Training problems, and how often a policy is entirely right on each at temperature 1."""
    exam = _at_temperature_1(config, model, tokenizer, mesh, split="train")
    sets = []
    for number in range(SAMPLE_SETS):
        answers = exam.student(params, step=number)
        success = answers.rewards == 1  # a slip that a graded reward forgives may be the fact
        sets.append(success if answers.derived is None else success & answers.derived)
    return exam.problems, np.concatenate(sets, axis=1).mean(axis=1)


def sibling_gain(
    config: Any, model: models.ModelConfig, params: Any, tokenizer: Any, mesh: Mesh
) -> str:
    """Reward without and with a right sibling in the prompt, on the same validation problems."""
    exam = _at_temperature_1(config, model, tokenizer, mesh, split="validation")
    metrics, _ = examination.examine(exam, params, params, step=0)
    taught = metrics.get(f"eval/teacher_mean@{exam.teacher_samples}")
    if taught is None:
        return "sibling: the base policy solved no problem"
    return (
        f"sibling: on the {metrics['eval/teacher_problems']:.0%} of problems with a success, reward"
        f" {taught - metrics['teacher/gap']:.3f} without and {taught:.3f} with it in the prompt"
    )


def _at_temperature_1(
    config: Any, model: models.ModelConfig, tokenizer: Any, mesh: Mesh, *, split: str
) -> examination.Examination:
    return dataclasses.replace(
        examination.examination(config, model, tokenizer, mesh, split=split),
        samples=examination.GATE_SAMPLES,
        teacher_samples=examination.GATE_SAMPLES,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )


def _world(config: Any) -> tuple[generated.Generated, Any]:
    """The task and its world; ConfigError for a task that is not generated."""
    if config.task not in generated.TASKS:
        known = ", ".join(generated.TASKS)
        raise ConfigError(f"task {config.task!r} has no worlds; those that have: {known}")
    task = generated.TASKS[config.task]
    return task, task.world(config.data.world_seed)


def _rollouts(config: Any, problems: Sequence[Problem]) -> int:
    return findability.rollouts_per_problem(
        steps=config.train.steps,
        problems_per_step=config.rollout.problems_per_step,
        group_size=config.rollout.group_size,
        train_problems=len(problems),
    )


def _by_level(problems: Sequence[Problem], rates: np.ndarray) -> str:
    groups = examination.by_level(problems, rates[:, None])
    return ", ".join(f"{level} {group.mean():.3f}" for level, group in groups.items())


def _describe(finding: Finding) -> str:
    fact = " of ".join(finding.fact) if isinstance(finding.fact, tuple) else finding.fact
    return (
        f"{fact}: {finding.successes:.1f} successes expected on {finding.problems} problems, the"
        f" easiest at {finding.best:.3f}{'' if finding.found else '  <- too few'}"
    )


def _worlds(text: str) -> range:
    """The worlds of `first:end`, or of one number."""
    first, colon, end = text.partition(":")
    try:
        worlds = range(int(first), int(end)) if colon else range(int(first), int(first) + 1)
    except ValueError:
        worlds = range(0)
    if not len(worlds) or worlds[0] < 0:
        raise ConfigError(f"--worlds is {text!r}; expected first:end such as 0:8, or one number")
    return worlds


def main(config: Any) -> None:
    """Prints the verdict of every world."""
    configs.validate(config, device_count=jax.device_count())
    for seed in _worlds(WORLDS.value):
        of_world = configs.assign(config.copy_and_resolve_references(), {"data.world_seed": seed})
        print("\n".join(report(of_world, BASES.value)), flush=True)


if __name__ == "__main__":
    command.run(main, __doc__ or "")
