"""The rebellious bonus, the rhythm gate and the token weights (DRIFT Eqs. 9-16)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.losses.rhythm import (
    anchor_gate,
    anchor_score,
    entropy_drop,
    exceedance,
    rebellious_bonus,
    rhythm_gate,
    rhythm_multiplier,
    token_weights,
)
from tests import reference

# Eight tokens worked out by hand for W = 2 and the other values as they stand in the signatures.
STUDENT_ENTROPY = np.array([[1.2, 1.0, 1.4, 0.9, 0.8, 0.7, 0.6, 0.5]])
TEACHER_ENTROPY = np.array([[1.1, 1.3, 1.2, 0.4, 0.2, 0.2, 0.3, 0.4]])
STUDENT_LOG_PROBS = np.array([[-0.1, -0.5, -0.2, -0.05, -0.3, -1.0, -0.02, -0.4]])
TEACHER_LOG_PROBS = np.array([[-0.2, -0.4, -1.5, -1.2, -0.3, -0.9, -0.5, -2.0]])
GOLDEN = {
    "drop_student": [0, 0, 0, 0.35, 0.4, 0.2, 0.2, 0.15],
    "drop_teacher": [0, 0, 0.4, 0.95, 0.6, 0.05, 0, 0],
    "score": [0, 0, 0.08, 0.30, 0.12, 0, 0, 0],
    "anchor_gate": [0, 0, 0.087522, 0.830840, 0.280578, 0, 0, 0],
    "multiplier": [0.869665, 0.869665, 0.945780, 1.592218, 1.113674, 0.869665, 0.869665, 0.869665],
    "gate": [0, 0, 0, 0.592218, 0.113674, 0, 0, 0],
    "bonus": [0, 0, 1, 1, 0, 0, 0.323130, 1],
    "weights": [1, 1, 1, 1.592218, 1, 1, 1, 1],
}
ALL = np.ones((1, 8), bool)

seeds = st.integers(0, 2**32 - 1)


def batch(seed, rows=6, time=23):
    """Random entropies and log-probs with right padding: rows of every length from 0 up."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[0, 1, 2], rng.integers(3, time + 1, rows - 4), [time]])
    mask = np.arange(time) < lengths[:, None]
    entropies = rng.gamma(0.6, size=(2, rows, time))
    log_probs = -rng.gamma(0.6, size=(2, rows, time))
    return mask, entropies, log_probs


def literal_rows(function, mask, *arrays):
    """`function` of the plain-loop reference on each row's valid tokens, 0 elsewhere."""
    out = np.zeros(mask.shape)
    for row, valid in enumerate(mask):
        if valid.any():
            out[row, valid] = function(*(list(a[row, valid]) for a in arrays))
    return out


def test_eight_tokens_give_the_golden_gate_and_weights():
    golden = GOLDEN
    close = lambda ours, name: np.testing.assert_allclose(  # noqa: E731
        ours[0], golden[name], atol=2e-6, err_msg=name
    )
    close(entropy_drop(STUDENT_ENTROPY, ALL, window=2), "drop_student")
    close(entropy_drop(TEACHER_ENTROPY, ALL, window=2), "drop_teacher")
    score = anchor_score(STUDENT_ENTROPY, TEACHER_ENTROPY, ALL, window=2)
    close(score, "score")
    anchor = anchor_gate(score, ALL)
    close(anchor, "anchor_gate")
    close(rhythm_multiplier(anchor, ALL), "multiplier")
    gate = rhythm_gate(STUDENT_ENTROPY, TEACHER_ENTROPY, ALL, window=2)
    close(gate, "gate")
    bonus = rebellious_bonus(STUDENT_LOG_PROBS, TEACHER_LOG_PROBS)
    close(bonus, "bonus")
    close(token_weights(gate, bonus, np.array([True])), "weights")


def test_the_literal_reference_gives_the_golden_numbers_too():
    student, teacher = list(STUDENT_ENTROPY[0]), list(TEACHER_ENTROPY[0])
    scores = reference.anchor_score(student, teacher, window=2)
    gates = reference.anchor_gate(scores)
    np.testing.assert_allclose(scores, GOLDEN["score"], atol=1e-12)
    np.testing.assert_allclose(gates, GOLDEN["anchor_gate"], atol=1e-6)
    np.testing.assert_allclose(
        reference.normalised_multiplier(gates), GOLDEN["multiplier"], atol=1e-6
    )
    np.testing.assert_allclose(
        reference.rhythm_gate(student, teacher, window=2), GOLDEN["gate"], atol=1e-6
    )


@pytest.mark.parametrize("window", [1, 2, 8, 100])
def test_the_drop_equals_the_literal_equation(window):
    mask, (entropy, _), _ = batch(0)
    literal = literal_rows(lambda h: reference.entropy_drop(h, window), mask, entropy)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            entropy_drop(entropy, mask, window=window), literal, rtol=1e-12, atol=1e-14
        )
    np.testing.assert_allclose(entropy_drop(entropy, mask, window=window), literal, atol=3e-6)


def test_each_equation_of_the_gate_equals_its_literal_twin():
    mask, (student, teacher), _ = batch(1)
    with jax.enable_x64(True):
        score = anchor_score(student, teacher, mask, window=3)
        literal = literal_rows(lambda s, t: reference.anchor_score(s, t, 3), mask, student, teacher)
        np.testing.assert_allclose(score, literal, atol=1e-14)
        gate = anchor_gate(score, mask, gate_sharpness=1.7)
        literal = literal_rows(lambda d: reference.anchor_gate(d, 1.7), mask, literal)
        np.testing.assert_allclose(gate, literal, atol=1e-12)
        # Clipping must act on both sides to be tested: [0.95, 1.1] is narrow enough.
        bounds = {"structure_scale": 2.0, "min_multiplier": 0.95, "max_multiplier": 1.1}
        ours = np.where(mask, rhythm_multiplier(gate, mask, **bounds), 0.0)
        literal = literal_rows(lambda g: reference.rhythm_multiplier(g, **bounds), mask, literal)
        np.testing.assert_allclose(ours, literal, atol=1e-12)
        assert np.any(ours == 1.1) and np.any(ours == 0.95)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window": 2, "gate_sharpness": 3.0},
        {"structure_scale": 0.5, "min_multiplier": 0.9, "max_multiplier": 1.2},
    ],
)
def test_the_gate_equals_the_literal_equations(settings):
    mask, (student, teacher), _ = batch(2, rows=9)
    literal = literal_rows(
        lambda s, t: reference.rhythm_gate(s, t, **settings), mask, student, teacher
    )
    assert np.any(literal > 0.1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            rhythm_gate(student, teacher, mask, **settings), literal, atol=1e-11
        )
    np.testing.assert_allclose(rhythm_gate(student, teacher, mask, **settings), literal, atol=1e-4)


def test_exceedance_and_bonus_equal_the_literal_equations():
    _, _, (student, teacher) = batch(3)
    settings = {"margin": 0.1, "bonus_temperature": 0.7, "max_bonus": 1.8}
    with jax.enable_x64(True):
        ahead = exceedance(student, teacher, margin=0.1)
        bonus = rebellious_bonus(student, teacher, **settings)
    for at in np.ndindex(student.shape):
        pair = student[at], teacher[at]
        np.testing.assert_allclose(ahead[at], reference.exceedance(*pair, 0.1), atol=1e-15)
        np.testing.assert_allclose(
            bonus[at], reference.rebellious_bonus(*pair, **settings), atol=1e-14
        )


@given(seeds, st.sampled_from([1.0, 1.5, 2.0, 4.0]), st.sampled_from([1.1, 2.0, 3.0]))
def test_weights_lie_between_1_and_max_bonus_and_are_1_off_medium(seed, max_bonus, max_multiplier):
    mask, (student, teacher), log_probs = batch(seed)
    gate = rhythm_gate(student, teacher, mask, max_multiplier=max_multiplier, structure_scale=3.0)
    bonus = rebellious_bonus(*log_probs, max_bonus=max_bonus)
    is_medium = np.arange(len(mask)) % 2 == 1
    weights = np.asarray(token_weights(gate, bonus, is_medium))
    assert np.all((np.asarray(gate) >= 0.0) & (np.asarray(gate) <= 1.0))
    assert np.all((np.asarray(bonus) >= 0.0) & (np.asarray(bonus) <= max_bonus - 1.0))
    assert np.all((weights >= 1.0) & (weights <= max_bonus))
    assert np.all(weights[~is_medium] == 1.0)
    assert np.all(weights[~mask] == 1.0)


@given(seeds)
def test_the_weights_equal_the_literal_equation(seed):
    mask, entropies, log_probs = batch(seed)
    is_medium = np.random.default_rng(seed).random(len(mask)) < 0.7
    gate = rhythm_gate(*entropies, mask)
    weights = token_weights(gate, rebellious_bonus(*log_probs), is_medium)
    for row, valid in enumerate(mask):
        gates = reference.rhythm_gate(*(list(h[row, valid]) for h in entropies))
        bonuses = [
            reference.rebellious_bonus(s, t)
            for s, t in zip(log_probs[0][row, valid], log_probs[1][row, valid], strict=True)
        ]
        literal = reference.token_weights(gates, bonuses, is_medium[row])
        np.testing.assert_allclose(np.asarray(weights)[row, valid], literal, atol=1e-4)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_lies_in_padding_changes_nothing(garbage):
    mask, entropies, log_probs = batch(4)
    is_medium = np.ones(len(mask), bool)

    def weights_with(padding):
        filled = [np.where(mask, x, padding) for x in (*entropies, *log_probs)]
        gate = rhythm_gate(filled[0], filled[1], mask)
        bonus = rebellious_bonus(filled[2], filled[3])
        assert np.all(np.asarray(gate)[~mask] == 0.0)
        return np.asarray(token_weights(gate, bonus, is_medium))

    np.testing.assert_array_equal(weights_with(garbage), weights_with(0.0))


@pytest.mark.parametrize("left, right", [(0, 9), (9, 0), (4, 5)])
def test_padding_on_either_side_changes_nothing(left, right):
    pad = lambda x: np.pad(x, ((0, 0), (left, right)), constant_values=np.nan)  # noqa: E731
    mask = np.pad(ALL, ((0, 0), (left, right)))
    gate = rhythm_gate(pad(STUDENT_ENTROPY), pad(TEACHER_ENTROPY), mask, window=2)
    bare = rhythm_gate(STUDENT_ENTROPY, TEACHER_ENTROPY, ALL, window=2)
    np.testing.assert_allclose(gate[:, left : left + 8], bare, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, 1 / 3, 2.1])
def test_constant_entropies_open_no_gate(value):
    """Also where a mean of equal numbers rounds: the weights are exactly 1."""
    mask, _, log_probs = batch(5, time=300)
    student, teacher = np.full(mask.shape, value), np.full(mask.shape, value / 3)
    np.testing.assert_array_equal(entropy_drop(student, mask), 0.0)
    gate = rhythm_gate(student, teacher, mask)
    np.testing.assert_array_equal(gate, 0.0)
    weights = token_weights(gate, rebellious_bonus(*log_probs), np.ones(len(mask), bool))
    np.testing.assert_array_equal(weights, 1.0)


def test_a_student_no_further_ahead_than_the_margin_has_weight_one():
    mask, entropies, (student, _) = batch(6)
    gate = rhythm_gate(*entropies, mask)
    assert np.any(np.asarray(gate) > 0.0)
    # l_S = l_T + mu: Eq. 9 is 0 everywhere. A quarter keeps the difference exact in float32.
    student = np.round(student * 64) / 64
    bonus = rebellious_bonus(student, student - 0.25, margin=0.25)
    np.testing.assert_array_equal(bonus, 0.0)
    np.testing.assert_array_equal(token_weights(gate, bonus, np.ones(len(mask), bool)), 1.0)


def test_the_same_entropies_for_both_open_no_gate():
    mask, (student, _), _ = batch(7)
    np.testing.assert_array_equal(rhythm_gate(student, student, mask), 0.0)


def test_empty_responses_and_single_tokens_have_weight_one():
    entropy = np.array([[3.0, 1.0, 2.0]])
    for mask in ([[False, False, False]], [[True, False, False]], [[False, False, True]]):
        gate = rhythm_gate(entropy, entropy / 2, np.array(mask))
        np.testing.assert_array_equal(gate, 0.0)
    assert rhythm_gate(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0), bool)).shape == (2, 0)


def test_a_long_response_keeps_the_precision_of_a_short_one():
    """A window holds a few tokens; float32 must not feel the thousands before it."""
    rng = np.random.default_rng(8)
    entropy = rng.gamma(0.3, size=(1, 8192)) + 1e-3
    literal = reference.entropy_drop(list(entropy[0]))
    ours = np.asarray(entropy_drop(entropy, np.ones(entropy.shape, bool)))[0]
    # The bound is a few roundings of the largest entropy, not of the sum over 8192 tokens.
    np.testing.assert_allclose(ours, literal, atol=4 * np.spacing(np.float32(8 * entropy.max())))


def test_impossible_tokens_have_a_finite_bonus():
    infinite = -np.inf
    student = np.array([[-0.1, infinite, infinite, -1e30]])
    teacher = np.array([[infinite, -0.1, infinite, -1e30]])
    bonus = rebellious_bonus(student, teacher, max_bonus=2.0)
    np.testing.assert_array_equal(bonus, [[1.0, 0.0, 0.0, 0.0]])


def test_a_nan_inside_a_response_is_not_swallowed():
    entropy = np.array(STUDENT_ENTROPY)
    entropy[0, 3] = np.nan
    gate = rhythm_gate(entropy, TEACHER_ENTROPY, ALL, window=2)
    assert np.any(np.isnan(token_weights(gate, np.ones((1, 8)), np.array([True]))))


def test_no_gradient_flows_through_the_weights():
    mask, entropies, log_probs = batch(9)

    def total(student_entropy, teacher_entropy, student_log_probs, teacher_log_probs):
        gate = rhythm_gate(student_entropy, teacher_entropy, mask)
        bonus = rebellious_bonus(student_log_probs, teacher_log_probs)
        return token_weights(gate, bonus, np.ones(len(mask), bool)).sum()

    inputs = [jnp.asarray(x, jnp.float32) for x in (*entropies, *log_probs)]
    for gradient in jax.grad(total, argnums=(0, 1, 2, 3))(*inputs):
        assert np.all(np.asarray(gradient) == 0.0)


def test_lengths_do_not_recompile():
    traces = []

    @jax.jit
    def gate(student, teacher, mask):
        traces.append(1)
        return rhythm_gate(student, teacher, mask)

    for length in (0, 1, 5, 23):
        mask, entropies, _ = batch(length)
        gate(*entropies, mask & (np.arange(23) < length))
    assert len(traces) == 1


def test_bad_arguments_are_answered_with_what_to_give():
    with pytest.raises(ValueError, match=r"window=0; give at least 1 token"):
        rhythm_gate(STUDENT_ENTROPY, TEACHER_ENTROPY, ALL, window=0)
    with pytest.raises(ValueError, match=r"max_multiplier=1.0; give more than 1"):
        rhythm_gate(STUDENT_ENTROPY, TEACHER_ENTROPY, ALL, max_multiplier=1.0)
    with pytest.raises(ValueError, match=r"values \[1, 8\] and response_mask \[8\]"):
        entropy_drop(STUDENT_ENTROPY, ALL[0])
    with pytest.raises(ValueError, match=r"give one is_medium per sample, \[1\]"):
        token_weights(ALL.astype(float), ALL.astype(float), np.array([True, False]))
