"""DRIFT in pure JAX: a language model that teaches itself from its own successful rollouts.

Importing the package loads nothing else, so `import drift_jax` costs no JAX start-up; import the
module that you need, for example `from drift_jax.losses import rhythm`.
"""

__version__ = "0.1.0"
