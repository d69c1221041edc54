"""Tests: the folders mirror `drift_jax/`; `reference.py` holds every equation as plain loops."""
