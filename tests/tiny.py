"""A model small enough for exact comparisons, shared by the tests."""

import jax
import numpy as np

from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig

CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
)


def params(config: ModelConfig = CONFIG, seed: int = 0):
    """Random parameters with the norms off 1, so that a forgotten scale shows."""
    drawn = transformer.init(config, jax.random.key(seed))
    key = jax.random.key(seed + 1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype), drawn
    )


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[np.ndarray]:
    """Prompts of different lengths, token ids from 5 up."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(5, CONFIG.vocab_size, size=rng.integers(3, longest + 1)).astype(np.int32)
        for _ in range(count)
    ]
