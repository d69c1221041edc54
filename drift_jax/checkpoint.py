"""Checkpoints: everything that a run needs to go on, in one atomic unit.

A checkpoint is the folder `checkpoints/<step>` with two parts: `state`, a tree of arrays
(parameters, optimizer, EMA teacher, ...), and `host`, a JSON object (buffer, pass rates, seed,
fingerprint of the data, length of metrics.jsonl, ...). orbax writes it in the background under
another name and renames it when it is complete, so a folder with a step's name is whole after any
kill. Old checkpoints are renamed before they are deleted, for the same reason.

Disks still lose bytes. So a checkpoint carries a checksum of each array and of the host state, and
`restore` compares: a damaged checkpoint is named, moved to `checkpoints/damaged/`, and the next
older one is used. A run goes on from its newest valid checkpoint, never from its best.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

FOLDER = "checkpoints"
_REMOVED = "removed"
_DAMAGED = "damaged"

State = Any  # a tree of jax arrays
Event = Callable[[str, int, Mapping[str, Any]], None]

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line with what was got, expected, and what to do."""


class _Damage(Exception):
    """Found while reading: the files are not what was written."""


class Checkpoints:
    """The checkpoints of a work directory.

    Args:
      workdir: the work directory; nothing is made in it before the first save.
      keep_last: how many of the newest are kept; at least 1.
      keep_best: keep the one with the largest `metric` as well (the newest of equals).
      on_event: told what happened, as (kind, step, details): a damaged checkpoint is one.

    Every process of a run makes the same calls with the same arguments; one writes.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        on_event: Event | None = None,
    ):
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last is {keep_last}, expected at least 1; use 2")
        # orbax wants an absolute path.
        self._directory = (Path(workdir) / FOLDER).absolute()
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._on_event = on_event
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def steps(self) -> tuple[int, ...]:
        """Steps of all complete checkpoints, oldest first; one still being written is not."""
        return _steps(self._directory)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The checkpoint with the largest metric, or None where none has one.

        For evaluation and export only: a run is never continued from it.
        """
        ranked = []
        for step in self.steps():
            with contextlib.suppress(_Damage):  # one without a readable metric cannot be the best
                ranked.append((_rank({"value": _metric(self._directory / str(step))}), step))
        best, step = max(ranked, default=(-np.inf, -1))
        return step if best > -np.inf else None

    def save(
        self, step: int, state: State, host: Mapping[str, Any], *, metric: float | None = None
    ) -> bool:
        """Starts to write a checkpoint; returns once `state` and `host` may be changed again.

        Args:
          step: training steps done. A step that is there already is left as it is.
          state: tree of jax arrays (typed PRNG keys included) in dicts, tuples, NamedTuples or
            registered dataclasses.
          host: JSON-able object, the same on every process. Tuples come back as lists, keys as
            text.
          metric: what "best" is measured by; None or NaN where this step was not evaluated.

        Returns:
          False where the step is there already, else True.

        Raises:
          TypeError: for a `host` that JSON cannot hold.
          OSError: when this or the previous save could not be written.
        """
        self.wait()
        if step in self.steps():
            return False
        text = json.dumps(host)
        payload = {
            "step": step,
            "host": json.loads(text),  # a copy: the caller's may change while this is written
            "sha256": _sha256(text),
            "arrays": _signature(state),
            "checksums": {path: int(value) for path, value in _named(_checksums(state)).items()},
        }
        value = float(metric) if metric is not None and np.isfinite(metric) else None
        self._open_manager().save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(payload)
            ),
            metrics={"value": value},
            force=True,
        )
        return True

    def wait(self) -> None:
        """Blocks until the checkpoint being written is complete, and old ones are gone."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._sweep()

    def close(self) -> None:
        """Waits, and releases what orbax holds. Closing twice is fine."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def restore(self, template: State, step: int | None = None) -> tuple[State, Any] | None:
        """Reads the newest valid checkpoint.

        Args:
          template: a tree like the saved state, of arrays or `jax.ShapeDtypeStruct` with a
            sharding. The state comes back with these shardings, whatever it was saved from.
          step: read this one only.

        Returns:
          (state, host), or None where there is no checkpoint at all.

        Raises:
          CheckpointError: when there are checkpoints and none is valid, when `step` is absent or
            damaged, or when the state has other arrays than the template (another model or
            optimizer). Nothing is moved aside in the last case.
        """
        self.wait()
        present = self.steps()
        if step is not None:
            return _read_step(self._directory, template, step)
        for candidate in reversed(present):
            try:
                return _read(self._directory, template, candidate)
            except _Damage as damage:
                self._set_aside(candidate, str(damage))
        if present:
            raise CheckpointError(
                f"all checkpoints in {self._directory} are damaged ({_listed(present)}) and now lie"
                f" in its folder {_DAMAGED}; start again with another --workdir"
            )
        return None

    def _open_manager(self) -> ocp.CheckpointManager:
        if self._manager is not None:
            return self._manager
        # orbax reads the metrics of all checkpoints when it starts, and stumbles over damaged ones.
        for step in self.steps():
            try:
                _metric(self._directory / str(step))
            except _Damage as damage:
                self._set_aside(step, str(damage))
        managers = ocp.checkpoint_managers
        keep: list[Any] = [managers.LatestN(self._keep_last)]
        if self._keep_best:
            best = managers.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
            keep.append(best)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(keep),
                best_fn=_rank,  # without it orbax would not write the metrics
                # Deleting is not atomic: a checkpoint is renamed first, and deleted in `_sweep`.
                todelete_subdir=_REMOVED,
                cleanup_tmp_directories=True,
            ),
        )
        self._sweep()
        return self._manager

    def _sweep(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / _REMOVED, ignore_errors=True)

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged checkpoint out of the way, and says so."""
        target = self._directory / _DAMAGED / str(step)
        if jax.process_index() == 0:
            attempt = 1
            while target.exists():
                attempt += 1
                target = target.with_name(f"{step}.{attempt}")
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        _barrier(f"checkpoint {step} set aside")
        if self._manager is not None:
            self._manager.reload()
        _log.warning("checkpoint %d is damaged (%s); moved to %s", step, reason, target)
        if self._on_event is not None:
            details = {"reason": reason, "moved_to": str(target)}
            self._on_event("checkpoint_damaged", step, details)


# ---- forking ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fork:
    """Where a new run starts from: a work directory, and a step or None for its newest valid."""

    workdir: Path
    step: int | None

    def __str__(self) -> str:
        return f"{self.workdir}@{'newest' if self.step is None else self.step}"


def parse_fork(text: str) -> Fork:
    """Reads DIR@STEP, or DIR alone.

    Raises:
      CheckpointError: when there is no such directory, step, or checkpoint in it.
    """
    head, at, tail = text.rpartition("@")
    if at and tail.isdecimal():
        fork = Fork(Path(head), int(tail))
    elif at and not Path(text).exists() and Path(head).exists():
        raise CheckpointError(
            f"fork '{text}': '{tail}' is not a step; write DIR@STEP, or DIR for the newest"
        )
    else:
        fork = Fork(Path(text), None)
    steps = _steps(fork.workdir / FOLDER)
    if not steps:
        raise CheckpointError(
            f"fork '{text}': {fork.workdir} has no checkpoints; name the work directory of a run"
        )
    if fork.step is not None and fork.step not in steps:
        raise CheckpointError(
            f"fork '{text}': no checkpoint of step {fork.step}; present: {_listed(steps)}"
        )
    return fork


def read_fork(fork: Fork, template: State) -> tuple[State, Any, dict[str, Any]]:
    """Reads the checkpoint that a new run starts from. Never changes the directory it reads.

    Args:
      fork: from `parse_fork`. Without a step, damaged checkpoints are passed over with a warning.
      template: as in `Checkpoints.restore`.

    Returns:
      (state, host, lineage); lineage is {"directory": ..., "step": ...} for config.json.

    Raises:
      CheckpointError: as `Checkpoints.restore` does.
    """
    directory = (fork.workdir / FOLDER).absolute()
    present = _steps(directory)
    step = fork.step
    if step is not None:
        state, host = _read_step(directory, template, step)
        return state, host, {"directory": str(fork.workdir.absolute()), "step": step}
    for step in reversed(present):
        try:
            state, host = _read(directory, template, step)
        except _Damage as damage:
            _log.warning(
                "checkpoint %d in %s is damaged (%s); passed over", step, directory, damage
            )
            continue
        return state, host, {"directory": str(fork.workdir.absolute()), "step": step}
    raise CheckpointError(
        f"no valid checkpoint in {directory} (present: {_listed(present)}); name another run"
    )


# ---- reading one checkpoint ---------------------------------------------------------------------


def _steps(directory: Path) -> tuple[int, ...]:
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal()))


def _read_step(directory: Path, template: State, step: int) -> tuple[State, Any]:
    """One named checkpoint, or a CheckpointError; moves nothing."""
    present = _steps(directory)
    if step not in present:
        raise CheckpointError(
            f"no checkpoint of step {step} in {directory}; present: {_listed(present)}"
        )
    try:
        return _read(directory, template, step)
    except _Damage as damage:
        raise CheckpointError(
            f"checkpoint {step} in {directory} is damaged ({damage}); use another:"
            f" {_listed([other for other in present if other != step])}"
        ) from damage


def _read(directory: Path, template: State, step: int) -> tuple[State, Any]:
    """Reads and checks a checkpoint; raises _Damage on all processes when any finds damage."""
    found: str | None = None
    state = host = None
    try:
        payload = _read_payload(directory / str(step), step)
        _check_template(payload["arrays"], template, directory / str(step))
        state, host = _read_state(directory / str(step), template, payload), payload["host"]
    except _Damage as damage:
        found = str(damage)
    if _anywhere(found is not None):
        raise _Damage(found or "another process could not read it")
    return state, host


def _read_payload(path: Path, step: int) -> dict[str, Any]:
    """The JSON part, with its own checksum verified."""
    with _reading("host state"), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        payload = reader.restore(path, args=ocp.args.Composite(host=ocp.args.JsonRestore())).host
        sha256 = _sha256(json.dumps(payload["host"]))
        complete = payload["step"] == step and "checksums" in payload and "arrays" in payload
    if sha256 != payload["sha256"] or not complete:
        raise _Damage("the host state is not what was written")
    checked: dict[str, Any] = payload
    return checked


def _read_state(path: Path, template: State, payload: Mapping[str, Any]) -> State:
    """The arrays, each compared with its checksum."""
    with _reading("arrays"), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        restore = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        state = reader.restore(path, args=restore).state
        checksums = _named(_checksums(state))
    for name, checksum in payload["checksums"].items():
        if int(checksums[name]) != checksum:
            raise _Damage(f"array {name} is not what was written")
    return state


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns whatever orbax and tensorstore raise on broken files into _Damage.

    They raise many types, bare Exception among them. Being out of memory or not allowed to read
    says nothing about the files, and passes through.
    """
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise _Damage(f"{what}: {type(error).__name__}: {first_line}") from error


def _check_template(saved: Mapping[str, Any], template: State, path: Path) -> None:
    """Refuses a state of other arrays than the checkpoint has: that is no damage."""
    wanted = _signature(template)
    if wanted == saved:
        return
    name = next(name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name))
    raise CheckpointError(
        f"{path} has {name} as {_shown(saved.get(name))}, this configuration has"
        f" {_shown(wanted.get(name))}; use the model and optimizer of the run that wrote it"
    )


def _shown(array: list[Any] | None) -> str:
    return "nothing" if array is None else f"{array[1]}{array[0]}"


def _metric(path: Path) -> float | None:
    """The metric that a checkpoint was saved with; raises _Damage where the file is broken."""
    file = path / "metrics" / "metrics"
    if not file.exists():
        return None
    with _reading("metrics"):
        value: float | None = json.loads(file.read_text())["value"]
    return value


def _rank(metrics: Mapping[str, float | None]) -> float:
    """Order of "best": a checkpoint without a value comes last."""
    value = metrics["value"]
    return -np.inf if value is None else value


# ---- checksums ----------------------------------------------------------------------------------


def fingerprint(tree: State) -> str:
    """SHA-256 over names, shapes, types and checksums of all arrays; the same on any sharding."""
    checksums = {path: int(value) for path, value in _named(_checksums(tree)).items()}
    return _sha256(json.dumps([_signature(tree), checksums], sort_keys=True))


@jax.jit
def _checksums(state: State) -> State:
    """A number for each array that any single changed element changes; the same on any sharding.

    The bits as 32-bit words, each times an odd number of its position, summed modulo 2^32: exact
    integer arithmetic, done where the array lies. Zeros in place of data are found as well.
    """
    return jax.tree.map(_checksum, state)


def _checksum(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
        stride = stride * words.shape[axis] % 2**32
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


def _signature(state: State) -> dict[str, list[Any]]:
    """Path -> [shape, dtype] of every array."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in _named(state).items()}


def _named(tree: State) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


# ---- several processes --------------------------------------------------------------------------


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process, so that all of them decide alike."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
