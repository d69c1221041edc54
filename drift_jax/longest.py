"""A run starts with its longest shapes, so that memory which is not there is missed at once.

The step that first meets the largest of all buckets may come after hours; what it needs is known
before the first one.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drift_jax import assemble, shapes, sharding, update
from drift_jax.models.transformer import ModelConfig
from drift_jax.reporting import RunStopped


def make_update(
    config: Any, mesh: Mesh, model: ModelConfig, state: update.TrainState
) -> update.UpdateFunction:
    """The update of a run. Where shapes vary, the longest is compiled and given its memory first.

    The memory is taken once, beside the state, and returned. A later step of that shape finds its
    executable. With one shape the first step does all that itself.

    Raises:
      RunStopped: if the memory is not there, with its size.
    """
    function = assemble.make_update(config, model, state)
    if config.compute.longest_first and shapes.update_shapes(config) > 1:
        _rehearse(config, mesh, function, state)
    return function


def _rehearse(config: Any, mesh: Mesh, function: Any, state: update.TrainState) -> None:
    longest, began = shapes.longest(config), time.monotonic()
    batch = shapes.abstract_batch(config, mesh, longest)
    compiled = function.lower(state, batch, 0.0).compile()
    needed = shapes.extra_bytes(compiled)
    seconds = time.monotonic() - began
    taught = f", teacher's {longest.teacher}" if longest.teacher else ""
    told = (
        f"longest update (rows of {longest.student} tokens{taught}):"
        f" compiled in {seconds:.0f} s, needs {needed / 1e9:.3g} GB beside the state"
    )
    try:
        _take(mesh, needed)
    except jax.errors.JaxRuntimeError as error:
        raise RunStopped(
            f"{told}, which a device does not have; `python -m drift_jax.plan` with this --config"
            " says what to change"
        ) from error
    print(told, flush=True)


def _take(mesh: Mesh, size: int) -> None:
    """Allocates so many bytes on every device, and frees them."""
    whole = (mesh.size, size)
    place = sharding.one_a_device(mesh)
    taken = jax.jit(lambda: jnp.zeros(whole, jnp.uint8), out_shardings=place)()
    taken.block_until_ready()
    taken.delete()
