"""A work directory takes one run, refuses any other before it writes, and is cut back on resume."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from drift_jax import config as configs
from drift_jax import metrics
from drift_jax.buffer import SuccessBuffer
from drift_jax.checkpoint import CheckpointError, Fork, fingerprint, parse_fork
from drift_jax.config import ConfigError
from drift_jax.difficulty import PassRates
from drift_jax.memory import Memory
from drift_jax.workdir import WorkDir, check
from tests import small_run

CONFIG = configs.default()
STATE = {"weights": jnp.arange(6.0)}


def changed(**values: configs.Value) -> Any:
    return configs.assign(
        configs.default(), {name.replace("__", "."): value for name, value in values.items()}
    )


def memory() -> Memory:
    return Memory(PassRates(), SuccessBuffer())


def begin(folder: Path, *, fork: Fork | None = None, save: bool = True, step: int = 2) -> None:
    """A run that has come to `step` and wrote its files."""
    run = WorkDir(str(folder), CONFIG, fingerprint="abc", fork=fork)
    kept = memory()
    _, start = run.restore(STATE, kept)
    kept.buffer.add("p", "text", 1.0, step=1)
    for number in range(start + 1, start + step + 1):
        run.writer.write(number, {"rollout/reward_mean": 0.5})
        metrics.write_step_file(folder, number, [{"id": number}])
    if save:
        run.save(start + step, {"weights": STATE["weights"] + 1}, kept)
    run.close()


def record(folder: Path, config: Any = CONFIG, lineage: Any = None) -> None:
    """The config.json of a run that has written nothing else."""
    folder.mkdir()
    text = json.dumps({"config": config.to_dict(), "lineage": lineage})
    (folder / "config.json").write_text(text)


def refusal(folder: Path, config: Any = CONFIG, fork: Fork | None = None) -> str:
    """The one line that answers, after which everything is as it was."""
    before = small_run.snapshot(folder)
    with pytest.raises(ConfigError) as error:
        check(str(folder), config, fork)
    assert small_run.snapshot(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what is refused ----------------------------------------------------------------------------


def test_a_new_folder_is_fine_and_is_not_made_by_asking(tmp_path):
    check(str(tmp_path / "deep" / "run"), CONFIG, None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_configuration_is_refused_with_what_differs_and_what_may(tmp_path):
    record(tmp_path / "run")
    other = changed(rollout__group_size=4, seed=7, train__steps=10, logging__every=3)
    text = refusal(tmp_path / "run", other)
    must, _, may = text.partition("may")
    assert "rollout.group_size 8 -> 4" in must and "seed 0 -> 7" in must
    assert "train.steps 400 -> 10" in may and "logging.every 1 -> 3" in may
    assert "--workdir" in text and "--fork_from" in text


def test_lengths_and_intervals_of_evaluation_checkpoints_and_logging_may_differ(tmp_path):
    record(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    may = {
        "train.steps": 7,
        "evaluation.every": 1,
        "checkpoint.every": 3,
        "logging.every": 2,
        "logging.samples_every": 1,
    }
    check(str(tmp_path / "run"), configs.assign(configs.default(), may), None)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1"}', '{"config": {}}'])
def test_a_damaged_record_is_named_and_left_alone(tmp_path, text):
    record(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    assert "config.json is damaged" in refusal(tmp_path / "run")


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nothing", "/proc/1/nothing"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="workdir '.*' (is a file|cannot be written)") as error:
        check(str(tmp_path / folder), CONFIG, None)
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


# ---- forks --------------------------------------------------------------------------------------


def test_a_fork_into_a_run_that_exists_is_refused(tmp_path):
    begin(tmp_path / "old")
    begin(tmp_path / "run")
    record(tmp_path / "started")  # killed before its first checkpoint
    fork = parse_fork(f"{tmp_path / 'old'}@2")
    for name in ("run", "started", "old"):
        assert "holds a run already; fork into a new --workdir" in refusal(
            tmp_path / name, fork=fork
        )


@pytest.mark.parametrize("step", ["@2", ""])
def test_the_same_command_goes_on_with_its_own_fork(tmp_path, step):
    begin(tmp_path / "old")
    fork = parse_fork(f"{tmp_path / 'old'}{step}")
    begin(tmp_path / "fork", fork=fork)
    check(str(tmp_path / "fork"), CONFIG, fork)
    check(str(tmp_path / "fork"), CONFIG, None)
    # Another origin is another run.
    begin(tmp_path / "other")
    assert "fork into a new" in refusal(tmp_path / "fork", fork=parse_fork(f"{tmp_path}/other@2"))


def test_a_fork_without_a_checkpoint_does_not_become_a_run_from_scratch(tmp_path):
    begin(tmp_path / "old")
    begin(tmp_path / "fork", fork=parse_fork(f"{tmp_path / 'old'}@2"), save=False)
    assert f"add --fork_from={tmp_path / 'old'}@2" in refusal(tmp_path / "fork")


def test_a_fork_of_another_model_leaves_no_trace(tmp_path):
    begin(tmp_path / "old")
    run = WorkDir(
        str(tmp_path / "fork"), CONFIG, fingerprint="abc", fork=parse_fork(str(tmp_path / "old"))
    )
    with pytest.raises(CheckpointError, match="weights as float32"):
        run.restore({"weights": jnp.arange(7.0)}, memory())
    assert not (tmp_path / "fork").exists()


# ---- resuming -----------------------------------------------------------------------------------


def test_a_run_goes_on_with_state_and_memory_of_its_checkpoint_and_files_cut_back(tmp_path):
    begin(tmp_path)
    length = (tmp_path / "metrics.jsonl").stat().st_size
    with metrics.MetricsWriter(tmp_path) as writer:  # after the checkpoint, then killed
        writer.write(3, {"rollout/reward_mean": 0.7})
    metrics.write_step_file(tmp_path, 3, [{"id": 3}])
    kept = memory()
    run = WorkDir(str(tmp_path), CONFIG, fingerprint="abc")
    state, step = run.restore(STATE, kept)
    run.close()
    assert step == 2
    small_run.assert_same_bits(state, {"weights": STATE["weights"] + 1})
    assert [entry.response for entry in kept.buffer.entries("p")] == ["text"]
    assert (tmp_path / "metrics.jsonl").stat().st_size == length
    assert metrics.step_files(tmp_path) == ["1.jsonl", "2.jsonl"]


def test_a_run_that_has_no_checkpoint_yet_starts_over(tmp_path):
    begin(tmp_path, save=False)
    begin(tmp_path, step=1)
    assert [row["step"] for row in small_run.lines(tmp_path)] == [1]
    assert metrics.step_files(tmp_path) == ["1.jsonl"]
    events = [event["event"] for event in small_run.lines(tmp_path, "events.jsonl")]
    assert events == ["start", "start"]


def test_other_problems_than_those_of_the_checkpoint_are_refused_and_nothing_is_touched(tmp_path):
    begin(tmp_path)
    before = small_run.snapshot(tmp_path)
    with pytest.raises(ConfigError) as error:
        WorkDir(str(tmp_path), CONFIG, fingerprint="xyz").restore(STATE, memory())
    assert "the training problems are not those of" in str(error.value)
    assert "xyz" in str(error.value) and "abc" in str(error.value) and "\n" not in str(error.value)
    assert small_run.snapshot(tmp_path) == before


def test_a_fork_may_have_other_problems(tmp_path):
    begin(tmp_path / "old")
    fork = parse_fork(str(tmp_path / "old"))
    run = WorkDir(str(tmp_path / "fork"), CONFIG, fingerprint="xyz", fork=fork)
    _, step = run.restore(STATE, memory())
    run.close()
    assert step == 2
    assert small_run.lines(tmp_path / "fork") == []  # it has steps of its own only


def test_the_record_says_what_ran_and_where(tmp_path):
    begin(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert configs.changed_fields(written["config"], CONFIG.to_dict()) == ([], [])
    assert written["packages"].keys() >= {"jax", "flax", "optax", "numpy"}
    assert len(written["devices"]) == 8
    assert written["lineage"] is None
    assert written.keys() >= {"version", "python"}


def test_the_record_names_problems_and_base_weights_of_a_run_and_of_its_fork(tmp_path):
    base = {"norm": jnp.ones(6)}
    run = WorkDir(str(tmp_path / "run"), CONFIG, fingerprint="abc", base=base)
    run.restore(STATE, memory())
    run.save(1, STATE, memory())
    run.close()
    fork = parse_fork(str(tmp_path / "run"))
    other = WorkDir(str(tmp_path / "fork"), CONFIG, fingerprint="abc", base=base, fork=fork)
    other.restore(STATE, memory())
    other.close()
    for name in ("run", "fork"):
        content = json.loads((tmp_path / name / "config.json").read_text())
        assert content["problems"] == "abc"
        assert content["base"] == {"fingerprint": fingerprint(base), "parameters": 6}
