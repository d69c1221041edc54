"""What a run needs before it runs: memory of each device, executables, FLOPs, seconds of a step.

    python -m drift_jax.plan --config=configs/qwen3_8b.py --device=h100 --devices=8

  --config=FILE[:ARGS]          experiment file, as for drift_jax.main; --config.section.field=VALUE
  --device=NAME                 h200 (default), h100, a100, l40s, l4
  --devices=N                   how many, in all processes; 8 by default
  --attention=unfused|fused     whether scores are written out; unfused is what the code does now
  --model_config=FILE           config.json of another model; else the checkpoint's or known sizes
  --compile                     also compile the longest update for so many CPU devices (minutes)
  --json                        one JSON object, in bytes, FLOPs and seconds

No weight is allocated and no GPU is touched. The update is that of the longest buckets, the batch
that a run starts with. Everything but --compile is arithmetic: its assumptions are at the top of
drift_jax/planning/memory.py and roofline.py. Exit code 0 whether it fits or not; 2 for bad input.
"""

import json
import os
import sys
from typing import Any

import jax
from absl import flags

from drift_jax import command
from drift_jax.config import ConfigError, unknown_choice_message
from drift_jax.planning import advice, compiled, estimate, sizes, text
from drift_jax.planning.devices import DEVICES

_DEVICE = flags.DEFINE_string("device", "h200", "Name of the device.")
_DEVICES = flags.DEFINE_integer("devices", 8, "How many devices.", lower_bound=1)
_ATTENTION = flags.DEFINE_enum("attention", "unfused", ["unfused", "fused"], "Scores or none.")
_MODEL_CONFIG = flags.DEFINE_string("model_config", None, "config.json of the model.")
_COMPILE = flags.DEFINE_boolean("compile", False, "Compile the longest update too.")
_JSON = flags.DEFINE_boolean("json", False, "Print JSON.")


def main(config: Any) -> None:
    """Prints the plan."""
    if _DEVICE.value not in DEVICES:
        raise ConfigError(unknown_choice_message("--device", _DEVICE.value, DEVICES))
    where = {"device": _DEVICE.value, "devices": _DEVICES.value, "attention": _ATTENTION.value}
    model = sizes.of(config, _MODEL_CONFIG.value)
    plan = estimate.make(config, model, **where)
    step = estimate.step(config, model, **where)
    proposals = [] if plan.fits else advice.proposals(config, model, plan, _DEVICE.value)
    measured = None
    if _COMPILE.value:
        print("compiling the longest update ...", file=sys.stderr, flush=True)
        measured = compiled.update(config, model, plan.lengths)
    arguments = (plan, step, measured, proposals, estimate.executables(config))
    if _JSON.value:
        print(json.dumps(text.as_json(command.config_name(), *arguments), indent=2))
    else:
        print(text.render(command.config_name(), *arguments))


def use_cpu_devices(arguments: list[str]) -> None:
    """As many CPU devices as are planned for, before jax starts; a GPU stays free for others."""
    counts = [word.partition("=")[2] for word in arguments if word.startswith("--devices=")]
    count = counts[-1] if counts and counts[-1].isdigit() else "8"
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={count}".strip()
    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
    use_cpu_devices(sys.argv[1:])
    command.run(main, __doc__ or "")
