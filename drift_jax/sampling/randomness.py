"""Random numbers that belong to a token, not to a slot.

The uniforms of a token depend on (seed, step, problem id, rollout index, position) alone: not on
the batch around it, its order, the padding, or the number of devices. So a rollout can be
reproduced by itself, and re-ordering or compaction can be tested for equality.
"""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def random_streams(
    seed: int, step: int, problem_ids: Sequence[str], *, purpose: str = "train"
) -> np.ndarray:
    """One random stream a problem, for `Sampler.generate`. [problem, 2] uint32

    Args:
      seed: the run's seed.
      step: the training step; two steps draw different samples.
      problem_ids: persistent ids.
      purpose: keeps evaluation's draws apart from training's.
    """
    names = (f"{seed}/{step}/{purpose}/{problem}" for problem in problem_ids)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 2)


def row_keys(streams: jax.Array, group_size: int) -> jax.Array:
    """Key data of every rollout, problem-major. [problem, 2] -> [problem * group_size, 2] uint32"""
    rollouts = jnp.tile(jnp.arange(group_size), len(streams))
    return rollout_keys(jnp.repeat(streams, group_size, axis=0), rollouts)


def rollout_keys(streams: jax.Array, rollout: jax.Array) -> jax.Array:
    """Key data of some rollouts. Problem's streams [rows, 2], index [rows] -> [rows, 2] uint32"""

    def one(stream: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(stream), index))

    return jax.vmap(one)(streams, rollout)


def token_uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Two uniforms in [0, 1) for each row's token at a position of its response.

    Args:
      keys: [rows, 2] uint32
      positions: one for all rows, or one a row. [] or [rows] int32

    Returns:
      [rows, 2].
    """

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), position), (2,))

    return jax.vmap(one)(keys, jnp.broadcast_to(positions, keys.shape[:1]))
