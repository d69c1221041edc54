"""The direction of a step, and how long it is at each training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drift_jax import optimizer
from tests import reference_methods

SETTINGS = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}


def rates(count=10, **settings) -> list[float]:
    """Rates of steps 1, 2, ..."""
    return [
        float(optimizer.learning_rate(jnp.int32(step), peak=2.0, **settings))
        for step in range(1, count + 1)
    ]


def test_the_first_step_uses_peak_over_warmup_and_the_rate_is_constant_afterwards():
    np.testing.assert_allclose(rates(6, warmup_steps=4), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_the_first_step_may_be_zero_as_in_the_reference():
    found = rates(6, warmup_steps=4, zero_first_step=True)
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0])


def test_without_warmup_every_step_uses_the_peak():
    assert rates(3, warmup_steps=0) == [2.0, 2.0, 2.0]


def test_the_cosine_goes_from_the_peak_to_its_final_fraction_and_stays_there():
    found = rates(10, warmup_steps=2, total_steps=8, final_fraction=0.1)
    np.testing.assert_allclose(found[:2], [1.0, 2.0])
    # Half way, at step 5, half of the way down: 2 (0.1 + 0.9 / 2).
    np.testing.assert_allclose(found[4], 1.1, rtol=1e-6)
    np.testing.assert_allclose(found[7:], [0.2, 0.2, 0.2], rtol=1e-6)
    assert (np.diff(found[1:8]) < 0).all()


def test_a_cosine_that_ends_within_the_warmup_is_no_cosine():
    assert rates(4, warmup_steps=4, total_steps=4, final_fraction=0.0) == [0.5, 1.0, 1.5, 2.0]


def test_the_rate_is_traced_with_the_step():
    rate = jax.jit(lambda step: optimizer.learning_rate(step, peak=1.0, warmup_steps=2))
    assert [float(rate(step)) for step in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert rate._cache_size() == 1


def literal_adamw(gradients, params, *, b1, b2, eps, weight_decay, clip_norm):
    """Directions of AdamW behind a clip of the norm over all arrays, step by step."""
    first = [np.zeros_like(p) for p in params]
    second = [np.zeros_like(p) for p in params]
    directions = []
    for step, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        gradient = [g / max(norm / clip_norm, 1.0) for g in gradient]
        first = [b1 * m + (1 - b1) * g for m, g in zip(first, gradient, strict=True)]
        second = [b2 * v + (1 - b2) * g**2 for v, g in zip(second, gradient, strict=True)]
        directions.append(
            [
                m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps) + weight_decay * p
                for m, v, p in zip(first, second, params, strict=True)
            ]
        )
    return directions


@pytest.mark.parametrize("scale", [0.01, 10.0])  # below and above the clip
def test_the_direction_is_adamw_behind_a_clip_of_the_global_norm(scale):
    rng = np.random.default_rng(0)
    params = [rng.normal(size=(3, 2)), rng.normal(size=4)]
    gradients = [[scale * rng.normal(size=p.shape) for p in params] for _ in range(4)]
    gradients[2] = [10 * g for g in gradients[2]]
    expected = literal_adamw(gradients, params, **SETTINGS)
    transform = optimizer.direction(**SETTINGS)
    with jax.enable_x64(True):
        state = transform.init(jax.tree.map(jnp.asarray, params))
        for gradient, literal in zip(gradients, expected, strict=True):
            found, state = transform.update(jax.tree.map(jnp.asarray, gradient), state, params)
            for ours, theirs in zip(found, literal, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_no_gradient_leaves_only_the_decay_and_no_nan():
    params = {"w": jnp.array([1.0, -2.0])}
    transform = optimizer.direction(**SETTINGS)
    found, _ = transform.update({"w": jnp.zeros(2)}, transform.init(params), params)
    np.testing.assert_allclose(found["w"], [0.1, -0.2], rtol=1e-6)


def test_the_direction_has_no_learning_rate_in_it():
    # Adam's first direction is the sign of the gradient, so its size is 1 in every coordinate.
    params = {"w": jnp.array([3.0, 4.0])}
    transform = optimizer.direction(**SETTINGS | {"weight_decay": 0.0})
    found, _ = transform.update({"w": jnp.array([1e-3, -20.0])}, transform.init(params), params)
    np.testing.assert_allclose(found["w"], [1.0, -1.0], rtol=1e-3)


# ---- the scale of the update (PGPO) --------------------------------------------------------------


def walk(scale_of_gradient=1.0, information=0.3, rate=0.1, **settings):
    """Parameters after three steps of `direction`, from gradients that differ."""
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=4), jnp.float32)}
    transform = optimizer.direction(**SETTINGS | {"clip_norm": 1e9} | settings)
    transform = optax.with_extra_args_support(transform)
    state = transform.init(params)
    for _ in range(3):
        gradient = {"w": scale_of_gradient * jnp.asarray(rng.normal(size=4), jnp.float32)}
        moves, state = transform.update(gradient, state, params, information=information)
        params = jax.tree.map(lambda p, move: p - rate * move, params, moves)
    return np.asarray(params["w"]), state


def test_information_scale_0_leaves_every_bit_of_the_optimizer():
    plain, _ = walk()
    np.testing.assert_array_equal(walk(information_scale=0.0, information=jnp.nan)[0], plain)
    # The transformation itself too, should someone put it in a chain of their own.
    moves = {"w": jnp.asarray(np.random.default_rng(0).normal(size=9), jnp.float32)}
    identity = optimizer.scale_by_information(information_scale=0.0)
    found, _ = identity.update(moves, identity.init(moves), information=jnp.float32(0.7))
    np.testing.assert_array_equal(found["w"], moves["w"])


def test_a_constant_scale_is_adam_with_a_longer_rate_and_no_scale_of_the_loss_is():
    kappa = np.exp(0.5 * 0.3)
    scaled, state = walk(information_scale=0.5, weight_decay=0.0)
    np.testing.assert_allclose(scaled, walk(rate=0.1 * kappa, weight_decay=0.0)[0], rtol=1e-6)
    louder, _ = walk(scale_of_gradient=kappa, weight_decay=0.0)
    assert np.abs(scaled - louder).max() > 0.01
    np.testing.assert_allclose(louder, walk(weight_decay=0.0)[0], rtol=1e-5)  # Adam ignores it
    np.testing.assert_allclose(optax.tree.get(state, "update_scale"), kappa, rtol=1e-6)


def test_the_decay_is_not_scaled_and_the_moments_do_not_know_of_the_scale():
    params = {"w": jnp.array([2.0, -3.0])}
    transform = optimizer.direction(**SETTINGS, information_scale=1.0)
    found, _ = transform.update(
        {"w": jnp.zeros(2)}, transform.init(params), params, information=jnp.float32(0.5)
    )
    np.testing.assert_allclose(found["w"], [0.2, -0.3], rtol=1e-6)
    scaled, plain = walk(information_scale=1.0)[1], walk()[1]
    for moment in ("mu", "nu"):
        np.testing.assert_array_equal(
            optax.tree.get(scaled, moment)["w"], optax.tree.get(plain, moment)["w"]
        )


@pytest.mark.parametrize(
    "information, limits, factor",
    [
        (0.25, {}, np.exp(0.5)),
        (3.0, {}, 2.0),
        (-0.25, {}, np.exp(-0.5)),
        (-0.25, {"information_floor": 1.0}, 1.0),
        (9.0, {"information_max": 1.5}, 1.5),
    ],
)
def test_the_scale_lies_between_its_floor_and_its_maximum(information, limits, factor):
    scale = optimizer.scale_by_information(information_scale=2.0, **limits)
    moves = {"w": jnp.array([1.0, -2.0])}
    found, state = scale.update(moves, scale.init(moves), information=jnp.float32(information))
    np.testing.assert_allclose(found["w"], factor * np.array([1.0, -2.0]), rtol=1e-6)
    expected = reference_methods.update_scale(
        information, 2.0, limits.get("information_max", 2.0), limits.get("information_floor", 0.0)
    )
    np.testing.assert_allclose(state.update_scale, expected, rtol=1e-6)
