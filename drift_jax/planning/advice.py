"""What to change when a run does not fit: every proposal is a plan of its own."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from drift_jax import config as configs
from drift_jax.config import ConfigError, Value
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import estimate

CHANGES_RESULTS = ("rollout.max_new_tokens", "teacher.max_prompt_tokens")
LARGEST_NODE = 64  # devices that are tried


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A change, and what a run then needs of each device.

    Attributes:
      values: fields with their new values; empty for more devices or another attention.
      devices: how many.
      attention: "unfused" or "fused".
      peak: bytes.
      fits: whether the device has them.
    """

    values: dict[str, Value]
    devices: int
    attention: str
    peak: float
    fits: bool

    @property
    def kind(self) -> tuple:
        """What is changed, whatever to."""
        return (*self.values, self.attention, not self.values and self.attention == "unfused")

    @property
    def changes_results(self) -> bool:
        """Whether the run would compute something else, apart from rounding."""
        return any(name in self.values for name in CHANGES_RESULTS)

    def flags(self) -> str:
        """The change as flags of the command line."""
        return " ".join(
            f"--config.{name}={str(value).replace(' ', '')}" for name, value in self.values.items()
        )


def proposals(config: Any, model: ModelConfig, plan: estimate.Plan, device: str) -> list[Proposal]:
    """Changes that help, those that suffice first; of each kind the mildest that suffices.

    Where no change of the configuration suffices alone, the first is a combination that does, if
    there is one, on more devices if need be: the best change is kept and the others are tried on
    top of it.
    """
    kinds: dict[tuple, list[Proposal]] = {}
    for one in _singles(config, model, plan, device):
        if one.peak < 0.99 * plan.peak:
            kinds.setdefault(one.kind, []).append(one)
    result = sorted(map(_mildest, kinds.values()), key=_order)
    if not any(one.fits and one.values for one in result):
        devices = plan.devices
        while (combined := _combined(config, model, plan, device, devices)) is None:
            devices *= 2
            if devices > LARGEST_NODE:
                return result
        result.insert(0, combined)
    return result


def _mildest(tried: list[Proposal]) -> Proposal:
    """The first that fits, as the candidates come from mild to strong; else the smallest."""
    return next((one for one in tried if one.fits), min(tried, key=lambda one: one.peak))


def _order(one: Proposal) -> tuple[bool, bool, float]:
    return not one.fits, one.changes_results, one.peak


def _singles(
    config: Any, model: ModelConfig, plan: estimate.Plan, device: str
) -> Iterator[Proposal]:
    for values in _candidates(config, plan.devices):
        one = _try(config, model, plan, device, values)
        if one is not None:
            yield one
    if plan.attention == "unfused":
        one = _try(config, model, plan, device, {}, attention="fused")
        if one is not None:
            yield one
    devices = 2 * plan.devices
    while devices <= LARGEST_NODE:
        one = _try(config, model, plan, device, {}, devices=devices)
        if one is not None:
            yield one
            if one.fits:
                return
        devices *= 2


def _combined(
    config: Any, model: ModelConfig, plan: estimate.Plan, device: str, devices: int
) -> Proposal | None:
    """Changes without an effect on results first, then shorter lengths, until the run fits."""
    best = _try(config, model, plan, device, {}, devices=devices)
    while best is not None and not best.fits:
        changed = configs.assign(config.copy_and_resolve_references(), best.values)
        tried = [
            _try(config, model, plan, device, {**best.values, **more}, devices=devices)
            for more in _candidates(changed, devices)
        ]
        better = [one for one in tried if one is not None and one.peak < 0.99 * best.peak]
        free = [one for one in better if not one.changes_results]
        best = _mildest(free or better) if better else None
    return best


def _try(
    config: Any,
    model: ModelConfig,
    plan: estimate.Plan,
    device: str,
    values: dict[str, Value],
    *,
    devices: int = 0,
    attention: str = "",
) -> Proposal | None:
    """The plan with a change; None where the configuration would be refused."""
    changed = configs.assign(config.copy_and_resolve_references(), values)
    devices, attention = devices or plan.devices, attention or plan.attention
    try:
        other = estimate.make(changed, model, device=device, devices=devices, attention=attention)
    except ConfigError:
        return None
    return Proposal(values, devices, attention, other.peak, other.fits)


def _candidates(config: Any, devices: int) -> Iterator[dict[str, Value]]:
    """Changes of one thing each; which of them are valid is for the plan to say."""
    data, fsdp, tensor = configs.mesh_shape(config, devices)
    micro = config.compute.micro_batch or (
        config.rollout.problems_per_step
        * (config.rollout.group_size + config.buffer.group_members)
        // config.optimizer.mini_batches
    )
    while micro > data * fsdp and micro % 2 == 0:
        micro //= 2
        yield {"compute.micro_batch": micro}
    if config.model.remat == "none":
        yield {"model.remat": "full"}
    rows = config.rollout.max_rows or (config.rollout.problems_per_step * config.rollout.group_size)
    while rows > max(data * fsdp, config.rollout.group_size) and rows % 2 == 0:
        rows //= 2
        yield {"rollout.max_rows": rows}
    if config.compute.vocab_chunk > 128:
        yield {"compute.vocab_chunk": config.compute.vocab_chunk // 2}
    if data > 1:
        yield {"mesh.data": 1, "mesh.fsdp": -1}
    wider = 2 * tensor
    while wider <= devices:
        places = data * (devices // (data * wider))
        for rows_at_once in dict.fromkeys((config.compute.micro_batch, max(places, 1))):
            yield {
                "mesh.tensor": wider,
                "mesh.fsdp": -1,
                "compute.micro_batch": rows_at_once,
            }
        wider *= 2
    if config.evaluation.teacher_samples:
        yield {"evaluation.teacher_samples": 0}
    yield from _shorter(config)


def _shorter(config: Any) -> Iterator[dict[str, Value]]:
    """Without the largest bucket."""
    responses = config.rollout.response_buckets[:-1]
    if responses:
        yield {
            "rollout.max_new_tokens": responses[-1],
            "rollout.response_buckets": tuple(responses),
        }
    prompts = config.teacher.prompt_buckets[:-1]
    if prompts:
        yield {
            "teacher.max_prompt_tokens": prompts[-1],
            "teacher.prompt_buckets": tuple(prompts),
        }
