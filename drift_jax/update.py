"""One jitted update: gradient of the objective, optimizer, EMA teacher.

What differs between methods and stages arrives as numbers in the batch (policy_weight,
distill_weight, gate), so one executable a shape serves a whole run. The loss is in `loss.py`.

A batch may be used for several optimizer steps, its mini-batches: consecutive slices of its rows,
each with normalisers of its own. All of them compare with the policy at the start of the step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drift_jax.batching import Batch
from drift_jax.loss import Details, Fixed, fix, loss, normalisers
from drift_jax.loss_terms import LossSettings
from drift_jax.losses.policy_gradient import importance_ratio
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.passes import Compute, Models, Run, merge

__all__ = ["Compute", "LossSettings", "TrainState", "init_state", "make_update", "merge"]

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """Everything on the device that a checkpoint must hold."""

    step: jax.Array  # scalar int32, training steps done
    trainable: Params
    frozen: Params  # parameters that get no gradient; empty when all are trained
    optimizer: Any
    teacher: Params  # the self-teacher's parameters, all of them
    skipped: jax.Array  # scalar int32, updates skipped in a row for a non-finite gradient


UpdateFunction = Callable[
    [TrainState, Batch, jax.Array | float], tuple[TrainState, Metrics, Details]
]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step: the self-teacher starts as the student."""
    return TrainState(
        step=jnp.int32(0),
        trainable=params,
        frozen={},
        optimizer=optimizer.init(params),
        teacher=jax.tree.map(jnp.copy, params),
        skipped=jnp.int32(0),
    )


class _Report(NamedTuple):
    """What one optimizer step says of itself; scalars."""

    grad_norm: jax.Array
    finite: jax.Array
    information: jax.Array  # nats
    update_scale: jax.Array


def make_update(
    *,
    model: ModelConfig,
    settings: LossSettings,
    compute: Compute,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    mini_batches: int = 1,
    placement: TrainState | None = None,
) -> UpdateFunction:
    """Builds the jitted update.

    Args:
      model: the sizes.
      settings: constants of the loss.
      compute: dtype, rematerialisation, head chunk.
      optimizer: gives the direction of the step.
      learning_rate: rate at a training step, from 1.
      mini_batches: optimizer steps a batch; divides its number of micro-batches.
      placement: shardings of the state, which it then keeps; None leaves them to the compiler. On a
        mesh, a state that comes back in other places than it went in compiles the next step again.

    Returns:
      update(state, batch, teacher_rate) -> (state, metrics, details). `teacher_rate` is the share
      of the new student that enters the teacher in this step: 0 leaves it, 1 makes it a copy. The
      state's buffers are reused. `details` holds per-token values [micro, row, time] for the
      sample files. A non-finite gradient leaves parameters and optimizer as they were; when all
      mini-batches have one, the teacher too, but for a copy, which is of the student as it then is.
    """
    run = Run(model, settings, compute)
    optimizer = optax.with_extra_args_support(optimizer)

    def optimizer_step(
        state: TrainState, batch: Batch, fixed: Fixed, rate: jax.Array
    ) -> tuple[TrainState, tuple[_Report, Details]]:
        """The new student and optimizer, from the rows of one mini-batch."""
        gradient, details = _accumulate(state, batch, fixed, run)
        norm = optax.tree.norm(gradient)
        information = _information(batch, details)
        finite = jnp.isfinite(norm) & jnp.isfinite(information)
        moves, moments = optimizer.update(
            gradient, state.optimizer, state.trainable, information=information
        )
        student = jax.tree.map(
            lambda p, move: p - (rate * move).astype(p.dtype), state.trainable, moves
        )
        state = dataclasses.replace(
            state,
            trainable=_where(finite, student, state.trainable),
            optimizer=_where(finite, moments, state.optimizer),
        )
        scale = optax.tree.get(state.optimizer, "update_scale", default=1.0)
        return state, (_Report(norm, finite, information, jnp.float32(scale)), details)

    def update(
        state: TrainState, batch: Batch, teacher_rate: jax.Array | float
    ) -> tuple[TrainState, Metrics, Details]:
        fixed = fix(_models(state), batch, run, mini_batches)
        rate = learning_rate(state.step + 1)
        if mini_batches == 1:
            state, (report, details) = optimizer_step(state, batch, fixed, rate)
            report = jax.tree.map(lambda value: value[None], report)
        else:
            state, (report, details) = jax.lax.scan(
                lambda state, piece: optimizer_step(state, piece[0], piece[1], rate),
                state,
                _slices((batch, fixed), mini_batches),
            )
            details = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), details)
        finite = report.finite.any()
        # At a rate of 1 the sum could round: a copy is a copy.
        teacher = jax.tree.map(
            lambda old, new: jnp.where(teacher_rate == 1, new, old + teacher_rate * (new - old)),
            state.teacher,
            merge(state.trainable, state.frozen),
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            # A copy is of the student as it is now, even where this step left it alone.
            teacher=_where(finite | (teacher_rate == 1), teacher, state.teacher),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        metrics = _metrics(batch, details, settings, mini_batches)
        del details["loss"]
        metrics |= {
            "actor/grad_norm": report.grad_norm.mean(),
            "actor/learning_rate": rate,
            "actor/update_skipped": (~report.finite).astype(jnp.float32).mean(),
            "actor/information": report.information.mean(),
            "actor/update_scale": report.update_scale.mean(),
        }
        return state, metrics, details

    out_shardings = None if placement is None else (placement, None, None)
    return jax.jit(update, donate_argnums=(0,), out_shardings=out_shardings)


def _models(state: TrainState) -> Models:
    return Models(state.trainable, state.frozen, state.teacher)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _slices(tree: Any, count: int) -> Any:
    """Consecutive slices of the first axis. [micro, ...] -> [count, micro / count, ...]"""
    pieces = len(jax.tree.leaves(tree)[0])
    if pieces % count:
        raise ValueError(
            f"{pieces} micro-batches do not divide into {count} mini-batches; use micro-batches of"
            " at most the rows of a mini-batch"
        )
    return jax.tree.map(lambda x: x.reshape(count, pieces // count, *x.shape[1:]), tree)


def _accumulate(state: TrainState, batch: Batch, fixed: Fixed, run: Run) -> tuple[Params, Details]:
    """Sum of the micro-batches' gradients, and per-token details of all of them.

    The normalisers are those of the whole batch, so the sum does not depend on the split.
    """
    by = normalisers(batch, run.settings.aggregation)
    models = _models(state)

    def one(total: Params, piece: tuple) -> tuple[Params, Details]:
        gradient, details = jax.grad(loss, has_aux=True)(
            state.trainable, models, *piece, state.step, run
        )
        return jax.tree.map(jnp.add, total, gradient), details

    zeros = jax.tree.map(jnp.zeros_like, state.trainable)
    return jax.lax.scan(one, zeros, (batch, by, fixed))


# ---- what is reported ---------------------------------------------------------------------------


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)


def _information(batch: Batch, details: Details) -> jax.Array:
    """How much the contexts tell: mean student entropy less the teacher's, over taught rows."""
    told = batch.response_mask & batch.taught[..., None]
    return _mean(details["student_entropy"] - details["teacher_entropy"], told)


def _metrics(batch: Batch, details: Details, settings: LossSettings, mini_batches: int) -> Metrics:
    """Means over valid tokens, and over the tokens that a part could act on."""
    mask = batch.response_mask
    gated = mask & (batch.gate > 0)[..., None]
    taught = mask & (batch.distill_weight > 0)[..., None]
    pushed = mask & (batch.policy_weight > 0)[..., None]
    sampled = mask & batch.fresh[..., None]
    gap = jnp.abs(details["old_log_probs"] - batch.sampler_log_probs)
    ratio = importance_ratio(details["student_log_probs"], details["old_log_probs"])
    gain = batch.advantages[..., None]
    clipped = jnp.where(gain > 0, ratio > 1 + settings.clip_high, ratio < 1 - settings.clip_low)

    return {
        "loss/total": details["loss"].total.sum() / mini_batches,
        "loss/distill": details["loss"].distill.sum() / mini_batches,
        "loss/policy": details["loss"].policy.sum() / mini_batches,
        "actor/entropy": _mean(details["student_entropy"], mask),
        "actor/log_prob_mean": _mean(details["student_log_probs"], mask),
        "actor/ratio_max": jnp.max(jnp.where(pushed | taught, ratio, 1)),
        "actor/clip_fraction": _mean(clipped & (gain != 0), pushed),
        "sampler/log_prob_gap_max": jnp.max(jnp.where(sampled, gap, 0)),
        "sampler/log_prob_gap_mean": _mean(gap, sampled),
        "teacher/entropy": _mean(details["teacher_entropy"], taught),
        "teacher/divergence": _mean(details["divergence"], taught),
        "distill/weight_max": jnp.max(jnp.where(taught, details["distill_token_weights"], 0)),
        "distill/credit_mean": _mean(details["credit"], taught),
        "rhythm/rows": jnp.mean((batch.gate > 0).astype(jnp.float32)),
        "rhythm/gate_mean": _mean(details["rhythm_gate"], gated),
        "rhythm/open_fraction": _mean(details["rhythm_gate"] > 0, gated),
        "rhythm/bonus_mean": _mean(details["rebellious_bonus"], gated),
        "rhythm/bonus_fraction": _mean(details["rebellious_bonus"] > 0, gated),
        "rhythm/weight_max": jnp.max(jnp.where(mask, details["token_weights"], 1)),
        "rhythm/weight_excess": _mean(details["token_weights"] - 1, gated),
    }
