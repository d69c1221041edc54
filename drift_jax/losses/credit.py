"""Future credit: a token answers for the disagreement that it leads into (DistIL).

A rollout's later states depend on its earlier tokens, so the gradient of a sum of per-token
divergences has a second part besides that of each divergence: grad log pi(y_t) times what comes
after t. Shapes are [batch, time]; nothing here carries a gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def future_credit(
    divergence: ArrayLike, response_mask: ArrayLike, *, mean: bool = True
) -> jax.Array:
    """C_t, how far the student will be from its teacher after token t (DistIL, arXiv 2606.05152).

    The mean of the divergence over the later tokens of the response, or its sum. The sum makes the
    gradient exact; the mean is the method's own choice, and keeps long responses stable.

    Args:
      divergence: student to teacher at each token, in nats. [batch, time].
      response_mask: true at the tokens of the response. [batch, time].
      mean: divide by the number of later tokens.

    Returns:
      Nats, [batch, time]; 0 at the last token of a response, which leads nowhere (the paper's
      fraction is 0/0 there), and where masked.
    """
    divergence, mask = jnp.asarray(divergence), jnp.asarray(response_mask, dtype=bool)
    if divergence.shape != mask.shape:
        raise ValueError(
            f"future_credit got divergence {list(divergence.shape)} and response_mask"
            f" {list(mask.shape)}; give both as [batch, time]"
        )
    later = _sum_after(jnp.where(mask, divergence, 0.0))
    if mean:
        later = later / jnp.maximum(_sum_after(mask.astype(divergence.dtype)), 1.0)
    return jax.lax.stop_gradient(jnp.where(mask, later, 0.0))


def _sum_after(x: jax.Array) -> jax.Array:
    """Sum over the positions after each one. The difference of two sums would round to no 0."""
    axis = x.ndim - 1
    sums = jax.lax.cumsum(x, axis=axis, reverse=True)
    return jnp.concatenate([sums[..., 1:], jnp.zeros_like(sums[..., :1])], axis=axis)
