"""The shapes that the update of a run can have, without any array.

Lengths vary from batch to batch, and each is padded to a bucket: an update compiles once for every
combination of buckets that it meets.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from drift_jax import assemble, sharding
from drift_jax import config as configs
from drift_jax.batching import Batch


class Lengths(NamedTuple):
    """Padded lengths of an update's rows, in tokens."""

    prompt: int
    response: int
    teacher_prompt: int  # 0: no teacher is run

    @property
    def student(self) -> int:
        """Tokens of a student's row."""
        return self.prompt + self.response

    @property
    def teacher(self) -> int:
        """Tokens of a teacher's row; 0 where none is run."""
        return self.teacher_prompt + self.response if self.teacher_prompt else 0


def longest(config: Any) -> Lengths:
    """Those of the largest buckets."""
    return Lengths(
        config.rollout.prompt_buckets[-1],
        config.rollout.response_buckets[-1],
        config.teacher.prompt_buckets[-1] if configs.needs_teacher(config) else 0,
    )


def update_shapes(config: Any) -> int:
    """How many shapes an update can have: combinations of buckets, each compiled once."""
    buckets = [config.rollout.prompt_buckets, config.rollout.response_buckets]
    if configs.needs_teacher(config):
        buckets.append(config.teacher.prompt_buckets)
    return math.prod(map(len, buckets))


def rows(config: Any) -> int:
    """Rows of a step's update: what was sampled, and what joins from the buffer."""
    members = config.rollout.group_size + config.buffer.group_members
    return int(config.rollout.problems_per_step * members)


def abstract_batch(config: Any, mesh: Mesh | AbstractMesh, lengths: Lengths) -> Batch:
    """An update's batch without its numbers: shapes, dtypes and places of every array.

    Args:
      config: the configuration.
      mesh: where its rows lie.
      lengths: padded.
    """
    micro = assemble.rows_at_once(config, rows(config))

    def rows_of(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        whole = (rows(config) // micro, micro, *shape)
        axes = (None, "batch", *(None for _ in shape))
        place = sharding.named(mesh, whole, axes)
        return jax.ShapeDtypeStruct(whole, dtype, sharding=place)

    taught = (np.int32, lengths.teacher), (bool, lengths.teacher)
    arrays = {
        "student_tokens": rows_of(np.int32, lengths.student),
        "student_mask": rows_of(bool, lengths.student),
        "teacher_tokens": rows_of(*taught[0]) if lengths.teacher else None,
        "teacher_mask": rows_of(*taught[1]) if lengths.teacher else None,
        "response": rows_of(np.int32, lengths.response),
        "response_mask": rows_of(bool, lengths.response),
        "sampler_log_probs": rows_of(np.float32, lengths.response),
    }
    arrays |= {
        name: rows_of(np.float32)
        for name in ("advantages", "policy_weight", "distill_weight", "gate")
    }
    arrays |= {name: rows_of(bool) for name in ("policy_rows", "distill_rows", "taught", "fresh")}
    return Batch(**arrays)


def extra_bytes(compiled: Any) -> int:
    """Bytes a device needs while it runs this, beyond the arrays that live on."""
    sizes = compiled.memory_analysis()
    made = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(sizes.temp_size_in_bytes + made)
