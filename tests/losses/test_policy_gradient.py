"""Group advantages and the clipped surrogate (DRIFT Eq. 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.losses.policy_gradient import clipped_surrogate, group_advantages, importance_ratio
from tests import reference

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_advantages_equal_the_literal_equation(scale_by_std):
    rewards = np.random.default_rng(0).normal(size=(5, 8))
    ours = group_advantages(rewards, scale_by_std=scale_by_std)
    literal = [reference.group_advantages(list(row), scale_by_std) for row in rewards]
    np.testing.assert_allclose(ours, literal, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("scale_by_std", [False, True])
def test_advantages_of_counted_rollouts_are_those_of_a_group_of_them_alone(xp, scale_by_std):
    rng = np.random.default_rng(1)
    rewards, counted = rng.normal(size=(9, 6)), rng.random((9, 6)) < 0.6
    counted[0], counted[1], counted[2] = True, False, [True, False, False, False, False, False]
    ours = np.asarray(
        group_advantages(xp.asarray(rewards), scale_by_std=scale_by_std, counted=counted)
    )
    assert not ours[~counted].any()
    assert ours[2, 0] == 0  # the only one that counts has nothing to compare with
    for row in (0, *range(3, 9)):
        literal = reference.group_advantages(list(rewards[row, counted[row]]), scale_by_std)
        np.testing.assert_allclose(ours[row, counted[row]], literal, rtol=2e-5, atol=1e-6)


def test_counted_rollouts_with_equal_rewards_have_exactly_0_whatever_the_others_got():
    rewards = np.array([[0.0, 0.1, 0.1, 0.1]], np.float32)
    counted = np.array([[False, True, True, True]])
    for scale_by_std in (False, True):
        ours = group_advantages(rewards, scale_by_std=scale_by_std, counted=counted)
        assert not ours.any() and ours.dtype == np.float32


def test_one_success_in_four_has_advantage_three_quarters():
    # Mean 1/4, so the success is 3/4 above it and each failure 1/4 below. With the standard
    # deviation, sample variance (9/16 + 3/16) / 3 = 1/4: advantages 3/2 and -1/2.
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(group_advantages(rewards), [[0.75, -0.25, -0.25, -0.25]])
    np.testing.assert_allclose(
        group_advantages(rewards, scale_by_std=True), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-5
    )


@pytest.mark.parametrize("scale_by_std", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.7])
@pytest.mark.parametrize("xp", [np, jnp])
def test_a_group_that_agrees_has_no_advantage_at_all(scale_by_std, value, xp):
    advantages = group_advantages(xp.full((2, 7), value, xp.float32), scale_by_std=scale_by_std)
    assert np.all(np.asarray(advantages) == 0.0)


@given(seeds)
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_constant(seed):
    rewards = np.random.default_rng(seed).normal(size=(3, 6))
    advantages = group_advantages(rewards)
    np.testing.assert_allclose(advantages.sum(axis=-1), 0.0, atol=1e-12)
    np.testing.assert_allclose(advantages, group_advantages(rewards + 5.0), atol=1e-12)


def test_numpy_stays_numpy_and_jax_stays_jax():
    assert isinstance(group_advantages(np.ones((2, 3), bool)), np.ndarray)
    assert group_advantages(np.ones((2, 3), np.float32)).dtype == np.float32
    assert isinstance(group_advantages(jnp.ones((2, 3), bool)), jax.Array)
    inside_jit = jax.jit(group_advantages)(jnp.array([[0, 1], [1, 1]]))
    np.testing.assert_array_equal(inside_jit, [[-0.5, 0.5], [0.0, 0.0]])


def test_a_group_of_one_keeps_its_reward():
    rewards = np.array([[1.0], [0.0]])
    for scale_by_std in (False, True):
        np.testing.assert_array_equal(group_advantages(rewards, scale_by_std=scale_by_std), rewards)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_surrogate_equals_the_literal_equation(dual_clip):
    rng = np.random.default_rng(1)
    ratio, advantages = np.exp(rng.normal(size=(40, 5))), rng.normal(size=(40, 1))
    with jax.enable_x64(True):
        ours = clipped_surrogate(ratio, advantages, dual_clip=dual_clip)
    literal = [
        [reference.clipped_surrogate(r, a, dual_clip=dual_clip) for r in row]
        for row, (a,) in zip(ratio, advantages, strict=True)
    ]
    np.testing.assert_allclose(ours, literal, rtol=1e-14)


def test_the_mean_of_the_surrogates_is_the_objective_of_the_paper():
    rng = np.random.default_rng(2)
    ratio, advantages = np.exp(0.3 * rng.normal(size=(4, 6))), rng.normal(size=(4, 1))
    ours = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.2).mean()
    literal = reference.grpo_objective(ratio, advantages[:, 0], clip_low=0.2, clip_high=0.2)
    np.testing.assert_allclose(ours, literal, rtol=1e-5)


def test_six_ratios_worked_out_by_hand():
    # A = 2: rho 0.5 counts in full (1.0), 1.1 too (2.2), 1.5 is held at 1.28 (2.56).
    # A = -2: rho 0.5 is held at 0.8 (-1.6), 1.5 counts in full (-3), and 4 gives -8 or, with a dual
    # clip of 3, -6.
    ratio = np.array([[0.5, 1.1, 1.5], [0.5, 1.5, 4.0]])
    advantages = np.array([[2.0], [-2.0]])
    by_hand = np.array([[1.0, 2.2, 2.56], [-1.6, -3.0, -8.0]])
    np.testing.assert_allclose(clipped_surrogate(ratio, advantages), by_hand, rtol=1e-6)
    by_hand[1, 2] = -6.0
    np.testing.assert_allclose(
        clipped_surrogate(ratio, advantages, dual_clip=3.0), by_hand, rtol=1e-6
    )


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_gradient_at_ratio_one_is_exactly_the_advantage(clip, dual_clip):
    advantages = jnp.array([0.1, -0.3, 0.7, -1.9, 0.0], jnp.float32)

    def surrogate(log_probs):
        ratio = importance_ratio(log_probs, jax.lax.stop_gradient(log_probs))
        return clipped_surrogate(
            ratio, advantages, clip_low=clip, clip_high=clip, dual_clip=dual_clip
        ).sum()

    gradient = jax.grad(surrogate)(jnp.array([-0.1, -2.0, -5.0, -0.7, -1.0]))
    np.testing.assert_array_equal(gradient, advantages)


def test_outside_the_range_only_pulls_back_have_a_gradient():
    ratio = jnp.array([1.5, 0.5, 1.5, 0.5])
    advantages = jnp.array([1.0, 1.0, -1.0, -1.0])
    gradient = jax.grad(lambda r: clipped_surrogate(r, advantages).sum())(ratio)
    np.testing.assert_array_equal(gradient, [0.0, 1.0, -1.0, 0.0])


def test_no_gradient_reaches_the_old_policy_or_the_advantages():
    def loss(old, advantages):
        return clipped_surrogate(importance_ratio(jnp.array([-1.0]), old), advantages).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(jnp.array([-1.1]), jnp.array([0.5]))
    assert all(np.all(np.asarray(g) == 0.0) for g in gradients)


def test_the_ratio_is_exactly_one_on_policy_and_finite_for_any_finite_log_probs():
    log_probs = np.array([-0.3, -1e-9, -1e4, -1e30], np.float32)
    np.testing.assert_array_equal(importance_ratio(log_probs, log_probs), 1.0)
    far = importance_ratio(np.array([0.0, -1e30]), np.array([-1e30, 0.0]))
    np.testing.assert_allclose(far, np.exp([20.0, -20.0]), rtol=1e-5)


def test_bad_arguments_are_answered_with_what_to_give():
    with pytest.raises(ValueError, match=r"give advantages as \[batch, 1\]"):
        clipped_surrogate(np.ones((4, 7)), np.ones(7))
    with pytest.raises(ValueError, match=r"dual_clip=1.0; give more than 1"):
        clipped_surrogate(np.ones((4, 7)), 1.0, dual_clip=1.0)
    with pytest.raises(ValueError, match=r"give rewards as \[problem, group\]"):
        group_advantages(np.float32(1.0))
