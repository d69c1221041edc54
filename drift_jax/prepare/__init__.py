"""Getting what a run needs onto this machine: benchmark files, and a checkpoint to start from.

`python -m drift_jax.prepare` is the command. Only this package talks to a model hub, and only when
no local source is named.
"""
