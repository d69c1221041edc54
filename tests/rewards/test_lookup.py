"""The letter is rewarded, the derivation is checked and never rewarded."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.rewards import score_multiple_choice
from drift_jax.rewards.lookup import read_rows, score_lookup

ROWS = [["twin", "Oslo", "Rome"], ["port", "Rome", "Lima"]]
ANSWER = json.dumps({"letter": "C", "rows": ROWS})


def derivation(rows=ROWS, letter="C", said="C"):
    lines = [f"{n}. {relation} of {a} is {b}" for n, (relation, a, b) in enumerate(rows, start=1)]
    return "\n".join(["Look up:", *lines, f"So Lima ({said})", f"<answer>{letter}</answer>"])


def test_a_right_derivation_with_the_right_letter():
    score = score_lookup(derivation(), ANSWER)
    assert (score.reward, score.prediction, score.well_formed, score.derived) == (
        1,
        "C",
        True,
        True,
    )


WRONG_ROWS = [
    [["twin", "Oslo", "Cairo"], ["port", "Cairo", "Lima"]],  # ends at the right city
    [["twin", "Oslo", "Rome"], ["port", "Rome", "Quito"]],
    [["port", "Oslo", "Rome"], ["twin", "Rome", "Lima"]],
    ROWS[:1],
    [*ROWS, ["seat", "Lima", "Lima"]],
    [],
]


@pytest.mark.parametrize("rows", WRONG_ROWS)
def test_a_right_letter_after_a_wrong_derivation_is_rewarded_and_known_as_luck(rows):
    score = score_lookup(derivation(rows), ANSWER)
    assert (score.reward, score.derived) == (1.0, False)


def test_a_wrong_letter_after_a_right_derivation_is_not_rewarded():
    score = score_lookup(derivation(letter="A"), ANSWER)
    assert (score.reward, score.derived) == (0.0, True)


@pytest.mark.parametrize("rows, letter", list(itertools.product([ROWS, *WRONG_ROWS], "ABCDE")))
def test_the_reward_is_that_of_multiple_choice_whatever_the_derivation(rows, letter):
    response = derivation(rows, letter)
    assert score_lookup(response, ANSWER).reward == score_multiple_choice(response, "C").reward


@pytest.mark.parametrize(
    "response",
    [
        "C",
        "<answer>C</answer>",
        derivation().replace("Look up:", "look up:"),
        derivation().replace("2. port", "3. port"),
        derivation().replace("port of Rome is", "port of Rome was"),
        derivation() + "\n1. twin of Oslo is Rome",
        derivation(said="E"),
        derivation().replace("So Lima (C)\n", ""),
    ],
)
def test_without_the_form_of_a_derivation_there_is_none(response):
    score = score_lookup(response, ANSWER)
    assert (score.well_formed, score.derived) == (False, False)


def test_the_form_asks_for_a_letter_too():
    assert not score_lookup(derivation(letter="E"), ANSWER).well_formed


@pytest.mark.parametrize("said", ["A", "none"])
def test_what_is_concluded_from_right_rows_is_neither_rewarded_nor_asked_for(said):
    score = score_lookup(derivation(said=said), ANSWER)
    assert (score.reward, score.well_formed, score.derived) == (1.0, True, True)


def test_rows_are_read_as_they_stand():
    assert read_rows(derivation()) == ROWS
    assert read_rows(derivation([])) == []
    assert read_rows("") is None


@given(st.text(alphabet="Lok up:S1234. twinofs(C)\n<answer>/", max_size=200))
def test_no_text_raises(text):
    assert score_lookup(text, ANSWER).derived in (True, False)
    assert not score_lookup(text, ANSWER).derived or text.startswith("Look up:")


def test_a_long_response_is_read_in_linear_time():
    for text in ("1. a of a is a\n" * 50_000, "1" * 1_000_000, "<answer>" * 100_000):
        response = f"Look up:\n{text}\nSo Lima (C)\n<answer>C</answer>"
        assert score_lookup(response, ANSWER).derived is False
