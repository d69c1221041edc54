"""The two-branch objective, in stage 1 and in stage 2 (DRIFT Eqs. 2 and 4-6).

    L = sum_i sum_t  u_i / N_i^policy  * M_it * (-surrogate_it)
                   + v_i / N_i^distill * (w_it * divergence_it + credit_it)

u and v say which branch a sample takes and how strongly: the indicators and gamma of Eq. 4. The
warm-up is the same function with u = 0 and v = 1 for every sample that has a teacher. Rows are
samples, [batch]; tokens are [batch, time]; `response_mask` is true at the tokens of the responses.

The value form here, `mixed_objective`, is what logs and tests read. Training needs only its
gradient, which a chunked vocabulary head forms from coefficients of log pi and of the divergence:
`token_coefficients` and `clipped_policy_weight` give them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from drift_jax.losses.policy_gradient import clipped_surrogate, importance_ratio


class Objective(NamedTuple):
    """The loss and its two terms; total = distill + policy. Scalars."""

    total: jax.Array
    distill: jax.Array
    policy: jax.Array


def token_normaliser(
    response_mask: ArrayLike,
    included_rows: ArrayLike,
    *,
    aggregation: str = "sequence_mean",
    batch_size: int | jax.Array,
) -> jax.Array:
    """1 / N_i: how sums over tokens are weighed (the sums of DRIFT Eqs. 5-6, the mean of Eq. 4).

    "sequence_mean" is 1 / (batch_size * |y_i|), so long answers do not dominate; "token_mean" is
    1 / (all tokens of the included rows); "token_sum" is 1 / batch_size, the sums as printed.
    Computed over the whole batch, before it is split into micro-batches.

    Args:
      response_mask: true at the tokens of the responses. [batch, time].
      included_rows: rows that this term of the loss counts, for example those with a teacher.
        [batch], bool.
      aggregation: one of the three names above.
      batch_size: number of samples, those without any loss included.

    Returns:
      [batch, 1]; 0 for rows that are not included or have no token.
    """
    if aggregation not in _DIVISORS:
        raise ValueError(
            f"token_normaliser got aggregation={aggregation!r}; give one of {', '.join(_DIVISORS)}"
        )
    mask = jnp.asarray(response_mask, dtype=bool)
    included = jnp.asarray(included_rows, dtype=bool)
    if included.shape != mask.shape[:-1]:
        raise ValueError(
            f"token_normaliser got response_mask {list(mask.shape)} and included_rows"
            f" {list(included.shape)}; give one flag per row, {list(mask.shape[:-1])}"
        )
    counted = mask & included[..., None]
    tokens = jnp.sum(counted, axis=-1, keepdims=True).astype(jnp.result_type(float))
    samples = jnp.asarray(batch_size, dtype=tokens.dtype)
    divisor = _DIVISORS[aggregation](tokens, samples)
    return jnp.where(tokens > 0, 1.0 / jnp.where(tokens > 0, divisor, 1.0), 0.0)


# The configuration's `aggregation`: N_i from the tokens of each included row and the samples.
_DIVISORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sequence_mean": lambda tokens, samples: samples * tokens,
    "token_mean": lambda tokens, samples: jnp.sum(tokens),
    "token_sum": lambda tokens, samples: samples,
}
# What counts as the number of samples; all rows of the batch where nothing stands here.
_SAMPLES: dict[str, Callable[[jax.Array], jax.Array]] = {"sequence_mean": jnp.sum}


def batch_normaliser(
    response_mask: ArrayLike, counted_rows: ArrayLike, *, aggregation: str = "sequence_mean"
) -> jax.Array:
    """`token_normaliser` of a whole batch, from the rows that a term counts.

    "sequence_mean" divides by (number of counted rows) * |y_i|, "token_mean" by their tokens, and
    "token_sum" by all rows of the batch. A row that is not counted has no part in the term.

    Args:
      response_mask: true at the tokens of the responses. [batch, time].
      counted_rows: rows that the term counts. [batch], bool.
      aggregation: one of the three names.

    Returns:
      [batch, 1].
    """
    counted = jnp.asarray(counted_rows, dtype=bool)
    samples = _SAMPLES.get(aggregation, jnp.size)(counted)
    return token_normaliser(
        response_mask, counted, aggregation=aggregation, batch_size=jnp.asarray(samples)
    )


def token_coefficients(
    row_weight: ArrayLike,
    normaliser: ArrayLike,
    token_weights: ArrayLike,
    response_mask: ArrayLike,
) -> jax.Array:
    """What multiplies a token's term: u_i / N_i * M_it, or v_i / N_i * w_it (DRIFT Eqs. 4-6).

    Args:
      row_weight: u or v. [batch].
      normaliser: 1 / N_i. [batch, 1].
      token_weights: M or w, [batch, time], or 1.0 for none.
      response_mask: true at the tokens of the responses. [batch, time].

    Returns:
      [batch, time], without gradient; exactly 0 where masked and in rows of weight 0.
    """
    mask = jnp.asarray(response_mask, dtype=bool)
    row_weight = jnp.asarray(row_weight)[..., None]
    coefficients = row_weight * jnp.asarray(normaliser) * jnp.asarray(token_weights)
    return jax.lax.stop_gradient(jnp.where(mask & (row_weight != 0), coefficients, 0.0))


def clipped_policy_weight(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    weights: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> jax.Array:
    """The coefficient of log pi in the policy-gradient term (the gradient of DRIFT Eqs. 1 and 6).

    d/d log pi of weights * clipped_surrogate(rho, A), taken at the present log pi and then held
    fixed: the sum of coefficient * log pi has the gradient of the surrogate. With log pi equal to
    the sampler's, the coefficient is exactly weights * A.

    Args:
      log_probs: log pi of the sampled tokens, in nats. [batch, time].
      old_log_probs: those of the policy that sampled, in nats. [batch, time].
      advantages: A. [batch, 1] or [batch, time].
      weights: `token_coefficients` of the policy term. [batch, time].
      clip_low: see `clipped_surrogate`, as the two others.

    Returns:
      [batch, time], without gradient; exactly 0 where the weight is 0, whatever stands there.
    """
    weights = jnp.asarray(weights)
    counted = weights != 0
    log_probs = jnp.where(counted, jnp.asarray(log_probs), 0.0)
    old_log_probs = jnp.where(counted, jnp.asarray(old_log_probs), 0.0)

    def weighted_surrogate(log_probs: jax.Array) -> jax.Array:
        ratio = importance_ratio(log_probs, old_log_probs)
        surrogate = clipped_surrogate(
            ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
        )
        return jnp.sum(weights * surrogate)

    return jax.lax.stop_gradient(jax.grad(weighted_surrogate)(log_probs))


def mixed_objective(
    surrogate: ArrayLike,
    divergence: ArrayLike,
    response_mask: ArrayLike,
    *,
    policy_weight: ArrayLike,
    distill_weight: ArrayLike,
    policy_normaliser: ArrayLike,
    distill_normaliser: ArrayLike,
    token_weights: ArrayLike = 1.0,
    distill_token_weights: ArrayLike = 1.0,
    credit: ArrayLike = 0.0,
) -> Objective:
    """The objective of the mixed stage (DRIFT Eq. 4); the warm-up has other weights (Eq. 2).

    Args:
      surrogate: `clipped_surrogate` of each token. [batch, time].
      divergence: student to teacher at each token, in nats. [batch, time].
      response_mask: true at the tokens of the responses. [batch, time].
      policy_weight: u = gamma_i * 1[correct] in the mixed stage, 0 in the warm-up. [batch].
      distill_weight: v = 1[incorrect, with a teacher] in the mixed stage, 1[with a teacher] in the
        warm-up. [batch].
      policy_normaliser: `token_normaliser` of the policy term. [batch, 1].
      distill_normaliser: `token_normaliser` of the distillation term. [batch, 1].
      token_weights: M of Eq. 16. [batch, time], or 1.0.
      distill_token_weights: w, token weights of the divergence; DRIFT has none. [batch, time].
      credit: a score-function term that joins the divergence, in nats; DRIFT has none.
        [batch, time].

    Returns:
      Objective(total, distill, policy), to be minimised. Gradients flow through `surrogate`,
      `divergence` and `credit` only, and not where masked.
    """
    policy = token_coefficients(policy_weight, policy_normaliser, token_weights, response_mask)
    distill = token_coefficients(
        distill_weight, distill_normaliser, distill_token_weights, response_mask
    )
    joined = token_coefficients(distill_weight, distill_normaliser, 1.0, response_mask)
    policy_loss = -_weighted_sum(policy, surrogate)
    distill_loss = _weighted_sum(distill, divergence) + _weighted_sum(joined, credit)
    return Objective(distill_loss + policy_loss, distill_loss, policy_loss)


def _weighted_sum(coefficients: jax.Array, values: ArrayLike) -> jax.Array:
    """Sum of coefficient * value where the coefficient is not 0: 0 * nan in the padding is 0."""
    return jnp.sum(jnp.where(coefficients != 0, coefficients * jnp.asarray(values), 0.0))
