"""From config values to an optax chain that gives the direction of a step, and the size of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class InformationState(NamedTuple):
    """What `scale_by_information` remembers: the factor of the last update, for the metrics."""

    update_scale: jax.Array  # scalar float32


def direction(
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    information_scale: float = 0.0,
    information_max: float = 2.0,
    information_floor: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm, without the learning rate.

    The rate is applied by the caller, so that it can follow the training step (not the number of
    optimizer steps). With `information_scale` above 0 the update takes one more argument,
    `information`, and Adam's direction is scaled by it, the decay is not.
    """
    scaling = []
    if information_scale > 0:
        scaling.append(
            scale_by_information(
                information_scale=information_scale,
                information_max=information_max,
                information_floor=information_floor,
            )
        )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        *scaling,
        optax.add_decayed_weights(weight_decay),
    )


def scale_by_information(
    *, information_scale: float, information_max: float = 2.0, information_floor: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Longer steps where the teacher's context tells more (PGPO, arXiv 2606.03620).

    Multiplies the finished update by max(min(exp(information_scale * I), information_max),
    information_floor). It stands after Adam, whose moments stay untouched: Adam all but ignores a
    factor of its gradient.

    Args:
      information_scale: alpha, per nat; 0 leaves every update as it is, to the last bit.
      information_max: rho_max, the largest factor. The paper does not say which.
      information_floor: the smallest factor; 0 is the paper's formula, 1 is what its text claims.

    Returns:
      A transformation whose `update` takes `information`, a scalar: the mean over tokens of the
      student's entropy less the teacher's, in nats.
    """

    def init(params: Any) -> InformationState:
        return InformationState(jnp.float32(1.0))

    def update(
        updates: Any, state: InformationState, params: Any = None, *, information: Any
    ) -> tuple[Any, InformationState]:
        factor = jnp.minimum(jnp.exp(information_scale * information), information_max)
        factor = jnp.maximum(factor, information_floor)
        scaled = jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)
        return scaled, InformationState(factor.astype(jnp.float32))

    return optax.GradientTransformationExtraArgs(init, update)


def learning_rate(
    step: jax.Array,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int = 0,
    final_fraction: float = 1.0,
    zero_first_step: bool = False,
) -> jax.Array:
    """Rate used at a training step: linear warm-up, then constant or a cosine to `final_fraction`.

    Args:
      step: number of the training step, from 1.
      peak: rate after the warm-up.
      warmup_steps: steps of the warm-up; the first uses peak/warmup_steps.
      total_steps: where the cosine ends; 0 keeps the rate constant.
      final_fraction: the cosine's last value over `peak`.
      zero_first_step: start at 0 instead, as the reference implementation does.
    """
    step = jnp.asarray(step, jnp.float32)
    passed = step - 1 if zero_first_step else step
    warm = jnp.clip(passed / max(warmup_steps, 1), 0, 1)
    if total_steps <= warmup_steps:
        return peak * warm
    progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return peak * warm * (final_fraction + (1 - final_fraction) * cosine)
