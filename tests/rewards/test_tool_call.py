"""The reference tool-call grader with its quirks, the strict one without; both against abuse."""

import json
import re
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.rewards import Score, score_tool_call, score_tool_call_strict


def gold(*calls: tuple[str, object]) -> str:
    """A gold answer, arguments as JSON text, as the benchmark writes it."""
    return json.dumps([{"Action": name, "Action_Input": json.dumps(x)} for name, x in calls])


def written(*calls: tuple[str, object], thought: str = "Thought: I look it up.\n") -> str:
    """A response that makes these calls in the form the prompt asks for."""
    return thought + "\n".join(
        f"Action: {name}\nAction Input: {json.dumps(arguments)}" for name, arguments in calls
    )


WEATHER = ("get_weather", {"city": "Lyon", "day": 1})
CLOCK = ("get_time", {"zone": "CET"})
ANSWER = gold(WEATHER)


# ---- the reference grader -----------------------------------------------------------------------


def test_the_gold_call_scores_one_without_feedback():
    assert score_tool_call(written(WEATHER), ANSWER) == Score(
        reward=1.0,
        prediction="Actions: ['get_weather'], Inputs: {'city': 'Lyon', 'day': 1}",
        well_formed=True,
        feedback="",
    )


def test_feedback_names_both_sides_of_each_mismatch():
    score = score_tool_call(written(CLOCK), ANSWER)
    assert score.reward == 0
    assert score.feedback == (
        "Actions mismatch: predicted ['get_time'], expected ['get_weather']; "
        "Action inputs mismatch: predicted {'zone': 'CET'}, expected {'city': 'Lyon', 'day': 1}"
    )


QUIRKS = {
    "order of calls": (written(CLOCK, WEATHER), gold(WEATHER, CLOCK), 1),
    "key order and white space": (
        'Action:get_weather\nAction Input:\n\n{ "day":1,\n"city" : "Lyon"}',
        ANSWER,
        1,
    ),
    "1.0 for 1": (written(("get_weather", {"city": "Lyon", "day": 1.0})), ANSWER, 1),
    "true for 1": (written(("get_weather", {"city": "Lyon", "day": True})), ANSWER, 1),
    "text for a number": (written(("get_weather", {"city": "Lyon", "day": "1"})), ANSWER, 0),
    "only the last of repeated calls is checked": (
        written(("f", {"x": 7}), ("f", {"x": 2})),
        gold(("f", {"x": 1}), ("f", {"x": 2})),
        1,
    ),
    "a missing repetition": (written(("f", {"x": 2})), gold(("f", {"x": 1}), ("f", {"x": 2})), 0),
    "arguments over several blocks": (
        'Action: f\nAction Input: {"a": 1}\nAction Input: {"b": 2}',
        gold(("f", {"a": 1, "b": 2})),
        1,
    ),
    "a nested object": (written(("f", {"a": {"b": 1}})), gold(("f", {"a": {"b": 1}})), 0),
    "a brace inside a string": (written(("f", {"a": "}"})), gold(("f", {"a": "}"})), 0),
    "a nested list": (written(("f", {"a": [1, [2]]})), gold(("f", {"a": [1, [2]]})), 1),
    "no input for an empty gold input": ("Action: f", gold(("f", {})), 1),
    "an action named in the thought": (
        written(WEATHER, thought="Thought: Action: get_weather is right.\n"),
        ANSWER,
        0,
    ),
    "bold": ('**Action:** get_weather\nAction Input: {"city": "Lyon", "day": 1}', ANSWER, 0),
    "back-ticks": ('Action: `get_weather`\nAction Input: {"city": "Lyon", "day": 1}', ANSWER, 0),
    "a code fence": (
        'Action: get_weather\nAction Input: ```json\n{"city": "Lyon", "day": 1}\n```',
        ANSWER,
        0,
    ),
    "parentheses after the name": (
        'Action: get_weather()\nAction Input: {"city": "Lyon", "day": 1}',
        ANSWER,
        1,
    ),
    "a name with a hyphen": (written(("get-weather", {})), gold(("get-weather", {})), 0),
    "a name in brackets": (written(("[Optional]f", {})), gold(("[Optional]f", {})), 0),
    "text after the call": (written(WEATHER) + "\nObservation: sunny", ANSWER, 1),
    "a truncated response": (written(WEATHER)[:-1], ANSWER, 0),
    "nothing": ("", ANSWER, 0),
}


@pytest.mark.parametrize(("response", "answer", "reward"), QUIRKS.values(), ids=QUIRKS.keys())
def test_the_quirks_of_the_reference_grader_are_kept(response, answer, reward):
    assert score_tool_call(response, answer).reward == reward


@pytest.mark.parametrize(
    ("response", "well_formed"),
    [
        ("Action: f\nAction Input: {}", True),
        ("Action: f and much more\n\nAction Input:", True),
        ("Action:\nAction Input:", True),
        ("Action: f Action Input: {}", False),
        ("\nAction Input: {}\nAction: f", False),
        ("Action Input: {}", False),
        ("", False),
    ],
)
def test_a_response_is_well_formed_when_an_input_line_follows_an_action(response, well_formed):
    assert score_tool_call(response, ANSWER).well_formed is well_formed


UNREADABLE_GOLD = ["", "{", "null", "3", '"f"', "[1]", "[[]]", '[{"a": 1}]', '[{"Action": []}]']
UNREADABLE_GOLD += ["[" * 100_000, '[{"Action": "f", "Action_Input": 3}]', "9" * 5000]


@pytest.mark.parametrize("answer", UNREADABLE_GOLD, ids=lambda answer: answer[:20])
@pytest.mark.parametrize("grader", [score_tool_call, score_tool_call_strict])
def test_a_gold_answer_that_does_not_parse_scores_zero_and_says_so(grader, answer):
    score = grader(written(WEATHER), answer)
    assert score == Score(0.0, "", False, "Failed to parse ground truth JSON")


def test_a_gold_input_may_be_an_object_and_counts_as_empty_when_it_does_not_parse():
    as_object = json.dumps([{"Action": "f", "Action_Input": {"a": 1}}])
    assert score_tool_call(written(("f", {"a": 1})), as_object).reward == 1
    broken = json.dumps([{"Action": "f", "Action_Input": "{"}])
    assert score_tool_call("Action: f", broken).reward == 1
    missing = json.dumps([{"Action": "f"}])
    assert score_tool_call("Action: f", missing).reward == 1


def literal(response: str, answer: str) -> tuple[float, bool]:
    """Reward and form by regular expressions, as the reference grader is described."""
    names = re.findall(r"Action:\s*(\w+)", response)
    inputs: dict = {}
    for block in re.findall(r"Action Input:\s*({.*?})", response, re.DOTALL):
        try:
            inputs.update(json.loads(block))
        except ValueError:
            continue
    calls = json.loads(answer)
    gold_inputs: dict = {}
    for call in calls:
        gold_inputs.update(json.loads(call["Action_Input"]))
    same_names = Counter(names) == Counter(call["Action"] for call in calls)
    well_formed = re.search(r"Action:.*?\nAction Input:", response, re.DOTALL) is not None
    return float(same_names and inputs == gold_inputs), well_formed


PIECES = ["Action:", "Action Input:", "\nAction Input: ", "\nAction: ", "{", "}", '"x"', ":", "1"]
PIECES += ['{"x":1}', '{"x": 2}', "{}", "f", " ", "\n", "\u2003", "\x1f", ",", "[", "]", "NaN", "é"]
PIECES += ["Action: f\nAction Input: {", 'Action Input: {"x":1}', "Thought: ", "\ud800"]
ANSWERS = [gold(("f", {"x": 1})), gold(("f", {})), gold(("f", {"x": 2}), ("f", {"x": 1})), "[]"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60),
    st.sampled_from(ANSWERS),
)
def test_any_string_scores_as_by_the_literal_expressions(response, answer):
    score = score_tool_call(response, answer)
    assert (score.reward, score.well_formed) == literal(response, answer)
    assert (score.feedback == "") == (score.reward == 1)


def calls_with(numbers: st.SearchStrategy) -> st.SearchStrategy:
    """One to three calls of f, g, h with nested arguments."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    )
    arguments = st.dictionaries(st.text(max_size=4), values)
    return st.lists(st.tuples(st.sampled_from("fgh"), arguments), min_size=1, max_size=3)


@given(calls_with(st.floats()), st.randoms(use_true_random=False))
def test_any_calls_written_out_score_as_by_the_literal_expressions(calls, random):
    answer = gold(*calls)
    random.shuffle(calls)
    score = score_tool_call(written(*calls), answer)
    assert (score.reward, score.well_formed) == literal(written(*calls), answer)


HOSTILE = {
    "openings": "Action Input: {" * 70_000,
    "openings and one closing": "Action Input: {" * 70_000 + "}",
    "opening braces": "Action: f\nAction Input: " + "{" * 1_000_000,
    "closing braces": "}" * 1_000_000,
    "pairs of braces": "Action Input: " + "{}" * 500_000,
    "blank after openings": ("Action:" + " " * 1000 + "\nAction Input:" + " " * 1000) * 500,
    "one long blank": "Action Input:" + " " * 1_000_000,
    "one long blank name": "Action:" + " " * 1_000_000,
    "actions": "Action: f " * 100_000,
    "deep lists": 'Action: f\nAction Input: {"a": ' + "[" * 1_000_000 + "}",
    "closed deep lists": 'Action: f\nAction Input: {"a": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "a huge integer": 'Action: f\nAction Input: {"a": ' + "9" * 1_000_000 + "}",
    "huge integers": 'Action: f\nAction Input: {"a": [' + ("9" * 4000 + ",") * 250 + "0]}",
    "a huge float": 'Action: f\nAction Input: {"a": 1e' + "9" * 100_000 + "}",
    "constants": 'Action: f\nAction Input: {"a": NaN, "b": Infinity, "c": -Infinity}',
    "surrogates": 'Action: \ud800\nAction Input: {"a": "\ud800\udfff"}',
    "many keys": "Action Input: {" + ",".join(f'"{i}": {i}' for i in range(70_000)) + "}",
    "a name of a megabyte": "Action: " + "f" * 1_000_000,
    "escapes": 'Action: f\nAction Input: {"a": "' + "\\" * 1_000_000 + '"}',
}


@pytest.mark.parametrize("response", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("grader", [score_tool_call, score_tool_call_strict])
def test_a_hostile_response_scores_zero_in_one_pass(grader, response):
    score = grader(response, ANSWER)
    assert score.reward == 0
    assert score.feedback
    assert len(score.feedback) < 3 * len(response) + 1000


def test_arguments_near_the_depth_limit_never_raise():
    limit = sys.getrecursionlimit()
    for depth in range(limit - 200, limit + 5):
        deep = 'Action: f\nAction Input: {"a": ' + "[" * depth + "]" * depth + "}"
        answer = json.dumps([{"Action": "f", "Action_Input": deep.split("Input: ")[1]}])
        for grader in (score_tool_call, score_tool_call_strict):
            assert grader(deep, answer).reward in (0.0, 1.0)


# ---- the strict grader --------------------------------------------------------------------------


STRICT = {
    "the gold call": (written(WEATHER), ANSWER, 1),
    "without a thought": (written(WEATHER, thought=""), ANSWER, 1),
    "a thought over several lines": (
        written(WEATHER, thought="Thought: first\nthen an Action: x\n\n"),
        ANSWER,
        1,
    ),
    "order of calls": (written(CLOCK, WEATHER), gold(WEATHER, CLOCK), 1),
    "order of keys": (written(("get_weather", {"day": 1, "city": "Lyon"})), ANSWER, 1),
    "a blank line between calls": (
        written(WEATHER) + "\n\n" + written(CLOCK, thought="") + "\n",
        gold(WEATHER, CLOCK),
        1,
    ),
    "arguments over several lines": (
        'Action: get_weather\nAction Input: {\n  "city": "Lyon",\n  "day": 1\n}',
        ANSWER,
        1,
    ),
    "1.0 for 1": (written(("get_weather", {"city": "Lyon", "day": 1.0})), ANSWER, 1),
    "true for 1": (written(("get_weather", {"city": "Lyon", "day": True})), ANSWER, 0),
    "values of repeated calls": (
        written(("f", {"x": 7}), ("f", {"x": 2})),
        gold(("f", {"x": 1}), ("f", {"x": 2})),
        0,
    ),
    "arguments swapped between calls": (
        written(("f", {"b": 1}), ("g", {"a": 1})),
        gold(("f", {"a": 1}), ("g", {"b": 1})),
        0,
    ),
    "a call too many": (written(WEATHER, WEATHER), ANSWER, 0),
    "a nested object": (written(("f", {"a": {"b": [1]}})), gold(("f", {"a": {"b": [1]}})), 1),
    "a brace inside a string": (written(("f", {"a": "}"})), gold(("f", {"a": "}"})), 1),
    "a name with a hyphen": (written(("get-weather", {})), gold(("get-weather", {})), 1),
    "no input for an empty gold input": ("Action: f", gold(("f", {})), None),
    "text before the thought": ("Well. " + written(WEATHER), ANSWER, None),
    "text after the call": (written(WEATHER) + "\nObservation: sunny", ANSWER, None),
    "text after the brace": (written(WEATHER) + ".", ANSWER, None),
    "a second thought": (written(WEATHER) + "\n" + written(CLOCK), gold(WEATHER, CLOCK), None),
    "two calls on a line": (
        written(WEATHER) + " " + written(CLOCK, thought=""),
        gold(WEATHER, CLOCK),
        None,
    ),
    "an input without action": ('Action Input: {"city": "Lyon", "day": 1}', ANSWER, None),
    "an empty name": ("Action: \nAction Input: {}", gold(("f", {})), None),
    "arguments that are no object": ("Action: f\nAction Input: [1]", gold(("f", {})), None),
    "a repeated key": ('Action: f\nAction Input: {"a": 2, "a": 1}', gold(("f", {"a": 1})), None),
    "NaN": ('Action: f\nAction Input: {"a": NaN}', gold(("f", {"a": 1})), None),
    "only a thought": ("Thought: hm", ANSWER, None),
    "nothing": ("", ANSWER, None),
}


@pytest.mark.parametrize(("response", "answer", "reward"), STRICT.values(), ids=STRICT.keys())
def test_the_strict_grader_reads_whole_calls_and_nothing_else(response, answer, reward):
    """A reward of None stands for a response that is not even well formed."""
    score = score_tool_call_strict(response, answer)
    assert score.reward == (reward or 0)
    assert score.well_formed is (reward is not None)
    assert (score.feedback == "") == (reward == 1)
    assert (score.prediction == "") == (reward is None)


@given(
    calls_with(st.floats(allow_nan=False, allow_infinity=False)),
    st.randoms(use_true_random=False),
)
def test_the_strict_grader_accepts_any_calls_in_any_order(calls, random):
    answer = gold(*calls)
    first = score_tool_call_strict(written(*calls), answer)
    random.shuffle(calls)
    second = score_tool_call_strict(written(*calls), answer)
    assert first.reward == second.reward == 1
    assert first.prediction == second.prediction
    assert score_tool_call_strict(written(*calls, ("f", {})), answer).reward == 0


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60))
def test_the_strict_grader_never_raises(response):
    assert score_tool_call_strict(response, ANSWERS[0]).reward in (0, 1)


# ---- real rows ----------------------------------------------------------------------------------


def test_gold_calls_of_the_benchmark_score_one_but_for_two_rows_that_cannot(data_dir):
    text = (data_dir / "tooluse" / "test.json").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    unsolvable = []
    for row in rows:
        calls = [(c["Action"], json.loads(c["Action_Input"])) for c in json.loads(row["answer"])]
        if score_tool_call(written(*calls), row["answer"]).reward == 0:
            unsolvable.append(row["idx"])
        assert score_tool_call_strict(written(*calls), row["answer"]).reward == 1
        assert score_tool_call(written(("none", {"of": "these"})), row["answer"]).reward == 0
    assert len(rows) == 68
    assert unsolvable == [4072, 4079]
