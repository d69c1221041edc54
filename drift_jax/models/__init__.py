"""Decoder-only language models as plain functions over nested dicts of arrays."""

from drift_jax.models.hf_weights import load, save, stored_dtypes
from drift_jax.models.transformer import ModelConfig, forward

__all__ = ["ModelConfig", "forward", "load", "save", "stored_dtypes"]
