"""Graded reward for tool calls: the share of calls and arguments that are right."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from drift_jax.rewards import tool_call
from drift_jax.types import Score


def score_tool_call_graded(response: str, answer: str) -> Score:
    """The share of parts that are right, where `score_tool_call_strict` asks for all of them.

    The parts of a call are its name and each word of each argument (with its key): in
    `{"origin": "city PAR"}` the words `city` and `PAR`. A value that is not text is one part. Calls
    are paired by name, those of equal name in the order in which they stand. Writing more gains
    nothing, because the longer side counts:

        parts in common / max(parts of the gold calls, parts of the response)

    It is 1 exactly where the strict grader says 1, and 0 where it finds no calls.

    Args:
      response: decoded response, special tokens removed. Any string; time is linear in its length.
      answer: gold calls as JSON text.

    Returns:
      The strict grader's `Score` with another reward.
    """
    strict = tool_call.score_tool_call_strict(response, answer)
    if strict.reward == 1 or not strict.well_formed:
        return strict
    try:
        gold = _parts(tool_call.gold_calls(answer))
        found = _parts(tool_call.read_calls(response.strip()))
    except RecursionError:  # shallow enough to read once, and not twice
        return strict
    share = (gold & found).total() / max(gold.total(), found.total())
    return dataclasses.replace(strict, reward=share)


def _parts(calls: Sequence[tool_call.Call]) -> Counter[tuple]:
    """What can be right or wrong in a list of calls, each part with its call and its place."""
    seen: defaultdict[str, int] = defaultdict(int)
    parts: Counter[tuple] = Counter()
    for name, arguments in calls:
        call = (name, seen[name])
        seen[name] += 1
        parts[call] += 1
        for key, value in json.loads(arguments).items():
            if isinstance(value, str):
                parts.update(
                    (*call, key, place, word) for place, word in enumerate(value.split(" "))
                )
            else:
                parts[*call, key, None, json.dumps(value, sort_keys=True)] += 1
    return parts
