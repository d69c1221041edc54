"""A plan is right as a whole, in any of its wordings."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.rewards.step_plan import WORDINGS, score_step_plan

STEPS = [("weld", "Rome", "torch"), ("paint", "Lima", "brush"), ("seal", "Cairo", "clamp")]
ANSWER = json.dumps({"start": "Oslo", "steps": STEPS})


def plan(steps=STEPS, wordings=(0, 1, 2), start="Oslo", tools=None):
    """A plan in the words of the task."""
    lines, origin = ["Plan:"], start
    for number, ((verb, place, tool), wording) in enumerate(
        zip(steps, wordings, strict=False), start=1
    ):
        text = WORDINGS[wording].format(origin=origin, place=place, verb=verb, tool=tool)
        lines.append(f"{number}.{text}")
        origin = place
    tools = [tool for _, _, tool in steps] if tools is None else tools
    return "\n".join([*lines, f"Answer: {' '.join(tools)}"])


def test_the_example_of_the_docstring_is_right():
    response = (
        "Plan:\n"
        "1. Go from Oslo on to Rome and weld with the torch\n"
        "2. Now paint in Lima, coming from Rome, using the brush\n"
        "3. Reach Cairo out of Lima; there seal by means of the clamp\n"
        "Answer: torch brush clamp"
    )
    assert response == plan()
    score = score_step_plan(response, ANSWER)
    assert (score.reward, score.prediction, score.well_formed) == (1.0, "torch brush clamp", True)
    assert (score.feedback, score.derived) == ("", None)


@pytest.mark.parametrize("wordings", list(itertools.product(range(3), repeat=3)))
def test_every_wording_of_every_step_is_right(wordings):
    assert score_step_plan(plan(wordings=wordings), ANSWER).reward == 1


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (plan([("weld", "Rome", "brush"), *STEPS[1:]]), "Step 1 is Oslo weld Rome brush, expected"),
        (plan([STEPS[1], STEPS[0], STEPS[2]]), "Step 1 is Oslo paint Lima brush"),
        (plan(start="Quito"), "Step 1 is Quito weld"),
        (plan().replace("coming from Rome", "coming from Oslo"), "Step 2 is Oslo paint"),
        (plan(STEPS[:2]), "The plan has 2 steps, expected 3"),
        (plan([*STEPS, STEPS[0]], (0,) * 4), "The plan has 4 steps, expected 3"),
        (plan(tools=["torch", "brush", "torch"]), "The answer is torch brush torch"),
        (plan(tools=[]), "The answer is , expected torch brush clamp"),
    ],
)
def test_a_plan_with_one_fault_is_wrong_and_the_fault_is_named(response, fault):
    score = score_step_plan(response, ANSWER)
    assert (score.reward, score.well_formed) == (0.0, True)
    assert score.feedback.startswith(fault)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Answer: torch brush clamp",
        plan().replace("Plan:", "plan:"),
        plan().replace("2. Now", "3. Now"),
        plan().replace("with the torch", "with a torch"),
        plan().replace("\nAnswer", " Answer"),
        plan() + "\nPlan:",
        plan().replace("Rome and", "Rome Lima and"),
        "Plan:\n1.\nAnswer:",
    ],
)
def test_what_is_no_plan_is_malformed(response):
    score = score_step_plan(response, ANSWER)
    assert (score.reward, score.well_formed, score.prediction) == (0.0, False, "")
    assert score.feedback.startswith("Malformed plan: ")


def test_white_space_around_the_plan_does_not_matter():
    assert score_step_plan(f"\n{plan()}\n", ANSWER).reward == 1


@given(st.text(alphabet="Plan:Answer123. \nGofrom", max_size=200))
def test_no_text_raises(text):
    assert score_step_plan(text, ANSWER).reward == 0


def test_a_long_response_is_read_in_linear_time():
    for text in ("1. Go from " * 100_000, "Plan:" + "\n1. Now" * 100_000, "a" * 1_000_000):
        assert score_step_plan(f"Plan:\n{text}\nAnswer: {text}", ANSWER).reward == 0
