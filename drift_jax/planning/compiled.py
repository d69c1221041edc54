"""What the compiler says of the longest update: ahead of time, on devices without arrays."""

import time
from typing import Any

from drift_jax import assemble, shapes
from drift_jax.models.transformer import ModelConfig
from drift_jax.shapes import Lengths


def update(config: Any, model: ModelConfig, lengths: Lengths) -> dict[str, float]:
    """Bytes of one device, and the seconds that compiling took; no array is made.

    Args:
      config: the configuration; its mesh is over the devices of this process.
      model: the sizes.
      lengths: padded lengths of the update.

    Returns:
      `arguments` (state and batch), `temporary` (while it runs, outputs of their own included),
      `peak` (both), and `seconds`.
    """
    began = time.monotonic()
    mesh = assemble.make_mesh(config)
    state = assemble.state_template(config, mesh, model)
    function: Any = assemble.make_update(config, model, state)
    batch = shapes.abstract_batch(config, mesh, lengths)
    executable = function.lower(state, batch, 0.0).compile()
    arguments = executable.memory_analysis().argument_size_in_bytes
    temporary = shapes.extra_bytes(executable)
    return {
        "arguments": float(arguments),
        "temporary": float(temporary),
        "peak": float(arguments + temporary),
        "seconds": time.monotonic() - began,
    }
