"""Token weights of other methods: what the teacher's view of a token says about its credit.

`evidence_weights` multiplies the policy-gradient term (RLSD and RLRT), as the rhythm gate's M does;
`entropy_weights` multiplies the divergence (SRPO). Shapes are [batch, time]; nothing here carries a
gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# exp of +-20 is far outside every clipping range and far inside float32.
LARGEST_LOG_RATIO = 20.0


def evidence_weights(
    favoured_log_probs: ArrayLike,
    other_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    scale: ArrayLike = 0.5,
    clip: float = 0.2,
) -> jax.Array:
    """How much of its sample's advantage a token deserves, by two views of that token.

    (1 - scale) + scale * clip(exp(sign(A) (l_favoured - l_other)), 1 - clip, 1 + clip)

    A token of a good sample weighs more where the favoured view finds it likelier, a token of a bad
    sample where it finds it less likely. RLSD (arXiv 2604.03128) favours the teacher; RLRT (arXiv
    2605.10781), which DRIFT's rebellious bonus comes from, favours the student.

    Args:
      favoured_log_probs: log-probability of the sampled token by the favoured view, in nats.
        [batch, time].
      other_log_probs: by the other view. [batch, time].
      advantages: A; only its sign is read. [batch, 1] or [batch, time].
      scale: lambda, from 0 (weights 1) to 1; a number or a traced scalar.
      clip: largest distance of the clipped ratio from 1.

    Returns:
      [batch, time], within scale * clip of 1; exactly 1 for scale 0 and for A = 0.
    """
    favoured, other = jnp.asarray(favoured_log_probs), jnp.asarray(other_log_probs)
    evidence = jnp.sign(jnp.asarray(advantages)) * (favoured - other)
    ratio = jnp.exp(jnp.clip(evidence, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    # As 1 + scale * (ratio - 1), which is 1 to the last bit where it should be.
    excess = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) - 1.0
    return jax.lax.stop_gradient(1.0 + scale * excess)


def entropy_weights(
    teacher_entropy: ArrayLike, counted: ArrayLike, *, entropy_beta: float = 1.0
) -> jax.Array:
    """Trust the teacher where it is sure: SRPO's entropy-aware weights (arXiv 2604.02288).

    exp(-entropy_beta H_T), divided by its mean over the counted tokens, so that the weights average
    to 1 and do not change when a constant is added to every entropy.

    Args:
      teacher_entropy: H_T per token, in nats. [batch, time], or any shape.
      counted: true at the tokens that are distilled: of the whole batch, not of a part of it. Same
        shape.
      entropy_beta: at least 0, per nat; 0 gives weights 1.

    Returns:
      The same shape, at least 0; 1 where not counted.
    """
    counted = jnp.asarray(counted, dtype=bool)
    exponent = jnp.where(counted, -entropy_beta * jnp.asarray(teacher_entropy), -jnp.inf)
    largest = jnp.max(exponent, initial=-jnp.inf)
    raw = jnp.where(counted, jnp.exp(exponent - jnp.where(counted, largest, 0.0)), 0.0)
    mean = jnp.sum(raw) / jnp.maximum(jnp.sum(counted), 1)
    weights = jnp.where(counted, raw / jnp.where(mean > 0, mean, 1.0), 1.0)
    return jax.lax.stop_gradient(weights)
