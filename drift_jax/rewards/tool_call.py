"""Graders of tool calls: `Action:` and `Action Input:` lines with JSON arguments.

`score_tool_call` is the reference grader of the Tool Use benchmark with all its quirks, because
published numbers rest on them. `score_tool_call_strict` is the grader without the quirks: the
generated task uses it, and on the benchmark it shows how much the quirks matter.

Both take a gold answer of the form `[{"Action": name, "Action_Input": object}, ...]` as JSON text,
where the object may itself be written as a JSON string. Both treat the response as hostile: it is
never evaluated, time and memory grow linearly with its length, and nothing is raised.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from drift_jax.types import Score

_BAD_ANSWER = Score(0.0, "", False, "Failed to parse ground truth JSON")
_TOO_DEEP = Score(0.0, "", False, "Response is nested too deeply")
_MALFORMED = Score(
    0.0,
    "",
    False,
    "Malformed response: expected an optional thought, then pairs of lines"
    " 'Action: <name>' and 'Action Input: <JSON object>' and nothing else",
)

# JSON that nests deeper than the interpreter's stack raises RecursionError; a number with more
# digits than the interpreter converts raises a plain ValueError.
_UNREADABLE = (ValueError, RecursionError)

_ACTION = re.compile(r"Action:\s*(\w+)")
_INPUT_OPENING = re.compile(r"Action Input:\s*\{")


def score_tool_call(response: str, answer: str) -> Score:
    """1 where the called names and the merged arguments equal the gold ones (reference grader).

    * Names: every `Action:` followed by a word, anywhere in the response. They are compared as a
      multiset, so the order of the calls does not matter.
    * Arguments: every `Action Input:` followed by a brace, up to the *first* closing brace. What
      parses as JSON is merged into one dict, later keys over earlier ones; the rest is skipped.
      The merged dict is compared with the merged gold dict by Python's `==` (`1 == 1.0 == True`).

    Quirks that follow, kept on purpose: a nested object or a `}` inside a string never parses; of
    repeated calls with the same keys only the last values are checked; an `Action:` inside the
    thought counts as a call; a name with characters outside `\\w` never matches.

    Two departures, where the reference would fail with an exception: an integer of more digits
    than Python converts makes its block unparsable, and a gold answer that is JSON but not a list
    of calls is treated as one that does not parse.

    Args:
      response: decoded response, special tokens removed. Any string.
      answer: gold calls as JSON text.

    Returns:
      A `Score`; `feedback` is empty when correct and otherwise names both sides, so it contains
      the gold answer. `well_formed` says that some `Action:` is followed by a line that starts
      with `Action Input:`. A gold answer that does not parse scores 0.
    """
    try:
        return _score_by_reference(response, answer)
    except RecursionError:  # comparing or printing what was just shallow enough to parse
        return _TOO_DEEP


def _score_by_reference(response: str, answer: str) -> Score:
    try:
        gold_names, gold_inputs = _merged_gold(answer)
    except (*_UNREADABLE, TypeError, KeyError):
        return _BAD_ANSWER
    names = _ACTION.findall(response)
    inputs = _merged_inputs(response)

    faults = []
    if Counter(names) != Counter(gold_names):
        faults.append(f"Actions mismatch: predicted {names}, expected {gold_names}")
    if inputs != gold_inputs:
        faults.append(f"Action inputs mismatch: predicted {inputs}, expected {gold_inputs}")
    return Score(
        reward=0.0 if faults else 1.0,
        prediction=f"Actions: {names}, Inputs: {inputs}",
        well_formed=_has_call_lines(response),
        feedback="; ".join(faults),
    )


def _merged_gold(answer: str) -> tuple[list[str], dict[str, Any]]:
    """Names of the gold calls, and their arguments merged into one dict."""
    names: list[str] = []
    merged: dict[str, Any] = {}
    for call in json.loads(answer):
        if not isinstance(call["Action"], str):
            raise TypeError("a name is a string")
        names.append(call["Action"])
        arguments = call.get("Action_Input", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except _UNREADABLE:
                arguments = {}
        merged.update(arguments or {})
    return names, merged


def _merged_inputs(response: str) -> dict[str, Any]:
    """Arguments of all `Action Input:` blocks that parse, later keys over earlier ones."""
    merged: dict[str, Any] = {}
    for block in _input_blocks(response):
        try:
            merged.update(json.loads(block))
        except _UNREADABLE:
            continue
    return merged


def _input_blocks(response: str) -> Iterator[str]:
    r"""The matches of `Action Input:\s*({.*?})` with dot matching newlines, in linear time.

    The pattern itself scans to the end of the text from every opening that is never closed, which
    is quadratic; but when one opening has no closing brace after it, no later one has either.
    """
    position = 0
    while opening := _INPUT_OPENING.search(response, position):
        brace = opening.end() - 1
        closing = response.find("}", brace)
        if closing < 0:
            return
        position = closing + 1
        yield response[brace:position]


def _has_call_lines(response: str) -> bool:
    """Whether some `Action:` is followed, now or later, by a line that starts `Action Input:`."""
    first = response.find("Action:")
    return first >= 0 and response.find("\nAction Input:", first + len("Action:")) >= 0


def score_tool_call_strict(response: str, answer: str) -> Score:
    r"""1 where the response is a list of calls, each with its own arguments, equal to the gold.

    The whole response must be an optional thought, then pairs of lines and nothing else:

        Thought: free text, over as many lines as it likes
        Action: get_weather
        Action Input: {"city": "Lyon", "days": {"from": 1, "to": 3}}

    The thought ends at the first line that starts with `Action:`. Arguments may nest and may run
    over several lines. Calls are compared as a multiset of (name, arguments), so their order does
    not matter, but every call's own arguments do. Values are compared as JSON: key order and
    `1` against `1.0` do not matter, `1` and `true` differ, and a repeated key, `NaN` or `Infinity`
    is not JSON.

    Args:
      response: decoded response, special tokens removed. Any string.
      answer: gold calls as JSON text.

    Returns:
      A `Score` whose `prediction` lists the calls in sorted order, equal for equal calls (empty
      where malformed), and whose `feedback` contains the gold calls when the response is wrong.
    """
    try:
        gold = gold_calls(answer)
    except (*_UNREADABLE, TypeError, KeyError):
        return _BAD_ANSWER
    try:
        calls = read_calls(response.strip())
    except _UNREADABLE:
        return _MALFORMED
    correct = Counter(calls) == Counter(gold)
    feedback = f"Calls mismatch: predicted {_listed(calls)}, expected {_listed(gold)}"
    return Score(float(correct), _listed(calls), True, "" if correct else feedback)


# A call is a name and its arguments as canonical JSON text: equal arguments give equal text, which
# unlike a dict can be counted.
Call = tuple[str, str]

_CALL_LINES = re.compile(r"Action:([^\n]*)\nAction Input:[ \t]*")
_GAP = re.compile(r"\s*")


def read_calls(text: str) -> list[Call]:
    """The calls of a response without white space at its ends; ValueError where malformed."""
    position = text.find("\nAction:") + 1 if text.startswith("Thought:") else 0
    calls = []
    while True:
        lines = _CALL_LINES.match(text, position)
        if lines is None:
            raise ValueError("expected a call")
        arguments, position = _STRICT_JSON.raw_decode(text, lines.end())
        calls.append(_call(lines[1].strip(), arguments))
        if position == len(text):
            return calls
        gap = _GAP.match(text, position)
        if gap is None or "\n" not in gap[0]:
            raise ValueError("expected the next call on a new line")
        position = gap.end()


def gold_calls(answer: str) -> list[Call]:
    """The gold calls; raises where the answer is not a list of calls."""
    calls = []
    for call in _STRICT_JSON.decode(answer):
        arguments = call["Action_Input"]
        if isinstance(arguments, str):
            arguments = _STRICT_JSON.decode(arguments)
        calls.append(_call(call["Action"], arguments))
    return calls


def _call(name: object, arguments: object) -> Call:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call is a name and a JSON object")
    return name, json.dumps(arguments, sort_keys=True)


def _listed(calls: list[Call]) -> str:
    return "; ".join(f"{name} {arguments}" for name, arguments in sorted(calls))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("repeated key")
    return unique


def _number(text: str) -> int | float:
    """A number with a point or an exponent; whole numbers as int, so that 1.0 is written as 1."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return int(value) if value.is_integer() else value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_number, parse_constant=_no_constant
)
