"""Grader of `toolsteps`: a plan of numbered steps, each in one of several wordings, and its answer.

Plan:
1. Go from Oslo on to Rome and weld with the torch
2. Now paint in Lima, coming from Rome, using the brush
3. Reach Cairo out of Lima; there seal by means of the clamp
Answer: torch brush clamp
"""

import json
import re

from drift_jax.types import Score

# The wordings of a step, all equally right; the task writes its demonstrations in them.
WORDINGS = (
    " Go from {origin} on to {place} and {verb} with the {tool}",
    " Now {verb} in {place}, coming from {origin}, using the {tool}",
    " Reach {place} out of {origin}; there {verb} by means of the {tool}",
)
OPENING, CLOSING_LINE = "Plan:", "Answer:"

_FIELDS = {name: rf"(?P<{name}>\w+)" for name in ("origin", "place", "verb", "tool")}
_PATTERNS = [re.compile(wording.format(**_FIELDS)) for wording in WORDINGS]

Step = tuple[str, str, str, str]  # origin, verb, place, tool


def score_step_plan(response: str, answer: str) -> Score:
    """1 where every step is right, in any wording, and the answer lists its tools; else 0.

    Step i is on a line of its own that begins with `i.`. It must start where the step before ended,
    do what is asked where it is asked, and use the right tool.

    Args:
      response: decoded response, special tokens removed. Any string; time is linear in its length.
      answer: JSON text with `start` and `steps`, a list of [verb, place, tool].

    Returns:
      A `Score` whose `prediction` is the tools of the answer line, and whose `feedback` names the
      first fault. It may contain the gold answer.
    """
    gold = json.loads(answer)
    try:
        steps, tools = read_plan(response)
    except ValueError as error:
        return Score(0.0, "", False, f"Malformed plan: {error}")
    fault = _first_fault(steps, tools, gold["start"], gold["steps"])
    return Score(float(not fault), " ".join(tools), True, fault)


def read_plan(response: str) -> tuple[list[Step], list[str]]:
    """The steps and the tools of the answer line; ValueError where it is no plan."""
    first, *lines = response.strip().split("\n")
    if first != OPENING or not lines or not lines[-1].startswith(CLOSING_LINE):
        raise ValueError(f"expected {OPENING!r}, steps, and {CLOSING_LINE!r}")
    steps = []
    for number, line in enumerate(lines[:-1], start=1):
        prefix = f"{number}."
        body = line.removeprefix(prefix) if line.startswith(prefix) else ""
        found = next(filter(None, (pattern.fullmatch(body) for pattern in _PATTERNS)), None)
        if found is None:
            raise ValueError(f"step {number} is in no known wording")
        steps.append((found["origin"], found["verb"], found["place"], found["tool"]))
    return steps, lines[-1].removeprefix(CLOSING_LINE).split()


def _first_fault(steps: list[Step], tools: list[str], start: str, gold: list[list[str]]) -> str:
    """What is wrong first, or the empty string."""
    origins = [start, *(place for _, place, _ in gold)]
    expected = [
        (origin, verb, place, tool)
        for origin, (verb, place, tool) in zip(origins, gold, strict=False)
    ]
    for number, (step, wanted) in enumerate(zip(steps, expected, strict=False), start=1):
        if step != wanted:
            return f"Step {number} is {' '.join(step)}, expected {' '.join(wanted)}"
    if len(steps) != len(expected):
        return f"The plan has {len(steps)} steps, expected {len(expected)}"
    wanted_tools = [tool for _, _, tool in gold]
    if tools != wanted_tools:
        return f"The answer is {' '.join(tools)}, expected {' '.join(wanted_tools)}"
    return ""
