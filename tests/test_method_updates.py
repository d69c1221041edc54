"""One update of every family of methods against its objective in plain loops."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from drift_jax import optimizer
from drift_jax.loss import fix, loss, normalisers
from drift_jax.losses.divergence import Divergence
from drift_jax.models import transformer
from drift_jax.passes import Models, Run
from drift_jax.update import LossSettings
from tests import method_steps as steps
from tests import reference_methods as literal
from tests.method_steps import BOTH, GATED, GRPO, ROWS, SDPO, SOFT, SRPO, TAUGHT, make_batch, method
from tests.test_update import assert_same_bits, assert_trees_close

TOP_5 = Divergence(top_k=5)
# A policy term and a distillation term do not touch each other, so one compiled update serves a
# method of each kind.
SETTINGS = {
    "plain": LossSettings(TOP_5, aggregation="token_mean"),
    "srpo with beta 0": LossSettings(
        TOP_5,
        aggregation="token_mean",
        distill_token_weight="teacher_entropy",
        entropy_beta=0.0,
    ),
    "srpo": LossSettings(TOP_5, aggregation="token_mean", distill_token_weight="teacher_entropy"),
    "rlsd, token-level sdpo": LossSettings(
        Divergence("sampled_reverse_kl"), token_weight="rlsd", reshape_decay_steps=10
    ),
    "rlrt, opsd": LossSettings(
        Divergence("forward_kl", pointwise_cap=0.05), token_weight="rlrt", reshape_scale=0.75
    ),
    "bonus without gate, advantage mixture": LossSettings(
        Divergence("reverse_kl", top_k=5, rest="renormalise", support="teacher"),
        gate="open",
        policy_scale=0.875,
        distill_scale=0.125,
    ),
    "gate without bonus, trust region": LossSettings(
        TOP_5, gate="anchor", bonus="step", window=2, trust_region=0.3
    ),
    "distil": LossSettings(
        Divergence("forward_ce", top_k=5), credit="future_mean", sampler_correction_cap=2.0
    ),
}
ROWS_OF = {"srpo": SRPO, "sdpo": SDPO, "gated": GATED, "soft": SOFT, "both": BOTH, "grpo": GRPO}
CASES = [
    ("srpo", "srpo"),
    ("rlsd, token-level sdpo", "gated"),
    ("rlsd, token-level sdpo", "sdpo"),
    ("rlrt, opsd", "soft"),
    ("rlrt, opsd", "sdpo"),
    ("bonus without gate, advantage mixture", "both"),
    ("bonus without gate, advantage mixture", "soft"),
    ("gate without bonus, trust region", "gated"),
    ("gate without bonus, trust region", "sdpo"),
    ("distil", "sdpo"),
    ("distil", "both"),
]
STEP = 4  # training steps done: lambda of the first decays by 4 in 10


def constants_of(name: str) -> dict:
    settings = SETTINGS[name]
    if settings.reshape_decay_steps:
        decayed = settings.reshape_scale * (1 - STEP / settings.reshape_decay_steps)
        settings = dataclasses.replace(settings, reshape_scale=decayed)
    return method(settings)


def updated(name, rows, micro_batches=1, mini_batches=1, **changes):
    """(state, metrics, details) of one update in float64."""
    function = steps.make_update(SETTINGS[name], mini_batches=mini_batches)
    with jax.enable_x64(True):
        state = steps.make_state(step=STEP)
    return steps.run(function, make_batch(rows, micro_batches, **changes), state)


def expected(name, rows):
    """(loss, gradient) of the plain loops."""
    constants = constants_of(name)
    student, teacher = steps.student_and_teacher()
    samples = steps.samples(student, teacher, rows, SETTINGS[name].trust_region)
    held = literal.constants(samples, constants)
    slopes = literal.slopes(samples, held, constants)
    return literal.loss(samples, held, constants), steps.pull_back(student, slopes)


@pytest.mark.parametrize("name, rows", CASES)
def test_loss_and_gradient_are_value_and_slope_of_the_plain_loops(name, rows):
    rows = ROWS_OF[rows]
    state, metrics, _ = updated(name, rows)
    value, gradient = expected(name, rows)
    np.testing.assert_allclose(metrics["loss/total"], value, rtol=1e-9)
    assert_trees_close(state.optimizer.trace, gradient, rtol=1e-6)
    assert metrics["actor/grad_norm"] > 1e-3
    assert metrics["actor/ratio_max"] == 1 and metrics["actor/clip_fraction"] == 0


@pytest.mark.parametrize(
    "name, rows, metric, floor",
    [
        ("srpo", "srpo", "distill/weight_max", 1.5),
        ("distil", "sdpo", "distill/credit_mean", 0.5),
        ("rlrt, opsd", "soft", "rhythm/weight_max", 1.03),
        ("bonus without gate, advantage mixture", "soft", "rhythm/weight_max", 1.2),
        ("gate without bonus, trust region", "gated", "rhythm/weight_max", 1.2),
    ],
)
def test_what_makes_a_method_acts_in_these_cases_and_is_reported(name, rows, metric, floor):
    rows = ROWS_OF[rows]
    _, metrics, _ = updated(name, rows)
    student, teacher = steps.student_and_teacher()
    samples = steps.samples(student, teacher, rows, SETTINGS[name].trust_region)
    held = literal.constants(samples, constants_of(name))
    pairs = list(zip(samples, held, strict=True))
    found = {
        "distill/weight_max": lambda: max(max(h["w"]) for y, h in pairs if y["v"]),
        "distill/credit_mean": lambda: np.mean([c for y, h in pairs if y["v"] for c in h["C"]]),
        "rhythm/weight_max": lambda: max(max(h["M"]) for h in held),
    }[metric]()
    assert found > floor
    np.testing.assert_allclose(metrics[metric], found, rtol=1e-6)


# ---- identities that need a whole update ---------------------------------------------------------


def test_srpo_with_every_sample_right_is_grpo_whatever_its_weights():
    state, metrics, _ = updated("srpo", GRPO)
    plain, plain_metrics, _ = updated("plain", GRPO)
    assert_same_bits(state, plain)
    assert metrics["loss/total"] == plain_metrics["loss/total"] != 0


def test_srpo_with_beta_zero_is_srpo_without_weights_and_drift_without_gates():
    # gamma = 1, no gate, no buffer, no warm-up and the first sibling are decisions of the host;
    # what reaches the update is then one and the same batch.
    for rows in (SRPO, SDPO):
        state, _, _ = updated("srpo with beta 0", rows)
        plain, _, _ = updated("plain", rows)
        assert_same_bits(state.optimizer, plain.optimizer)
        weighed, _, _ = updated("srpo", rows)
        assert not np.array_equal(weighed.trainable["norm"], plain.trainable["norm"])


def test_srpo_with_every_sample_wrong_and_taught_and_beta_zero_is_sdpo():
    all_wrong = dataclasses.replace(SDPO, policy=TAUGHT)
    state, _, _ = updated("srpo with beta 0", all_wrong)
    _, gradient = expected("plain", SDPO)
    assert_trees_close(state.optimizer.trace, gradient, rtol=1e-6)


# ---- micro-batches: the normalisers are those of the whole batch ---------------------------------


def test_micro_batches_change_nothing_when_a_weight_needs_the_mean_of_the_whole_batch():
    whole, metrics, details = updated("srpo", SRPO)
    split, split_metrics, split_details = updated("srpo", SRPO, micro_batches=4)
    assert_trees_close(split.optimizer.trace, whole.optimizer.trace, rtol=1e-9)
    for name in ("loss/total", "distill/weight_max", "actor/information"):
        np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=1e-9)
    for name in ("distill_token_weights", "divergence"):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        close(split_details[name].reshape(ROWS, -1), details[name].reshape(ROWS, -1))
    # With a mean for each micro-batch the weights would average to 1 in every one of them.
    distilled = make_batch(SRPO, 4).response_mask & (SRPO.v.reshape(4, -1) > 0)[..., None]
    means = [
        w[m].mean() for w, m in zip(split_details["distill_token_weights"], distilled, strict=True)
    ]
    assert np.ptp(means) > 0.1


# ---- mini-batches: several optimizer steps of one batch ------------------------------------------


def stepwise(name, rows, mini_batches):
    """(students after each optimizer step, gradients, losses) of the plain loops."""
    constants = constants_of(name)
    student, teacher = steps.student_and_teacher()
    start = steps.samples(student, teacher, rows)
    students, gradients, losses = [student], [], []
    for k in range(mini_batches):
        part = slice(k * ROWS // mini_batches, (k + 1) * ROWS // mini_batches)
        samples = steps.samples(students[-1], teacher, rows)[part]
        held = literal.constants(samples, constants, at_start=start[part])
        slopes = literal.slopes(samples, held, constants)
        losses.append(literal.loss(samples, held, constants))
        gradients.append(steps.pull_back(students[-1], slopes, part))
        students.append(jax.tree.map(lambda p, g: p - steps.RATE * g, students[-1], gradients[-1]))
    return students, gradients, losses


@pytest.mark.parametrize("rows", ["grpo", "sdpo", "both"])
def test_mini_batches_compare_with_the_policy_at_the_start_of_the_step(rows):
    # GRPO's ratio and clip, SDPO's ratio cap, DistIL's frozen credit, the sampler's correction.
    state, metrics, _ = updated("distil", ROWS_OF[rows], micro_batches=4, mini_batches=2)
    students, gradients, losses = stepwise("distil", ROWS_OF[rows], 2)
    assert_trees_close(state.optimizer.trace, gradients[1], rtol=1e-5)
    assert_trees_close(state.trainable, students[2], rtol=1e-7)
    np.testing.assert_allclose(metrics["loss/total"], np.mean(losses), rtol=1e-7)
    norms = [math.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(tree))) for tree in gradients]
    np.testing.assert_allclose(metrics["actor/grad_norm"], np.mean(norms), rtol=1e-6)
    # The policy has moved far enough for the caps and the clip to matter.
    assert metrics["actor/ratio_max"] > 2
    assert (metrics["actor/clip_fraction"] > 0.01) == (rows != "sdpo")
    assert state.step == STEP + 1


def poisoned(*rows):
    advantages = make_batch(GRPO, 4).advantages.copy()
    advantages.reshape(-1)[list(rows)] = np.nan
    return {"advantages": advantages}


def test_a_non_finite_mini_batch_is_skipped_alone_and_the_teacher_moves_with_the_others():
    function = steps.make_update(SETTINGS["distil"], mini_batches=2)
    with jax.enable_x64(True):
        states = [steps.make_state() for _ in range(3)]
    before = jax.device_get(states[0])
    first_bad, second_bad, all_bad = (
        steps.run(function, make_batch(GRPO, 4, **poisoned(*rows)), state, 0.25)
        for rows, state in zip([(1,), (9,), (1, 9)], states, strict=True)
    )
    for state, metrics, _ in (first_bad, second_bad):
        assert metrics["actor/update_skipped"] == 0.5 and state.skipped == 0
        moved = jax.tree.map(lambda t, s: t + 0.25 * (s - t), before.teacher, state.trainable)
        assert_trees_close(state.teacher, moved, rtol=1e-12)
        assert not np.array_equal(state.trainable["norm"], before.trainable["norm"])
    # The first was skipped, so the second is an on-policy step of its own rows.
    np.testing.assert_allclose(first_bad[1]["actor/ratio_max"], 1, rtol=1e-9)
    state, metrics, _ = all_bad
    assert metrics["actor/update_skipped"] == 1 and state.skipped == 1
    assert_same_bits((state.trainable, state.teacher), (before.trainable, before.teacher))


def test_mini_batches_must_be_whole_micro_batches():
    function = steps.make_update(SETTINGS["distil"], mini_batches=2)
    with pytest.raises(ValueError, match="1 micro-batches do not divide into 2 mini-batches; use"):
        steps.run(function, make_batch(GRPO))


# ---- PGPO ----------------------------------------------------------------------------------------

ADAMW = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}
PGPO = optimizer.direction(**ADAMW, information_scale=0.5, information_max=5.0)


def test_pgpo_lengthens_adams_step_by_the_information_of_the_taught_rows():
    function = steps.make_update(SETTINGS["plain"], PGPO, rate=0.01)
    with jax.enable_x64(True):
        state = steps.make_state(PGPO)
    state, metrics, _ = steps.run(function, make_batch(SDPO), state)
    student, teacher = steps.student_and_teacher()
    information = literal.information(steps.samples(student, teacher, SDPO))
    kappa = literal.update_scale(information, 0.5, 5.0, 0.0)
    assert abs(information) > 0.05
    np.testing.assert_allclose(metrics["actor/information"], information, rtol=1e-6)
    np.testing.assert_allclose(metrics["actor/update_scale"], kappa, rtol=1e-6)
    # Adam's first direction is g / (|g| + eps), whatever the clip made of g's length.
    _, gradient = expected("plain", SDPO)
    norm = math.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(gradient)))

    def moved(p, g):
        g = g / max(norm, 1.0)
        return p - 0.01 * (kappa * g / (np.abs(g) + 1e-8) + 0.1 * p)

    assert_trees_close(state.trainable, jax.tree.map(moved, student, gradient), rtol=1e-5)


# ---- what a method costs: forward passes of a step -----------------------------------------------


@pytest.mark.parametrize(
    "name, rows, micro_batches, mini_batches, passes",
    [
        ("plain", SRPO, 1, 1, 2),  # student and teacher
        ("plain", SRPO, 4, 1, 2),
        ("srpo", SRPO, 1, 1, 2),
        ("srpo", SRPO, 4, 1, 3),  # the teacher's entropies before the first gradient
        ("distil", SDPO, 1, 1, 2),
        ("distil", SDPO, 4, 1, 2),  # a credit is its sample's own
        ("distil", SDPO, 4, 2, 4),
        ("plain", GRPO, 2, 2, 3),  # pi_old; no teacher
        ("gate without bonus, trust region", SDPO, 1, 1, 3),
    ],
)
def test_no_pass_is_run_that_the_settings_do_not_need(
    name, rows, micro_batches, mini_batches, passes, monkeypatch
):
    traced = []
    forward = transformer.hidden_states

    def counting(params, *args, **kwargs):
        traced.append(len(traced))
        return forward(params, *args, **kwargs)

    monkeypatch.setattr(transformer, "hidden_states", counting)
    settings = SETTINGS[name]
    run = Run(steps.CONFIG, settings, steps.COMPUTE)
    batch = make_batch(rows, micro_batches)
    state = steps.make_state(dtype=np.float32)
    models = Models(state.trainable, {}, state.teacher)

    def once(models, batch):
        fixed = fix(models, batch, run, mini_batches)
        by = normalisers(batch, settings.aggregation)
        first = jax.tree.map(lambda leaf: leaf[0], (batch, by, fixed))
        return loss(models.trainable, models, *first, state.step, run)[0]

    jax.eval_shape(once, models, batch)
    assert len(traced) == passes
