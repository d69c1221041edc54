"""What a warm start imitates: demonstrations of every kind of task, behind one signature.

    draw = demonstrations.of_problems(problems)        a task of files
    draw = demonstrations.of_generated("toolcalls", 0) a generated task, by its world seed
    draw(rng, count, reference=False)                  -> list[Demonstration]

Generated tasks make demonstrations without end. Tasks of files have one gold answer a problem, and
the solution that says it:

    tool use          the gold calls in the form that the prompt asks for, after a thought that
                      names them. The calls are the benchmark's, the thought is ours.
    multiple choice   the gold letter after a stub where the reasoning would stand, for there is no
                      gold reasoning. This teaches the form of an answer and next to nothing about
                      the question: a policy that imitates it guesses without reasoning first. Use
                      it to get a small model to answer at all.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from drift_jax.data import source, toolcalls
from drift_jax.rewards import grader_for
from drift_jax.types import Demonstration, Problem

STUB = "The options are compared with what the question asks for, and one of them fits it."
# Where a reference is shown, its thought is worded otherwise than the imitated one: siblings agree
# in their calls and not in every word.
OTHER_STUB = "Only one of the options agrees with the question."


class Draw(Protocol):
    """A source of demonstrations.

    Called with random numbers, how many demonstrations are wanted, and whether they are to show a
    reference; the result depends on nothing else.
    """

    def __call__(
        self, rng: np.random.Generator, count: int, *, reference: bool
    ) -> list[Demonstration]: ...


class Generated(NamedTuple):
    """What a generated task brings: a source of demonstrations by world seed, and its solutions."""

    draw: Callable[[int], Draw]
    solution: Callable[[Problem], str]


def _toolcalls(world_seed: int) -> Draw:
    return functools.partial(toolcalls.demonstrations, toolcalls.World(world_seed))


GENERATED = {"toolcalls": Generated(_toolcalls, toolcalls.solution)}


def is_generated(task: str) -> bool:
    """Whether the demonstrations of a task are made by its generator."""
    return task in GENERATED


def of_generated(task: str, world_seed: int) -> Draw:
    """Demonstrations of a generated task."""
    return GENERATED[task].draw(world_seed)


def of_problems(problems: Sequence[Problem]) -> Draw:
    """Demonstrations of the gold solutions of these problems.

    A draw takes problems whose prompts are next to each other in length, from a random place on, so
    that a batch is not padded to the longest prompt of the task. Each problem is drawn equally
    often.

    Raises:
      ValueError: if the grader accepts the gold solution of none of them.
    """
    usable = [problem for problem in problems if is_solvable(problem)]
    if not usable:
        raise ValueError(
            f"none of the {len(problems)} problems has a gold solution that its grader accepts; "
            "a warm start needs some"
        )
    by_length = sorted(usable, key=lambda p: (sum(len(m["content"]) for m in p.messages), p.id))

    def draw(rng: np.random.Generator, count: int, *, reference: bool) -> list[Demonstration]:
        first = int(rng.integers(len(by_length)))
        examples = []
        for offset in range(count):
            problem = by_length[(first + offset) % len(by_length)]
            shown = solution(problem, other_words=True) if reference else None
            examples.append(Demonstration(problem, shown, solution(problem)))
        return examples

    return draw


def is_solvable(problem: Problem) -> bool:
    """Whether the task's grader accepts the gold solution; a few published rows it cannot read."""
    return grader_for(problem.task)(solution(problem), problem.answer).reward == 1.0


def solution(problem: Problem, *, other_words: bool = False) -> str:
    """The gold answer as a response, without the end token.

    Args:
      problem: of any task.
      other_words: with another thought around the same answer; no effect on generated tasks.
    """
    if problem.task in GENERATED:
        return GENERATED[problem.task].solution(problem)
    return WRITERS[source.KINDS[problem.task]](problem, other_words)


def _calls(problem: Problem, other_words: bool) -> str:
    calls = json.loads(problem.answer)
    names = ", then ".join(call["Action"] for call in calls)
    thought = f"The question asks for {names}." if other_words else f"I should call {names}."
    lines = [f"Thought: {thought}"]
    for call in calls:
        arguments = call["Action_Input"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        lines += [f"Action: {call['Action']}", f"Action Input: {text}"]
    return "\n".join(lines)


def _letter(problem: Problem, other_words: bool) -> str:
    stub = OTHER_STUB if other_words else STUB
    return f"<reasoning>\n{stub}\n</reasoning>\n<answer>\n{problem.answer}\n</answer>"


WRITERS: dict[str, Callable[[Problem, bool], str]] = {"tooluse": _calls, "mcq": _letter}
