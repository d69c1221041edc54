"""The whole training loop, small enough for tests: the packaged model on its easier problems.

Three steps make an epoch and stage 2 begins with step 5, so eight steps see both stages, the
switch between them and two epoch boundaries. It runs on one of the eight fake devices.
"""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from drift_jax import assemble, train, workdir
from drift_jax import config as configs
from drift_jax.checkpoint import Checkpoints, Fork
from drift_jax.metrics import MetricsWriter

ROOT = Path(__file__).resolve().parent.parent
STEPS_PER_EPOCH, WARMUP_STEPS, STEPS = 3, 4, 8

# 65 of the 256 training problems have prompts this short; their answers take 9 tokens. The rhythm
# gate needs groups of three or more: a correct sample with a correct sibling and a wrong one.
VALUES: dict[str, configs.Value] = {
    "data.max_prompt_tokens": 16,
    "rollout.prompt_buckets": (16,),
    "rollout.max_new_tokens": 10,
    "rollout.segment_steps": 10,
    "rollout.response_buckets": (10,),
    "teacher.max_prompt_tokens": 26,
    "teacher.prompt_buckets": (26,),
    "rollout.problems_per_step": 20,
    "rollout.group_size": 4,
    "curriculum.warmup_epochs": 0.0,
    "curriculum.warmup_steps": WARMUP_STEPS,
    "optimizer.learning_rate": 3e-4,
    "optimizer.warmup_steps": 2,
    "train.steps": STEPS,
    "evaluation.every": 4,
    "evaluation.max_problems": 19,
    "evaluation.problems_per_batch": 19,
    "evaluation.samples": 2,
    "evaluation.teacher_samples": 2,
    "checkpoint.every": 2,
    "logging.samples_every": 1,
}


def config(method: str = "drift", **values: configs.Value) -> Any:
    """The small configuration; `values` have `__` for the dot."""
    made = configs.load(f"{ROOT / 'configs' / 'quickstart.py'}:method={method}")
    chosen = {name.replace("__", "."): value for name, value in values.items()}
    return configs.locked(configs.assign(made, VALUES | chosen))


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """A mesh of the first device alone."""
    with mock.patch.object(jax, "device_count", return_value=1):
        yield


def run(settings: Any, folder: Path, fork: Fork | None = None) -> bool:
    """What the command does with a configuration; returns whether the run reached its end."""
    with one_device(), _compiled_once():
        configs.validate(settings, device_count=1)
        workdir.check(str(folder), settings, fork)
        return train.train(settings, str(folder), fork)


def update_key(settings: Any) -> str:
    """What the compiled update depends on; it does not see what is decided on the host."""
    sections = ("model", "objective", "rhythm", "optimizer", "compute")
    parts = {name: settings[name].to_dict() for name in sections}
    for name in ("scale_by_std", "advantage_over", "normaliser_rows", "weighted_rows"):
        del parts["objective"][name]
    del parts["rhythm"]["every_sign"]
    parts["trust_region"] = assemble.trust_region(settings)
    return json.dumps(parts, sort_keys=True)


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Runs of equal settings share the compiled update; it is a function without state."""
    make = assemble.make_update

    def cached(settings: Any, model: Any, state: Any) -> Any:
        key = update_key(settings)
        if key not in _UPDATES:
            _UPDATES[key] = make(settings, model, state)
        return _UPDATES[key]

    with mock.patch.object(assemble, "make_update", cached):
        yield


_UPDATES: dict[str, Any] = {}


# ---- interruptions ------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as abruptly as a test can without ending its own process."""


@contextlib.contextmanager
def at_step(wanted: int, action: Any) -> Iterator[None]:
    """Does something when the metrics of a step have been written."""
    write = MetricsWriter.write

    def writing(self: MetricsWriter, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        if step == wanted:
            action()

    with mock.patch.object(MetricsWriter, "write", writing):
        yield


def terminate() -> None:
    """SIGTERM to this very process."""
    signal.raise_signal(signal.SIGTERM)


def kill() -> None:
    """Nothing after the metrics of the step is written any more."""
    raise Killed


# ---- what a run left ----------------------------------------------------------------------------


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a step but for those of the clock, which no seed can fix."""
    clocks = ("time/", "rollout/tokens_per_second")
    return {name: value for name, value in row.items() if not name.startswith(clocks)}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Every step's metrics but the clock's."""
    return [without_clocks(row) for row in lines(folder)]


def files(folder: Path, name: str) -> dict[str, str]:
    """Name and text of every file of a folder of the work directory."""
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / name).iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checkpoint(settings: Any, folder: Path, step: int | None = None) -> tuple[Any, Any]:
    """Device state and host state of a checkpoint, the newest by default."""
    with one_device():
        restored = Checkpoints(folder).restore(_template(settings), step)
    assert restored is not None, f"no checkpoint in {folder}"
    return restored


def initial(settings: Any) -> Any:
    """The parameters before the first step."""
    with one_device():
        return _template(settings).trainable


def _template(settings: Any) -> Any:
    tokenizer = assemble.open_tokenizer(settings)
    mesh = assemble.make_mesh(settings)
    model, params = assemble.open_model(settings, tokenizer, mesh)
    return assemble.open_state(settings, params, mesh, model)


def assert_same_bits(one: Any, other: Any) -> None:
    """Two trees of arrays are equal to the last bit."""
    first, second = (jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other))
    assert [path for path, _ in first] == [path for path, _ in second]
    for (path, left), (_, right) in zip(first, second, strict=True):
        same = np.asarray(left).tobytes() == np.asarray(right).tobytes()
        assert same, f"{jax.tree_util.keystr(path)} differs"
