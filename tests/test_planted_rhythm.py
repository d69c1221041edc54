"""The rhythm gate is alive: a student that beats its teacher at known positions is pushed there.

A model whose attention and feed-forward layers write nothing predicts from the token before alone.
Every token of the response occurs once in it, so each position can be given any two distributions:

    position     student          teacher                     gate    bonus
    0 .. 11      unsure           unsure, the same            closed  none
    5            sure and right   unsure                      closed  there is one
    12, 13, 15   unsure           sure, of another token      open    there is one
    14           unsure           sure, of the sampled token  open    none
    16 .. 19     unsure           sure, of the sampled token  closed  none
    18           unsure           sure, of another token      closed  there is one
    20 .. 23     sure             sure, the same              closed  none

So the token weight must be above 1 at 12, 13 and 15, and be exactly 1 everywhere else.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import batching, update
from drift_jax.loss_terms import LossSettings
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig
from drift_jax.passes import Compute
from drift_jax.types import Rollouts
from tests import reference
from tests.steps import KEEP_GRADIENT

TIME = 24
FIRST = 4  # prompt and rival tokens come before those of the response
VOCAB = FIRST + TIME
PROMPT, RIVAL = 3, 2
RESPONSE = np.arange(FIRST, VOCAB)
BEFORE = np.array([PROMPT, *RESPONSE[:-1]])  # what each position is predicted from
ANCHORS, BEATEN = (12, 13, 14, 15), (12, 13, 15)
TEACHER_SETTLES, STUDENT_SETTLES = 12, 20
SURE_TOO_EARLY, BEATEN_TOO_LATE = 5, 18

MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=VOCAB,
    intermediate_size=4,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    tie_embeddings=False,
)


def unsure(token):
    """Eight tokens are equally likely, the sampled one among them."""
    p = np.full(VOCAB, 1e-9)
    p[(token + np.arange(8)) % VOCAB] = 1 / 8
    return p / p.sum()


def sure(token):
    """One token has 97 % of the mass."""
    p = np.full(VOCAB, 0.03 / (VOCAB - 1))
    p[token] = 0.97
    return p


def planted():
    """Distributions of the student and of the teacher at each position. [time, vocab] each"""
    student, teacher = [], []
    for position, token in enumerate(RESPONSE):
        settled = position >= STUDENT_SETTLES or position == SURE_TOO_EARLY
        student.append(sure(token) if settled else unsure(token))
        if position < TEACHER_SETTLES:
            teacher.append(unsure(token))
        else:
            beaten = position in (*BEATEN, BEATEN_TOO_LATE)
            teacher.append(sure(RIVAL) if beaten else sure(token))
    return np.array(student), np.array(teacher)


def params_that_predict(distributions):
    """Parameters under which the token before each position gives its distribution."""
    shapes = transformer.parameter_shapes(MODEL)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf[0], np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    params["embed_tokens"] = np.eye(VOCAB, dtype=np.float32)
    params["norm"] = np.ones_like(params["norm"])
    # The norm makes a one-hot vector sqrt(VOCAB) long.
    params["lm_head"][BEFORE] = np.log(distributions) / np.sqrt(VOCAB)
    return jax.tree.map(jnp.asarray, params)


def make_state():
    student, teacher = map(params_that_predict, planted())
    return dataclasses.replace(update.init_state(student, KEEP_GRADIENT), teacher=teacher)


def make_batch(medium):
    """Two samples of the same right response with advantages above 0, and beta of each."""
    tokens = np.tile(RESPONSE, (2, 1)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    zeros = np.zeros(tokens.shape, np.float32)
    ones = np.ones((1, 2))
    return batching.make(
        [np.array([PROMPT], np.int32)],
        Rollouts(tokens, mask, zeros, zeros, np.ones(2, bool)),
        [np.array([1, PROMPT], np.int32)] * 2,
        advantages=0.5 * ones,
        policy_weight=ones,
        distill_weight=0 * ones,
        gate=np.array([medium]),
        prompt_buckets=(1,),
        teacher_buckets=(2,),
        response_buckets=(TIME,),
        micro_batch=0,
    )


@functools.cache
def planted_update(**settings):
    """What one real update makes of the case: (metrics, details, gradient of the head)."""
    step = update.make_update(
        model=MODEL,
        settings=LossSettings(**settings),
        compute=Compute(),
        optimizer=KEEP_GRADIENT,
        learning_rate=lambda step: jnp.float32(0.1),
    )
    state, metrics, details = step(make_state(), make_batch([True, False]), 0.0)
    return metrics, details, np.asarray(state.optimizer.trace["lm_head"])


def positions(values):
    return set(np.flatnonzero(values).tolist())


def test_the_case_is_the_planted_one():
    _, details, _ = planted_update()
    student, teacher = planted()
    for name, distributions in (("student", student), ("teacher", teacher)):
        log_probs = np.asarray(details[f"{name}_log_probs"])[0, 0]
        entropies = np.asarray(details[f"{name}_entropy"])[0, 0]
        wanted = [np.log(p[token]) for p, token in zip(distributions, RESPONSE, strict=True)]
        np.testing.assert_allclose(log_probs, wanted, rtol=1e-3)
        np.testing.assert_allclose(
            entropies, [reference.entropy(p) for p in distributions], rtol=1e-3
        )


def test_the_weight_is_above_one_exactly_where_the_student_beats_a_settled_teacher():
    _, details, _ = planted_update()
    gate, bonus, weights = (
        np.asarray(details[name])[0, 0]
        for name in ("rhythm_gate", "rebellious_bonus", "token_weights")
    )
    assert positions(gate) == set(ANCHORS)
    assert positions(bonus) == {*BEATEN, SURE_TOO_EARLY, BEATEN_TOO_LATE}
    assert positions(weights - 1) == set(BEATEN)
    assert weights[list(BEATEN)].min() > 1.1  # no trace of rounding


def test_the_weights_are_those_of_the_written_out_equations():
    _, details, _ = planted_update()
    student, teacher = planted()
    gate = reference.rhythm_gate(
        [reference.entropy(p) for p in student], [reference.entropy(p) for p in teacher]
    )
    bonus = [
        reference.rebellious_bonus(np.log(p[token]), np.log(q[token]))
        for p, q, token in zip(student, teacher, RESPONSE, strict=True)
    ]
    wanted = reference.token_weights(gate, bonus, True)
    np.testing.assert_allclose(np.asarray(details["token_weights"])[0, 0], wanted, rtol=1e-3)


def test_the_same_response_of_a_problem_that_is_not_medium_has_no_weight():
    _, details, _ = planted_update()
    assert np.all(np.asarray(details["token_weights"])[0, 1] == 1)


def test_the_metrics_tell_that_gate_and_bonus_acted():
    metrics, _, _ = planted_update()
    assert float(metrics["rhythm/open_fraction"]) == pytest.approx(len(ANCHORS) / TIME)
    assert float(metrics["rhythm/bonus_fraction"]) == pytest.approx((len(BEATEN) + 2) / TIME)
    assert float(metrics["rhythm/weight_excess"]) > 0.02
    assert float(metrics["rhythm/weight_max"]) > 1.1


def test_the_bonus_changes_the_gradient_at_these_positions_and_at_no_other():
    with_bonus, without = planted_update()[2], planted_update(max_bonus=1.0)[2]
    changed = np.abs(with_bonus - without).max(axis=1) > 0  # rows: the token before
    assert positions(changed) == set(BEFORE[list(BEATEN)].tolist())
    # It is a larger push towards the sampled token: the gradient is more negative there.
    for position in BEATEN:
        before, token = BEFORE[position], RESPONSE[position]
        assert with_bonus[before, token] < 1.05 * without[before, token] < 0


@pytest.mark.parametrize("off", [{"structure_scale": 0.0}, {"max_bonus": 1.0}])
def test_switching_the_gate_or_the_bonus_off_leaves_every_weight_at_one(off):
    metrics, details, _ = planted_update(**off)
    assert np.all(np.asarray(details["token_weights"]) == 1)
    assert float(metrics["rhythm/weight_excess"]) == 0
