"""Equality of samples, but for draws at a boundary: tokens may differ only there."""

import jax
import jax.numpy as jnp
import numpy as np

from drift_jax.models import forward
from drift_jax.sampling import random_streams
from drift_jax.sampling.choose import BLOCK
from drift_jax.sampling.randomness import row_keys, token_uniforms
from drift_jax.types import Rollouts
from tests import tiny

PARAMS = tiny.params()
FORWARD = jax.jit(forward, static_argnums=1)


def rerun(prompt, response):
    """Logits that predict a response, from one uncached pass over prompt and response."""
    tokens = np.concatenate([prompt, response])
    padded = np.zeros((1, 32), np.int32)  # one shape, one compilation
    padded[0, : len(tokens)] = tokens
    logits = FORWARD(PARAMS, tiny.CONFIG, padded, mask=np.arange(32)[None] < len(tokens))[0]
    return np.asarray(logits)[len(prompt) - 1 : len(tokens) - 1]


def distance_to_a_boundary(problem, rollout, tokens, step=1):
    """How far the draw of the last token was from giving another one, in units of the uniforms."""
    stream = random_streams(0, step, [problem["id"]])
    key = row_keys(jnp.asarray(stream), rollout + 1)[rollout:]
    uniforms = np.asarray(token_uniforms(key, jnp.int32(len(tokens) - 1)))[0]
    probs = np.asarray(jax.nn.softmax(rerun(problem["prompt"], tokens)[-1]), np.float64)
    blocks = np.pad(probs, (0, -len(probs) % BLOCK)).reshape(-1, BLOCK)
    between = np.cumsum(blocks.sum(axis=1))
    inside = np.cumsum(blocks[tokens[-1] // BLOCK])
    distances = (
        np.abs(between / between[-1] - uniforms[0]),
        np.abs(inside / inside[-1] - uniforms[1]),
    )
    return min(distance.min() for distance in distances)


def assert_same_but_at_boundaries(one, other, problems, group_size, step=1):
    """Equal tokens and log-probs; rows may part only where a draw lay within 1e-5 of a boundary."""
    for row in range(len(one.tokens)):
        length = min(one.lengths[row], other.lengths[row])
        same = one.tokens[row, :length] == other.tokens[row, :length]
        until = length if same.all() else int(np.argmin(same))
        np.testing.assert_allclose(
            one.log_probs[row, :until], other.log_probs[row, :until], atol=1e-5
        )
        if until < length:
            problem, rollout = problems[row // group_size], row % group_size
            tokens = one.tokens[row, : until + 1]
            assert distance_to_a_boundary(problem, rollout, tokens, step) < 1e-5
        else:
            assert one.lengths[row] == other.lengths[row]


def rows_of(rollouts, rows):
    """The rollouts of some rows."""
    fields = ("tokens", "mask", "log_probs", "entropies", "finished")
    return Rollouts(**{name: getattr(rollouts, name)[rows] for name in fields})
