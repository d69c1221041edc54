"""Train a model (and evaluate it on the way); start the same command again to go on.

    python -m drift_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE[:ARGS]          experiment file and arguments: configs/qwen3_8b.py:method=sdpo
  --config.section.field=VALUE  overrides any field; `python -m drift_jax.config` lists them
  --workdir=DIR                 what the run writes; default runs/<config>_<task>_<method>
  --fork_from=DIR@STEP          start a new run from a checkpoint of another one, with any change

Exit codes: 0 done; 1 stopped by numbers that are not finite, or by a
reward function that fails on all responses; 2 bad input, nothing was written;
75 stopped on request (SIGTERM), run it again.
"""

import sys
from typing import Any

import jax
from absl import flags

from drift_jax import command, workdir
from drift_jax import config as configs
from drift_jax.checkpoint import CheckpointError, parse_fork
from drift_jax.config import ConfigError
from drift_jax.metrics import NonFiniteMetric
from drift_jax.reporting import RunStopped
from drift_jax.train import train

EXIT_STOPPED = 75

_FORK_FROM = flags.DEFINE_string(
    "fork_from", None, "DIR@STEP: start a new run from that checkpoint."
)


def main(config: Any) -> None:
    """Checks everything that can be checked without compiling, then trains."""
    folder = command.WORKDIR.value or default_workdir(config)
    try:
        fork = parse_fork(_FORK_FROM.value) if _FORK_FROM.value else None
        configs.validate(config, device_count=jax.device_count())
        workdir.check(folder, config, fork)
        finished = train(config, folder, fork)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except (RunStopped, NonFiniteMetric) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if not finished:
        sys.exit(EXIT_STOPPED)


def default_workdir(config: Any) -> str:
    """runs/<config>_<task>_<method>, with the name of the experiment file."""
    return f"runs/{command.config_name()}_{config.task}_{config.method}"


if __name__ == "__main__":
    command.run(main, __doc__ or "")
