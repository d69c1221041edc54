"""The loop as a whole: it resumes to the same bits, from any place and after any end."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from drift_jax import batching, grading, train
from drift_jax import config as configs
from drift_jax.checkpoint import Checkpoints, parse_fork
from drift_jax.metrics import MetricsWriter
from drift_jax.reporting import RunStopped
from drift_jax.types import Score
from tests import small_run
from tests.small_run import STEPS, WARMUP_STEPS

EVERY_STEP = {"checkpoint__every": 1, "checkpoint__keep_last": STEPS}
NOTHING_IS_LEARNT = {
    "curriculum__warmup_steps": 99,
    "warmup__distill_correct": 0.0,
    "warmup__distill_wrong": 0.0,
}
# Two steps and nothing around them.
BARE = {"evaluation__at_start": False, "evaluation__max_problems": 4, "train__steps": 2}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that was never stopped, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("straight")
    assert small_run.run(small_run.config(**EVERY_STEP), folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The same run, stopped or killed five times; what each stop left is in its parent folder."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    settings = small_run.config()  # checkpoints of every second step
    for step in (2, 3):  # in stage 1; between two epochs
        with small_run.at_step(step, small_run.terminate):
            assert not small_run.run(settings, folder)
        shutil.copytree(folder, folder.parent / f"stopped_{step}")
    # Killed in stage 2 with the checkpoint of step 4, the last of stage 1, as the newest.
    with small_run.at_step(6, small_run.kill), pytest.raises(small_run.Killed):
        small_run.run(settings, folder)
    shutil.copytree(folder, folder.parent / "killed_6")
    with small_run.at_step(6, small_run.terminate):  # in stage 2, between two epochs
        assert not small_run.run(settings, folder)
    assert small_run.run(settings, folder)
    return folder


def resumed_from(folder: Path) -> list[int]:
    """Steps of the checkpoints that a run went on from, in the order of its diary."""
    diary = small_run.lines(folder, "events.jsonl")
    return [event["step"] for event in diary if event["event"] == "resume"]


# ---- resume -------------------------------------------------------------------------------------


def test_the_small_run_sees_everything_that_a_resume_must_carry_over(straight):
    rows = small_run.metrics(straight)
    assert [row["step"] for row in rows] == [*range(STEPS + 1)]
    stage_1, stage_2 = rows[1 : WARMUP_STEPS + 1], rows[WARMUP_STEPS + 1 :]
    assert all(row["routing/policy_fraction"] == 0 for row in stage_1)
    assert all(row["routing/policy_fraction"] > 0 for row in stage_2)
    assert all(row["rhythm/rows"] > 0 for row in stage_2)
    assert all(row["buffer/fallback_hits"] == 0 for row in rows[1 : small_run.STEPS_PER_EPOCH + 1])
    assert sum(row["buffer/fallback_hits"] for row in stage_2) > 0


def test_the_interrupted_run_went_on_from_where_it_stopped(interrupted):
    assert resumed_from(interrupted) == [2, 3, 4, 6]


def test_stop_and_resume_gives_the_bits_of_a_run_that_was_never_stopped(straight, interrupted):
    settings = small_run.config()
    state, host = small_run.checkpoint(settings, straight)
    other_state, other_host = small_run.checkpoint(settings, interrupted)
    small_run.assert_same_bits(state, other_state)  # parameters, optimizer, EMA teacher, step
    assert host["memory"] == other_host["memory"]  # pass rates, buffer, tokens so far
    assert len(host["memory"]["buffer"]["problems"]) > 10
    assert len(host["memory"]["pass_rates"]) > 0


@pytest.mark.parametrize("step", [2, 3])
def test_a_stop_saves_the_step_in_hand_as_the_straight_run_had_it(straight, interrupted, step):
    settings = small_run.config()
    stopped = interrupted.parent / f"stopped_{step}"
    assert Checkpoints(stopped).latest_step() == step
    state, host = small_run.checkpoint(settings, stopped)
    expected, expected_host = small_run.checkpoint(settings, straight, step)
    small_run.assert_same_bits(state, expected)
    assert host["memory"] == expected_host["memory"]
    assert small_run.lines(stopped, "events.jsonl")[-1] == {"event": "stop", "step": step}


def test_metrics_of_a_resumed_run_are_those_of_the_straight_run(straight, interrupted):
    assert small_run.metrics(interrupted) == small_run.metrics(straight)


def test_samples_and_evaluations_of_a_resumed_run_are_those_of_the_straight_run(
    straight, interrupted
):
    for name in ("samples", "eval"):
        assert small_run.files(interrupted, name) == small_run.files(straight, name)
    assert set(small_run.files(straight, "samples")) == {f"{n}.jsonl" for n in range(1, STEPS + 1)}


def test_what_a_killed_run_wrote_after_its_checkpoint_is_cut_off(straight, interrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(interrupted.parent / "killed_6", folder)
    assert [row["step"] for row in small_run.lines(folder)][-2:] == [5, 6]
    assert (folder / "samples" / "5.jsonl").exists()
    seen = []
    with (
        small_run.at_step(5, lambda: seen.append(sorted(small_run.files(folder, "samples")))),
        small_run.at_step(5, small_run.terminate),
    ):
        assert not small_run.run(small_run.config(logging__samples_every=0), folder)
    # The surplus sample went away at once, not when it was written over.
    assert seen == [["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl"]]
    assert small_run.metrics(folder) == small_run.metrics(straight)[:6]


def test_tensorboard_shows_each_step_once_however_often_a_run_was_stopped(straight, interrupted):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def points(folder: Path, name: str) -> list[tuple[int, float]]:
        reader = events.EventAccumulator(str(folder / "tensorboard"))
        reader.Reload()
        return [(event.step, event.value) for event in reader.Scalars(name)]

    for name, first in (("rollout/reward_mean", 1), ("loss/total", 1), ("eval/length_mean", 0)):
        found = points(interrupted, name)
        assert found == points(straight, name)
        assert [step for step, _ in found] == [
            row["step"] for row in small_run.lines(straight) if name in row
        ]
        assert found[0][0] == first


def test_the_newest_valid_checkpoint_is_resumed_and_never_the_best(straight, tmp_path):
    folder = tmp_path / "run"
    unwanted = shutil.ignore_patterns("1", "2", "3", "5", "6")
    shutil.copytree(straight, folder, ignore=unwanted)
    for file in (folder / "checkpoints" / "8" / "host").iterdir():
        file.write_bytes(b"")
    assert Checkpoints(folder).best_step() in (4, 8)  # the only ones with an evaluation
    assert small_run.run(small_run.config(), folder)
    assert resumed_from(folder) == [7]
    assert small_run.metrics(folder) == small_run.metrics(straight)


def test_lengths_and_intervals_may_change_on_resume_and_change_no_number(
    straight, interrupted, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(interrupted.parent / "stopped_2", folder)
    changed = {
        "train__steps": 3,
        "evaluation__every": 1,
        "checkpoint__every": 1,
        "logging__every": 2,
        "logging__samples_every": 3,
        "logging__samples_token_detail_fraction": 1.0,
    }
    assert small_run.run(small_run.config(**changed), folder)
    *_, last = small_run.metrics(folder)
    expected = small_run.metrics(straight)[3]
    assert {name: last[name] for name in expected} == expected
    assert {name for name in last if name not in expected} >= {"eval/mean@2", "eval/best@2"}


def test_a_finished_run_ends_at_once_and_writes_nothing_new(straight, capsys):
    before = small_run.snapshot(straight)
    capsys.readouterr()
    assert small_run.run(small_run.config(**EVERY_STEP), straight)
    table = capsys.readouterr().out
    assert small_run.snapshot(straight) == before
    assert "step" not in table.partition("problems")[0]
    assert "mean@2" in table and "best@2" in table and str(straight) in table


def test_entries_that_were_replaced_before_a_stop_are_not_counted_again(tmp_path, monkeypatch):
    def generous(response: str, answer: str) -> Score:
        return Score(1.0, response, True, "")

    # Where every text is right, entries of a full buffer give way to others.
    monkeypatch.setattr(grading, "grader_for", lambda task: generous)
    values = BARE | {"train__steps": 5, "buffer__capacity": 1, "buffer__on_tie": "newest"}
    settings = small_run.config(**values)
    assert small_run.run(settings, tmp_path / "straight")
    with small_run.at_step(4, small_run.terminate):
        assert not small_run.run(settings, tmp_path / "stopped")
    assert small_run.run(settings, tmp_path / "stopped")
    rows = small_run.metrics(tmp_path / "stopped")
    assert rows == small_run.metrics(tmp_path / "straight")
    assert rows[4]["buffer/replaced"] > 0 < rows[5]["buffer/replaced"]


# ---- forks --------------------------------------------------------------------------------------


def test_a_fork_starts_a_new_run_with_changed_values_and_its_lineage(straight, tmp_path):
    folder, fork = tmp_path / "fork", parse_fork(f"{straight}@4")
    before = small_run.snapshot(straight)
    changed = small_run.config(difficulty__hard_weight=0.25, train__steps=6)
    # Killed before it had a checkpoint of its own; the same command begins the fork again.
    with small_run.at_step(5, small_run.kill), pytest.raises(small_run.Killed):
        small_run.run(changed, folder, fork)
    assert small_run.run(changed, folder, fork)
    assert small_run.snapshot(straight) == before

    record = json.loads((folder / "config.json").read_text())
    assert record["lineage"] == {"directory": str(straight), "step": 4}
    assert record["config"]["difficulty"]["hard_weight"] == 0.25
    first, second = small_run.metrics(folder)
    expected = small_run.metrics(straight)[5]
    assert (first["step"], second["step"]) == (5, 6)
    # It samples what the other run sampled, and learns otherwise from it.
    assert first["rollout/reward_mean"] == expected["rollout/reward_mean"]
    assert first["buffer/entries"] == expected["buffer/entries"]
    assert first["routing/weight_mean"] != expected["routing/weight_mean"]


def test_a_fork_with_another_estimate_of_pass_rates_is_refused_in_one_line(straight, tmp_path):
    fork = parse_fork(f"{straight}@4")
    with pytest.raises(configs.ConfigError, match="difficulty.estimate=beta") as error:
        small_run.run(small_run.config(difficulty__estimate="beta"), tmp_path / "fork", fork)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "fork" / "metrics.jsonl").exists()


# ---- random numbers -----------------------------------------------------------------------------


def responses(folder: Path) -> dict[str, list[tuple[int, list[str]]]]:
    """(step, responses of the group) of every visit, by problem."""
    visits: dict[str, list[tuple[int, list[str]]]] = {}
    for name in sorted(small_run.files(folder, "samples")):
        group: dict[str, list[str]] = {}
        for sample in small_run.lines(folder / "samples", name):
            group.setdefault(sample["id"], []).append(sample["response"])
        for problem, texts in group.items():
            visits.setdefault(problem, []).append((int(name.partition(".")[0]), texts))
    return visits


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> dict[int, dict[str, list[tuple[int, list[str]]]]]:
    """What a policy that never changes says in five steps, for two seeds."""
    found = {}
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"seed_{seed}")
        values = {**BARE, **NOTHING_IS_LEARNT, "train__steps": 5, "seed": seed}
        assert small_run.run(small_run.config(**values), folder)
        found[seed] = responses(folder)
    return found


def test_two_steps_draw_different_samples(frozen):
    again = [visits for visits in frozen[0].values() if len(visits) > 1]
    assert len(again) > 30
    differing = [visits for visits in again if visits[0][1] != visits[1][1]]
    assert len(differing) > len(again) / 2


def test_the_rollouts_of_a_group_differ(frozen):
    groups = [texts for visits in frozen[0].values() for _, texts in visits]
    assert sum(len(set(texts)) > 1 for texts in groups) > len(groups) / 2


def test_another_seed_draws_other_problems_and_other_samples(frozen):
    first = [
        {problem for problem, visits in run.items() if visits[0][0] == 1} for run in frozen.values()
    ]
    assert first[0] != first[1]
    shared = frozen[0].keys() & frozen[1].keys()
    assert len(shared) > 50
    differing = [name for name in shared if frozen[0][name][0][1] != frozen[1][name][0][1]]
    assert len(differing) > len(shared) / 2


# ---- compilation --------------------------------------------------------------------------------


@contextlib.contextmanager
def lowerings() -> Iterator[list[int]]:
    """Counts functions that are handed to the compiler, whether it has them in its cache or not."""
    count = [0]

    def listen(event: str, seconds: float, **_: Any) -> None:
        count[0] += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_ten_steps_of_different_lengths_compile_nothing_after_the_first_of_each_shape(
    tmp_path, monkeypatch
):
    settings = small_run.config(
        **BARE | {"train__steps": 11, "evaluation__every": 0, "checkpoint__every": 0},
        rollout__problems_per_step=2,
        rollout__temperature=1.5,  # responses of every length
        rollout__max_new_tokens=14,  # medium problems too: their answers take 13 tokens
        rollout__segment_steps=14,
        rollout__response_buckets=(9, 14),
        data__max_prompt_tokens=19,
        rollout__prompt_buckets=(19,),
        teacher__max_prompt_tokens=33,
        teacher__prompt_buckets=(33,),
    )
    shapes, compiled = [], []
    make, write = batching.make, MetricsWriter.write

    def making(*arguments: Any, **keywords: Any) -> batching.Batch:
        batch = make(*arguments, **keywords)
        shapes.append((batch.student_tokens.shape, batch.response.shape))
        return batch

    monkeypatch.setattr(batching, "make", making)
    with lowerings() as count:

        def writing(self: MetricsWriter, step: int, metrics: Any) -> None:
            compiled.append(count[0])
            count[0] = 0
            write(self, step, metrics)

        monkeypatch.setattr(MetricsWriter, "write", writing)
        assert small_run.run(settings, tmp_path)
    # The first entry is the gate's, before step 1; the last step has an evaluation too.
    by_step = list(zip(shapes[:10], compiled[1:11], strict=True))
    assert min(shapes[:10].count(shape) for shape in shapes) > 1 < len(set(shapes))
    lengths = {
        tuple(sample["length"] for sample in small_run.lines(tmp_path / "samples", f"{step}.jsonl"))
        for step in range(1, 11)
    }
    assert len(lengths) > len(set(shapes))
    known: set[Any] = set()
    for shape, new in by_step:
        assert new == 0 or shape not in known, f"{new} compiled again for {shape}"
        known.add(shape)
    assert compiled[1] > 0  # the count counts


# ---- stages -------------------------------------------------------------------------------------


def test_a_warm_up_for_ever_never_leaves_stage_1(tmp_path):
    settings = small_run.config(
        **BARE | {"train__steps": 6}, curriculum__warmup_steps=0, curriculum__warmup_epochs=1e6
    )
    assert small_run.run(settings, tmp_path)
    rows = small_run.lines(tmp_path)[1:]
    assert len(rows) == 6 > WARMUP_STEPS
    assert all(row["routing/policy_fraction"] == 0 for row in rows)
    assert all(row["loss/policy"] == 0 and row["rhythm/weight_max"] == 1 for row in rows)
    assert all(row["routing/distill_fraction"] > 0 for row in rows)


# ---- numbers that are not finite ----------------------------------------------------------------


def test_a_run_whose_loss_turns_non_finite_skips_counts_and_stops_with_its_state_saved(
    tmp_path, monkeypatch
):
    settings = small_run.config(
        **BARE | {"train__steps": 9, "checkpoint__every": 1, "checkpoint__keep_last": 9},
        train__max_skipped=2,
    )
    make, steps = batching.make, iter(range(1, 10))

    def making(*arguments: Any, advantages: np.ndarray, **keywords: Any) -> batching.Batch:
        bad = next(steps) in (2, 4, 5)
        return make(*arguments, advantages=advantages + (np.nan if bad else 0), **keywords)

    monkeypatch.setattr(batching, "make", making)
    with pytest.raises(RunStopped) as stopped:
        small_run.run(settings, tmp_path)
    text = str(stopped.value)
    assert "\n" not in text and "step 5: 2 updates in a row" in text and str(tmp_path) in text

    rows = small_run.lines(tmp_path)[1:]
    assert [row["actor/update_skipped"] for row in rows] == [0, 1, 0, 1, 1]
    assert rows[4]["loss/total"] is None  # not a number, and JSON has no word for it
    assert all(row["rollout/reward_mean"] > 0 for row in rows)
    assert Checkpoints(tmp_path).steps() == (1, 2, 3, 4, 5)
    states = {step: small_run.checkpoint(settings, tmp_path, step)[0] for step in range(1, 6)}
    for part in ("trainable", "optimizer", "teacher"):
        for kept, skipped in ((1, 2), (3, 4), (3, 5)):
            small_run.assert_same_bits(getattr(states[kept], part), getattr(states[skipped], part))
    assert [int(state.skipped) for state in states.values()] == [0, 1, 0, 1, 2]
    with pytest.raises(AssertionError, match="embed_tokens"):  # the good step between was taken
        small_run.assert_same_bits(states[1].trainable, states[3].trainable)


# ---- problems -----------------------------------------------------------------------------------


def test_the_metrics_say_how_many_prompts_were_dropped_as_too_long(straight):
    assert small_run.lines(straight)[0]["data/dropped_prompts"] == 256 - 65


@pytest.mark.slow
def test_eight_devices_do_what_one_does(straight, tmp_path):
    settings = small_run.config(train__steps=2, evaluation__every=0)
    assert train.train(settings, str(tmp_path))
    rows, expected_rows = (small_run.metrics(folder)[1:3] for folder in (tmp_path, straight))
    for row, expected in zip(rows, expected_rows, strict=True):
        for name in ("rollout/reward_mean", "loss/total", "actor/grad_norm", "buffer/entries"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-3)
