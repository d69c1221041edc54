"""Checkpoints: what goes in comes out to the bit, and damage is found, named and stepped over."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drift_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    fingerprint,
    parse_fork,
    read_fork,
)


class Moments(NamedTuple):
    count: jax.Array
    mean: dict[str, jax.Array]


HOST = {
    "step": 3,
    "seed": 7,
    "data_fingerprint": "ab12",
    "buffer": {"toolcalls/train/4": [{"response": 'Action: f\n{"a": "Malmö 日"}', "reward": 1.0}]},
    "pass_rates": {"toolcalls/train/4": 0.1 + 0.2},
    "metrics_bytes": 1234,
    "sample_files": ["0.jsonl", "20.jsonl"],
    "not_measured": None,
}


def make_state(scale: float = 1.0) -> dict:
    weights = {
        "embed": scale * jnp.arange(12, dtype=jnp.float32).reshape(4, 3) / 7,
        "norm": jnp.full((3,), scale, jnp.bfloat16),
    }
    return {
        "params": weights,
        "optimizer": (Moments(jnp.int32(5), jax.tree.map(jnp.square, weights)), ()),
        "key": jax.random.key(11),
        "step": jnp.int32(3),
        "done": jnp.array([True, False]),
    }


def template_of(state: dict) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def bits(leaf: jax.Array) -> bytes:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same_bits(left: dict, right: dict) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        assert bits(one) == bits(other)


def save_steps(workdir: Path, *steps: int, **options) -> None:
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {**HOST, "step": step})


def data_file(workdir: Path, step: int) -> Path:
    """The file that holds the arrays of a checkpoint: the largest one."""
    files = (workdir / "checkpoints" / str(step) / "state").rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def damaged_steps(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints" / "damaged").glob("*"))


# ---- round trip ---------------------------------------------------------------------------------


def test_state_and_host_come_back_to_the_bit(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(3, state, HOST)
    restored, host = Checkpoints(tmp_path).restore(template_of(state))
    assert_same_bits(restored, state)
    assert isinstance(restored["optimizer"][0], Moments)
    assert host == HOST
    assert host["pass_rates"]["toolcalls/train/4"].hex() == (0.1 + 0.2).hex()


def test_restored_key_draws_the_same_numbers(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, HOST)
    restored, _ = Checkpoints(tmp_path).restore(state)  # arrays serve as a template as well
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(state["key"])


def test_not_a_number_and_infinity_survive(tmp_path):
    state = {"values": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45], jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"loss": float("nan"), "limit": float("inf")})
    restored, host = Checkpoints(tmp_path).restore(template_of(state))
    assert_same_bits(restored, state)
    assert np.isnan(host["loss"])
    assert host["limit"] == float("inf")


def test_what_the_caller_does_after_save_does_not_reach_the_checkpoint(tmp_path):
    state = make_state()
    expected = jax.tree.map(jnp.copy, state)
    host = json.loads(json.dumps(HOST))
    donating = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, host)
        host["buffer"].clear()
        for _ in range(3):
            state = donating(state)
    restored, read_host = Checkpoints(tmp_path).restore(template_of(expected))
    assert_same_bits(restored, expected)
    assert read_host == HOST


def test_a_host_state_that_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(1, make_state(), {"rewards": np.zeros(3)})
        assert checkpoints.latest_step() is None


def test_an_empty_work_directory_has_nothing_to_restore_and_stays_empty(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(make_state()) is None
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_a_state_saved_on_eight_devices_is_restored_on_four_and_on_one(tmp_path):
    if jax.device_count() < 8:
        pytest.skip("needs eight (fake) devices: set by tests/conftest.py")

    def on(devices: int) -> jax.ShapeDtypeStruct:
        mesh = jax.make_mesh(
            (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )
        sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
        return jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=sharding)

    values = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    state = {"weights": jax.device_put(values, on(8).sharding)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, HOST)
    for devices in (4, 1):
        restored, _ = Checkpoints(tmp_path).restore({"weights": on(devices)})
        assert len(restored["weights"].sharding.device_set) == devices
        assert bits(restored["weights"]) == values.tobytes()


# ---- which are kept -----------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept_and_the_run_goes_on_from_the_newest(tmp_path):
    metrics = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: float("nan"), 6: 0.1}
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), {"step": step}, metric=metric)
    reopened = Checkpoints(tmp_path, keep_last=2)
    assert reopened.steps() == (2, 5, 6)
    assert reopened.best_step() == 2
    assert reopened.restore(make_state())[1] == {"step": 6}


def test_of_equally_good_checkpoints_the_newest_is_best(tmp_path):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(), HOST, metric=0.5 if step < 3 else 0.4)
        checkpoints.wait()
        assert checkpoints.steps() == (2, 3)
        assert checkpoints.best_step() == 2


def test_the_best_is_remembered_across_a_restart(tmp_path):
    for step, metric in ((1, 0.9), (2, 0.2), (3, 0.3)):
        with Checkpoints(tmp_path, keep_last=1) as checkpoints:
            checkpoints.save(step, make_state(), HOST, metric=metric)
    assert Checkpoints(tmp_path).steps() == (1, 3)


def test_without_keep_best_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_best=False) as checkpoints:
        for step, metric in ((1, 0.9), (2, 0.2)):
            checkpoints.save(step, make_state(), HOST, metric=metric)
    assert Checkpoints(tmp_path).steps() == (2,)


def test_deleted_checkpoints_leave_nothing_behind(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep_last=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0, expected at least 1"):
        Checkpoints(tmp_path, keep_last=0)


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(5, make_state(1), {"attempt": 1})
        assert not checkpoints.save(5, make_state(2), {"attempt": 2})
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(5, make_state(3), {"attempt": 3})
        state, host = checkpoints.restore(make_state())
    assert host == {"attempt": 1}
    assert_same_bits(state, make_state(1))


# ---- kills and damage ---------------------------------------------------------------------------


def test_leftovers_of_a_killed_save_and_a_killed_deletion_are_ignored_then_removed(tmp_path):
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    (folder / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "removed" / "0" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert checkpoints.restore(make_state())[1]["step"] == 1
        checkpoints.save(2, make_state(2), {"step": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_flipped_bit_in_the_arrays_is_noticed_and_the_older_checkpoint_used(tmp_path, caplog):
    state = {"weights": jax.random.normal(jax.random.key(0), (1000,))}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"step": step})
    path = data_file(tmp_path, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    events = []
    checkpoints = Checkpoints(tmp_path, on_event=lambda *event: events.append(event))
    restored, host = checkpoints.restore(template_of(state))
    assert host == {"step": 1}
    assert_same_bits(restored, state)
    assert damaged_steps(tmp_path) == ["2"]
    assert [(kind, step) for kind, step, _ in events] == [("checkpoint_damaged", 2)]
    assert "array weights is not what was written" in events[0][2]["reason"]
    assert "checkpoint 2 is damaged" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda step: data_file(step.parent.parent, 2).write_bytes(b""),
        lambda step: os.truncate(step / "state" / "manifest.ocdbt", 20),
        lambda step: os.truncate(step / "state" / "_METADATA", 20),
        lambda step: (step / "host" / "metadata").unlink(),
        lambda step: os.truncate(step / "host" / "metadata", 100),
        lambda step: (step / "host" / "metadata").write_text("[]"),
        lambda step: (step / "state").rename(step.parent.parent / "elsewhere"),
        lambda step: (step / "host").rename(step.parent.parent / "elsewhere"),
    ],
    ids=[
        "arrays gone",
        "arrays' index cut",
        "description of the arrays cut",
        "host state gone",
        "host state cut",
        "host state of another form",
        "no arrays",
        "no host state",
    ],
)
def test_a_half_checkpoint_is_set_aside_and_the_run_saves_the_step_again(tmp_path, spoil):
    save_steps(tmp_path, 1, 2)
    spoil(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path) as checkpoints:
        state, host = checkpoints.restore(template_of(make_state()))
        assert host["step"] == 1
        assert_same_bits(state, make_state(1))
        assert damaged_steps(tmp_path) == ["2"]
        assert checkpoints.save(2, make_state(2), {"step": 2})
    assert Checkpoints(tmp_path).restore(make_state())[1] == {"step": 2}


def test_an_edited_host_state_is_noticed(tmp_path):
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "2" / "host" / "metadata"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    assert Checkpoints(tmp_path).restore(make_state())[1]["step"] == 1


def test_a_damaged_metric_does_not_stop_the_next_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(), HOST, metric=0.5)
    os.truncate(tmp_path / "checkpoints" / "1" / "metrics" / "metrics", 4)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 2
        assert checkpoints.save(3, make_state(), HOST)
    assert Checkpoints(tmp_path).steps() == (2, 3)
    assert damaged_steps(tmp_path) == ["1"]


def test_damage_found_while_saving_goes_on_is_set_aside_too(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"step": step})
        checkpoints.wait()
        (tmp_path / "checkpoints" / "2" / "host" / "metadata").unlink()
        assert checkpoints.restore(make_state())[1] == {"step": 1}
        assert checkpoints.save(2, make_state(2), {"step": 2})
    assert Checkpoints(tmp_path).steps() == (1, 2)


def test_when_all_are_damaged_the_run_stops_instead_of_starting_over(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "host" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=r"all checkpoints .* are damaged \(1, 2\)"):
        Checkpoints(tmp_path).restore(make_state())


def test_another_model_is_refused_by_name_and_no_checkpoint_is_moved(tmp_path):
    save_steps(tmp_path, 1)
    other = make_state()
    other["params"]["embed"] = jnp.zeros((4, 5))
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore(other)
    assert "params/embed as float32[4, 3], this configuration has float32[4, 5]" in str(error.value)
    assert "\n" not in str(error.value)
    assert Checkpoints(tmp_path).steps() == (1,)


def test_a_killed_process_loses_only_what_came_after_its_last_checkpoint(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        import jax.numpy as jnp
        from drift_jax.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"weights": jnp.arange(8.0)}, {"step": 1})
        checkpoints.wait()
        checkpoints.save(2, {"weights": jnp.zeros(2_000_000)}, {"step": 2})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = Checkpoints(tmp_path)
    newest = checkpoints.latest_step()
    assert newest in (1, 2)
    size = {1: 8, 2: 2_000_000}[newest]
    _, host = checkpoints.restore({"weights": jnp.zeros(size)})
    assert host == {"step": newest}


# ---- forks --------------------------------------------------------------------------------------


def test_a_fork_names_a_directory_and_perhaps_a_step(tmp_path):
    save_steps(tmp_path, 10, 20)
    assert parse_fork(f"{tmp_path}@10").step == 10
    assert parse_fork(str(tmp_path)).step is None
    assert parse_fork(str(tmp_path)).workdir == tmp_path


def test_a_directory_with_an_at_sign_can_be_forked(tmp_path):
    workdir = tmp_path / "run@lab"
    save_steps(workdir, 10)
    assert parse_fork(str(workdir)).workdir == workdir
    assert parse_fork(f"{workdir}@10").workdir == workdir


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{dir}@15", "no checkpoint of step 15; present: 10, 20"),
        ("{dir}@best", "'best' is not a step; write DIR@STEP"),
        ("{dir}/nothing@10", "has no checkpoints; name the work directory of a run"),
        ("{dir}/nothing", "has no checkpoints"),
    ],
)
def test_an_impossible_fork_is_one_line_with_what_is_there(tmp_path, text, message):
    save_steps(tmp_path, 10, 20)
    with pytest.raises(CheckpointError) as error:
        parse_fork(text.format(dir=tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fork_reads_the_step_it_names_and_tells_where_it_came_from(tmp_path):
    save_steps(tmp_path, 10, 20)
    state, host, lineage = read_fork(parse_fork(f"{tmp_path}@10"), make_state())
    assert_same_bits(state, make_state(10))
    assert host["step"] == 10
    assert lineage == {"directory": str(tmp_path), "step": 10}


def test_a_fork_passes_over_damage_without_touching_the_other_run(tmp_path):
    save_steps(tmp_path, 10, 20)
    (tmp_path / "checkpoints" / "20" / "host" / "metadata").unlink()
    _, host, lineage = read_fork(parse_fork(str(tmp_path)), make_state())
    assert host["step"] == lineage["step"] == 10
    assert (tmp_path / "checkpoints" / "20").is_dir()
    with pytest.raises(CheckpointError, match="checkpoint 20 in .* is damaged"):
        read_fork(parse_fork(f"{tmp_path}@20"), make_state())


def test_a_fingerprint_knows_values_names_types_and_places_but_no_sharding():
    tree = {"a": jnp.arange(16.0), "b": jnp.ones(3)}
    found = fingerprint(tree)
    assert len(found) == 64 and found == fingerprint(dict(tree))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    assert fingerprint({**tree, "a": jax.device_put(tree["a"], spread)}) == found
    others = [
        {**tree, "a": tree["a"].at[3].add(1e-6)},
        {**tree, "a": tree["a"][::-1]},
        {**tree, "a": tree["a"].astype(jnp.bfloat16)},
        {"a": tree["a"], "c": tree["b"]},
        {**tree, "a": tree["a"].reshape(4, 4)},
    ]
    assert found not in {fingerprint(other) for other in others}
