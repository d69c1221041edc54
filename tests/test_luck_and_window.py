"""Lucky successes by bin and the window of rewards, by hand."""

import numpy as np
import pytest

from drift_jax import metrics, summary
from drift_jax.data import generated, word_tokenizer
from drift_jax.grading import grade
from drift_jax.types import Rollouts

# An easy, a medium and two hard problems with four rollouts each.
PASS_RATE = np.array([0.9, 0.5, 0.1, 0.0])
CORRECT = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
DERIVED = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
BINS = {"easy_above": 0.8, "hard_below": 0.2}


def test_lucky_successes_by_hand():
    found = summary.lucky_metrics(PASS_RATE, CORRECT, DERIVED, **BINS)
    assert found == {
        "rollout/derived_fraction": pytest.approx(6 / 16),
        "routing/lucky_positive_fraction": pytest.approx(3 / 7),
        "routing/easy/lucky_positive_fraction": pytest.approx(1 / 4),
        "routing/medium/lucky_positive_fraction": pytest.approx(1 / 2),
        "routing/hard/lucky_positive_fraction": pytest.approx(1.0),
    }
    assert all(map(metrics.is_documented, found))
    assert not metrics.is_documented("routing/lucky/lucky_positive_fraction")


def test_a_bin_without_a_success_has_no_number():
    found = summary.lucky_metrics(PASS_RATE, CORRECT & (PASS_RATE > 0.2)[:, None], DERIVED, **BINS)
    assert "routing/hard/lucky_positive_fraction" not in found
    assert "routing/easy/lucky_positive_fraction" in found


def test_the_edges_of_the_bins_are_medium():
    found = summary.lucky_metrics(np.array([0.8, 0.2]), CORRECT[:2], DERIVED[:2], **BINS)
    assert set(found) >= {"routing/medium/lucky_positive_fraction"}
    assert not {"routing/easy/lucky_positive_fraction"} & set(found)


def test_a_task_without_derivations_has_no_such_metric():
    assert summary.lucky_metrics(PASS_RATE, CORRECT, None, **BINS) == {}


def test_the_tolerance_window_by_hand():
    rewards = np.array(
        [
            [1.0, 0.9, 0.9, 0.85],  # three inside, of two rewards
            [0.9, 0.85, 0.2, 0.0],  # two
            [1.0, 1.0, 0.85, 0.0],  # two of one reward
            [0.8, 0.8, 0.8, 0.8],  # no success
        ]
    )
    found = summary.window_metrics(rewards, success_threshold=0.85, reward_tolerance=0.1)
    assert found["teacher/window_mean"] == pytest.approx((3 + 2 + 2) / 3)
    assert found["teacher/window_mixed_fraction"] == pytest.approx(2 / 4)
    assert all(map(metrics.is_documented, found))


def test_rewards_of_0_and_1_never_mix_in_the_window():
    rewards = np.random.default_rng(0).integers(0, 2, (50, 4)).astype(float)
    found = summary.window_metrics(rewards, success_threshold=0.5, reward_tolerance=0.1)
    assert found["teacher/window_mixed_fraction"] == 0 and found["teacher/window_mean"] > 1
    nothing = summary.window_metrics(0 * rewards, success_threshold=0.5, reward_tolerance=0.1)
    assert nothing == {"teacher/window_mean": 0.0, "teacher/window_mixed_fraction": 0.0}


@pytest.mark.parametrize("task", ["lookup", "toolsteps"])
def test_grading_hands_on_what_the_grader_knows_of_the_derivation(task):
    chosen, tokenizer = generated.TASKS[task], generated.build_tokenizer(task)
    problems = chosen.problems(chosen.world(0), "train")[:4]
    texts = []
    for problem in problems:
        gold = chosen.solution(problem)
        first_line, rest = gold.split("\n", 1)
        lucky = f"{first_line}\n{rest[rest.index('<answer>') :]}" if task == "lookup" else gold
        texts += [gold, lucky]
    rows = [tokenizer.encode(text) + [tokenizer.eos_token_id] for text in texts]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    zeros = np.zeros(tokens.shape, np.float32)
    answers = grade(tokenizer, problems, Rollouts(tokens, mask, zeros, zeros, mask.any(axis=1)))
    assert answers.rewards.tolist() == [[1, 1]] * 4
    assert word_tokenizer.END not in "".join(answers.responses[0])
    if task == "lookup":
        assert answers.derived.tolist() == [[True, False]] * 4
    else:
        assert answers.derived is None
