"""Difficulty routing (DRIFT section 3.2): pass rates, bins, weights, as the paper prints them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.difficulty import (
    PassRates,
    bernoulli_weights,
    bin_fractions,
    bin_shares,
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


def test_the_release_leaves_the_weight_out_where_a_correct_sample_has_no_teacher():
    settings = {**DRIFT_MIXED, "no_teacher": "unweighted"}
    policy_weight, distill_weight = branch_weights(ROUTES, HAS_TEACHER, **settings)
    np.testing.assert_array_equal(policy_weight, [[1, 0.5, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(distill_weight, [[0, 0, 0, 1]] * 3)


def test_wrong_samples_are_distilled_with_the_failure_weight_of_their_problem():
    routes = Routes(
        ROUTES.routing_weight, ROUTES.is_medium, ROUTES.is_correct, np.array([0.35, 0.0, 1.0])
    )
    _, distill_weight = branch_weights(routes, HAS_TEACHER, **DRIFT_MIXED)
    np.testing.assert_array_equal(distill_weight[:, 3], np.float32([0.35, 0, 1]))
    assert not distill_weight[:, :3].any()
    # Correct samples are not failures, and a stage without difficulty weighs nobody.
    _, both = branch_weights(routes, HAS_TEACHER, **{**DRIFT_MIXED, "distill_correct": 1.0})
    np.testing.assert_array_equal(both[:, 1], 1)
    _, plain = branch_weights(routes, HAS_TEACHER, **DRIFT_WARMUP)
    np.testing.assert_array_equal(plain, HAS_TEACHER)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("medium_correct", [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
        ("correct", [[0, 1, 0, 0]] * 3),
        ("all", [[0, 1, 0, 1]] * 3),
    ],
)
def test_the_rows_whose_tokens_are_weighed_are_a_value(rows, expected):
    advantages = np.full((3, 4), -0.5)
    gate = gate_rows(ROUTES, HAS_TEACHER, advantages, rows=rows, every_sign=True)
    np.testing.assert_array_equal(gate, expected)
    assert gate.dtype == np.float32
    assert not gate_rows(ROUTES, HAS_TEACHER, advantages, rows=rows).any()


def test_with_soft_bins_a_correct_sample_is_gated_by_the_share_of_medium():
    routes = Routes(np.ones(2), np.array([0.25, 0.75]), np.ones((2, 2), bool))
    gate = gate_rows(routes, np.array([[True, False]] * 2), np.ones((2, 2)))
    np.testing.assert_array_equal(gate, [[0.25, 0], [0.75, 0]])


# ---- soft bins: the gates of the authors' release ----------------------------------------------


def soft_shares(rate, easy_above, hard_below, softness):
    """(easy, medium, hard) of one problem, as the pseudo-code writes it."""
    hard = 1 / (1 + math.exp(-(hard_below - rate) / softness))
    easy = 1 / (1 + math.exp(-(rate - easy_above) / softness))
    medium = (1 - hard) * (1 - easy)
    total = easy + medium + hard
    return [easy / total, medium / total, hard / total]


def test_soft_bins_by_hand():
    # On the easy edge: easy = 1/2, hard = s(-5) = 0.006693, medium = 0.496654, sum 1.003346.
    shares = bin_shares(np.array([0.7]), easy_above=0.7, hard_below=0.3, bins="soft")
    np.testing.assert_allclose(shares, [[0.498332, 0.494997, 0.006670]], atol=1e-6)


@given(st.lists(RATES, min_size=1, max_size=9), RATES, RATES, st.floats(0.01, 1))
def test_soft_bins_equal_the_plain_loop(rates, one, other, softness):
    low, high = min(one, other), max(one, other)
    shares = bin_shares(
        np.array(rates), easy_above=high, hard_below=low, bins="soft", softness=softness
    )
    expected = [soft_shares(rate, high, low, softness) for rate in rates]
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_soft_bins_become_strict_where_their_edges_are_sharp():
    rates = np.array([0.0, 0.1, 0.3, 0.6, 0.9, 1.0])
    soft = bin_shares(rates, bins="soft", softness=1e-4)
    np.testing.assert_allclose(soft, bin_shares(rates), atol=1e-12)


def test_routes_of_soft_bins_mix_the_weights_by_share():
    rates = np.array([0.05, 0.3, 0.5, 0.9])
    shares = bin_shares(rates, bins="soft")
    routes = route(
        rates,
        np.zeros((4, 2)),
        bins="soft",
        easy_weight=0.05,
        hard_weight=0.3,
        easy_distill_weight=0.35,
        medium_distill_weight=0.0,
    )
    for row, (easy, medium, hard) in enumerate(shares.tolist()):
        assert routes.routing_weight[row] == pytest.approx(0.05 * easy + medium + 0.3 * hard)
        assert routes.failure_weight[row] == pytest.approx(0.35 * easy + hard)
        assert routes.is_medium[row] == medium
    assert bin_fractions(rates, bins="soft") == pytest.approx(tuple(shares.mean(axis=0)))


def test_an_unknown_kind_of_bins_or_rows_is_refused_in_one_line():
    with pytest.raises(ValueError, match="bins is 'hard'; use one of strict, soft"):
        bin_shares(np.array([0.5]), bins="hard")
    with pytest.raises(ValueError, match="rows is 'wrong'; use one of medium_correct, "):
        gate_rows(ROUTES, HAS_TEACHER, np.ones((3, 4)), rows="wrong")


# ---- question weights (SC-SDPO) ----------------------------------------------------------------


def question_weights(groups, exponent):
    """w of each group of rewards 0 and 1, one question after another."""
    raw = []
    for group in groups:
        p = sum(group) / len(group)
        raw.append((p * (1 - p)) ** exponent if 0 < p < 1 else None)
    mixed = [w for w in raw if w is not None]
    if not mixed:
        return [0.0] * len(raw)
    mean = sum(mixed) / len(mixed)
    return [0.0 if w is None else w / mean for w in raw]


GROUPS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=8)
EXPONENTS = st.sampled_from([0.0, 0.5, 1.0, 1.7])


def test_question_weights_by_hand():
    # p = 1/2, 1/4, 1: standard deviations .5 and .433, mean .4665; the solved one counts nowhere.
    correct = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], bool)
    np.testing.assert_allclose(bernoulli_weights(correct), [1.0718, 0.9282, 0], atol=1e-4)


@given(GROUPS, EXPONENTS)
def test_question_weights_equal_the_plain_loop(groups, exponent):
    ours = bernoulli_weights(np.array(groups), exponent=exponent)
    np.testing.assert_allclose(ours, question_weights(groups, exponent), atol=1e-12)


@given(GROUPS, EXPONENTS)
def test_question_weights_are_the_same_for_p_and_1_minus_p(groups, exponent):
    groups = np.array(groups)
    one = bernoulli_weights(groups, exponent=exponent)
    np.testing.assert_allclose(one, bernoulli_weights(~groups, exponent=exponent), atol=1e-12)


@given(st.integers(1, 3), EXPONENTS)
def test_questions_with_one_and_the_same_pass_rate_all_weigh_1(right, exponent):
    groups = np.array([np.roll(np.arange(4) < right, shift) for shift in range(4)])
    np.testing.assert_allclose(bernoulli_weights(groups, exponent=exponent), 1)


def test_with_exponent_0_every_mixed_question_weighs_1():
    groups = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    assert bernoulli_weights(groups, exponent=0.0).tolist() == [1, 1, 0]


# ---- bad input ---------------------------------------------------------------------------------


def test_bad_branch_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no_teacher is 'grpo'; use one of mask, policy, "):
        branch_weights(ROUTES, HAS_TEACHER, **{**GRPO, "no_teacher": "grpo"})
    with pytest.raises(ValueError, match=r"has_teacher has shape \(3, 2\).*\(3, 4\)"):
        branch_weights(ROUTES, HAS_TEACHER[:, :2], **GRPO)
    with pytest.raises(ValueError, match=r"advantages has shape \(4,\).*\(3, 4\)"):
        gate_rows(ROUTES, HAS_TEACHER, np.zeros(4))
