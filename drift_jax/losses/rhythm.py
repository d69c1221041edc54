"""Rhythm-gated exploration: which tokens of a right answer deserve a larger push (DRIFT 3.3).

A token weight M = 1 + beta * gate * bonus multiplies the policy-gradient term (Eq. 16). The bonus
says that the student found the sampled token clearly likelier than its teacher did (Eqs. 9-10).
The gate says that the position is an anchor of the reasoning: the teacher's entropy collapses here,
the student's does not yet (Eqs. 11-15). Both must hold, and the problem must be of medium
difficulty (beta).

Shapes are [batch, time], positions of the response only. `response_mask` is true at the tokens of
the response, the stop token included; a response lies in one piece, with padding on either side
(a mask with holes is allowed: windows count positions and average the tokens in them). What lies in
padding, nan included, changes nothing. Nothing here carries a gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

SMALLEST_STD = 1e-6


# ---- the rebellious bonus -----------------------------------------------------------------------


def exceedance(
    student_log_probs: ArrayLike, teacher_log_probs: ArrayLike, *, margin: float = 0.2
) -> jax.Array:
    """How far the student surpasses its teacher at the sampled token (DRIFT Eq. 9).

    max(l_S - l_T - margin, 0)

    Args:
      student_log_probs: log-probability of the sampled token, in nats. [batch, time].
      teacher_log_probs: the teacher's, same token. [batch, time].
      margin: mu, the difference in nats that counts as noise.

    Returns:
      Nats, [batch, time]; inf where only the teacher says -inf, 0 where the student does.
    """
    student, teacher = _without_gradient(student_log_probs), _without_gradient(teacher_log_probs)
    impossible = student == -jnp.inf  # for the student: nothing exceeds, whatever the teacher says
    teacher = jnp.where(impossible, 0.0, teacher)
    return jnp.maximum(student - teacher - margin, 0.0)


def rebellious_bonus(
    student_log_probs: ArrayLike,
    teacher_log_probs: ArrayLike,
    *,
    margin: float = 0.2,
    bonus_temperature: float = 1.0,
    max_bonus: float = 2.0,
) -> jax.Array:
    """The bounded reward for surpassing the teacher (DRIFT Eq. 10).

    min(exp(bonus_temperature * exceedance), max_bonus) - 1

    Args:
      student_log_probs: log-probability of the sampled token, in nats. [batch, time].
      teacher_log_probs: the teacher's, same token. [batch, time].
      margin: mu of Eq. 9, in nats.
      bonus_temperature: tau, above 0.
      max_bonus: B_max, at least 1.

    Returns:
      [batch, time], from 0 to max_bonus - 1; finite where a log-probability is -inf.
    """
    ahead = exceedance(student_log_probs, teacher_log_probs, margin=margin)
    return jnp.minimum(jnp.expm1(bonus_temperature * ahead), max_bonus - 1.0)


# ---- the anchor rhythm gate ---------------------------------------------------------------------


def entropy_drop(entropy: ArrayLike, response_mask: ArrayLike, *, window: int = 8) -> jax.Array:
    """How far the entropy falls around each token (DRIFT Eq. 11).

    max(mean entropy of the past - mean entropy of the future, 0), where the past is the `window`
    tokens before t and the future is t and the `window - 1` tokens after it, both cut at the ends
    of the response. The paper leaves this open; with t in the future, the position that scores is
    the one where the entropy has just fallen, which is where Eq. 12 compares student and teacher.

    Args:
      entropy: entropy per token, in nats. [batch, time].
      response_mask: true at the tokens of the response. [batch, time].
      window: W, in tokens, at least 1.

    Returns:
      Nats, [batch, time]; 0 at the first token, which has no past, and where masked.
    """
    entropy, mask = _masked("entropy_drop", entropy, response_mask)
    if window < 1:
        raise ValueError(f"entropy_drop got window={window}; give at least 1 token")
    window = max(min(window, mask.shape[-1]), 1)
    # Measured from the largest value: a mean of equal numbers rounds, a mean of zeros does not, so
    # a constant entropy drops by exactly 0.
    largest = jnp.max(jnp.where(mask, entropy, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    entropy = jnp.where(mask, entropy - largest, 0.0)
    past, future = _sums_before_and_after(entropy, window)
    past_tokens, future_tokens = _sums_before_and_after(mask.astype(entropy.dtype), window)
    drop = past / jnp.maximum(past_tokens, 1.0) - future / jnp.maximum(future_tokens, 1.0)
    return jnp.where(mask & (past_tokens > 0), jnp.maximum(drop, 0.0), 0.0)


def anchor_score(
    student_entropy: ArrayLike,
    teacher_entropy: ArrayLike,
    response_mask: ArrayLike,
    *,
    window: int = 8,
) -> jax.Array:
    """Where the teacher settles faster than the student, who is still unsure (DRIFT Eq. 12).

    max(Drop_T - Drop_S, 0) * max(H_S - H_T, 0)

    Args:
      student_entropy: H_S per token, in nats. [batch, time].
      teacher_entropy: H_T per token, in nats. [batch, time].
      response_mask: true at the tokens of the response. [batch, time].
      window: W of Eq. 11, in tokens.

    Returns:
      Nats squared, [batch, time], at least 0; 0 where masked.
    """
    student, mask = _masked("anchor_score", student_entropy, response_mask)
    teacher, _ = _masked("anchor_score", teacher_entropy, response_mask)
    settles_faster = entropy_drop(teacher, mask, window=window) - entropy_drop(
        student, mask, window=window
    )
    return jnp.maximum(settles_faster, 0.0) * jnp.maximum(student - teacher, 0.0)


def anchor_gate(
    score: ArrayLike, response_mask: ArrayLike, *, gate_sharpness: float = 1.0
) -> jax.Array:
    """How much a token's anchor score stands out in its response (DRIFT Eq. 13).

    2 max(sigmoid(gate_sharpness * z) - 1/2, 0), z the z-score of the anchor score over the tokens
    of the response: population standard deviation + 1e-6, so equal scores open no gate.

    Args:
      score: the anchor score, Eq. 12. [batch, time].
      response_mask: true at the tokens of the response. [batch, time].
      gate_sharpness: alpha_anc, above 0.

    Returns:
      [batch, time], from 0 to 1; 0 where masked and at and below the mean.
    """
    score, mask = _masked("anchor_gate", score, response_mask)
    centred = jnp.where(mask, score - _mean(score, mask), 0.0)
    std = jnp.sqrt(_mean(centred * centred, mask))
    z = centred / (std + SMALLEST_STD)
    return 2.0 * jnp.maximum(jax.nn.sigmoid(gate_sharpness * z) - 0.5, 0.0)  # masked: z = 0


def rhythm_multiplier(
    gate: ArrayLike,
    response_mask: ArrayLike,
    *,
    structure_scale: float = 1.0,
    min_multiplier: float = 0.5,
    max_multiplier: float = 2.0,
) -> jax.Array:
    """The anchor multiplier relative to its response (DRIFT Eq. 14).

    clip(m / mean(m), min_multiplier, max_multiplier) with m = 1 + structure_scale * gate.

    Args:
      gate: the anchor gate, Eq. 13. [batch, time].
      response_mask: true at the tokens of the response, the set Y of the paper. [batch, time].
      structure_scale: lambda_struct, at least 0.
      min_multiplier: m_min, below 1. Without effect on the gate: Eq. 15 cuts everything below 1.
      max_multiplier: m_max, above 1.

    Returns:
      [batch, time], from min_multiplier to max_multiplier; 1 where masked.
    """
    gate, mask = _masked("rhythm_multiplier", gate, response_mask)
    multiplier = 1.0 + structure_scale * gate
    relative = multiplier / jnp.where(mask, _mean(multiplier, mask), 1.0)
    return jnp.where(mask, jnp.clip(relative, min_multiplier, max_multiplier), 1.0)


def rhythm_gate(
    student_entropy: ArrayLike,
    teacher_entropy: ArrayLike,
    response_mask: ArrayLike,
    *,
    window: int = 8,
    gate_sharpness: float = 1.0,
    structure_scale: float = 1.0,
    min_multiplier: float = 0.5,
    max_multiplier: float = 2.0,
) -> jax.Array:
    """The rhythm gate: open at the anchors of a response only (DRIFT Eq. 15, from Eqs. 11-14).

    clip((multiplier - 1) / (max_multiplier - 1), 0, 1)

    Args:
      student_entropy: H_S per token, in nats. [batch, time].
      teacher_entropy: H_T per token, in nats. [batch, time].
      response_mask: true at the tokens of the response. [batch, time].
      window: W of Eq. 11, in tokens.
      gate_sharpness: alpha_anc of Eq. 13.
      structure_scale: lambda_struct of Eq. 14.
      min_multiplier: m_min of Eq. 14.
      max_multiplier: m_max of Eq. 14, above 1.

    Returns:
      [batch, time], from 0 to 1; exactly 0 where masked, at every token that stands out less than
      the mean of its response, and everywhere in responses of less than two tokens.
    """
    if max_multiplier <= 1.0:
        raise ValueError(f"rhythm_gate got max_multiplier={max_multiplier}; give more than 1")
    score = anchor_score(student_entropy, teacher_entropy, response_mask, window=window)
    gate = anchor_gate(score, response_mask, gate_sharpness=gate_sharpness)
    multiplier = rhythm_multiplier(
        gate,
        response_mask,
        structure_scale=structure_scale,
        min_multiplier=min_multiplier,
        max_multiplier=max_multiplier,
    )
    return jnp.clip((multiplier - 1.0) / (max_multiplier - 1.0), 0.0, 1.0)


# ---- both together ------------------------------------------------------------------------------


def token_weights(gate: ArrayLike, bonus: ArrayLike, is_medium: ArrayLike) -> jax.Array:
    """The weight of each token in the policy-gradient term (DRIFT Eq. 16).

    1 + beta * gate * bonus

    Args:
      gate: the rhythm gate, Eq. 15. [batch, time].
      bonus: the rebellious bonus, Eq. 10; not looked at where the gate is 0. [batch, time].
      is_medium: beta, true for samples of medium problems; a number between 0 and 1 where bins are
        soft. [batch].

    Returns:
      [batch, time], from 1 to max_bonus; exactly 1 off medium problems and where the gate is 0.
    """
    gate, bonus = _without_gradient(gate), _without_gradient(bonus)
    is_medium = _without_gradient(is_medium)
    if is_medium.shape != gate.shape[:-1]:
        raise ValueError(
            f"token_weights got gate {list(gate.shape)} and is_medium {list(is_medium.shape)};"
            f" give one is_medium per sample, {list(gate.shape[:-1])}"
        )
    beta = is_medium[..., None]
    closed = (beta == 0) | (gate == 0.0)
    return 1.0 + jnp.where(closed, 0.0, beta * gate * bonus)


# ---- sums over the response ---------------------------------------------------------------------


def _without_gradient(x: ArrayLike) -> jax.Array:
    """A constant in float32 at least."""
    x = jnp.asarray(x)
    if x.dtype not in (jnp.float32, jnp.float64):
        x = x.astype(jnp.float32)
    return jax.lax.stop_gradient(x)


def _masked(function: str, x: ArrayLike, response_mask: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """`x` without gradient and with 0 in the padding, and the mask as bool."""
    x, mask = _without_gradient(x), jnp.asarray(response_mask, dtype=bool)
    if x.shape != mask.shape:
        raise ValueError(
            f"{function} got values {list(x.shape)} and response_mask {list(mask.shape)};"
            " give both as [batch, time]"
        )
    return jnp.where(mask, x, 0.0), mask


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the tokens of each response, 0 for an empty one. [batch, time] -> [batch, 1]."""
    tokens = jnp.sum(mask, axis=-1, keepdims=True).astype(x.dtype)
    return jnp.sum(jnp.where(mask, x, 0.0), axis=-1, keepdims=True) / jnp.maximum(tokens, 1.0)


def _sums_before_and_after(x: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Sums over [t - window, t - 1] and over [t, t + window - 1], 0 outside. [batch, time] each.

    Each window is summed on its own: differences of a cumulative sum would carry the rounding of
    thousands of tokens into the sum of a few.
    """
    time = x.shape[-1]
    ones = (1,) * (x.ndim - 1)
    padding = ((0, 0),) * (x.ndim - 1) + ((window, window - 1),)
    zero = jnp.zeros((), x.dtype)
    sums = jax.lax.reduce_window(  # entry i is the sum over [i - window, i - 1]
        x, zero, jax.lax.add, (*ones, window), (*ones, 1), padding
    )
    return sums[..., :time], sums[..., window:]
