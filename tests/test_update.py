"""The update against Eq. 4 written out, and what must not change it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drift_jax import batching, optimizer, update
from drift_jax.loss import Fixed, loss, normalisers
from drift_jax.losses.divergence import Divergence
from drift_jax.models import forward, transformer
from drift_jax.passes import Models, Run
from drift_jax.sampling import Sampler, decode, random_streams
from drift_jax.types import Rollouts
from drift_jax.update import Compute, LossSettings
from tests import reference, steps, tiny
from tests.steps import (
    ADVANTAGES,
    CORRECT,
    DEFAULT,
    GROUP,
    HAS_TEACHER,
    KEEP_GRADIENT,
    MIXED,
    NOTHING,
    PLAIN,
    RESPONSES,
    ROWS,
    STOP,
    WARMUP,
    Weights,
    gradient_update,
    make_batch,
    make_state,
)

# Aggregation, micro-batches. Each agrees with one and the same equation, so all agree.
SPLITS = [("sequence_mean", 1), ("sequence_mean", 4), ("token_mean", 2), ("token_sum", 4)]
# The third is no stage of DRIFT: rows in both branches show that M weighs one of them only.
STAGES = {
    "mixed": MIXED,
    "warmup": WARMUP,
    "both": dataclasses.replace(MIXED, distill=WARMUP.distill),
}
SETTINGS = {
    "sequence_mean": DEFAULT,
    # Every constant that acts in an on-policy step is off its default, so that none is forgotten.
    "token_mean": LossSettings(
        divergence=Divergence(alpha=0.25),
        aggregation="token_mean",
        policy_scale=2.0,
        distill_scale=0.5,
        window=3,
        gate_sharpness=1.5,
        structure_scale=0.75,
        max_multiplier=1.75,
        margin=0.1,
        bonus_temperature=0.25,
        max_bonus=1.5,
    ),
    # The ratio is exactly 1 at every token, so a range of no width cuts nothing.
    "token_sum": LossSettings(aggregation="token_sum", clip_low=0.0, clip_high=0.0),
}
IN_PIECES = Compute(vocab_chunk=5, remat=True)
WIDE = {"prompt_bucket": 24, "teacher_bucket": 40, "response_bucket": 20}


def assert_trees_close(ours, theirs, rtol=0.0, atol=0.0):
    """Equal trees; the tolerance counts from the largest element of each array."""

    def compare(a, b):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + atol)

    jax.tree.map(compare, ours, theirs)


def assert_same_bits(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def run(update_function, state, batch, teacher_rate=0.0):
    """(state, metrics, details) after one update, on the host."""
    return jax.device_get(update_function(state, batch, teacher_rate))


def gradient_in_float64(batch, settings=DEFAULT, compute=PLAIN) -> tuple[Any, Any, Any]:
    """(gradient, metrics, details) of a batch."""
    with jax.enable_x64(True):
        state = make_state(KEEP_GRADIENT, np.float64)
        state, metrics, details = run(gradient_update(settings, compute), state, batch)
    return state.optimizer.trace, metrics, details


@functools.cache
def split_gradient(stage: str, aggregation: str, micro_batches: int):
    """(gradient, metrics, details) of a stage's step."""
    batch = make_batch(STAGES[stage], micro_batches=micro_batches)
    return gradient_in_float64(batch, SETTINGS[aggregation])


@functools.cache
def literal(stage: str, aggregation: str = "sequence_mean"):
    """The written-out equation with the same settings."""
    with jax.enable_x64(True):
        student, teacher = steps.student_and_teacher(np.float64)
        return jax.device_get(steps.literal(student, teacher, STAGES[stage], SETTINGS[aggregation]))


# ---- the gradient is that of Eq. 4 --------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("aggregation, micro_batches", SPLITS)
def test_loss_and_gradient_equal_the_written_out_equation_however_the_batch_is_split(
    aggregation, micro_batches, stage
):
    gradient, metrics, _ = split_gradient(stage, aggregation, micro_batches)
    (total, (policy, distill)), expected = literal(stage, aggregation)
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss/policy"], policy, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss/distill"], distill, rtol=1e-10)
    assert_trees_close(gradient, expected, rtol=1e-10)


def samples_of_eq4(student, teacher, at_start, weights: list) -> list[dict[str, Any]]:
    """The step as tests/reference.py wants it; `at_start` are the old policy's log-probs."""
    own, guide = jax.device_get(steps.both_predictions(student, teacher))
    samples = []
    for row, response in enumerate(RESPONSES):
        log_probs = [
            np.log(reference.softmax(z))[token] for z, token in zip(own[row], response, strict=True)
        ]
        samples.append(
            {
                "correct": CORRECT[row],
                "gamma": steps.GAMMA[row],
                "student": [reference.softmax(z) for z in own[row]],
                "teacher": [reference.softmax(z) for z in guide[row]] if HAS_TEACHER[row] else None,
                "log_probs": log_probs,
                "ratios": np.exp(np.array(log_probs) - (at_start[row] if at_start else log_probs)),
                "advantage": ADVANTAGES[row],
                "token_weights": weights[row],
            }
        )
    return samples


@pytest.mark.parametrize(
    "stage, objective", [("mixed", reference.mixed_loss), ("warmup", reference.warmup_loss)]
)
def test_the_gradient_is_the_slope_of_the_plain_loop_objective(stage, objective):
    # Eqs. 4-6 as printed: sums over tokens. The old policy and M stay where they were.
    gradient, metrics, _ = split_gradient(stage, "token_sum", 4)
    with jax.enable_x64(True):
        student, teacher = steps.student_and_teacher(np.float64)
        weights = steps.token_weights(student, teacher, STAGES[stage])
        start = samples_of_eq4(student, teacher, None, weights)
        at_start = [sample["log_probs"] for sample in start]

        def value(shift, direction):
            moved = jax.tree.map(lambda p, d: p + shift * d, student, direction)
            return objective(samples_of_eq4(moved, teacher, at_start, weights))

        rng = np.random.default_rng(0)
        drawn = jax.tree.map(lambda p: rng.normal(size=p.shape), student)
        # Attention has its softmax in float32: much shorter steps drown in its rounding.
        for direction, step in ((gradient, 5e-4), (drawn, 1e-2)):
            length = float(optax.tree.norm(direction))
            unit = jax.tree.map(lambda d, length=length: np.asarray(d / length), direction)
            slope = (value(step, unit) - value(-step, unit)) / (2 * step)
            along = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, unit)))
            np.testing.assert_allclose(along, slope, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss/total"], objective(start), rtol=1e-10)


@pytest.mark.parametrize("aggregation, micro_batches", SPLITS)
def test_token_weights_are_those_of_the_plain_loops_and_1_off_the_gated_rows(
    aggregation, micro_batches
):
    _, metrics, details = split_gradient("mixed", aggregation, micro_batches)
    found = details["token_weights"].reshape(ROWS, -1)
    with jax.enable_x64(True):
        expected = steps.token_weights(
            *steps.student_and_teacher(np.float64), MIXED, SETTINGS[aggregation]
        )
    for row, weights in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(weights)], weights, rtol=1e-10)
        assert (found[row].max() > 1.1) == MIXED.gate[row]
        assert (found[row, len(weights) :] == 1).all()
    assert metrics["rhythm/weight_max"] == found.max()
    _, _, details = split_gradient("warmup", aggregation, micro_batches)
    assert (details["token_weights"] == 1).all()


@pytest.mark.parametrize("aggregation, micro_batches", SPLITS)
def test_the_reported_gradient_norm_is_that_of_the_whole_batch(aggregation, micro_batches):
    # Neither divided by the number of micro-batches nor the norm of the last one.
    _, metrics, _ = split_gradient("mixed", aggregation, micro_batches)
    _, expected = literal("mixed", aggregation)
    squares = sum(float(np.vdot(leaf, leaf)) for leaf in jax.tree.leaves(expected))
    np.testing.assert_allclose(metrics["actor/grad_norm"], np.sqrt(squares), rtol=1e-10)


def test_the_student_moves_by_rate_times_direction_and_rate_0_freezes_the_teacher():
    with jax.enable_x64(True):
        state, metrics, _ = run(
            gradient_update(), make_state(KEEP_GRADIENT, np.float64), make_batch()
        )
    student, teacher = steps.student_and_teacher(np.float64)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, student, state.optimizer.trace)
    assert_trees_close(state.trainable, moved, rtol=1e-14)
    assert_same_bits(state.teacher, teacher)
    assert metrics["actor/learning_rate"] == 0.5 and state.step == 1


# ---- what must not change it --------------------------------------------------------------------


def test_chunks_of_the_head_and_rematerialisation_change_neither_loss_nor_gradient():
    batch = make_batch(micro_batches=2, **WIDE)  # and wider buckets do not, either
    gradient, metrics, _ = gradient_in_float64(batch, compute=IN_PIECES)
    (total, _), expected = literal("mixed")
    # Rotary angles are float32, and other shapes round them otherwise.
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-6)
    assert_trees_close(gradient, expected, rtol=1e-6)


def with_garbage(batch: batching.Batch) -> batching.Batch:
    """The same batch with something else in every masked place."""
    rng = np.random.default_rng(0)

    def fill(values, mask):
        drawn = rng.integers(0, tiny.CONFIG.vocab_size, values.shape).astype(values.dtype)
        return np.where(mask, values, drawn)

    return batch._replace(
        student_tokens=fill(batch.student_tokens, batch.student_mask),
        teacher_tokens=fill(batch.teacher_tokens, batch.teacher_mask),
        response=fill(batch.response, batch.response_mask),
        sampler_log_probs=np.where(batch.response_mask, batch.sampler_log_probs, np.nan),
    )


@pytest.mark.parametrize("compute, shape", [(PLAIN, {}), (IN_PIECES, {"micro_batches": 2} | WIDE)])
def test_what_lies_in_padding_changes_neither_loss_nor_gradient(compute, shape):
    clean, dirty = make_batch(**shape), with_garbage(make_batch(**shape))
    assert not np.array_equal(clean.student_tokens, dirty.student_tokens)
    gradient, metrics, _ = gradient_in_float64(clean, compute=compute)
    dirty_gradient, dirty_metrics, _ = gradient_in_float64(dirty, compute=compute)
    assert_same_bits(gradient, dirty_gradient)
    assert metrics == dirty_metrics


def test_a_row_of_weight_zero_gives_no_gradient_whatever_it_says():
    batch = make_batch()
    assert not batch.policy_weight[0, 5] and not batch.distill_weight[0, 5]
    tokens = batch.response.copy()
    tokens[0, 5] = np.where(batch.response_mask[0, 5], 96 - tokens[0, 5], 0)
    student_tokens = batch.student_tokens.copy()
    student_tokens[0, 5, -tokens.shape[-1] :] = tokens[0, 5]
    advantages = batch.advantages.copy()
    advantages[0, 5] = 9.0
    changed = batch._replace(response=tokens, student_tokens=student_tokens, advantages=advantages)
    gradient, _, details = gradient_in_float64(batch)
    other, _, other_details = gradient_in_float64(changed)
    assert not np.array_equal(details["student_log_probs"], other_details["student_log_probs"])
    assert_trees_close(gradient, other, rtol=1e-13)


def test_the_stop_token_receives_gradient():
    # Row 2 is nothing but the stop token; alone in the loss its term is -u A log pi(stop) / 8.
    row = 2
    assert RESPONSES[row].tolist() == [STOP]
    alone = np.eye(ROWS)[row]
    batch = make_batch(Weights(alone, 0 * alone, alone.astype(bool)))
    gradient, _, _ = gradient_in_float64(batch)
    prompt = steps.PROMPTS[row // GROUP]
    with jax.enable_x64(True):
        student, _ = steps.student_and_teacher(np.float64)

        def stop_term(params):
            log_probs = jax.nn.log_softmax(forward(params, tiny.CONFIG, prompt[None])[0, -1])
            return -ADVANTAGES[row] * log_probs[STOP] / ROWS

        expected = jax.device_get(jax.jit(jax.grad(stop_term))(student))
    assert optax.tree.norm(gradient) > 1e-2
    assert_trees_close(gradient, expected, rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    batch = make_batch()
    student, teacher = steps.student_and_teacher()
    by = jax.tree.map(lambda leaf: leaf[0], normalisers(batch, "sequence_mean"))
    rows = jax.tree.map(lambda leaf: leaf[0], batch)
    # In a trust region the teacher's logits are in part the student's, without gradient too.
    run = Run(tiny.CONFIG, dataclasses.replace(DEFAULT, trust_region=0.5), PLAIN)

    def value(teacher):
        models = Models(student, {}, teacher)
        return loss(student, models, rows, by, Fixed(), jnp.int32(0), run)[0]

    assert all(not leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(value))(teacher)))


def test_without_teacher_contexts_and_with_a_frozen_part_the_rest_gets_the_policy_gradient():
    # GRPO runs no teacher. The embedding is frozen: it is used, and stays.
    ungated = dataclasses.replace(MIXED, gate=NOTHING.gate, distill=NOTHING.distill)
    batch = make_batch(ungated)._replace(teacher_tokens=None, teacher_mask=None)
    whole, whole_metrics, _ = gradient_in_float64(make_batch(ungated))
    with jax.enable_x64(True):
        state = make_state(KEEP_GRADIENT, np.float64)
        trainable = dict(state.trainable)
        frozen = {"embed_tokens": trainable.pop("embed_tokens")}
        state = dataclasses.replace(
            state, trainable=trainable, frozen=frozen, optimizer=KEEP_GRADIENT.init(trainable)
        )
        state, metrics, _ = run(gradient_update(), state, batch)
    student, _ = steps.student_and_teacher(np.float64)
    assert_same_bits(state.frozen, {"embed_tokens": student["embed_tokens"]})
    del whole["embed_tokens"]
    assert_trees_close(state.optimizer.trace, whole, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss/total"], whole_metrics["loss/total"], rtol=1e-10)


def test_bfloat16_compute_keeps_float32_parameters_and_about_the_same_loss():
    compute = Compute(dtype=jnp.dtype("bfloat16"))
    state, metrics, _ = run(
        gradient_update(compute=compute), make_state(KEEP_GRADIENT), make_batch()
    )
    for tree in (state.trainable, state.optimizer.trace, state.teacher):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}
    gradient, exact, _ = split_gradient("mixed", "sequence_mean", 1)
    for part in ("loss/policy", "loss/distill"):
        np.testing.assert_allclose(metrics[part], exact[part], rtol=0.05)
    overlap = sum(jax.tree.leaves(jax.tree.map(np.vdot, state.optimizer.trace, gradient)))
    assert overlap > 0.98 * optax.tree.norm(state.optimizer.trace) * exact["actor/grad_norm"]


# ---- AdamW, the EMA teacher, and steps in a row -------------------------------------------------

PEAK, WARMUP_STEPS, TEACHER_RATE, DECAY = 0.02, 4, 0.25, 0.1
ADAMW = optimizer.direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=DECAY, clip_norm=1.0)


@functools.cache
def adamw_update() -> update.UpdateFunction:
    return update.make_update(
        model=tiny.CONFIG,
        settings=DEFAULT,
        compute=PLAIN,
        optimizer=ADAMW,
        learning_rate=functools.partial(
            optimizer.learning_rate, peak=PEAK, warmup_steps=WARMUP_STEPS
        ),
    )


def test_the_teacher_moves_by_its_rate_towards_the_new_student():
    student, teacher = steps.student_and_teacher()
    state, _, _ = run(adamw_update(), make_state(ADAMW), make_batch(), TEACHER_RATE)
    assert_trees_close(
        state.teacher,
        jax.tree.map(lambda t, s: t + TEACHER_RATE * (s - t), teacher, state.trainable),
        rtol=1e-6,
    )
    # Were it the old student, this would be further away than rounding.
    distance = optax.tree.norm(jax.tree.map(np.subtract, state.trainable, student))
    assert distance > 0.01


def test_the_first_step_is_peak_over_warmup_long_in_every_coordinate():
    # Adam's first direction is the sign of the gradient, plus the decay of the parameter.
    before, _ = steps.student_and_teacher()
    state, metrics, _ = run(adamw_update(), make_state(ADAMW), make_batch(), TEACHER_RATE)
    rate = PEAK / WARMUP_STEPS
    assert metrics["actor/learning_rate"] == np.float32(rate)
    undecayed = jax.tree.map(
        lambda new, old: new - old * (1 - rate * DECAY), state.trainable, before
    )
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(undecayed))
    np.testing.assert_allclose(largest, rate, rtol=1e-3)


def test_a_step_where_every_route_is_empty_only_decays_the_weights():
    before, _ = steps.student_and_teacher()
    state, metrics, _ = run(adamw_update(), make_state(ADAMW), make_batch(NOTHING), TEACHER_RATE)
    factor = np.float32(1 - PEAK / WARMUP_STEPS * DECAY)
    assert_trees_close(state.trainable, jax.tree.map(lambda p: p * factor, before), rtol=1e-6)
    assert metrics["actor/grad_norm"] == 0 and metrics["actor/update_skipped"] == 0
    assert metrics["loss/total"] == 0
    moments = state.optimizer[1]
    assert all(not leaf.any() for leaf in jax.tree.leaves((moments.mu, moments.nu)))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_gradient_leaves_every_bit_and_is_counted_in_a_row(poison):
    good = make_batch()
    advantages = good.advantages.copy()
    advantages[0, 0] = poison
    bad = good._replace(advantages=advantages)
    state, metrics, _ = run(adamw_update(), make_state(ADAMW), good, TEACHER_RATE)
    assert metrics["actor/update_skipped"] == 0 and state.skipped == 0
    kept = (state.trainable, state.optimizer, state.teacher)
    for in_a_row in (1, 2):
        state, metrics, _ = run(adamw_update(), jax.tree.map(jnp.array, state), bad, TEACHER_RATE)
        assert_same_bits((state.trainable, state.optimizer, state.teacher), kept)
        assert metrics["actor/update_skipped"] == 1 and state.skipped == in_a_row
        assert not np.isfinite(metrics["actor/grad_norm"])
        assert state.step == 1 + in_a_row  # the schedules follow training steps
    state, metrics, _ = run(adamw_update(), jax.tree.map(jnp.array, state), good, TEACHER_RATE)
    assert metrics["actor/update_skipped"] == 0 and state.skipped == 0
    assert not np.array_equal(state.trainable["norm"], kept[0]["norm"])


def test_a_copy_is_of_the_student_as_it_is_even_where_the_update_was_skipped():
    # The host has written the copy down before it knows; else it would wait for the next in vain.
    good = make_batch()
    advantages = np.full_like(good.advantages, np.nan)
    state, _, _ = run(adamw_update(), make_state(ADAMW), good, TEACHER_RATE)
    assert not np.array_equal(state.teacher["norm"], state.trainable["norm"])
    kept = state.trainable
    bad = good._replace(advantages=advantages)
    state, metrics, _ = run(adamw_update(), jax.tree.map(jnp.array, state), bad, 1.0)
    assert metrics["actor/update_skipped"] == 1
    assert_same_bits((state.trainable, state.teacher), (kept, kept))


def test_the_samplers_log_probs_are_measured_and_not_used():
    # The old policy is the present one at every step: the ratio is 1 whatever the sampler says.
    batch = make_batch()
    stale = batch._replace(sampler_log_probs=batch.sampler_log_probs - 30)
    state, metrics, _ = run(adamw_update(), make_state(ADAMW), batch, TEACHER_RATE)
    other, stale_metrics, _ = run(adamw_update(), make_state(ADAMW), stale, TEACHER_RATE)
    assert_same_bits(state, other)
    gap = stale_metrics["sampler/log_prob_gap_max"] - metrics["sampler/log_prob_gap_max"]
    assert gap > 10


@dataclasses.dataclass(frozen=True)
class Step:
    rollouts: Rollouts
    batch: batching.Batch
    metrics: dict[str, Any]
    moved: float  # distance of the parameters
    compiled: tuple[int, ...]  # executables of the sampler and of the update


@functools.cache
def ten_steps() -> list[Step]:
    """Rollouts of the sampler and updates in turn; in steps 4, 5 and 8 every route is empty."""
    sampler = Sampler(tiny.CONFIG, prompt_buckets=(16,), segment_steps=4)
    state = make_state(ADAMW)
    # Other tests of this process may have compiled for the sampler before: only growth counts.
    before_all = decode.executables()
    taken = []
    for step in range(1, 11):
        rng = np.random.default_rng(step)
        prompts = tiny.prompts(ROWS // GROUP, seed=step)
        rollouts = sampler.generate(
            state.trainable,
            prompts,
            group_size=GROUP,
            max_new_tokens=steps.TIME,
            stop_tokens=range(5, 5 + 2 * step if step < 6 else 8),
            stream=random_streams(0, step, [f"p{i}" for i in range(len(prompts))]),
        )
        empty = step in (4, 5, 8)
        contexts = [None if empty else c for c in tiny.prompts(ROWS, seed=step + 50, longest=28)]
        correct = rng.random((ROWS // GROUP, GROUP)) < 0.5
        shape = correct.shape
        batch = batching.make(
            prompts,
            rollouts,
            contexts,
            advantages=rng.normal(size=shape),
            policy_weight=np.zeros(shape) if empty else 1.0 * correct,
            distill_weight=np.zeros(shape) if empty else 1.0 * ~correct,
            gate=np.zeros(shape, bool) if empty else correct,
            prompt_buckets=(16,),
            teacher_buckets=(32,),
            response_buckets=(steps.TIME,),
        )
        before = jax.device_get(state.trainable)
        state, metrics, _ = adamw_update()(state, batch, TEACHER_RATE)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, state.trainable, before))
        compiled = (decode.executables() - before_all, adamw_update()._cache_size())
        taken.append(Step(rollouts, batch, jax.device_get(metrics), float(moved), compiled))
    return taken


def test_the_trainer_agrees_with_the_sampler_at_every_step():
    for step in ten_steps():
        assert step.metrics["sampler/log_prob_gap_max"] <= 1e-5
        assert (step.rollouts.log_probs[step.rollouts.mask] < -0.01).any()
    # Were the old policy that of the first step, the gap would be as large as what was learned.
    assert sum(step.moved for step in ten_steps()) > 1


def test_other_lengths_in_the_same_buckets_compile_nothing_new():
    taken = ten_steps()
    assert len({tuple(step.rollouts.lengths) for step in taken}) > 5
    assert len({step.batch.student_mask.sum() for step in taken}) > 5
    assert [step.compiled for step in taken] == [taken[0].compiled] * 10


def test_empty_steps_among_others_are_finite_and_leave_adams_momentum_at_work():
    for number, step in enumerate(ten_steps(), start=1):
        empty = number in (4, 5, 8)
        assert (step.metrics["actor/grad_norm"] == 0) == empty
        assert step.metrics["actor/update_skipped"] == 0
        assert np.isfinite(step.moved) and step.moved > 0
        assert all(np.isfinite(value) for value in step.metrics.values())


def test_the_rate_follows_the_training_step_through_the_warmup():
    rates = [step.metrics["actor/learning_rate"] for step in ten_steps()]
    np.testing.assert_allclose(rates, PEAK * np.minimum(np.arange(1, 11) / 4, 1), rtol=1e-6)


def test_sampled_responses_enter_the_loss_with_their_stop_token():
    finished = 0
    for step in ten_steps():
        response, mask = step.batch.response[0], step.batch.response_mask[0]
        for row in np.flatnonzero(step.rollouts.finished):
            last = np.flatnonzero(mask[row])[-1]
            assert response[row, last] in range(5, 15)
            assert step.batch.student_tokens[0, row, -mask.shape[1] + last] == response[row, last]
            finished += 1
    assert finished > 10


def test_merging_puts_the_trained_part_over_the_frozen_one():
    merged = update.merge({"norm": 1}, {"norm": 0, "embed_tokens": 2})
    assert merged == {"norm": 1, "embed_tokens": 2}


def test_the_self_teacher_starts_as_the_student_in_buffers_of_its_own():
    params = transformer.init(tiny.CONFIG, jax.random.key(0))
    state = update.init_state(params, ADAMW)
    assert_same_bits(state.teacher, state.trainable)
    assert state.teacher["norm"] is not state.trainable["norm"]
    assert state.step == 0 and state.skipped == 0 and state.frozen == {}
