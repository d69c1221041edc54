"""Drawing one token: truncation against a sort, inversion against the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.sampling.choose import choose, invert, truncate


def by_sorting(probs: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """Top-k, then the shortest prefix of the sorted rest that reaches top_p of it."""
    kept = np.zeros_like(probs)
    for row, values in enumerate(probs):
        order = np.argsort(-values, kind="stable")[: top_k or None]
        reached = np.cumsum(values[order]) >= top_p * values[order].sum()
        chosen = order[: np.argmax(reached) + 1]
        kept[row, chosen] = values[chosen]
    return kept


@pytest.mark.parametrize(
    "top_p, top_k", [(0.95, 0), (0.5, 0), (1.0, 5), (0.8, 20), (1e-6, 0), (1, 1)]
)
def test_truncation_by_bisection_equals_truncation_by_sorting(top_p, top_k):
    logits = np.random.default_rng(0).normal(size=(9, 300)) * 3
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    kept = truncate(jnp.asarray(probs), jnp.float32(top_p), jnp.int32(top_k))
    np.testing.assert_array_equal(kept, by_sorting(probs, top_p, top_k))


def test_entries_that_tie_with_the_threshold_stay():
    probs = jnp.full((1, 4), 0.25)
    assert (truncate(probs, jnp.float32(0.3), jnp.int32(0)) > 0).all()


def test_draws_follow_the_distribution():
    draws, vocab = 40_000, 200
    logits = np.random.default_rng(1).normal(size=vocab) * 1.5
    probs = np.exp(logits) / np.exp(logits).sum()
    uniforms = jax.random.uniform(jax.random.key(0), (draws, 2))
    tokens = invert(jnp.broadcast_to(jnp.asarray(probs, jnp.float32), (draws, vocab)), uniforms)
    counts = np.bincount(np.asarray(tokens), minlength=vocab)
    chi_square = ((counts - draws * probs) ** 2 / (draws * probs)).sum()
    # 199 degrees of freedom: mean 199, standard deviation 20.
    assert 100 < chi_square < 300


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_entries_of_weight_zero_are_never_drawn_at_the_ends(uniform):
    weights = jnp.array([[0.0, 0.0, 0.3, 0.7, 0.0] + [0.0] * 100])
    token = int(invert(weights, jnp.full((1, 2), uniform))[0])
    assert token == (2 if uniform == 0 else 3)


def test_log_prob_and_entropy_are_of_the_full_distribution_at_temperature_one():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(5, 50)), jnp.float32)
    uniforms = jax.random.uniform(jax.random.key(1), (5, 2))
    drawn = choose(
        logits,
        uniforms,
        temperature=jnp.float32(0.3),
        top_p=jnp.float32(0.5),
        top_k=jnp.int32(7),
    )
    log_probs = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(drawn.log_prob, log_probs[jnp.arange(5), drawn.token], rtol=1e-6)
    np.testing.assert_allclose(drawn.entropy, -(jnp.exp(log_probs) * log_probs).sum(-1), rtol=1e-5)


def test_temperature_zero_is_greedy():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(5, 50)), jnp.float32)
    one, none = jnp.float32(1), jnp.int32(0)
    drawn = choose(
        logits, jnp.full((5, 2), 0.99), temperature=jnp.float32(0), top_p=one, top_k=none
    )
    np.testing.assert_array_equal(drawn.token, logits.argmax(-1))
