"""A run's work directory: which run it holds, where that run stopped, and what it has written.

    config.json   the resolved configuration, versions, devices, lineage, and fingerprints of the
                  problems and the base weights; written once, first
    everything else is written by `drift_jax.metrics` and `drift_jax.checkpoint`

A directory belongs to one configuration: starting there again resumes it, starting another one
there is refused before anything is written.
"""

import functools
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax

import drift_jax
from drift_jax import assemble
from drift_jax import config as configs
from drift_jax import metrics as metric_files
from drift_jax.checkpoint import Checkpoints, Fork, read_fork
from drift_jax.command import check_writable
from drift_jax.config import ConfigError
from drift_jax.memory import Memory
from drift_jax.metrics import MetricsWriter
from drift_jax.models.transformer import Params
from drift_jax.update import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")


def check(workdir: str, config: Any, fork: Fork | None) -> None:
    """Refuses a directory that cannot take this run; writes nothing.

    Raises:
      ConfigError: it cannot be written, or it holds a run of another configuration (which fields
        differ, and which of them may) or of another origin than this fork.
    """
    folder = check_writable(workdir)
    file = folder / "config.json"
    if not file.exists():
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        old, lineage = record["config"], record["lineage"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}); move it away or choose another --workdir"
        ) from None
    _check_origin(workdir, lineage, fork)
    may, must_not = configs.changed_fields(old, config.to_dict())
    if must_not:
        raise ConfigError(configs.resume_refusal(workdir, may, must_not))


def _check_origin(workdir: str, lineage: Mapping[str, Any] | None, fork: Fork | None) -> None:
    """The same command goes on with its own fork; any other one must not touch it."""
    if fork is not None:
        wanted = (str(fork.workdir.absolute()), fork.step)
        # A fork of the newest step goes on from the one that it found when it began.
        if lineage is None or wanted not in (
            (lineage["directory"], lineage["step"]),
            (lineage["directory"], None),
        ):
            raise ConfigError(f"{workdir} holds a run already; fork into a new --workdir")
    elif lineage is not None and Checkpoints(workdir).latest_step() is None:
        raise ConfigError(
            f"{workdir} holds a fork without a checkpoint of its own; add "
            f"--fork_from={lineage['directory']}@{lineage['step']}"
        )


class WorkDir:
    """The open directory of a running job."""

    def __init__(
        self,
        workdir: str,
        config: Any,
        *,
        fingerprint: str,
        base: Params | None = None,
        fork: Fork | None = None,
    ) -> None:
        """Opens the directory, which is made at the first write; call `check` before.

        Args:
          workdir: the folder.
          config: the resolved configuration.
          fingerprint: of the training problems; a resumed run must see the same.
          base: parameters before the first step; their fingerprint goes into the record.
          fork: where a new run starts from.
        """
        self.path = pathlib.Path(workdir)
        self._config = config
        self._fingerprint = fingerprint
        self._base = None if base is None else assemble.describe_base(base)
        self._fork = fork
        section = config.checkpoint
        self.checkpoints = Checkpoints(
            workdir,
            keep_last=section.keep_last,
            keep_best=section.keep_best,
            on_event=lambda kind, step, details: self.writer.event(kind, step, details),
        )

    @functools.cached_property
    def writer(self) -> MetricsWriter:
        """Writes the metrics; opened at its first use, so that a refused run leaves no trace."""
        return MetricsWriter(self.path, tensorboard=self._config.logging.tensorboard)

    def restore(self, state: TrainState, memory: Memory) -> tuple[TrainState, int]:
        """State and step to go on from: the newest valid checkpoint, a fork, or `state` itself.

        `memory` is filled in place. Files that were written after the checkpoint are cut back.

        Raises:
          ConfigError: if the problems are not those of the checkpoint.
        """
        restored = self.checkpoints.restore(state)
        lineage = None
        if restored is None and self._fork is not None:
            state, host, lineage = read_fork(self._fork, state)
            # The checkpoint that was best there is not here.
            memory_state = {**host["memory"], "best_validation": None}
            host = {**host, "memory": memory_state, "metrics_bytes": 0, "files": {}}
            host["fingerprint"] = self._fingerprint
        elif restored is None:
            self._write_config(None)
            self._cut_back(0, {})
            self.writer.event("start", 0, {"packages": _versions()})
            return state, 0
        else:
            state, host = restored
        if host["fingerprint"] != self._fingerprint:
            raise ConfigError(
                f"the training problems are not those of {self.path} (fingerprint "
                f"{self._fingerprint[:12]}, checkpoint {host['fingerprint'][:12]}); restore the "
                "task files or choose another --workdir"
            )
        try:
            memory.load_state_dict(host["memory"])
        except ValueError as error:
            raise ConfigError(f"the checkpoint does not fit this configuration: {error}") from error
        step = int(host["step"])
        if lineage or not (self.path / "config.json").exists():
            self._write_config(lineage)
        self._cut_back(host["metrics_bytes"], host["files"])
        if lineage or step < self._config.train.steps:
            self.writer.event(
                "fork" if lineage else "resume", step, {"packages": _versions(), **(lineage or {})}
            )
        return state, step

    def save(
        self, step: int, state: TrainState, memory: Memory, metric: float | None = None
    ) -> None:
        """Starts writing a checkpoint of everything that `restore` needs."""
        host = {
            "step": step,
            "seed": self._config.seed,
            "fingerprint": self._fingerprint,
            "memory": memory.state_dict(),
            "metrics_bytes": self.writer.byte_length(),
            "files": {
                folder: metric_files.step_files(self.path, folder=folder) for folder in ("samples",)
            },
        }
        self.checkpoints.save(step, state, host, metric=metric)

    def close(self) -> None:
        """Waits for the last checkpoint and closes the files."""
        self.checkpoints.close()
        self.writer.close()

    def _cut_back(self, metrics_bytes: int, files: Mapping[str, list[str]]) -> None:
        self.writer.truncate(metrics_bytes)
        metric_files.prune_step_files(self.path, files.get("samples", []), folder="samples")

    def _write_config(self, lineage: Mapping[str, Any] | None) -> None:
        record = {
            "config": self._config.to_dict(),
            "version": drift_jax.__version__,
            "python": sys.version.split()[0],
            "packages": _versions(),
            "devices": [str(device) for device in jax.devices()],
            "lineage": lineage,
            "problems": self._fingerprint,
            "base": self._base,
        }
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / "config.json.partial"
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.rename(self.path / "config.json")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
