"""One jitted update: teacher pass, student pass, objective, gradient, optimizer, EMA teacher.

    teacher pass (no gradient)  ->  hidden states with the sibling in context
    student pass                ->  hidden states
    head, first sweep           ->  log-probs and entropies of both, hence the token weights
    head, second sweep          ->  the loss and its gradient (DRIFT Eq. 4)

What differs between methods and stages arrives as numbers in the batch (policy_weight,
distill_weight, gate), so one executable a shape serves a whole run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drift_jax.batching import Batch
from drift_jax.losses import objective as objectives
from drift_jax.losses import rhythm, vocab
from drift_jax.losses.divergence import Divergence
from drift_jax.losses.policy_gradient import clipped_surrogate, importance_ratio
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig, Params

Metrics = dict[str, jax.Array]
Details = dict[str, jax.Array]  # per-token values, [micro, row, time] each


@struct.dataclass
class TrainState:
    """Everything on the device that a checkpoint must hold."""

    step: jax.Array  # scalar int32, training steps done
    trainable: Params
    frozen: Params  # parameters that get no gradient; empty when all are trained
    optimizer: Any
    teacher: Params  # the self-teacher's parameters, all of them
    skipped: jax.Array  # scalar int32, updates skipped in a row for a non-finite gradient


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The constants of the loss, named as in the configuration; the rest arrives with the batch."""

    divergence: Divergence = Divergence()  # noqa: RUF009 (immutable)
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    aggregation: str = "sequence_mean"
    policy_scale: float = 1.0
    distill_scale: float = 1.0
    window: int = 8
    gate_sharpness: float = 1.0
    structure_scale: float = 1.0
    min_multiplier: float = 0.5
    max_multiplier: float = 2.0
    margin: float = 0.2
    bonus_temperature: float = 1.0
    max_bonus: float = 2.0


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the numbers are computed, without changing what they mean."""

    dtype: jnp.dtype | None = None
    remat: bool = False
    vocab_chunk: int = 1024


UpdateFunction = Callable[
    [TrainState, Batch, jax.Array | float], tuple[TrainState, Metrics, Details]
]


def merge(trainable: Params, frozen: Params) -> Params:
    """The model's parameters from the part that is trained and the part that is not."""
    return {**frozen, **trainable}


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


def make_update(
    *,
    model: ModelConfig,
    settings: LossSettings,
    compute: Compute,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    placement: TrainState | None = None,
) -> UpdateFunction:
    """Builds the jitted update.

    Args:
      model: the sizes.
      settings: constants of the loss.
      compute: dtype, rematerialisation, head chunk.
      optimizer: gives the direction of the step.
      learning_rate: rate at a training step, from 1.
      placement: shardings of the state, which it then keeps; None leaves them to the compiler. On a
        mesh, a state that comes back in other places than it went in compiles the next step again.

    Returns:
      update(state, batch, teacher_rate) -> (state, metrics, details). `teacher_rate` is the share
      of the new student that enters the teacher in this step: 0 leaves it, 1 makes it a copy. The
      state's buffers are reused. `details` holds per-token values [micro, row, time] for the
      sample files. A non-finite gradient leaves parameters, optimizer and teacher as they were.
    """

    def update(
        state: TrainState, batch: Batch, teacher_rate: jax.Array | float
    ) -> tuple[TrainState, Metrics, Details]:
        gradient, details = _accumulate(state, batch, model, settings, compute)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        step = state.step + 1
        rate = learning_rate(step)
        moves, moments = optimizer.update(gradient, state.optimizer, state.trainable)
        student = jax.tree.map(
            lambda p, move: p - (rate * move).astype(p.dtype), state.trainable, moves
        )
        # At a rate of 1 the sum could round: a copy is a copy.
        teacher = jax.tree.map(
            lambda old, new: jnp.where(teacher_rate == 1, new, old + teacher_rate * (new - old)),
            state.teacher,
            merge(student, state.frozen),
        )

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        state = dataclasses.replace(
            state,
            step=step,
            trainable=keep(student, state.trainable),
            optimizer=keep(moments, state.optimizer),
            teacher=keep(teacher, state.teacher),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        metrics = _metrics(batch, details)
        del details["loss"]
        metrics |= {
            "actor/grad_norm": norm,
            "actor/learning_rate": rate,
            "actor/update_skipped": (~finite).astype(jnp.float32),
        }
        return state, metrics, details

    out_shardings = None if placement is None else (placement, None, None)
    return jax.jit(update, donate_argnums=(0,), out_shardings=out_shardings)


def _accumulate(
    state: TrainState, batch: Batch, model: ModelConfig, settings: LossSettings, compute: Compute
) -> tuple[Params, dict[str, jax.Array]]:
    """Sum of the micro-batches' gradients, and per-token details of all of them.

    The normalisers are those of the whole batch, so the sum does not depend on the split.
    """
    mask = batch.response_mask.reshape(-1, batch.response_mask.shape[-1])
    normaliser = objectives.token_normaliser(
        mask,
        jnp.ones(mask.shape[0], bool),
        aggregation=settings.aggregation,
        batch_size=mask.shape[0],
    ).reshape(*batch.response_mask.shape[:2], 1)

    def one(total: Params, piece: tuple[Batch, jax.Array]) -> tuple[Params, dict[str, jax.Array]]:
        rows, per_token = piece
        gradient, details = jax.grad(_loss, has_aux=True)(
            state.trainable, state.frozen, state.teacher, rows, per_token, model, settings, compute
        )
        return jax.tree.map(jnp.add, total, gradient), details

    return jax.lax.scan(one, jax.tree.map(jnp.zeros_like, state.trainable), (batch, normaliser))


def response_hidden(
    params: Params,
    model: ModelConfig,
    compute: Compute,
    tokens: jax.Array,
    mask: jax.Array,
    time: int,
) -> jax.Array:
    """Hidden states that predict the last `time` tokens. [row, time, embed]"""
    hidden = transformer.hidden_states(params, model, tokens, mask=mask, remat=compute.remat)
    return hidden[:, -time - 1 : -1]


def _loss(
    trainable: Params,
    frozen: Params,
    teacher: Params,
    rows: Batch,
    normaliser: jax.Array,
    model: ModelConfig,
    settings: LossSettings,
    compute: Compute,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A scalar whose gradient is that of DRIFT Eq. 4 on one micro-batch, and what to report."""
    time = rows.response.shape[-1]
    student = transformer.cast(merge(trainable, frozen), compute.dtype)
    hidden = response_hidden(student, model, compute, rows.student_tokens, rows.student_mask, time)
    head = transformer.output_head(student)
    if rows.teacher_tokens is None:
        guide, guide_head = jax.lax.stop_gradient((hidden, head))
    else:
        teacher = transformer.cast(jax.lax.stop_gradient(teacher), compute.dtype)
        guide = response_hidden(
            teacher, model, compute, rows.teacher_tokens, rows.teacher_mask, time
        )
        guide_head = transformer.output_head(teacher)

    # First sweep of the head, without gradient: the gate needs the entropies of whole sequences.
    own_hidden, own_head = jax.lax.stop_gradient((hidden, head))
    own = vocab.head_statistics(own_hidden, own_head, rows.response, chunk=compute.vocab_chunk)
    taught = vocab.head_statistics(guide, guide_head, rows.response, chunk=compute.vocab_chunk)
    gate, bonus, token_weights = _rhythm(own, taught, rows, settings)

    policy = objectives.token_coefficients(
        settings.policy_scale * rows.policy_weight, normaliser, token_weights, rows.response_mask
    )
    distill_row = settings.distill_scale * rows.distill_weight
    distill = objectives.token_coefficients(distill_row, normaliser, 1.0, rows.response_mask)
    # One update a batch: the old policy is the present one, so the ratio is exactly 1 and only its
    # gradient counts. The sampler's log-probs are compared, not used (`sampler/log_prob_gap_max`).
    clip: dict[str, Any] = {
        "clip_low": settings.clip_low,
        "clip_high": settings.clip_high,
        "dual_clip": settings.dual_clip,
    }
    advantages = rows.advantages[:, None]
    loss, statistics = vocab.head_loss(
        hidden,
        guide,
        head,
        guide_head,
        rows.response,
        distill_weight=distill,
        policy_weight=objectives.clipped_policy_weight(
            own.log_probs, own.log_probs, advantages, policy, **clip
        ),
        credit_weight=0.0,
        divergence=settings.divergence,
        chunk=compute.vocab_chunk,
    )
    surrogate = clipped_surrogate(
        importance_ratio(own.log_probs, own.log_probs), advantages, **clip
    )
    value = objectives.mixed_objective(
        surrogate,
        statistics.divergence,
        rows.response_mask,
        policy_weight=settings.policy_scale * rows.policy_weight,
        distill_weight=distill_row,
        policy_normaliser=normaliser,
        distill_normaliser=normaliser,
        token_weights=token_weights,
    )
    details = statistics._asdict()
    details |= {"rhythm_gate": gate, "rebellious_bonus": bonus, "token_weights": token_weights}
    return loss, {**details, "loss": value}


def _rhythm(
    own: vocab.HeadStatistics, taught: vocab.HeadStatistics, rows: Batch, settings: LossSettings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gate, bonus and token weights (DRIFT Eqs. 9-16). [row, time] each."""
    gate = rhythm.rhythm_gate(
        own.entropy,
        taught.entropy,
        rows.response_mask,
        window=settings.window,
        gate_sharpness=settings.gate_sharpness,
        structure_scale=settings.structure_scale,
        min_multiplier=settings.min_multiplier,
        max_multiplier=settings.max_multiplier,
    )
    bonus = rhythm.rebellious_bonus(
        own.log_probs,
        taught.log_probs,
        margin=settings.margin,
        bonus_temperature=settings.bonus_temperature,
        max_bonus=settings.max_bonus,
    )
    return gate, bonus, rhythm.token_weights(gate, bonus, rows.gate)


def _metrics(batch: Batch, details: dict[str, Any]) -> Metrics:
    """Means over valid tokens, and over the tokens that a part could act on."""
    mask = batch.response_mask
    gated = mask & (batch.gate > 0)[..., None]
    taught = mask & (batch.distill_weight > 0)[..., None]
    sampled = mask & batch.fresh[..., None]
    gap = jnp.abs(details["student_log_probs"] - batch.sampler_log_probs)

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)

    return {
        "loss/total": details["loss"].total.sum(),
        "loss/distill": details["loss"].distill.sum(),
        "loss/policy": details["loss"].policy.sum(),
        "actor/entropy": mean(details["student_entropy"], mask),
        "actor/log_prob_mean": mean(details["student_log_probs"], mask),
        "sampler/log_prob_gap_max": jnp.max(jnp.where(sampled, gap, 0)),
        "sampler/log_prob_gap_mean": mean(gap, sampled),
        "teacher/entropy": mean(details["teacher_entropy"], taught),
        "teacher/divergence": mean(details["divergence"], taught),
        "rhythm/rows": jnp.mean((batch.gate > 0).astype(jnp.float32)),
        "rhythm/gate_mean": mean(details["rhythm_gate"], gated),
        "rhythm/open_fraction": mean(details["rhythm_gate"] > 0, gated),
        "rhythm/bonus_mean": mean(details["rebellious_bonus"], gated),
        "rhythm/bonus_fraction": mean(details["rebellious_bonus"] > 0, gated),
        "rhythm/weight_max": jnp.max(jnp.where(mask, details["token_weights"], 1)),
        "rhythm/weight_excess": mean(details["token_weights"] - 1, gated),
    }
