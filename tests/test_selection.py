"""Last step, best on validation, peak on test: picked apart, kept, and the same after a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from drift_jax import assemble, evaluate, selection
from drift_jax.checkpoint import Checkpoints, parse_fork
from drift_jax.examination import examination
from drift_jax.selection import BEST, LAST, PEAK, picks
from tests import small_run
from tests.small_run import STEPS


def row(step: int, score: float | None, validation: float | None = None) -> dict[str, Any]:
    """A row of metrics.jsonl, with what must not be mistaken for the score."""
    made: dict[str, Any] = {"step": step, "rollout/reward_mean": 0.99, "eval/hard/mean@8": 0.98}
    if score is not None:
        made |= {"eval/mean@8": score, "eval/best@8": 0.97, "eval/teacher_mean@4": 0.96}
    return made if validation is None else made | {"validation/mean@4": validation}


def steps(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {pick.name: pick.step for pick in picks(rows)}


# ---- picking ------------------------------------------------------------------------------------


def test_the_three_are_different_steps_and_best_is_blind_to_the_test_score():
    rows = [row(0, 0.9, 0.9), row(1, 0.6, 0.2), row(2, 0.3, 0.5), row(3, 0.4, 0.4), row(4, None)]
    assert steps(rows) == {LAST: 3, BEST: 2, PEAK: 1}
    best = picks(rows)[1]
    assert (best.measure, best.score, best.validation) == ("mean@8", 0.3, ("mean@4", 0.5))


def test_what_came_before_training_is_never_picked():
    assert picks([row(0, 0.9, 0.9)]) == []
    assert picks([]) == []


def test_of_equal_scores_the_later_step_counts_as_it_does_for_checkpoints():
    assert steps([row(1, 0.5, 0.5), row(2, 0.5, 0.5), row(3, 0.4, 0.4)]) == {
        LAST: 3, BEST: 2, PEAK: 2,
    }  # fmt: skip


def test_without_validation_there_is_no_best():
    assert steps([row(1, 0.5), row(2, 0.4)]) == {LAST: 2, PEAK: 1}


def test_the_lines_say_what_is_honest_and_what_is_optimistic(tmp_path):
    rows = [row(0, 0.1, 0.1), row(1, 0.6, 0.2), row(2, 0.5, 0.5)]
    text = "".join(json.dumps(one) + "\n" for one in rows) + '{"step": 3, "eval/me'
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "eval").mkdir()
    problems = [{"rewards": [1.0, 1.0]}, {"rewards": [0.0, 0.4]}]
    (tmp_path / "eval" / "1.json").write_text(json.dumps({"problems": problems}))
    last, best, peak = selection.lines(tmp_path, "test")
    assert last == "last: step 2, test mean@8 50.0 %"
    assert best == "best on validation: step 2, test mean@8 50.0 % (validation mean@4 50.0 %)"
    assert peak.startswith("peak on test: step 1, test mean@8 60.0 [20.0, 100.0] % (as the paper")
    assert "optimistic" in peak and "optimistic" not in last + best


def test_a_folder_without_a_run_has_no_lines(tmp_path):
    assert selection.lines(tmp_path) == []


# ---- in a run -----------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "data__validation_fraction": 0.1,
    "evaluation__every": 1,
    "evaluation__max_problems": 6,
    "evaluation__validation_samples": 2,
    "evaluation__teacher_samples": 0,
    "checkpoint__every": 3,
    "checkpoint__keep_last": 1,
    "logging__samples_every": 0,
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("selection") / "run"
    assert small_run.run(small_run.config(**VALUES), folder)
    return folder


def test_validation_is_evaluated_with_test_and_on_its_own_problems(straight):
    rows = small_run.lines(straight)
    assert [step for step, one in enumerate(rows) if "validation/mean@2" in one] == list(
        range(STEPS + 1)
    )
    for one in rows:
        file = straight / "validation" / f"{one['step']}.json"
        problems = json.loads(file.read_text())["problems"]
        assert [problem["id"].split("/")[1] for problem in problems] == ["validation"] * 6
        rewards = [reward for problem in problems for reward in problem["rewards"]]
        assert one["validation/mean@2"] == pytest.approx(sum(rewards) / 12)
    test = json.loads((straight / "eval" / "3.json").read_text())["problems"]
    assert {problem["id"].split("/")[1] for problem in test} == {"test"}


def test_the_best_step_has_a_checkpoint_though_none_was_due_and_the_last_has_one_too(straight):
    best = {pick.name: pick for pick in picks(small_run.lines(straight))}
    with Checkpoints(straight) as checkpoints:
        assert checkpoints.best_step() == best[BEST].step
        assert checkpoints.latest_step() == best[LAST].step == STEPS
        assert set(checkpoints.steps()) == {best[BEST].step, STEPS}
    values = [one["validation/mean@2"] for one in small_run.lines(straight)]
    assert values[best[BEST].step] == max(values[1:])


def test_evaluating_on_validation_changes_no_other_number(straight, tmp_path):
    off = VALUES | {"data__validation_fraction": 0.0}
    assert small_run.run(small_run.config(**off), tmp_path / "run")
    rows = small_run.metrics(straight)
    for one in rows:
        del one["validation/mean@2"]
    assert small_run.metrics(tmp_path / "run") == rows
    assert not (tmp_path / "run" / "validation").exists()


def test_a_stopped_and_killed_run_picks_and_keeps_the_same(straight, tmp_path):
    folder = tmp_path / "run"
    settings = small_run.config(**VALUES)
    with small_run.at_step(2, small_run.terminate):
        assert not small_run.run(settings, folder)
    with small_run.at_step(5, small_run.kill), pytest.raises(small_run.Killed):
        small_run.run(settings, folder)
    assert small_run.run(settings, folder)
    assert small_run.metrics(folder) == small_run.metrics(straight)
    assert selection.lines(folder) == selection.lines(straight)
    assert Checkpoints(folder).steps() == Checkpoints(straight).steps()
    for step in Checkpoints(straight).steps():
        (state, host), (same, other) = (
            small_run.checkpoint(settings, where, step) for where in (straight, folder)
        )
        small_run.assert_same_bits(state, same)
        assert host["memory"] == other["memory"]
        assert host["memory"]["best_validation"] is not None


def test_a_fork_starts_without_the_best_of_its_origin(straight, tmp_path):
    fork = parse_fork(f"{straight}@{STEPS}")
    settings = small_run.config(**(VALUES | {"train__steps": STEPS + 1}))
    shutil.copytree(straight, tmp_path / "origin")
    assert small_run.run(settings, tmp_path / "fork", fork)
    [only] = small_run.lines(tmp_path / "fork")
    assert Checkpoints(tmp_path / "fork").best_step() == STEPS + 1
    _, host = small_run.checkpoint(settings, tmp_path / "fork")
    assert host["memory"]["best_validation"] == only["validation/mean@2"]


def test_the_run_and_evaluate_report_the_same_three_lines(straight, capsys):
    settings = small_run.config(**VALUES)
    capsys.readouterr()
    assert small_run.run(settings, straight)  # finished: it prints its table and no more
    table = capsys.readouterr().out
    expected = selection.lines(straight)
    assert [line.partition(":")[0] for line in expected] == [LAST, BEST, "peak on test"]
    assert all(line in table for line in expected)
    with small_run.one_device():
        file = evaluate.evaluate(settings, str(straight), step="best", model=None)
    printed = capsys.readouterr().out
    assert all(line in printed for line in expected)
    assert file.name == f"test_{Checkpoints(straight).best_step()}.jsonl"


def test_a_task_of_files_takes_its_share_and_other_splits_are_not_asked_twice():
    for values in ({"evaluation__split": "validation"}, {"data__validation_fraction": 0.0}):
        assert exam_of(**(VALUES | values)).validation is None
    held_back = exam_of(**VALUES).validation
    assert held_back is not None
    assert (held_back.samples, held_back.teacher_samples, len(held_back.problems)) == (2, 0, 6)


def exam_of(**values: Any) -> Any:
    settings = small_run.config(**values)
    with small_run.one_device():
        tokenizer, mesh = assemble.open_tokenizer(settings), assemble.make_mesh(settings)
        model, _ = assemble.open_model(settings, tokenizer, mesh)
        return examination(settings, model, tokenizer, mesh)
