"""What each word of the objective means for a token; test_method_updates.py has whole updates."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from drift_jax import loss_terms
from drift_jax.loss_terms import LossSettings
from drift_jax.losses.vocab import HeadStatistics
from tests import method_steps as steps
from tests import reference_methods as literal
from tests.method_steps import GATED, LENGTHS, ROWS, SDPO, SOFT, TAUGHT, make_batch, method


def statistics(logits: str, samples: list[dict]) -> HeadStatistics:
    """Log-probs and entropies of all rows as the head gives them, zeros in the padding."""
    log_probs, entropies = np.zeros((2, ROWS, steps.TIME))
    for i, y in enumerate(samples):
        log_probs[i, : LENGTHS[i]] = literal.log_probs(y[logits], y["tokens"])
        entropies[i, : LENGTHS[i]] = [literal.entropy(literal.softmax(z)) for z in y[logits]]
    return HeadStatistics(log_probs, entropies)


def token_weights(rows: steps.Rows, settings: LossSettings, step: int = 0):
    """(gate, bonus, M) of the step, and its samples for the plain loops."""
    samples = steps.samples(*steps.student_and_teacher(), rows)
    batch = jax.tree.map(lambda leaf: leaf[0], make_batch(rows))
    own, taught = statistics("student", samples), statistics("teacher", samples)
    with jax.enable_x64(True):
        found = loss_terms.token_weights(own, taught, batch, step, settings)
    return (*map(np.asarray, found), samples)


@pytest.mark.parametrize(
    "gate, bonus", list(itertools.product(loss_terms.GATES, loss_terms.BONUSES))
)
def test_every_gate_with_every_bonus_equals_the_plain_loops(gate, bonus):
    settings = LossSettings(
        gate=gate, bonus=bonus, max_bonus=1.5, bonus_temperature=0.1, margin=0.3, window=2
    )
    for rows in (GATED, SOFT):
        *_, weights, samples = token_weights(rows, settings)
        for i, y in enumerate(samples):
            expected = literal.rhythm_weights(y, method(settings))
            np.testing.assert_allclose(weights[i, : LENGTHS[i]], expected, rtol=1e-10)
            assert np.all(weights[i, LENGTHS[i] :] == 1)
        assert np.all(weights[rows.beta == 0] == 1) and weights.max() > 1.01


def test_the_ablations_bound_drift_from_above():
    def weights(**words):
        return token_weights(GATED, LossSettings(window=2, bonus_temperature=0.1, **words))[2]

    drift = weights()
    no_gate, no_bonus = weights(gate="open"), weights(bonus="full")
    screened = weights(bonus="step")
    assert np.all(drift <= no_gate) and np.all(drift <= screened) and np.all(screened <= no_bonus)
    assert (drift < no_gate).any() and (drift < screened).any() and (screened < no_bonus).any()
    assert np.all(weights(gate="open", bonus="full")[GATED.beta == 1].max(axis=1) == 2)


@pytest.mark.parametrize("kind", ["rlsd", "rlrt"])
def test_lambda_falls_linearly_to_zero_and_stays_there(kind):
    settings = LossSettings(token_weight=kind, reshape_decay_steps=4)
    for done in (0, 1, 4, 9):
        scale = 0.5 * max(1 - done / 4, 0)
        gate, bonus, weights, samples = token_weights(SOFT, settings, step=done)
        assert not gate.any() and not bonus.any()
        held = method(dataclasses.replace(settings, reshape_scale=scale))
        for i, y in enumerate(samples):
            expected = literal.policy_weights(y, held)
            np.testing.assert_allclose(weights[i, : LENGTHS[i]], expected, rtol=1e-10)
        assert np.all(weights[SOFT.beta == 0] == 1)
        assert (weights == 1).all() == (done >= 4)


def test_what_no_sampler_made_in_this_step_has_no_sampler_correction():
    batch = jax.tree.map(lambda leaf: leaf[0], make_batch(SDPO))
    old = np.where(batch.response_mask, -1.0, np.nan)
    settings = LossSettings(sampler_correction_cap=2.0)
    found = np.asarray(loss_terms.sampler_correction(old, batch, settings))
    expected = np.minimum(np.exp(-1.0 - batch.sampler_log_probs), 2.0)
    known = batch.response_mask & steps.FRESH[:, None]
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-6)
    assert np.all(found[~known] == 1) and not steps.FRESH.all()
    assert loss_terms.sampler_correction(old, batch, LossSettings()) == 1.0


def test_only_taught_rows_of_the_distillation_term_are_distilled_tokens():
    batch = make_batch(SDPO, micro_batches=2)
    found = loss_terms.distilled(batch).reshape(ROWS, -1)
    np.testing.assert_array_equal(found.sum(axis=1), LENGTHS * TAUGHT)
