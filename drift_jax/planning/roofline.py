"""Seconds of a step: the bound that a device's data sheet sets, and what may come of it.

The bound lets nothing wait: every byte at full bandwidth, every product at full speed, transfers
between devices hidden. `expected` takes the shares below, which are guesses to be replaced by
measurements. Rows count as they are padded, so a batch is as slow as its longest answer.
"""

import dataclasses
from typing import Any

from drift_jax import assemble, update
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import flops, sizes
from drift_jax.planning.devices import Device
from drift_jax.planning.memory import Setting
from drift_jax.shapes import abstract_batch

BANDWIDTH_SHARE = 0.75  # of the data sheet while decoding; published engines reach 0.65 to 0.77
MATMUL_SHARE = 0.4  # of the data sheet in an update; published trainers reach 0.4 to 0.55
UNFUSED_ATTENTION = 35e12  # FLOP a second of a device, attention whose scores are written out


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one step."""

    bound: float
    expected: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.bound + other.bound, self.expected + other.expected)

    def times(self, factor: float) -> "Seconds":
        """So many of them."""
        return Seconds(factor * self.bound, factor * self.expected)


def update_flops(config: Any, model: ModelConfig, of: Setting) -> flops.Flops:
    """Products of one update, over all devices, counted in the function that a run calls."""
    function = update.make_update(
        model=model,
        settings=assemble.loss_settings(config),
        compute=assemble.compute(config),
        optimizer=assemble.make_optimizer(config),
        learning_rate=assemble.learning_rate(config),
        mini_batches=config.optimizer.mini_batches,
    )
    state = assemble.state_template(config, of.mesh, model)
    batch = abstract_batch(config, of.mesh, of.lengths)
    return flops.count(lambda state, batch: function(state, batch, 0.0), state, batch)


def updating(of: Setting, work: flops.Flops, device: Device) -> Seconds:
    """One update; transfers are what gathering the weights and reducing the gradients takes."""
    count = of.mesh.size
    attention = device.matmul * MATMUL_SHARE if of.fused else UNFUSED_ATTENTION
    products = work.total / count / device.matmul
    likely = work.weights / count / (device.matmul * MATMUL_SHARE)
    likely += work.rows / count / attention
    moved = transfer_bytes(of) / device.link
    # The optimizer reads and writes the state and the gradient.
    written = 30 * sizes.parameters(of.model) / count / device.bandwidth
    return Seconds(max(products, moved) + written, likely + moved + written / BANDWIDTH_SHARE)


def transfer_bytes(of: Setting) -> float:
    """What a device receives in an update: weights for each pass, and its part of the gradient."""
    if of.spread == 1:
        return 0.0
    passes = (1 + of.remat) + bool(of.lengths.teacher)
    each = sizes.parameters(of.model) * (passes * of.item + 4)
    return of.micro_batches * each * (of.spread - 1) / of.mesh.size


def decoding(of: Setting, device: Device, tokens: int, prompt: int) -> Seconds:
    """All rows of a step decode so many tokens, in turns of the rows that are decoded at once.

    Every token reads the weights and the caches as far as they are filled. Expected beside the
    bound: the share of the bandwidth. Gathering the weights anew for every token would add
    `gathering`.
    """
    model = of.model
    turns = -(-of.sampled // of.decoded)
    rows, apart = of.here(of.decoded), of.apart
    weights = of.item * sizes.multiplied(model) / apart
    products = 2 * sizes.multiplied(model) / apart * rows / device.matmul
    filled = prompt + (tokens + 1) / 2
    cache = rows * filled * sizes.cache_bytes(model, of.item) / apart
    prompts = of.here(max(1, of.decoded // of.group))
    prefill = 2 * sizes.multiplied(model) / apart * prompts * prompt
    step = max(weights / device.bandwidth, products) + cache / device.bandwidth
    bound = turns * (tokens * step + prefill / device.matmul)
    likely = max(weights / device.bandwidth / BANDWIDTH_SHARE, products / MATMUL_SHARE)
    likely += cache / device.bandwidth / BANDWIDTH_SHARE
    expected = turns * (tokens * likely + prefill / device.matmul / MATMUL_SHARE)
    return Seconds(bound, expected)


def gathering(of: Setting, device: Device, tokens: int) -> float:
    """Seconds of gathering all weights for every token of a step."""
    turns = -(-of.sampled // of.decoded)
    apart = of.apart
    whole = of.item * sizes.multiplied(of.model) / apart
    return turns * tokens * whole * (of.spread - 1) / of.spread / device.link
