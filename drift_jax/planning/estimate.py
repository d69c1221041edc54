"""One plan: a configuration, a model and devices in; bytes, executables, FLOPs and seconds out."""

import dataclasses
import math
from typing import Any

from drift_jax import config as configs
from drift_jax import shapes, sharding
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import memory, roofline, sizes
from drift_jax.planning.devices import DEVICES, Device
from drift_jax.planning.flops import Flops
from drift_jax.planning.roofline import Seconds
from drift_jax.shapes import Lengths

UPDATING = ("teacher forward", "student backward", "vocabulary head", "optimizer")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs of each device.

    Attributes:
      device, devices: which, and how many.
      model: the sizes.
      lengths: padded lengths of the longest update.
      state: bytes that are always there, by part.
      phases: bytes that each phase adds, by part.
      attention: "unfused" or "fused".
    """

    device: Device
    devices: int
    model: ModelConfig
    lengths: Lengths
    state: memory.Parts
    phases: dict[str, memory.Parts]
    attention: str

    def needs(self, phase: str) -> float:
        """Bytes of a phase, the state included."""
        return sum(self.state.values()) + sum(self.phases[phase].values())

    @property
    def largest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.needs)

    @property
    def peak(self) -> float:
        """Bytes that the run needs."""
        return self.needs(self.largest)

    @property
    def fits(self) -> bool:
        """Whether the device has them."""
        return self.peak <= self.device.memory


def make(
    config: Any,
    model: ModelConfig,
    *,
    device: str,
    devices: int,
    attention: str = "unfused",
    lengths: Lengths | None = None,
) -> Plan:
    """The plan of a configuration, in milliseconds.

    Args:
      config: the configuration.
      model: its sizes.
      device: a name in `devices.DEVICES`.
      devices: how many.
      attention: "unfused" or "fused".
      lengths: of the update; None is the longest that can come.

    Raises:
      ConfigError: if the configuration does not go with so many devices.
    """
    configs.validate(config, device_count=devices)
    mesh = mesh_of(config, devices)
    lengths = lengths or shapes.longest(config)
    setting = memory.setting(config, model, mesh, fused=attention == "fused", lengths=lengths)
    return Plan(
        device=DEVICES[device],
        devices=devices,
        model=model,
        lengths=lengths,
        state=memory.state(config, model, mesh),
        phases=memory.phases(setting, memory.batch(config, mesh, lengths)),
        attention=attention,
    )


def mesh_of(config: Any, devices: int) -> Any:
    """The mesh over devices that need not exist."""
    data, fsdp, tensor = configs.mesh_shape(config, devices)
    return sharding.abstract_mesh(data=data, fsdp=fsdp, tensor=tensor)


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step whose longest answer has a length.

    Attributes:
      lengths: padded lengths of its update.
      flops: products of the update, over all devices.
      rollout, update: seconds.
      gathering: seconds to add to the rollout if every token gathers the weights anew.
    """

    lengths: Lengths
    flops: Flops
    rollout: Seconds
    update: Seconds
    gathering: float


def step(
    config: Any,
    model: ModelConfig,
    *,
    device: str,
    devices: int,
    attention: str = "unfused",
    lengths: Lengths | None = None,
    flops: Flops | None = None,
) -> Step:
    """FLOPs and seconds of a step; the update is traced, which takes a few seconds.

    Arguments as for `make`, and `flops` of the update where they are known.
    """
    mesh = mesh_of(config, devices)
    lengths = lengths or shapes.longest(config)
    of = memory.setting(config, model, mesh, fused=attention == "fused", lengths=lengths)
    work = flops or roofline.update_flops(config, model, of)
    named = DEVICES[device]
    return Step(
        lengths=lengths,
        flops=work,
        rollout=roofline.decoding(of, named, lengths.response, lengths.prompt),
        update=roofline.updating(of, work, named),
        gathering=roofline.gathering(of, named, lengths.response),
    )


def usual(config: Any, response: int) -> Lengths:
    """Lengths of a step with short prompts whose longest answer has `response` tokens.

    The teacher is shown such an answer, so its prompts fill the bucket for both.
    """
    prompt = config.rollout.prompt_buckets[0]
    buckets = config.teacher.prompt_buckets
    needed = min(prompt + response, buckets[-1])
    teacher = next(bucket for bucket in buckets if bucket >= needed)
    return Lengths(prompt, response, teacher if configs.needs_teacher(config) else 0)


def hours(
    config: Any, model: ModelConfig, *, device: str, devices: int, response: int, problems: int
) -> tuple[float, float]:
    """Hours of a whole run if the longest answer of every batch has `response` tokens.

    Args:
      config: the configuration.
      model: its sizes.
      device, devices: where.
      response: a response bucket.
      problems: that an evaluation asks.

    Returns:
      With the weights read where they lie, and with the weights gathered for every token.
    """
    one = step(config, model, device=device, devices=devices, lengths=usual(config, response))
    evaluations = 0
    if config.evaluation.every:
        evaluations = 1 + config.train.steps // config.evaluation.every
    samples = config.evaluation.samples + config.evaluation.teacher_samples
    sampled = config.rollout.problems_per_step * config.rollout.group_size
    # An evaluation decodes as a step does, with so many times its rows.
    decoded = config.train.steps + evaluations * math.ceil(problems * samples / sampled)
    low = decoded * one.rollout.expected + config.train.steps * one.update.expected
    return low / 3600, (low + decoded * one.gathering) / 3600


def executables(config: Any) -> dict[str, int]:
    """Most executables that a run can compile, by what they do.

    Updates: combinations of buckets. Sampling: a prefill and a decoding loop for each prompt
    bucket, and again for evaluations, whose groups have another size.
    """
    prompts = len(config.rollout.prompt_buckets)
    evaluated = prompts
    if configs.needs_teacher(config) and config.evaluation.teacher_samples:
        evaluated += len(config.teacher.prompt_buckets)
    return {
        "update": shapes.update_shapes(config),
        "sampling": 2 * prompts,
        "evaluation": 2 * evaluated,
    }


def checkpoint_bytes(model: ModelConfig) -> float:
    """A checkpoint on disk: float32 parameters, two moments, teacher."""
    return 16.0 * sizes.parameters(model)
