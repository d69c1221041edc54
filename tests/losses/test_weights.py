"""Token weights of RLSD, RLRT and SRPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.losses.policy_gradient import truncated_ratio
from drift_jax.losses.weights import entropy_weights, evidence_weights
from tests import reference_methods as literal

MASK = np.arange(6) < np.array([6, 0, 3, 1])[:, None]


def drawn(seed=0):
    """Log-probs of student and teacher, advantages, and the teacher's entropies."""
    rng = np.random.default_rng(seed)
    student, teacher = -rng.gamma(1.0, size=(2, *MASK.shape))
    return (
        student,
        teacher,
        np.array([[0.5], [-1.0], [-0.25], [0.0]]),
        rng.gamma(1.0, size=MASK.shape),
    )


@pytest.mark.parametrize("kind", ["rlsd", "rlrt"])
def test_evidence_weights_equal_the_plain_loops(kind):
    student, teacher, advantages, _ = drawn()
    views = (teacher, student) if kind == "rlsd" else (student, teacher)
    with jax.enable_x64(True):
        ours = evidence_weights(*views, advantages, scale=0.75, clip=0.3)
    for at in np.ndindex(MASK.shape):
        expected = literal.evidence_weight(
            kind, student[at], teacher[at], advantages[at[0], 0], 0.75, 0.3
        )
        np.testing.assert_allclose(ours[at], expected, rtol=1e-12)


def test_a_sure_teacher_raises_good_tokens_and_lowers_bad_ones():
    # Worked by hand: exp(0.1) = 1.105 is inside the clip, exp(1) is not.
    good = evidence_weights([[-1.0, -1.0]], [[-1.1, -2.0]], [[1.0]])
    np.testing.assert_allclose(good, [[0.5 + 0.5 * np.exp(0.1), 0.5 + 0.5 * 1.2]], rtol=1e-6)
    bad = evidence_weights([[-1.0, -1.0]], [[-1.1, -2.0]], [[-1.0]])
    np.testing.assert_allclose(bad, [[0.5 + 0.5 * np.exp(-0.1), 0.5 + 0.5 * 0.8]], rtol=1e-6)


def test_scale_zero_is_grpo_to_the_last_bit():
    student, teacher, advantages, _ = drawn(1)
    assert np.all(np.asarray(evidence_weights(teacher, student, advantages, scale=0.0)) == 1.0)
    assert np.any(np.asarray(evidence_weights(teacher, student, advantages)) != 1.0)


def test_rlrt_is_rlsd_with_the_roles_exchanged():
    student, teacher, advantages, _ = drawn(2)
    rlsd = np.asarray(evidence_weights(teacher, student, advantages, clip=1e9))
    rlrt = np.asarray(evidence_weights(student, teacher, advantages, clip=1e9))
    # Without a clip the two ratios are inverse: (2 M - 1)(2 M' - 1) = 1.
    np.testing.assert_allclose((2 * rlsd - 1) * (2 * rlrt - 1), 1.0, rtol=1e-4)


def test_impossible_tokens_have_finite_weights():
    weights = evidence_weights([[-1e30, -1e30, 0.0]], [[0.0, -1e30, -1e30]], [[1.0]])
    np.testing.assert_allclose(weights, [[0.9, 1.0, 1.1]], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_entropy_weights_equal_the_plain_loops(beta):
    entropies = drawn()[3]
    with jax.enable_x64(True):
        ours = np.asarray(entropy_weights(entropies, MASK, entropy_beta=beta))
    rows = [row[mask] for row, mask in zip(entropies, MASK, strict=True)]
    expected = literal.entropy_weights(rows, beta)
    np.testing.assert_allclose(ours[MASK], np.concatenate(expected), rtol=1e-12)
    assert np.all(ours[~MASK] == 1.0)


def test_float32_agrees_with_float64():
    entropies = drawn(3)[3]
    with jax.enable_x64(True):
        exact = entropy_weights(entropies, MASK)
    np.testing.assert_allclose(entropy_weights(entropies, MASK), exact, rtol=1e-6)


@given(st.integers(0, 2**31), st.floats(-50, 50), st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_entropy_weights_average_to_1_and_do_not_feel_a_constant(seed, constant, beta):
    entropies = drawn(seed)[3]
    with jax.enable_x64(True):
        ours = np.asarray(entropy_weights(entropies, MASK, entropy_beta=beta))
        moved = np.asarray(entropy_weights(entropies + constant, MASK, entropy_beta=beta))
    np.testing.assert_allclose(ours[MASK].mean(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(moved, ours, rtol=1e-10)
    if beta == 0:
        assert np.all(ours == 1.0)
    else:
        order = np.argsort(entropies[MASK])
        assert np.all(np.diff(ours[MASK][order]) <= 0)  # the sure teacher counts most


def test_entropy_weights_are_finite_for_any_entropy_and_for_nothing_counted():
    wide = entropy_weights(np.array([[1e6, 0.0, np.nan]]), [[True, True, False]], entropy_beta=50.0)
    np.testing.assert_allclose(wide, [[0.0, 2.0, 1.0]])
    assert np.all(np.asarray(entropy_weights(np.ones((2, 3)), np.zeros((2, 3), bool))) == 1.0)


def test_weights_carry_no_gradient():
    student, teacher, advantages, entropies = (jnp.asarray(x, jnp.float32) for x in drawn(4))

    def total(student, teacher, entropies):
        both = evidence_weights(teacher, student, advantages) * entropy_weights(entropies, MASK)
        return jnp.sum(both * truncated_ratio(student, teacher, cap=2.0))

    for gradient in jax.grad(total, argnums=(0, 1, 2))(student, teacher, entropies):
        assert not np.any(np.asarray(gradient))


def test_the_truncated_ratio_has_a_cap_above_and_none_below():
    old = np.array([-1.0, -1.0, -1.0, -3.0, -1e30])
    new = np.array([-1.0, -1.5, -9.0, -1.0, -1.0])
    found = truncated_ratio(new, old, cap=2.0)
    np.testing.assert_allclose(found, [1.0, np.exp(-0.5), np.exp(-8.0), 2.0, 2.0], rtol=1e-6)
    assert found[0] == 1.0
