"""The graded reward is the share of parts that are right."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.rewards import score_tool_call_graded, score_tool_call_strict

FLIGHT = ("book_flight", {"origin": "city PAR", "venue": "area Oslo"})  # 5 parts
CAR = ("rent_car", {"pickup": "place ROM"})  # 3 parts


def written(*calls):
    return "\n".join(
        f"Action: {name}\nAction Input: {json.dumps(arguments)}" for name, arguments in calls
    )


def gold(*calls):
    return json.dumps([{"Action": name, "Action_Input": arguments} for name, arguments in calls])


def flight(**changes):
    return "book_flight", {**FLIGHT[1], **changes}


@pytest.mark.parametrize(
    ("calls", "right", "of"),
    [
        ((FLIGHT, CAR), 8, 8),
        ((CAR, FLIGHT), 8, 8),
        ((flight(origin="area PAR"), CAR), 7, 8),  # the format
        ((flight(origin="city OSL"), CAR), 7, 8),  # the place
        ((flight(origin="area OSL"), CAR), 6, 8),
        ((flight(origin="PAR"), CAR), 6, 8),  # a word in another place is another word
        ((FLIGHT,), 5, 8),
        ((CAR,), 3, 8),
        ((("book_flight", {}),), 1, 8),
        ((("hire_guide", FLIGHT[1]), CAR), 3, 8),  # arguments belong to their call
        ((FLIGHT, CAR, CAR), 8, 11),  # more costs
        ((flight(extra="city PAR"), CAR), 8, 10),
        ((("rent_car", {"pickup": 5}), FLIGHT), 6, 8),  # name and flight
    ],
)
def test_the_reward_is_the_share_of_parts(calls, right, of):
    score = score_tool_call_graded(written(*calls), gold(FLIGHT, CAR))
    assert score.reward == pytest.approx(right / of)
    assert score.well_formed
    assert (score.feedback == "") == (right == of)


def test_what_is_not_a_call_has_nothing():
    for response in ("", "Thought: I need one call.", "Action: book_flight", "book_flight"):
        score = score_tool_call_graded(response, gold(FLIGHT))
        assert (score.reward, score.well_formed) == (0.0, False)


def test_values_that_are_not_text_are_one_part():
    answer = gold(("f", {"a": {"b": [1, 2]}, "c": 3}))
    assert (
        score_tool_call_graded(written(("f", {"a": {"b": [1, 2]}, "c": 3.0})), answer).reward == 1
    )
    half = score_tool_call_graded(written(("f", {"a": {"b": [1]}, "c": 3})), answer)
    assert half.reward == pytest.approx(2 / 3)
    # A number is not the word that spells it.
    assert score_tool_call_graded(written(("f", {"a": "1"})), gold(("f", {"a": 1}))).reward == 0.5


def test_calls_of_one_name_are_paired_in_order():
    twice = (("f", {"a": "x"}), ("f", {"a": "y"}))
    assert score_tool_call_graded(written(*twice[::-1]), gold(*twice)).reward == 1  # as the strict
    one_wrong = (("f", {"a": "x"}), ("f", {"a": "z"}))
    assert score_tool_call_graded(written(*one_wrong), gold(*twice)).reward == pytest.approx(3 / 4)


ARGUMENTS = st.dictionaries(
    st.sampled_from("ab"), st.one_of(st.sampled_from(["x", "x  y", "y", ""]), st.integers(0, 1))
)
CALLS = st.lists(st.tuples(st.sampled_from("fg"), ARGUMENTS), min_size=1, max_size=3)


@given(CALLS, CALLS)
def test_it_is_one_exactly_where_the_strict_grader_says_one(calls, wanted):
    response, answer = written(*calls), gold(*wanted)
    strict, graded = (
        grader(response, answer) for grader in (score_tool_call_strict, score_tool_call_graded)
    )
    assert (graded.reward == 1) == (strict.reward == 1)
    assert 0 <= graded.reward <= 1
    assert (graded.prediction, graded.feedback) == (strict.prediction, strict.feedback)


def test_deep_nesting_and_a_broken_answer_do_not_raise():
    deep = "[" * 100_000
    response = f'Action: f\nAction Input: {{"a": {deep}'
    assert score_tool_call_graded(response, gold(FLIGHT)).reward == 0
    assert score_tool_call_graded(written(FLIGHT), "[{").reward == 0
