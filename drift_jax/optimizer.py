"""From config values to an optax chain that gives the direction of a step, and the size of it."""

import jax
import jax.numpy as jnp
import optax


def direction(
    *, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm, without the learning rate.

    The rate is applied by the caller, so that it can follow the training step (not the number of
    optimizer steps) and so that a method may scale the finished update.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay),
    )


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
