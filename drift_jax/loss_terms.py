"""What each word and constant of the objective means for a token, given what both models say of it.

From the statistics of the head's first sweep to one number per token, [row, time]: M of the policy
term, w of the divergence, DistIL's credit C. A word of the configuration is read in the table at
the end that belongs to it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from drift_jax.batching import Batch
from drift_jax.losses import rhythm
from drift_jax.losses.credit import future_credit
from drift_jax.losses.divergence import Divergence
from drift_jax.losses.policy_gradient import truncated_ratio
from drift_jax.losses.vocab import HeadStatistics
from drift_jax.losses.weights import entropy_weights, evidence_weights


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
    token_weight: str = "rhythm"
    reshape_scale: float = 0.5
    reshape_decay_steps: int = 0
    reshape_clip: float = 0.2
    distill_token_weight: str = "none"
    entropy_beta: float = 1.0
    credit: str = "none"
    distill_ratio_cap: float = 2.0
    sampler_correction_cap: float = 0.0
    trust_region: float = 0.0  # share of the current student in the teacher's logits
    gate: str = "anchor"
    bonus: str = "exceedance"
    window: int = 8
    gate_sharpness: float = 1.0
    structure_scale: float = 1.0
    min_multiplier: float = 0.5
    max_multiplier: float = 2.0
    margin: float = 0.2
    bonus_temperature: float = 1.0
    max_bonus: float = 2.0

    @property
    def clip(self) -> dict[str, Any]:
        """The arguments of `clipped_surrogate`."""
        return {
            "clip_low": self.clip_low,
            "clip_high": self.clip_high,
            "dual_clip": self.dual_clip,
        }


def token_weights(
    own: HeadStatistics,
    taught: HeadStatistics,
    rows: Batch,
    step: jax.Array,
    settings: LossSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gate, bonus and M of the policy term; M is exactly 1 off the gated rows. [row, time] each.

    `step` is the number of training steps done before this one.
    """
    return TOKEN_WEIGHTS[settings.token_weight](own, taught, rows, step, settings)


def distilled(rows: Batch) -> jax.Array:
    """The tokens that the distillation term acts on. [..., row, time]"""
    return rows.response_mask & (rows.distill_weight > 0)[..., None]


def entropy_factor(
    teacher_entropy: jax.Array, counted: jax.Array, settings: LossSettings
) -> jax.Array | float:
    """w by the teacher's entropies; `counted` are the distilled tokens of the whole batch."""
    return DISTILL_WEIGHTS[settings.distill_token_weight](teacher_entropy, counted, settings)


def credit(divergence: jax.Array, rows: Batch, settings: LossSettings) -> jax.Array | None:
    """C in nats, or None for a method without it. [row, time]"""
    return CREDITS[settings.credit](divergence, rows.response_mask)


def sampler_correction(
    old_log_probs: jax.Array, rows: Batch, settings: LossSettings
) -> jax.Array | float:
    """Truncated importance weight of trainer over sampler; 1 for what no sampler made here."""
    if not settings.sampler_correction_cap:
        return 1.0
    known = rows.response_mask & rows.fresh[..., None]
    sampler = jnp.where(known, rows.sampler_log_probs, 0.0)
    weight = truncated_ratio(old_log_probs, sampler, cap=settings.sampler_correction_cap)
    return jnp.where(known, weight, 1.0)


# ---- M: the rhythm of DRIFT and its ablations ---------------------------------------------------


def _rhythm(
    own: HeadStatistics,
    taught: HeadStatistics,
    rows: Batch,
    step: jax.Array,
    settings: LossSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """DRIFT Eqs. 9-16."""
    gate = GATES[settings.gate](own, taught, rows, settings)
    bonus = BONUSES[settings.bonus](own, taught, settings)
    return gate, bonus, rhythm.token_weights(gate, bonus, rows.gate)


def _anchor_gate(
    own: HeadStatistics, taught: HeadStatistics, rows: Batch, settings: LossSettings
) -> jax.Array:
    return rhythm.rhythm_gate(
        own.entropy,
        taught.entropy,
        rows.response_mask,
        window=settings.window,
        gate_sharpness=settings.gate_sharpness,
        structure_scale=settings.structure_scale,
        min_multiplier=settings.min_multiplier,
        max_multiplier=settings.max_multiplier,
    )


def _open_gate(
    own: HeadStatistics, taught: HeadStatistics, rows: Batch, settings: LossSettings
) -> jax.Array:
    return rows.response_mask.astype(own.entropy.dtype)


def _exceedance_bonus(
    own: HeadStatistics, taught: HeadStatistics, settings: LossSettings
) -> jax.Array:
    return rhythm.rebellious_bonus(
        own.log_probs,
        taught.log_probs,
        margin=settings.margin,
        bonus_temperature=settings.bonus_temperature,
        max_bonus=settings.max_bonus,
    )


def _step_bonus(own: HeadStatistics, taught: HeadStatistics, settings: LossSettings) -> jax.Array:
    ahead = rhythm.exceedance(own.log_probs, taught.log_probs, margin=settings.margin)
    return jnp.where(ahead > 0, settings.max_bonus - 1.0, 0.0)


def _full_bonus(own: HeadStatistics, taught: HeadStatistics, settings: LossSettings) -> jax.Array:
    return jnp.full(own.entropy.shape, settings.max_bonus - 1.0, own.entropy.dtype)


# ---- M: RLSD and RLRT ---------------------------------------------------------------------------


def _evidence(
    own: HeadStatistics,
    taught: HeadStatistics,
    rows: Batch,
    step: jax.Array,
    settings: LossSettings,
    *,
    favour_teacher: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """No gate and no bonus; the advantage reshaped by lambda, which may decay to 0."""
    scale: jax.Array | float = settings.reshape_scale
    if settings.reshape_decay_steps:
        scale = scale * jnp.maximum(1.0 - step / settings.reshape_decay_steps, 0.0)
    favoured, other = (taught, own) if favour_teacher else (own, taught)
    weights = evidence_weights(
        favoured.log_probs,
        other.log_probs,
        rows.advantages[:, None],
        scale=scale,
        clip=settings.reshape_clip,
    )
    beta = rows.gate[:, None]
    acting = rows.response_mask & (beta > 0)
    nothing = jnp.zeros(rows.response_mask.shape, own.log_probs.dtype)
    return nothing, nothing, jnp.where(acting, 1.0 + beta * (weights - 1.0), 1.0)


# ---- the tables ---------------------------------------------------------------------------------

# objective.token_weight
TOKEN_WEIGHTS: dict[str, Callable[..., tuple[jax.Array, jax.Array, jax.Array]]] = {
    "rhythm": _rhythm,
    "rlsd": partial(_evidence, favour_teacher=True),
    "rlrt": partial(_evidence, favour_teacher=False),
}
# rhythm.gate: the gate of Eq. 15, or 1 at every token of the response.
GATES: dict[str, Callable[..., jax.Array]] = {"anchor": _anchor_gate, "open": _open_gate}
# rhythm.bonus: that of Eq. 10, its largest value where Eq. 9 exceeds, or that value everywhere.
BONUSES: dict[str, Callable[..., jax.Array]] = {
    "exceedance": _exceedance_bonus,
    "step": _step_bonus,
    "full": _full_bonus,
}
# objective.distill_token_weight
DISTILL_WEIGHTS: dict[str, Callable[..., jax.Array | float]] = {
    "none": lambda teacher_entropy, counted, settings: 1.0,
    "teacher_entropy": lambda teacher_entropy, counted, settings: entropy_weights(
        teacher_entropy, counted, entropy_beta=settings.entropy_beta
    ),
}
# objective.credit
CREDITS: dict[str, Callable[[jax.Array, jax.Array], jax.Array | None]] = {
    "none": lambda divergence, mask: None,
    "future_mean": partial(future_credit, mean=True),
    "future_sum": partial(future_credit, mean=False),
}
