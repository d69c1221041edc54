"""What is written can be read, names are documented, and a resumed run writes nothing twice."""

import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.metrics import (
    METRICS,
    MetricsWriter,
    NonFiniteMetric,
    check_finite,
    detail_rows,
    is_documented,
    prune_step_files,
    step_files,
    table,
    write_step_file,
)

REWARD = "rollout/reward_mean"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(workdir: Path, *steps: int, **options) -> int:
    """Writes a metric for each step and returns the length of the file."""
    with MetricsWriter(workdir, **{"tensorboard": False, **options}) as writer:
        for step in steps:
            writer.write(step, {REWARD: step / 10})
        return writer.byte_length()


# ---- names --------------------------------------------------------------------------------------


def test_every_metric_has_a_sentence():
    for name, meaning in METRICS.items():
        assert name.count("/") >= 1
        assert meaning.endswith("."), name


@pytest.mark.parametrize(
    "name", ["eval/mean@16", "eval/easy/mean@8", "eval/GB1 fitness/mean@4", "time/rollout", REWARD]
)
def test_names_with_a_number_or_a_level_are_documented_once(name):
    assert is_documented(name)


@pytest.mark.parametrize("name", ["rollout/reward", "eval/mean@k", "eval/a/b/mean@8", "time/a/b"])
def test_other_names_are_not(name):
    assert not is_documented(name)


def test_an_undocumented_name_is_refused_and_nothing_is_written(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match="'loss/totall' is not documented"):
            writer.write(1, {REWARD: 0.5, "loss/totall": 1.0})
        writer.write(1, {REWARD: 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, REWARD: 0.5}]


def test_the_table_has_a_row_for_every_metric():
    assert len(table().splitlines()) == 2 + len(METRICS)
    assert f"| `{REWARD}` | {METRICS[REWARD]} |" in table()


# ---- lines --------------------------------------------------------------------------------------


def test_a_step_is_one_object_with_the_step_and_plain_numbers(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(
            12,
            {
                REWARD: np.float32(0.5),
                "loss/total": jnp.float32(-0.25),
                "buffer/entries": 7,
                "actor/update_skipped": np.bool_(True),
            },
        )
    expected = (
        '{"step": 12, "rollout/reward_mean": 0.5, "loss/total": -0.25, "buffer/entries": 7.0,'
        ' "actor/update_skipped": 1.0}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_a_line_can_be_read_before_the_writer_is_closed(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {REWARD: 0.5})
        assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, REWARD: 0.5}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    values = {REWARD: math.nan, "loss/total": math.inf, "loss/policy": -math.inf}
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, values)
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, **dict.fromkeys(values)}]


def test_a_step_is_written_once_also_by_the_next_process(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(3, {REWARD: 0.5})
        with pytest.raises(ValueError, match="step 3 come after those of step 3"):
            writer.write(3, {REWARD: 0.5})
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match="step 2 come after those of step 3"),
    ):
        writer.write(2, {REWARD: 0.5})


def test_events_are_lines_and_are_never_cut(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.event("start", 0)
        writer.event("checkpoint_damaged", 4, {"reason": "arrays", "loss": math.nan})
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate(0)
        writer.event("resume", 2)
    assert lines(tmp_path / "events.jsonl") == [
        {"event": "start", "step": 0},
        {"event": "checkpoint_damaged", "step": 4, "reason": "arrays", "loss": None},
        {"event": "resume", "step": 2},
    ]


def test_an_inactive_writer_checks_names_and_writes_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", active=False) as writer:
        writer.write(1, {REWARD: 0.5})
        writer.event("start", 0)
        writer.truncate(10)
        assert writer.byte_length() == 0
        with pytest.raises(ValueError, match="not documented"):
            writer.write(2, {"unknown/name": 0.5})
    assert not (tmp_path / "run").exists()


# ---- resuming -----------------------------------------------------------------------------------


def test_a_resumed_run_leaves_the_file_of_a_run_that_was_never_stopped(tmp_path):
    write_steps(tmp_path / "straight", 1, 2, 3, 4, 5)
    length = write_steps(tmp_path / "resumed", 1, 2)
    write_steps(tmp_path / "resumed", 3, 4)  # after the checkpoint, then killed
    with MetricsWriter(tmp_path / "resumed", tensorboard=False) as writer:
        writer.truncate(length)
        for step in (3, 4, 5):
            writer.write(step, {REWARD: step / 10})
    straight, resumed = (tmp_path / name / "metrics.jsonl" for name in ("straight", "resumed"))
    assert resumed.read_bytes() == straight.read_bytes()


def test_starting_over_empties_the_file(tmp_path):
    write_steps(tmp_path, 1, 2)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate(0)
        writer.write(0, {REWARD: 0.0})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 0, REWARD: 0.0}]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    write_steps(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    write_steps(tmp_path, 2, 3)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_a_file_of_one_cut_line_becomes_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rollout/rew')
    (tmp_path / "events.jsonl").write_text('{"event"')
    write_steps(tmp_path, 1)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1]
    assert (tmp_path / "events.jsonl").read_text() == ""


def test_a_very_long_last_line_is_handled(tmp_path):
    row = {"step": 5, **{f"eval/level{index}/mean@8": index / 7 for index in range(9000)}}
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n' + json.dumps(row) + "\n")
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match="step 5 come after those of step 5"),
    ):
        writer.write(5, {REWARD: 0.5})


def test_a_file_shorter_than_the_checkpoint_knows_is_kept_and_reported(tmp_path):
    length = write_steps(tmp_path, 1, 2, 3)
    os.truncate(tmp_path / "metrics.jsonl", length - 5)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate(length)
        writer.write(4, {REWARD: 0.4})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 4]
    (event,) = lines(tmp_path / "events.jsonl")
    assert event["event"] == "metrics_lost"
    assert event["expected_bytes"] == length
    assert event["found_bytes"] < length


def test_a_spoilt_last_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match=r"last line of .*metrics\.jsonl is not a step's metrics"),
    ):
        writer.write(1, {REWARD: 0.5})


# ---- TensorBoard --------------------------------------------------------------------------------


def test_tensorboard_has_the_same_values_and_no_step_twice_after_a_resume(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    length = write_steps(tmp_path, 1, 2, tensorboard=True)
    write_steps(tmp_path, 3, 4, tensorboard=True)  # after the checkpoint, then killed
    with MetricsWriter(tmp_path) as writer:
        writer.truncate(length)
        for step in (3, 4, 5):
            writer.write(step, {REWARD: step / 100, "loss/total": math.nan})
    reader = events.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert reader.Tags()["scalars"] == [REWARD]  # a number that is not finite is left out
    points = [(event.step, event.value) for event in reader.Scalars(REWARD)]
    expected = [(1, 0.1), (2, 0.2), (3, 0.03), (4, 0.04), (5, 0.05)]
    assert points == [(step, pytest.approx(value)) for step, value in expected]


def test_without_tensorboard_there_is_no_folder(tmp_path):
    write_steps(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "metrics.jsonl"]


# ---- finite -------------------------------------------------------------------------------------


def test_a_metric_that_is_not_finite_stops_the_run_with_its_name_and_step():
    check_finite({REWARD: 0.5, "loss/total": 1.0}, 7)
    with pytest.raises(NonFiniteMetric, match="loss/total is nan at step 7"):
        check_finite({REWARD: 0.5, "loss/total": float("nan")}, 7)
    with pytest.raises(NonFiniteMetric, match="actor/grad_norm is inf at step 7"):
        check_finite({"actor/grad_norm": float("inf"), "actor/update_skipped": 0}, 7)


def test_a_skipped_update_may_have_no_finite_loss_but_its_rewards_must_be_finite():
    skipped = {"actor/update_skipped": 1, "loss/total": float("nan")}
    check_finite(skipped, 7)
    with pytest.raises(NonFiniteMetric, match=REWARD):
        check_finite({**skipped, REWARD: float("nan")}, 7)


# ---- sample files -------------------------------------------------------------------------------


def test_sample_files_are_json_lines_with_every_kind_of_text(tmp_path):
    rows = [
        {"response": 'Malmö 日\n"x"', "advantage": -0.5, "entropy": np.array([0.5, math.nan])},
        {"response": "half of a pair: \udce4", "route": "medium", "teacher": None},
    ]
    path = write_step_file(tmp_path, 20, rows)
    assert path == tmp_path / "samples" / "20.jsonl"
    assert lines(path) == [{**rows[0], "entropy": [0.5, None]}, rows[1]]


def test_a_sample_file_is_whole_or_not_there(tmp_path):
    def rows():
        yield {"response": "first"}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_step_file(tmp_path, 20, rows())
    assert step_files(tmp_path) == []


def test_a_resume_deletes_the_files_that_the_checkpoint_does_not_list(tmp_path):
    for step in (20, 100, 40):
        write_step_file(tmp_path, step, [{"step": step}])
    (tmp_path / "samples" / "120.jsonl.tmp").write_text("half")
    (tmp_path / "samples" / "notes.jsonl").write_text("a person's own")
    assert step_files(tmp_path) == ["20.jsonl", "40.jsonl", "100.jsonl"]
    assert prune_step_files(tmp_path, ["20.jsonl", "40.jsonl"]) == ["100.jsonl"]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["20.jsonl", "40.jsonl", "notes.jsonl"]


def test_files_of_an_absent_folder_are_none(tmp_path):
    assert step_files(tmp_path, folder="eval") == []
    assert prune_step_files(tmp_path, ["20.jsonl"], folder="eval") == []


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (8, 0.25, [0, 4]),
        (8, 1.0, list(range(8))),
        (8, 0.0, []),
        (8, 0.01, [0]),
        (0, 0.5, []),
        (10, 0.3, [0, 3, 6]),
    ],
)
def test_token_detail_is_spread_evenly_over_the_samples(count, fraction, expected):
    assert detail_rows(count, fraction) == expected
