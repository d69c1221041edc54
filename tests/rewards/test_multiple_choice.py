"""The multiple-choice grader equals the reference grader, its table of odd cases included."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.rewards import Score, score_multiple_choice


@pytest.mark.parametrize(
    ("response", "reward", "well_formed"),
    [
        ("A", 1, False),
        ("<answer>\nA\n</answer>", 1, True),
        ("<answer>\nA\n</answer>\n", 1, True),
        ("<answer>A</answer>\n\n", 1, False),
        ("<reasoning>\nB is wrong\n</reasoning>\n<answer>\nA\n</answer>", 1, True),
        ("<answer>A", 1, False),
        ("<answer>A</answer> trailing", 1, False),
        ("<answer>B</answer> <answer>A</answer>", 1, True),
        ("<answer>A</answer> <answer>B</answer>", 0, True),
        ("A</answer>junk", 1, False),
        ("<answer>a</answer>", 0, False),
        ("<answer>A.</answer>", 0, False),
        ("<answer>(A)</answer>", 0, False),
        ("<answer>A: foo</answer>", 0, False),
        ("<answer>B</answer>", 0, True),
        ("x </answer> A", 0, False),
        ("", 0, False),
    ],
)
def test_the_table_of_odd_cases_scores_as_measured(response, reward, well_formed):
    score = score_multiple_choice(response, "A")
    assert (score.reward, score.well_formed, score.feedback) == (reward, well_formed, "")


def test_the_prediction_is_what_stands_in_the_last_answer_tag():
    assert score_multiple_choice("<answer>B</answer> or <answer> C </answer>", "A") == Score(
        reward=0.0, prediction="C", well_formed=True, feedback=""
    )


def literal(response: str, answer: str) -> Score:
    """The rule by splitting, as it is stated: after the last opening tag, before a closing one."""
    candidate = response.split("<answer>")[-1].split("</answer>")[0].strip()
    well_formed = re.search(r"<answer>\s*(A|B|C|D)\s*</answer>$", response) is not None
    return Score(float(candidate == answer), candidate, well_formed, "")


PIECES = ["<answer>", "</answer>", "A", "B", "a", " ", "\n", "\t", "\u2003", ".", "é", "\ud800"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40))
def test_any_string_scores_as_by_the_literal_rule(response):
    assert score_multiple_choice(response, "A") == literal(response, "A")


@pytest.mark.parametrize(
    "response",
    [
        "<answer>" * 125_000,
        "</answer>" * 110_000,
        "<answer>" + " " * 1_000_000,
        "<answer>A" + " " * 1_000_000 + "<",
        "{" * 1_000_000,
        "\ud800" * 1_000_000,
        "\x00" * 1_000_000,
    ],
    ids=["openings", "closings", "blank", "blank after a letter", "braces", "surrogates", "nulls"],
)
def test_a_hostile_megabyte_scores_zero(response):
    assert score_multiple_choice(response, "A").reward == 0


@pytest.mark.parametrize("task", ["biology", "chemistry", "material", "physics"])
def test_gold_answers_of_the_benchmark_score_one(data_dir, task):
    for split in ("train", "test"):
        for line in (data_dir / task / f"{split}.json").read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)["answer"]
            score = score_multiple_choice(f"Thinking.\n<answer>\n{answer}\n</answer>", answer)
            assert (score.reward, score.well_formed) == (1, True)
            assert score_multiple_choice("<answer>\nE\n</answer>", answer).reward == 0
