"""Rollouts from the training weights: a prompt is read once, then rows decode, move and refill."""

from drift_jax.sampling.randomness import random_streams
from drift_jax.sampling.sampler import Precompiled, Sampler

__all__ = ["Precompiled", "Sampler", "random_streams"]
