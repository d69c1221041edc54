"""Tests of `drift_jax.data`."""
