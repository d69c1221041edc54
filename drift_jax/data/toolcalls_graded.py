"""The generated task `toolcalls_graded`: the worlds of `toolcalls` with a graded reward.

Worlds, prompts, tokenizer, base policies and demonstrations are those of `toolcalls`; only the
reward differs: the share of calls and argument words that are right instead of 0 or 1. So the parts
of the method that compare rewards have something to compare: the tolerance window of stage 1, the
largest reward of stage 2, and the buffer's rule that a high reward replaces a low one.

A response with one slip gets 1 - 1/parts, with 3 parts in an easy problem, 5 or 7 in a medium one
and 8 to 12 in a hard one. The instrument counts 0.85 and more as a success: an easy problem must be
right, a longer one may have a single slip.
"""

import dataclasses

from drift_jax.data import toolcalls
from drift_jax.data.toolcalls import World, demonstrations, facts, solution
from drift_jax.types import Problem

__all__ = ["World", "demonstrations", "facts", "problems", "solution"]

TASK = "toolcalls_graded"


def problems(world: World, split: str, count: int | None = None) -> list[Problem]:
    """The problems of `toolcalls` under this task's name, which selects the grader."""
    return [
        dataclasses.replace(problem, id=problem.id.replace("toolcalls", TASK, 1), task=TASK)
        for problem in toolcalls.problems(world, split, count)
    ]
