"""Drawing one token: truncation against a sort, inversion against the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.sampling.choose import BLOCK, choose, invert, truncate


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


def by_threshold(probs: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """The same where entries tie: all that equal the last one kept by a sort stay."""
    for kept_by in ("count", "mass"):
        for row, values in enumerate(probs):
            order = np.sort(values)[::-1]
            if kept_by == "count":
                least = order[min(top_k, len(order)) - 1] if top_k else 0
            else:
                reached = np.cumsum(order) >= top_p * values.sum()
                least = order[np.argmax(reached)] if top_p < 1 else 0
            probs[row] = np.where(values >= least, values, 0)
    return probs


@pytest.mark.parametrize("top_p, top_k", [(0.9, 0), (0.5, 0), (1.0, 3), (0.75, 10), (1.0, 1)])
def test_truncation_keeps_all_entries_that_tie_at_its_edge(top_p, top_k):
    # Sums of sixty-fourths are exact in any order: no rounding decides whether a mass is reached.
    counts = np.random.default_rng(4).multinomial(64, np.full(40, 1 / 40), size=12)
    probs = (counts / 64).astype(np.float32)
    kept = truncate(jnp.asarray(probs), jnp.float32(top_p), jnp.int32(top_k))
    np.testing.assert_array_equal(kept, by_threshold(probs.copy(), top_p, top_k))


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_pair_of_uniforms_gives_each_token_its_share(temperature):
    # All pairs of 256 by 256 midpoints instead of random ones: a block and an entry in it may each
    # be off by one midpoint at either end.
    points, vocab = 256, 150
    logits = np.random.default_rng(5).normal(size=vocab) * 2
    probs = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    middles = (np.arange(points) + 0.5) / points
    uniforms = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    drawn = choose(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(uniforms), vocab)),
        jnp.asarray(uniforms, jnp.float32),
        temperature=jnp.float32(temperature),
        top_p=jnp.float32(1),
        top_k=jnp.int32(0),
    )
    share = np.bincount(np.asarray(drawn.token), minlength=vocab) / len(uniforms)
    assert np.abs(share - probs).max() <= 2 / points
    blocks = np.add.reduceat(probs, [0, BLOCK, 2 * BLOCK])
    assert np.abs(np.add.reduceat(share, [0, BLOCK, 2 * BLOCK]) - blocks).max() <= 1 / points


def test_equal_largest_logits_give_the_first_of_them_when_greedy():
    logits = jnp.zeros((1, 200)).at[0, jnp.array([70, 71, 150])].set(3.0)
    drawn = choose(
        logits,
        jnp.full((1, 2), 0.5),
        temperature=jnp.float32(0),
        top_p=jnp.float32(1),
        top_k=jnp.int32(0),
    )
    assert drawn.token[0] == 70


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
