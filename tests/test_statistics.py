"""Evaluation numbers: the reference's bootstrap, exact pass@k, honest intervals."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from drift_jax.statistics import (
    Estimate,
    best_at_k,
    holm,
    majority_at_k,
    mean_at_k,
    nested_mean,
    paired_difference,
    pass_at_k,
    worst_at_k,
)

TABLES = arrays.arrays(np.float64, (3, 5), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


def first_correct(c: int, n: int = 16) -> np.ndarray:
    """One problem whose first c of n samples are correct. [1, n]."""
    return np.array([[1.0] * c + [0.0] * (n - c)])


# ---- golden numbers of the reference ------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (16, (0.656, 0.887, 0.990)),
        (8, (0.412, 0.656, 0.899)),
        (4, (0.243, 0.430, 0.703)),
        (2, (0.149, 0.249, 0.461)),
    ],
)
def test_best_at_k_gives_the_references_seeded_values(k, expected):
    values = [best_at_k(first_correct(c), k).value for c in (1, 2, 4)]
    assert values == pytest.approx(expected, abs=1e-12)  # means of 1,000 zeros and ones


def subsets(samples: int, k: int) -> np.ndarray:
    """The reference's subsets: the global legacy generator, seeded anew for every problem."""
    state = np.random.get_state()
    np.random.seed(42)
    table = np.random.choice(samples, size=(1000, k), replace=True)
    np.random.set_state(state)
    return table


def vote(predictions: list[str], rewards: list[float]) -> float:
    """Reward of the first sample with the most frequent prediction, the first one met at a tie."""
    counts = Counter(predictions)  # in order of first appearance
    winner = max(counts, key=counts.__getitem__)
    return rewards[predictions.index(winner)]


@given(TABLES, st.integers(1, 5), st.randoms(use_true_random=False))
def test_best_worst_and_majority_equal_the_plain_loops(rewards, k, random):
    predictions = [[random.choice("ABC") for _ in row] for row in rewards]
    table = subsets(5, k)
    expected = {"best": [], "worst": [], "majority": []}
    for votes, row in zip(predictions, rewards, strict=True):
        draws = [[row[i] for i in subset] for subset in table]
        expected["best"].append([max(draw) for draw in draws])
        expected["worst"].append([min(draw) for draw in draws])
        expected["majority"].append(
            [
                vote([votes[i] for i in subset], draw)
                for subset, draw in zip(table, draws, strict=True)
            ]
        )
    results = {
        "best": best_at_k(rewards, k),
        "worst": worst_at_k(rewards, k),
        "majority": majority_at_k(predictions, rewards, k),
    }
    for name, result in results.items():
        np.testing.assert_allclose(result.per_problem, np.mean(expected[name], axis=1))
        assert result.value == pytest.approx(np.mean(expected[name]))
        assert result.std == pytest.approx(np.std(expected[name], axis=1).mean())


def test_a_majority_is_right_or_wrong_with_its_most_frequent_prediction():
    agreed = [["A"] * 9 + ["B"] * 1]
    rewards = np.array([[1.0] * 9 + [0.0]])
    assert majority_at_k(agreed, rewards, 10).value > 0.99
    assert majority_at_k(agreed, 1 - rewards, 10).value < 0.01
    assert majority_at_k([["A"] * 10], rewards * 0.5, 1).value == pytest.approx(
        0.5 * best_at_k(rewards, 1).value
    )


def test_the_global_random_numbers_are_left_alone():
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    best_at_k(first_correct(1), 4)
    mean_at_k(first_correct(1))
    assert np.random.rand() == expected


# ---- mean@k and pass@k --------------------------------------------------------------------------


def test_mean_at_k_is_the_mean_of_problem_means_with_the_scatter_within_a_problem():
    result = mean_at_k(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    assert result.value == 0.375
    # population standard deviations: sqrt(1/4 * 3/4) and sqrt(1/2 * 1/2)
    assert result.std == pytest.approx((np.sqrt(3) / 4 + 0.5) / 2)
    np.testing.assert_array_equal(result.per_problem, [0.25, 0.5])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    hits = [any(subset) for subset in itertools.combinations(samples, k)]
    result = pass_at_k(np.array([samples]), k)
    assert result.value == pytest.approx(np.mean(hits))
    assert result.std == pytest.approx(np.std(hits))


def test_best_at_16_is_not_pass_at_16():
    assert pass_at_k(first_correct(1), 16).value == 1
    assert pass_at_k(first_correct(1), 1).value == pytest.approx(1 / 16)
    assert best_at_k(first_correct(1), 16).value == pytest.approx(1 - (15 / 16) ** 16, abs=0.03)


@given(TABLES, st.integers(1, 5))
def test_worst_mean_and_best_are_in_order(rewards, k):
    best, worst = best_at_k(rewards, k), worst_at_k(rewards, k)
    assert np.all(rewards.min(axis=1) <= worst.per_problem)
    assert np.all(worst.per_problem <= best.per_problem)
    assert np.all(best.per_problem <= rewards.max(axis=1))
    if k == 1:
        np.testing.assert_array_equal(best.per_problem, worst.per_problem)


# ---- intervals ----------------------------------------------------------------------------------


@given(TABLES, st.integers(0, 99))
def test_an_interval_holds_its_value_and_follows_its_seed(rewards, seed):
    one, two = (mean_at_k(rewards, seed=seed) for _ in range(2))
    assert one.low <= one.value <= one.high
    assert (one.low, one.high) == (two.low, two.high)


def test_problems_not_samples_are_resampled():
    """Samples that all agree within a problem make nothing more certain."""
    rng = np.random.default_rng(0)
    per_problem = rng.integers(2, size=(50, 1)).astype(float)
    few, many = mean_at_k(per_problem), mean_at_k(np.repeat(per_problem, 16, axis=1))
    assert (few.low, few.high) == (many.low, many.high)
    assert few.high - few.low > 0.2  # about 4 * sqrt(1/4 / 50) = 0.28


def test_a_wider_confidence_gives_a_wider_interval():
    rewards = np.random.default_rng(0).integers(2, size=(50, 4)).astype(float)
    narrow, wide = (mean_at_k(rewards, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        truth = rng.beta(1, 1, size=60)  # pass rates of 60 problems, of mean 0.5
        rewards = (rng.random((60, 8)) < truth[:, None]).astype(float)
        result = mean_at_k(rewards, resamples=300, seed=trial)
        hits += result.low <= 0.5 <= result.high
    assert 0.90 < hits / 300 < 0.99  # 0.95 with standard error 0.013


def test_a_paired_difference_sees_through_the_difficulty_of_the_problems():
    """b is a with a tenth of a reward more on each problem: tiny beside the spread of problems."""
    rng = np.random.default_rng(0)
    difficulty = rng.random((40, 1))
    a = difficulty + 0.02 * rng.standard_normal((40, 4))
    b = difficulty + 0.1 + 0.02 * rng.standard_normal((40, 8))
    result = paired_difference(b, a)
    assert result.low < 0.1 < result.high
    assert result.high - result.low < 0.02
    assert mean_at_k(a).high > mean_at_k(b).low  # the two intervals alone overlap
    mirrored = paired_difference(a, b)
    assert mirrored.value == pytest.approx(-result.value)
    assert result.std == pytest.approx(result.per_problem.std())


def test_a_paired_difference_takes_values_per_problem_too():
    a, b = first_correct(2, 4).repeat(3, axis=0), first_correct(1, 4).repeat(3, axis=0)
    whole = paired_difference(a, b)
    means = paired_difference(mean_at_k(a).per_problem, mean_at_k(b).per_problem)
    assert whole.value == means.value == 0.25
    assert (whole.low, whole.high) == (0.25, 0.25)


def test_an_estimate_prints_as_value_and_interval():
    assert str(Estimate(0.5, 0.25, 0.75, 0.1, np.array([0.5]))) == "0.500 [0.250, 0.750]"


def test_evaluate_offers_the_same_functions():
    from drift_jax import evaluate

    for function in (best_at_k, majority_at_k, mean_at_k, paired_difference, pass_at_k, worst_at_k):
        assert getattr(evaluate, function.__name__) is function
    assert evaluate.Estimate is Estimate


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_at_k(np.zeros(3)), r"mean_at_k: got shape \(3,\)"),
        (lambda: mean_at_k(np.zeros((0, 4))), r"got shape \(0, 4\)"),
        (lambda: mean_at_k(np.array([[np.nan]])), "got nan"),
        (lambda: best_at_k(np.zeros((2, 4)), 5), "best_at_k: k is 5; use 1 to 4"),
        (lambda: worst_at_k(np.zeros((2, 4)), 0), "worst_at_k: k is 0; use 1 to 4"),
        (lambda: pass_at_k(np.zeros((2, 4)), 8), "pass_at_k: k is 8; use 1 to 4"),
        (lambda: pass_at_k(np.array([[0.5, 1.0]]), 1), r"pass_at_k: got 0\.5; pass 0 and 1"),
        (
            lambda: majority_at_k([["A", "B"]], np.zeros((2, 2)), 1),
            r"predictions have shape \(1, 2\), rewards \(2, 2\)",
        ),
        (lambda: paired_difference(np.zeros((2, 4)), np.zeros((3, 4))), "got 2 and 3 problems"),
        (lambda: mean_at_k(np.zeros((2, 4)), confidence=95), "confidence is 95"),
        (lambda: mean_at_k(np.zeros((2, 4)), resamples=0), "resamples is 0"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_the_numbers(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- several runs -------------------------------------------------------------------------------


def world(seeds: int, problems: int, seed: int = 0) -> np.ndarray:
    """Scores of one measure, in which seeds and problems matter. [1, seed, problem]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, seeds, 1)) + rng.normal(size=(1, 1, problems)) + 0.3


def test_the_nested_mean_is_that_of_worlds_then_seeds_then_problems():
    worlds = [np.array([[[0.0, 1.0], [1.0, 1.0]]]), np.array([[[0.0, 0.0, 0.3]]])]
    (one,) = nested_mean(worlds)
    assert one.value == pytest.approx((0.75 + 0.1) / 2)


def test_two_worlds_of_one_seed_and_problem_resample_to_either_of_them():
    (one,) = nested_mean([np.full((1, 1, 1), 0.2), np.full((1, 1, 1), 0.6)])
    assert (one.value, one.low, one.high) == pytest.approx((0.4, 0.2, 0.6))


def test_nested_resamples_scatter_as_literal_loops_do():
    worlds = [world(3, 8, seed) for seed in range(3)]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        parts = []
        for _ in range(2):  # one less than the worlds
            (table,) = worlds[rng.integers(3)]
            problems = rng.integers(8, size=8)  # the same for all seeds
            seeds = rng.integers(3, size=2)
            parts.append(np.mean([table[s, p] for s in seeds for p in problems]))
        means.append(np.mean(parts))
    (one,) = nested_mean(worlds)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (one.low, one.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    below = np.mean(np.array(means) <= 0)
    assert one.p_value == pytest.approx(2 * min(below, 1 - below), abs=0.04)


def test_one_run_has_the_interval_of_the_bootstrap_over_problems():
    rewards = np.random.default_rng(0).random((60, 4))
    (one,) = nested_mean([rewards.mean(axis=1)[None, None]])
    plain = mean_at_k(rewards, resamples=4000)
    assert one.value == pytest.approx(plain.value)
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.01)


@pytest.mark.parametrize(("worlds", "seeds", "least"), [(1, 3, 0.9), (3, 3, 0.92)])
def test_the_nested_interval_covers_the_truth_about_as_often_as_it_says(worlds, seeds, least):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        scores = [
            (0.05 * rng.normal() if worlds > 1 else 0)
            + 0.03 * rng.normal(size=(1, seeds, 1))
            + 0.3 * rng.normal(size=(1, 1, 40))
            + 0.15 * rng.normal(size=(1, seeds, 40))
            for _ in range(worlds)
        ]
        (one,) = nested_mean(scores, resamples=300)
        covered += one.low <= 0 <= one.high
    assert covered / 200 >= least


def test_measures_are_estimated_apart_on_the_same_resamples():
    first, second = world(2, 9, 1), world(2, 9, 2)
    both = nested_mean([np.concatenate([first, second])])
    assert both == [*nested_mean([first]), *nested_mean([second])]
    assert [one.p_value for one in nested_mean([0 * first])] == [1.0]


def test_other_arrays_than_measures_by_seeds_by_problems_are_refused():
    for worlds in ([], [np.zeros(3)], [np.zeros((1, 0, 3))]):
        with pytest.raises(ValueError, match="measure, seed, problem"):
            nested_mean(worlds)
    with pytest.raises(ValueError, match="not finite"):
        nested_mean([np.full((1, 1, 1), np.nan)])


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: times 3, 2 and 1, none below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []
