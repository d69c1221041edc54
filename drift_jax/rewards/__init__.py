"""Verifiers: a response and a gold answer in, a `Score` out. One function a task.

A grader never raises on a response, never evaluates it, and takes time linear in its length.
"""

import difflib
from collections.abc import Callable

from drift_jax.rewards.graded_tool_call import score_tool_call_graded
from drift_jax.rewards.lookup import score_lookup
from drift_jax.rewards.multiple_choice import score_multiple_choice
from drift_jax.rewards.step_plan import score_step_plan
from drift_jax.rewards.tool_call import score_tool_call, score_tool_call_strict
from drift_jax.types import Score

__all__ = [
    "Score",
    "grader_for",
    "score_lookup",
    "score_multiple_choice",
    "score_step_plan",
    "score_tool_call",
    "score_tool_call_graded",
    "score_tool_call_strict",
]

_GRADERS: dict[str, Callable[[str, str], Score]] = {
    "biology": score_multiple_choice,
    "chemistry": score_multiple_choice,
    "material": score_multiple_choice,
    "physics": score_multiple_choice,
    "tooluse": score_tool_call,
    "toolcalls": score_tool_call_strict,
    "toolcalls_graded": score_tool_call_graded,
    "toolsteps": score_step_plan,
    "lookup": score_lookup,
}


def grader_for(task: str) -> Callable[[str, str], Score]:
    """The grader of a task: `grader(response, answer) -> Score`.

    Raises:
      ValueError: the task has no grader; the message lists those that have one.
    """
    if task not in _GRADERS:
        near = difflib.get_close_matches(task, _GRADERS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"task {task!r} has no grader{hint}; known: {', '.join(sorted(_GRADERS))}")
    return _GRADERS[task]
