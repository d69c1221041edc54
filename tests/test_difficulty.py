"""Difficulty routing (DRIFT section 3.2): pass rates, bins, weights, as the paper prints them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.difficulty import (
    PassRates,
    bin_fractions,
    branch_weights,
    gate_rows,
    route,
    smooth_pass_rate,
)
from drift_jax.types import Routes
from tests import reference

RATES = st.floats(0, 1)

# The paper's names for the four numbers of a stage, for the methods it compares.
DRIFT_WARMUP = {
    "policy_correct": 0.0,
    "policy_wrong": 0.0,
    "distill_correct": 1.0,
    "distill_wrong": 1.0,
    "use_difficulty": False,
}
DRIFT_MIXED = {
    "policy_correct": 1.0,
    "policy_wrong": 0.0,
    "distill_correct": 0.0,
    "distill_wrong": 1.0,
}
GRPO = {
    "policy_correct": 1.0,
    "policy_wrong": 1.0,
    "distill_correct": 0.0,
    "distill_wrong": 0.0,
    "use_difficulty": False,
}
SDPO = DRIFT_WARMUP
SRPO = {**DRIFT_MIXED, "use_difficulty": False, "no_teacher": "policy"}


# ---- Eqs. 7-8 -----------------------------------------------------------------------------------


def test_the_first_visit_has_no_past():
    assert smooth_pass_rate(None, 0.375, decay=0.9) == 0.375


def test_the_past_decays_by_half_a_visit():
    # r = 0.5 * 0.25 + 0.5 * 1.0 = 0.625, then 0.5 * 0.625 + 0.5 * 0 = 0.3125
    rates = PassRates(decay=0.5)
    assert rates.update(["p"], [0.25])[0] == 0.25
    assert rates.update(["p"], [1.0])[0] == 0.625
    assert rates.update(["p"], [0.0])[0] == 0.3125


@given(st.none() | RATES, RATES, RATES)
def test_smoothing_equals_the_literal_equation(past, now, decay):
    expected = reference.smooth_pass_rate(past, now, decay)
    assert smooth_pass_rate(past, now, decay=decay) == pytest.approx(expected, abs=1e-15)


@given(RATES, RATES, RATES)
def test_a_smoothed_rate_lies_between_the_two_and_a_constant_one_stays(past, now, decay):
    assert min(past, now) <= smooth_pass_rate(past, now, decay=decay) <= max(past, now)
    assert smooth_pass_rate(now, now, decay=decay) == now
    assert smooth_pass_rate(past, now, decay=0) == now
    assert smooth_pass_rate(past, now, decay=1) == past


def test_a_rate_that_stays_on_the_hard_threshold_stays_medium():
    """0.3 * 0.2 + 0.7 * 0.2 is less than 0.2 in floating point."""
    assert reference.difficulty(reference.smooth_pass_rate(0.2, 0.2, 0.3)) == "hard"
    rates = PassRates(decay=0.3)
    for _ in range(5):
        assert reference.difficulty(rates.update(["p"], [0.2])[0]) == "medium"


def test_problems_are_smoothed_apart_and_by_visit():
    rates = PassRates(decay=0.5)
    rates.update(["a", "b"], [1.0, 0.0])
    rates.update(["a"], [1.0])
    np.testing.assert_array_equal(rates.update(["b", "a", "c"], [1.0, 0.0, 0.25]), [0.5, 0.5, 0.25])
    assert len(rates) == 3


def test_a_problem_that_occurs_twice_in_a_step_is_visited_twice():
    rates = PassRates(decay=0.5)
    np.testing.assert_array_equal(rates.update(["a", "a"], [1.0, 0.0]), [1.0, 0.5])


@given(st.lists(st.tuples(st.sampled_from("abc"), RATES)), RATES, RATES)
def test_pass_rates_survive_a_trip_through_text_bit_for_bit(visits, decay, now):
    rates = PassRates(decay)
    for problem, rate in visits:
        rates.update([problem], [rate])
    text = json.dumps(rates.state_dict(), allow_nan=False)
    restored = PassRates(decay)
    restored.update(["left over"], [1.0])
    restored.load_state_dict(json.loads(text))
    assert restored.state_dict() == rates.state_dict()
    assert restored.update("abc", [now] * 3).tolist() == rates.update("abc", [now] * 3).tolist()


def test_a_state_is_a_copy():
    rates = PassRates()
    state = rates.state_dict()
    rates.update(["a"], [1.0])
    assert state == {"rates": {}}


@pytest.mark.parametrize(
    "state",
    [{}, {"rates": [1]}, {"rates": {"a": 1.5}}, {"rates": {"a": "1"}}, {"rates": {"a": True}}],
)
def test_a_damaged_state_is_refused_and_changes_nothing(state):
    rates = PassRates()
    rates.update(["a"], [0.5])
    with pytest.raises(ValueError, match="expected"):
        rates.load_state_dict(state)
    assert rates.state_dict() == {"rates": {"a": 0.5}}


def test_bad_rates_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 ids"):
        PassRates().update(["a", "b"], [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"1\.5"):
        PassRates().update(["a"], [1.5])
    with pytest.raises(ValueError, match="nan"):
        PassRates().update(["a"], [float("nan")])
    with pytest.raises(ValueError, match=r"pass_rate_decay is 1\.2"):
        PassRates(decay=1.2)


# ---- bins and gamma -----------------------------------------------------------------------------


def test_bins_at_their_exact_edges():
    """Easy and hard are strict; a rate on a threshold is medium."""
    rates = np.array([0, np.nextafter(0.2, 0), 0.2, 0.5, 0.8, np.nextafter(0.8, 1), 1])
    routes = route(rates, np.zeros((7, 1)))
    np.testing.assert_array_equal(routes.routing_weight, [0, 0, 1, 1, 1, 0.5, 0.5])
    np.testing.assert_array_equal(routes.is_medium, [False, False, True, True, True, False, False])
    assert bin_fractions(rates) == pytest.approx((2 / 7, 3 / 7, 2 / 7))


@given(st.lists(RATES, min_size=1, max_size=9), RATES, RATES)
def test_gamma_and_bins_equal_the_literal_rule(rates, one, other):
    thresholds = {"hard_below": min(one, other), "easy_above": max(one, other)}
    weights = {"easy_weight": 0.3, "medium_weight": 0.9, "hard_weight": 0.1}
    routes = route(np.array(rates), np.zeros((len(rates), 2)), **thresholds, **weights)
    bins = [reference.difficulty(rate, **thresholds) for rate in rates]
    expected = [reference.routing_weight(rate, **weights, **thresholds) for rate in rates]
    assert routes.routing_weight.tolist() == expected
    assert routes.is_medium.tolist() == [name == "medium" for name in bins]
    shares = bin_fractions(np.array(rates), **thresholds)
    assert shares == tuple(bins.count(n) / len(bins) for n in ("easy", "medium", "hard"))


def test_a_sample_is_correct_when_its_reward_reaches_the_threshold():
    rewards = np.array([[0.0, 0.49, 0.5, 1.0]])
    np.testing.assert_array_equal(
        route(np.array([0.5]), rewards).is_correct, [[False, False, True, True]]
    )
    np.testing.assert_array_equal(
        route(np.array([0.5]), rewards, success_threshold=1.0).is_correct,
        [[False, False, False, True]],
    )


def test_without_routing_every_problem_is_medium_with_weight_one():
    routes = route(np.array([0.0, 0.5, 1.0]), np.zeros((3, 2)), easy_above=1.0, hard_below=0.0)
    assert routes.is_medium.all()
    assert (routes.routing_weight == 1).all()


def test_bad_routing_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"hard_below 0\.9 is above easy_above 0\.8"):
        route(np.array([0.5]), np.zeros((1, 2)), hard_below=0.9)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) for 1 problems"):
        route(np.array([0.5]), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"pass rates \[1\.5\]"):
        route(np.array([1.5]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="no pass rates"):
        bin_fractions(np.array([]))


# ---- Eq. 4: the branches ------------------------------------------------------------------------

# Easy, medium, hard; in each a correct and a wrong sample, each without and with a teacher.
ROUTES = Routes(
    routing_weight=np.array([0.5, 1.0, 0.0]),
    is_medium=np.array([False, True, False]),
    is_correct=np.array([[True, True, False, False]] * 3),
)
HAS_TEACHER = np.array([[False, True, False, True]] * 3)


@pytest.mark.parametrize(
    ("settings", "policy", "distill"),
    [
        # gamma on correct samples, the divergence on wrong ones that have a teacher
        (DRIFT_MIXED, [[0.5, 0.5, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 1]] * 3),
        # every sample that has a teacher, right or wrong
        (DRIFT_WARMUP, [[0, 0, 0, 0]] * 3, [[0, 1, 0, 1]] * 3),
        (SDPO, [[0, 0, 0, 0]] * 3, [[0, 1, 0, 1]] * 3),
        (GRPO, [[1, 1, 1, 1]] * 3, [[0, 0, 0, 0]] * 3),
        ({**GRPO, "no_teacher": "policy"}, [[1, 1, 1, 1]] * 3, [[0, 0, 0, 0]] * 3),
        # what cannot be distilled falls back on the policy gradient
        (SRPO, [[1, 1, 1, 0]] * 3, [[0, 0, 0, 1]] * 3),
    ],
    ids=["drift mixed", "drift warm-up", "sdpo", "grpo", "grpo, no teacher", "srpo"],
)
def test_each_method_is_a_setting_of_the_branch_weights(settings, policy, distill):
    policy_weight, distill_weight = branch_weights(ROUTES, HAS_TEACHER, **settings)
    np.testing.assert_array_equal(policy_weight, policy)
    np.testing.assert_array_equal(distill_weight, distill)
    assert policy_weight.dtype == distill_weight.dtype == np.float32


def test_difficulty_never_weighs_wrong_samples():
    everything = {name: 1.0 for name in GRPO if name != "use_difficulty"}
    policy_weight, distill_weight = branch_weights(ROUTES, HAS_TEACHER, **everything)
    np.testing.assert_array_equal(policy_weight[:, :2], [[0.5, 0.5], [1, 1], [0, 0]])
    np.testing.assert_array_equal(policy_weight[:, 2:], 1)
    np.testing.assert_array_equal(distill_weight, HAS_TEACHER)


def test_the_gate_opens_for_correct_medium_samples_with_a_teacher_and_an_advantage():
    advantages = np.full((3, 4), 0.5)
    expected = np.zeros((3, 4), dtype=bool)
    expected[1, 1] = True
    np.testing.assert_array_equal(gate_rows(ROUTES, HAS_TEACHER, advantages), expected)
    for sign in (0.0, -0.5):
        assert not gate_rows(ROUTES, HAS_TEACHER, sign * advantages).any()
        literal = gate_rows(ROUTES, HAS_TEACHER, sign * advantages, every_sign=True)
        np.testing.assert_array_equal(literal, expected)


def test_bad_branch_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no_teacher is 'grpo'; use one of mask, policy, unweighted"):
        branch_weights(ROUTES, HAS_TEACHER, **{**GRPO, "no_teacher": "grpo"})
    with pytest.raises(ValueError, match=r"has_teacher has shape \(3, 2\).*\(3, 4\)"):
        branch_weights(ROUTES, HAS_TEACHER[:, :2], **GRPO)
    with pytest.raises(ValueError, match=r"advantages has shape \(4,\).*\(3, 4\)"):
        gate_rows(ROUTES, HAS_TEACHER, np.zeros(4))
