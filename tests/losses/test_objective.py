"""Normalisers, coefficients and the two-branch objective (DRIFT Eqs. 2 and 4-6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.losses.divergence import jensen_shannon
from drift_jax.losses.objective import (
    batch_normaliser,
    clipped_policy_weight,
    mixed_objective,
    token_coefficients,
    token_normaliser,
)
from drift_jax.losses.policy_gradient import clipped_surrogate, importance_ratio
from tests import reference, reference_methods

LENGTHS = np.array([3, 0, 5, 1, 4])
MASK = np.arange(6) < LENGTHS[:, None]
EVERY_ROW = np.ones(5, bool)
CORRECT = np.array([True, True, False, False, False])
HAS_TEACHER = np.array([True, False, True, False, True])
GAMMA = np.array([0.5, 0.5, 1.0, 1.0, 0.0])


def tokens(seed=0, vocab=7):
    """Random inputs of every token: logits of both, ratios, advantages and token weights."""
    rng = np.random.default_rng(seed)
    return {
        "student": rng.normal(size=(*MASK.shape, vocab)),
        "teacher": rng.normal(size=(*MASK.shape, vocab)),
        "ratio": np.exp(0.4 * rng.normal(size=MASK.shape)),
        "advantages": rng.normal(size=(5, 1)),
        "token_weights": 1 + rng.random(MASK.shape),
    }


def samples(x, correct, gamma=GAMMA):
    """The same as a list of samples without padding, as the reference wants them."""
    out = []
    for i, valid in enumerate(MASK):
        teacher = [reference.softmax(z) for z in x["teacher"][i, valid]]
        out.append(
            {
                "correct": correct[i],
                "gamma": gamma[i],
                "student": [reference.softmax(z) for z in x["student"][i, valid]],
                "teacher": teacher if HAS_TEACHER[i] else None,
                "ratios": x["ratio"][i, valid],
                "advantage": x["advantages"][i, 0],
                "token_weights": x["token_weights"][i, valid],
            }
        )
    return out


def objective(x, policy_weight, distill_weight, aggregation="token_sum", rows=EVERY_ROW):
    normaliser = token_normaliser(MASK, rows, aggregation=aggregation, batch_size=5)
    return mixed_objective(
        clipped_surrogate(x["ratio"], x["advantages"]),
        jensen_shannon(x["student"], x["teacher"]),
        MASK,
        policy_weight=policy_weight,
        distill_weight=distill_weight,
        policy_normaliser=normaliser,
        distill_normaliser=normaliser,
        token_weights=x["token_weights"],
    )


def test_the_mixed_stage_equals_the_literal_equation():
    x = tokens()
    with jax.enable_x64(True):
        ours = objective(x, np.where(CORRECT, GAMMA, 0.0), 1.0 * (~CORRECT & HAS_TEACHER))
    np.testing.assert_allclose(ours.total, reference.mixed_loss(samples(x, CORRECT)), rtol=1e-12)
    np.testing.assert_allclose(ours.total, ours.distill + ours.policy, rtol=1e-12)


def test_the_warmup_is_the_same_function_with_other_weights():
    x = tokens(1)
    with jax.enable_x64(True):
        ours = objective(x, np.zeros(5), 1.0 * HAS_TEACHER)
    np.testing.assert_allclose(ours.total, reference.warmup_loss(samples(x, CORRECT)), rtol=1e-12)
    assert float(ours.policy) == 0.0


def test_sequence_mean_weighs_every_response_alike_and_counts_all_samples():
    ours = np.asarray(token_normaliser(MASK, EVERY_ROW, aggregation="sequence_mean", batch_size=5))
    np.testing.assert_allclose(ours[:, 0], [1 / 15, 0.0, 1 / 25, 1 / 5, 1 / 20], rtol=1e-6)
    # A sample that gets no loss still counts in the number of samples.
    some = token_normaliser(MASK, HAS_TEACHER, aggregation="sequence_mean", batch_size=5)
    np.testing.assert_allclose(
        np.asarray(some)[:, 0], [1 / 15, 0.0, 1 / 25, 0.0, 1 / 20], rtol=1e-6
    )


def test_token_mean_weighs_every_token_of_the_included_rows_alike():
    ours = token_normaliser(MASK, HAS_TEACHER, aggregation="token_mean", batch_size=5)
    np.testing.assert_allclose(
        np.asarray(ours)[:, 0], [1 / 12, 0.0, 1 / 12, 0.0, 1 / 12], rtol=1e-6
    )


def test_token_sum_is_the_mean_over_samples_of_sums_over_tokens():
    ours = token_normaliser(MASK, EVERY_ROW, aggregation="token_sum", batch_size=5)
    np.testing.assert_allclose(np.asarray(ours)[:, 0], [0.2, 0.0, 0.2, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "token_sum"])
def test_the_normaliser_of_a_batch_divides_by_what_is_counted(aggregation):
    samples = [
        {"tokens": [0] * length, "counted": counted}
        for length, counted in zip(LENGTHS, HAS_TEACHER, strict=True)
        if length
    ]
    ours = np.asarray(batch_normaliser(MASK, HAS_TEACHER, aggregation=aggregation))[:, 0]
    # The empty row counts as a row of the batch, and it is not among the counted ones.
    expected = reference_methods.normalisers(
        [*samples, {"tokens": [], "counted": False}], "counted", aggregation
    )
    np.testing.assert_allclose(ours[LENGTHS > 0], expected[:-1], rtol=1e-6)
    every = batch_normaliser(MASK, EVERY_ROW, aggregation=aggregation)
    np.testing.assert_array_equal(
        every, token_normaliser(MASK, EVERY_ROW, aggregation=aggregation, batch_size=5)
    )


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "token_sum"])
def test_a_batch_with_nothing_to_count_has_normaliser_zero(aggregation):
    nothing = token_normaliser(MASK, np.zeros(5, bool), aggregation=aggregation, batch_size=5)
    np.testing.assert_array_equal(nothing, np.zeros((5, 1)))
    empty = token_normaliser(
        np.zeros((5, 6), bool), EVERY_ROW, aggregation=aggregation, batch_size=5
    )
    np.testing.assert_array_equal(empty, np.zeros((5, 1)))


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "token_sum"])
def test_microbatches_with_the_normaliser_of_the_batch_add_up_to_the_batch(aggregation):
    x = tokens(2)
    u, v = np.where(CORRECT, GAMMA, 0.0), 1.0 * ~CORRECT
    whole = objective(x, u, v, aggregation).total
    normaliser = token_normaliser(MASK, EVERY_ROW, aggregation=aggregation, batch_size=5)
    parts = 0.0
    for rows in (slice(i, i + 1) for i in range(5)):
        parts += mixed_objective(
            clipped_surrogate(x["ratio"][rows], x["advantages"][rows]),
            jensen_shannon(x["student"][rows], x["teacher"][rows]),
            MASK[rows],
            policy_weight=u[rows],
            distill_weight=v[rows],
            policy_normaliser=normaliser[rows],
            distill_normaliser=normaliser[rows],
            token_weights=x["token_weights"][rows],
        ).total
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_what_lies_in_padding_changes_neither_value_nor_gradient():
    x = tokens(3)
    u, v = np.where(CORRECT, GAMMA, 0.0), 1.0 * ~CORRECT
    normaliser = token_normaliser(MASK, EVERY_ROW, batch_size=5)

    def loss(surrogate, divergence, padding):
        return mixed_objective(
            surrogate,
            divergence,
            MASK,
            policy_weight=u,
            distill_weight=v,
            policy_normaliser=normaliser,
            distill_normaliser=normaliser,
            token_weights=np.where(MASK, x["token_weights"], padding),
            credit=np.where(MASK, 0.1, padding),
        ).total

    def with_padding(padding):
        surrogate = clipped_surrogate(x["ratio"], x["advantages"])
        divergence = jensen_shannon(x["student"], x["teacher"])
        inputs = [jnp.where(MASK, a, padding) for a in (surrogate, divergence)]
        return jax.value_and_grad(loss, argnums=(0, 1))(*inputs, padding)

    clean, clean_gradients = with_padding(0.0)
    dirty, dirty_gradients = with_padding(np.nan)
    assert clean == dirty
    for ours, theirs in zip(clean_gradients, dirty_gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.all(np.asarray(ours)[~MASK] == 0.0)


def test_weights_carry_no_gradient():
    x = tokens(4)
    normaliser = token_normaliser(MASK, EVERY_ROW, batch_size=5)

    def loss(u, v, token_weights):
        return mixed_objective(
            clipped_surrogate(x["ratio"], x["advantages"]),
            jensen_shannon(x["student"], x["teacher"]),
            MASK,
            policy_weight=u,
            distill_weight=v,
            policy_normaliser=normaliser,
            distill_normaliser=normaliser,
            token_weights=token_weights,
            distill_token_weights=token_weights,
        ).total

    inputs = (jnp.ones(5), jnp.ones(5), jnp.asarray(x["token_weights"]))
    for gradient in jax.grad(loss, argnums=(0, 1, 2))(*inputs):
        assert np.all(np.asarray(gradient) == 0.0)


def test_the_distillation_weights_and_the_credit_join_the_distillation_term():
    x = tokens(5)
    normaliser = token_normaliser(MASK, EVERY_ROW, batch_size=5)
    divergence = np.asarray(jensen_shannon(x["student"], x["teacher"]))
    w, credit = x["token_weights"], np.sin(divergence)
    v = np.array([1.0, 1.0, 0.0, 2.0, 0.5])
    ours = mixed_objective(
        np.zeros(MASK.shape),
        divergence,
        MASK,
        policy_weight=np.zeros(5),
        distill_weight=v,
        policy_normaliser=normaliser,
        distill_normaliser=normaliser,
        distill_token_weights=w,
        credit=credit,
    )
    literal = 0.0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            literal += v[i] / (5 * length) * (w[i, t] * divergence[i, t] + credit[i, t])
    np.testing.assert_allclose(ours.distill, literal, rtol=1e-5)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_coefficient_of_log_pi_is_the_derivative_of_the_surrogate(dual_clip):
    x = tokens(6)
    rng = np.random.default_rng(6)
    with jax.enable_x64(True):
        old = jnp.asarray(-rng.gamma(1.0, size=MASK.shape))
        log_probs = old + 1.5 * rng.normal(size=MASK.shape)
        weights = token_coefficients(GAMMA, np.ones((5, 1)), x["token_weights"], MASK)
        coefficients = clipped_policy_weight(
            log_probs, old, x["advantages"], weights, dual_clip=dual_clip
        )

        def value(log_probs):
            ratio = importance_ratio(log_probs, old)
            surrogate = clipped_surrogate(ratio, x["advantages"], dual_clip=dual_clip)
            return jnp.sum(weights * surrogate)

        step = 1e-6
        for at in np.ndindex(MASK.shape):
            up = value(log_probs.at[at].add(step))
            down = value(log_probs.at[at].add(-step))
            np.testing.assert_allclose(coefficients[at], (up - down) / (2 * step), atol=1e-7)


def test_on_policy_the_coefficient_is_exactly_weight_times_advantage():
    x = tokens(7)
    advantages = jnp.asarray(x["advantages"], jnp.float32)
    weights = token_coefficients(GAMMA, np.ones((5, 1)), x["token_weights"], MASK)
    log_probs = jnp.asarray(-np.random.default_rng(7).gamma(1.0, size=MASK.shape), jnp.float32)
    ours = clipped_policy_weight(log_probs, log_probs, advantages, weights)
    np.testing.assert_array_equal(ours, weights * advantages)


def test_the_coefficient_ignores_whatever_has_no_weight():
    x = tokens(8)
    weights = token_coefficients(GAMMA, np.ones((5, 1)), x["token_weights"], MASK)
    garbage = np.where(MASK, -1.0, np.nan)
    ours = np.asarray(clipped_policy_weight(garbage, -garbage, x["advantages"], weights))
    assert np.all(ours[~MASK] == 0.0) and np.all(np.isfinite(ours))
    assert np.all(ours[4] == 0.0)  # gamma 0


def test_a_row_of_weight_zero_has_no_coefficients_whatever_its_token_weights():
    # A sample without a teacher has no teacher entropies either, so M may be anything there.
    token_weights = np.where(GAMMA[:, None] == 0, np.nan, 1.0) * np.ones(MASK.shape)
    ours = np.asarray(token_coefficients(GAMMA, np.ones((5, 1)), token_weights, MASK))
    np.testing.assert_array_equal(ours, np.where(MASK, GAMMA[:, None], 0.0))


def test_bad_arguments_are_answered_with_what_to_give():
    with pytest.raises(ValueError, match=r"aggregation='mean'; give one of sequence_mean, token_m"):
        token_normaliser(MASK, EVERY_ROW, aggregation="mean", batch_size=5)
    with pytest.raises(ValueError, match=r"included_rows \[5, 1\]; give one flag per row, \[5\]"):
        token_normaliser(MASK, EVERY_ROW[:, None], batch_size=5)
