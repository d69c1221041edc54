"""The scorecard: baselines worked out by hand, a calibrated test, and what it warns of."""

import numpy as np
import pytest

from drift_jax import scorecard
from drift_jax.types import Problem


def choice(index: int, answer: str, options: int = 4, task: str = "biology") -> Problem:
    lines = "\n".join(f"{letter}: text" for letter in "ABCD"[:options])
    content = f"Which one?\n\n{lines}\nPlease reason step by step."
    return Problem(f"{task}/test/{index}", task, ({"role": "user", "content": content},), answer)


def row(index: int, rewards, predictions=None, level: str = "", task: str = "biology") -> dict:
    count = len(rewards)
    return {
        "id": f"{task}/test/{index}",
        "level": level,
        "rewards": list(map(float, rewards)),
        "predictions": predictions or ["A"] * count,
        "lengths": [10] * count,
        "finished": [True] * count,
        "well_formed": [True] * count,
    }


def test_guessing_counts_the_options_of_each_problem():
    problems = [choice(0, "A"), choice(1, "B", options=2)]
    assert scorecard.guessing_baseline(problems) == pytest.approx((1 / 4 + 1 / 2) / 2)
    call = Problem("t/test/0", "toolcalls", ({"role": "user", "content": "API: f(x)"},), "[]")
    assert scorecard.guessing_baseline([call]) is None


def test_the_majority_answer_is_that_of_training_and_is_scored_on_test():
    training = [choice(i, answer) for i, answer in enumerate("BBBA")]
    answer, score = scorecard.majority_baseline([choice(0, "B"), choice(1, "C")], training)
    assert (answer, score) == ("B", 0.5)
    rare = [choice(i, str(i)) for i in range(20)]
    assert scorecard.majority_baseline([choice(0, "B")], rare) is None


def test_estimates_of_two_problems_by_hand():
    found = scorecard.estimates([row(0, [1, 0]), row(1, [1, 1])])
    assert found["mean@2"].value == 0.75
    assert found["pass@1"].value == 0.75 and found["pass@2"].value == 1.0
    assert found["worst@2"].value < found["mean@2"].value < found["best@2"].value


def test_the_paired_test_matches_by_id_and_sees_a_real_difference():
    rng = np.random.default_rng(0)
    ours = [row(i, rng.random(16) < 0.7) for i in range(60)]
    theirs = [row(i, rng.random(16) < 0.5) for i in range(60)]
    difference, p_value = scorecard.paired_test(ours, theirs[::-1])
    assert 0.1 < difference.value < 0.3 and difference.low > 0
    assert p_value < 0.01
    same, certain = scorecard.paired_test(ours, ours)
    assert same.value == 0 and certain == 1


def test_the_paired_test_is_calibrated_where_nothing_differs():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        draws = rng.random((2, 30, 4)) < 0.5
        one, other = ([row(i, r) for i, r in enumerate(group)] for group in draws)
        values.append(scorecard.paired_test(one, other, draws=500)[1])
    # 200 tests at the 5 % level: 10 expected, standard deviation 3.
    assert 1 <= np.sum(np.array(values) <= 0.05) <= 20


def test_evaluations_of_other_problems_are_not_compared():
    with pytest.raises(ValueError, match="differ in 2 problems"):
        scorecard.paired_test([row(0, [1])], [row(1, [1])])


def test_the_text_has_levels_baselines_and_known_faults():
    problems = [choice(0, "A"), choice(365, "B", task="material")]
    rows = [row(0, [1, 0], level="cells"), row(365, [0, 0], level="ores", task="material")]
    text = scorecard.text(rows, problems, [choice(0, "A")])
    for part in ("2 problems, 2 samples each", "mean@2", "guessing an option 0.250", "cells:"):
        assert part in text
    assert "also in the training split: material/test/365" in text
