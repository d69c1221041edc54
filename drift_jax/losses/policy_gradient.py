"""The policy-gradient term: group advantages and the clipped surrogate (DRIFT Eq. 1)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# exp of +-20 is far outside every clipping range and far inside float32.
LARGEST_LOG_RATIO = 20.0
SMALLEST_STD = 1e-6


def group_advantages(
    rewards: np.ndarray | jax.Array,
    *,
    scale_by_std: bool = False,
    counted: np.ndarray | jax.Array | None = None,
) -> np.ndarray | jax.Array:
    """How much better each rollout did than its group (A of DRIFT Eq. 1).

    The paper says "normalized within the group"; we subtract the mean, and divide by the standard
    deviation only on request, since that inflates groups whose rewards hardly differ. All rollouts
    count, successes and failures.

    Args:
      rewards: one row per problem, one column per rollout. [problem, group], or [..., group].
      scale_by_std: divide by the group's sample standard deviation (Bessel's correction) + 1e-6.
      counted: the rollouts over which mean and deviation are taken; the others get 0. bool of the
        same shape; None counts all.

    Returns:
      Advantages of the same shape; a numpy array unless `rewards` is a jax array. Exactly 0 where
      all counted rewards of a group agree, also where only one is counted. A group of size one has
      nothing to compare with and keeps its reward.
    """
    xp: Any = jnp if isinstance(rewards, jax.Array) else np
    values = xp.array(rewards)
    if not xp.issubdtype(values.dtype, xp.floating):
        values = values.astype(float)
    if values.ndim == 0:
        raise ValueError("group_advantages got a single number; give rewards as [problem, group]")
    if values.shape[-1] == 1:
        return values
    if counted is not None:
        return _counted_advantages(xp, values, xp.asarray(counted, bool), scale_by_std)
    # Relative to the first rollout, so that equal rewards give exactly 0 whatever their value.
    values = values - values[..., :1]
    advantages = values - values.mean(axis=-1, keepdims=True)
    if scale_by_std:
        advantages = advantages / (values.std(axis=-1, ddof=1, keepdims=True) + SMALLEST_STD)
    return advantages


def _counted_advantages(xp: Any, values: Any, counted: Any, scale_by_std: bool) -> Any:
    """`group_advantages` over the counted rollouts alone."""
    first = xp.take_along_axis(values, counted.argmax(axis=-1)[..., None], axis=-1)
    values = xp.where(counted, values - first, 0)
    number = counted.sum(axis=-1, keepdims=True)
    mean = values.sum(axis=-1, keepdims=True) / xp.maximum(number, 1)
    advantages = xp.where(counted, values - mean, 0)
    if scale_by_std:
        squares = (advantages**2).sum(axis=-1, keepdims=True)
        advantages = advantages / (xp.sqrt(squares / xp.maximum(number - 1, 1)) + SMALLEST_STD)
    return advantages.astype(values.dtype)


def importance_ratio(log_probs: ArrayLike, old_log_probs: ArrayLike) -> jax.Array:
    """rho = pi / pi_old of the sampled tokens (DRIFT Eq. 1), exactly 1 where the two agree.

    Args:
      log_probs: log pi of the policy in training, in nats. [batch, time].
      old_log_probs: that of the policy that sampled, in nats, without gradient. [batch, time].

    Returns:
      [batch, time], from exp(-20) to exp(20): beyond that the ratio is held and has no gradient.
    """
    difference = jnp.asarray(log_probs) - jax.lax.stop_gradient(jnp.asarray(old_log_probs))
    return jnp.exp(jnp.clip(difference, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def truncated_ratio(log_probs: ArrayLike, old_log_probs: ArrayLike, *, cap: float) -> jax.Array:
    """min(pi / pi_old, cap) of the sampled tokens, a weight without gradient.

    It multiplies a token's divergence when the policy has moved since it sampled (SDPO, arXiv
    2601.20802), and any term when trainer and sampler differ (truncated importance sampling).

    Args:
      log_probs: log pi of the policy that is wanted, in nats. [batch, time].
      old_log_probs: that of the policy that sampled, in nats. [batch, time].
      cap: largest weight, at least 1, so that equal policies have weight 1.

    Returns:
      [batch, time], exactly 1 where the two agree.
    """
    return jax.lax.stop_gradient(jnp.minimum(importance_ratio(log_probs, old_log_probs), cap))


def clipped_surrogate(
    ratio: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> jax.Array:
    """The clipped surrogate per token, to be maximised (DRIFT Eq. 1).

    min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    Args:
      ratio: rho of each token. [batch, time].
      advantages: A, one per sample or per token, without gradient. [batch, 1] or [batch, time].
      clip_low: how far below 1 the ratio may still matter.
      clip_high: how far above 1. The paper has one epsilon for both.
      dual_clip: a number above 1; where A < 0 the surrogate is at least dual_clip * A, which bounds
        the push on a token that has become much likelier. None is the paper's form.

    Returns:
      [batch, time]. At a ratio of exactly 1 the derivative by the ratio is exactly A.
    """
    ratio = jnp.asarray(ratio)
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages))
    if advantages.ndim not in (0, ratio.ndim):
        raise ValueError(
            f"clipped_surrogate got ratio {list(ratio.shape)} and advantages"
            f" {list(advantages.shape)}; give advantages as [batch, 1] or [batch, time]"
        )
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"clipped_surrogate got dual_clip={dual_clip}; give more than 1, or None")
    unclipped = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    # A comparison instead of jnp.minimum, which would halve the gradient between two equals: inside
    # the range the two are equal and the gradient is that of rho A.
    surrogate = jnp.where(clipped < unclipped, clipped, unclipped)
    if dual_clip is not None:
        surrogate = jnp.where(
            advantages < 0, jnp.maximum(surrogate, dual_clip * advantages), surrogate
        )
    return surrogate
