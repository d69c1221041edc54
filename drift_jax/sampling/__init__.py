"""Rollouts from the training weights: prefill once a prompt, then jitted decoding segments."""

from drift_jax.sampling.randomness import random_streams
from drift_jax.sampling.sampler import Sampler

__all__ = ["Sampler", "random_streams"]
