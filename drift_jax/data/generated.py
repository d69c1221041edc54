"""The generated tasks behind one interface, and the one table of them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drift_jax.data import (
    lookup,
    toolcalls,
    toolcalls_graded,
    toolcalls_tokenizer,
    toolsteps,
    word_tokenizer,
)
from drift_jax.types import Demonstration, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Generated:
    """A task whose problems are drawn from a world.

    Attributes:
      world: seed -> a world. What it is made of is the task's own business.
      problems: (world, split) -> the fixed problems of a split.
      solution: a problem -> the right response.
      demonstrations: (world, random numbers, count, reference=) -> examples of the warm start.
      facts: (world, problem) -> the hidden facts that the problem needs.
      success_rate: (world, problem) -> probability that a plain demonstration is entirely right,
        and for the right reason.
      pieces: vocabulary of the tokenizer.
    """

    world: Callable[[int], Any]
    problems: Callable[[Any, str], list[Problem]]
    solution: Callable[[Problem], str]
    demonstrations: Callable[..., list[Demonstration]]
    facts: Callable[[Any, Problem], Sequence[Hashable]]
    success_rate: Callable[[Any, Problem], float]
    pieces: tuple[str, ...]


TASKS: dict[str, Generated] = {
    name: Generated(
        world=module.World,
        problems=module.problems,
        solution=module.solution,
        demonstrations=module.demonstrations,
        facts=module.facts,
        success_rate=success_rate,
        pieces=pieces,
    )
    for name, module, success_rate, pieces in (
        ("toolcalls", toolcalls, toolcalls.expected_pass_rate, toolcalls_tokenizer.PIECES),
        (
            "toolcalls_graded",
            toolcalls_graded,
            toolcalls.expected_pass_rate,
            toolcalls_tokenizer.PIECES,
        ),
        ("toolsteps", toolsteps, toolsteps.expected_pass_rate, toolsteps.PIECES),
        ("lookup", lookup, lookup.expected_success_rate, lookup.PIECES),
    )
}


def build_tokenizer(task: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a generated task, the same for every world."""
    return word_tokenizer.build_tokenizer(TASKS[task].pieces)


def with_instructions(problem: Problem) -> Problem:
    """The same problem with a system turn that says what a response looks like.

    Raises:
      ValueError: for a task whose problems have no such words.
    """
    if problem.task not in ("toolcalls", "toolcalls_graded"):
        raise ValueError(
            f"data.instructions is for toolcalls, not for {problem.task}; set it False"
        )
    return toolcalls.with_instructions(problem)
