"""Evaluations of a policy, of its self-teacher, and the gate before training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_jax import assemble, examination
from drift_jax.data import source
from drift_jax.examination import Examination, Gate
from drift_jax.metrics import is_documented
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.types import Problem
from tests import small_run
from tests.tool_rows import write_tool_rows

PROBLEMS, SAMPLES = 19, 2


class Parts:
    """The packaged model with its examination; equal to what a small run makes."""

    def __init__(self, **values: Any) -> None:
        self.config = small_run.config(**values)
        with small_run.one_device():
            self.tokenizer = assemble.open_tokenizer(self.config)
            self.mesh = assemble.make_mesh(self.config)
            self.model: ModelConfig
            self.params: Params
            self.model, self.params = assemble.open_model(self.config, self.tokenizer, self.mesh)
        self.exam: Examination = examination.examination(
            self.config, self.model, self.tokenizer, self.mesh
        )


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.fixture(scope="module")
def result(parts) -> tuple[dict[str, float], Any]:
    return examination.examine(parts.exam, parts.params, parts.params, step=0)


# ---- the evaluation -----------------------------------------------------------------------------


def test_equal_seeds_give_equal_evaluations_and_other_seeds_and_steps_do_not(parts, result):
    metrics, answers = result
    again, same = examination.examine(parts.exam, parts.params, parts.params, step=0)
    assert again == metrics
    assert same.responses == answers.responses
    other = Parts(seed=1)
    for exam, step in ((other.exam, 0), (parts.exam, 1)):
        responses = exam.student(parts.params, step).responses
        differing = sum(a != b for a, b in zip(responses, answers.responses, strict=True))
        assert differing > PROBLEMS / 4
        assert [problem.id for problem in exam.problems] == [p.id for p in parts.exam.problems]


def test_an_evaluation_does_not_depend_on_how_many_problems_are_sampled_at_once(parts, result):
    few = Parts(evaluation__problems_per_batch=7, rollout__problems_per_step=2)
    assert few.exam.sampler.max_rows < parts.exam.sampler.max_rows
    answers = few.exam.student(parts.params, 0)
    same = [a == b for a, b in zip(answers.responses, result[1].responses, strict=True)]
    assert np.mean(same) > 0.9  # but for draws within rounding of a boundary


def test_the_aggregates_are_those_of_the_samples(parts, result):
    metrics, answers = result
    assert answers.rewards.shape == (PROBLEMS, SAMPLES)
    assert metrics["eval/mean@2"] == pytest.approx(answers.rewards.mean())
    assert metrics["eval/mean@2"] <= metrics["eval/best@2"] <= answers.rewards.max(axis=1).mean()
    assert metrics["eval/length_mean"] == pytest.approx(answers.lengths.mean())
    assert metrics["eval/truncated_fraction"] == pytest.approx(1 - answers.finished.mean())
    assert [name for name in metrics if not is_documented(name)] == []


def test_the_self_teacher_is_measured_on_the_problems_that_the_student_solved(parts, result):
    metrics, answers = result
    solved = answers.rewards.max(axis=1) > 0
    assert 0 < solved.sum() < PROBLEMS
    assert metrics["eval/teacher_problems"] == pytest.approx(solved.mean())
    student = answers.rewards[solved].mean()
    assert metrics["teacher/gap"] == pytest.approx(metrics["eval/teacher_mean@2"] - student)
    # A base that passes the gate reads the solution that it is shown.
    assert metrics["eval/teacher_mean@2"] > student > answers.rewards.mean()


@pytest.mark.parametrize("switched_off", ["no teacher", "no samples"])
def test_without_a_self_teacher_nothing_is_said_of_one(parts, result, switched_off):
    if switched_off == "no teacher":
        exam, teacher = parts.exam, None
    else:
        exam, teacher = Parts(evaluation__teacher_samples=0).exam, parts.params
    metrics, _ = examination.examine(exam, parts.params, teacher, step=0)
    assert not [name for name in metrics if "teacher" in name]
    assert metrics["eval/mean@2"] == result[0]["eval/mean@2"]


def test_the_result_file_holds_every_sample_of_every_problem(parts, result, tmp_path):
    metrics, answers = result
    examination.write_result(tmp_path / "eval", parts.exam, answers, metrics, step=40)
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["40.json"]
    written = json.loads((tmp_path / "eval" / "40.json").read_text(encoding="utf-8"))
    assert (written["step"], written["metrics"]) == (40, metrics)
    assert [row["id"] for row in written["problems"]] == [p.id for p in parts.exam.problems]
    for i, row in enumerate(written["problems"]):
        assert row["level"] == parts.exam.problems[i].level
        assert row["responses"] == answers.responses[i]
        assert row["predictions"] == answers.predictions[i]
        assert row["rewards"] == answers.rewards[i].tolist()
        assert len(row["lengths"]) == len(row["finished"]) == len(row["rewards"]) == SAMPLES


# ---- levels -------------------------------------------------------------------------------------


def problems(*levels: str) -> list[Problem]:
    turn = {"role": "user", "content": "?"}
    return [Problem(f"p/{i}", "p", (turn,), "A", level) for i, level in enumerate(levels)]


def test_rewards_are_split_by_level_in_order_of_appearance():
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    groups = examination.by_level(problems("hard", "easy", "hard"), rewards)
    assert list(groups) == ["all", "hard", "easy"]
    np.testing.assert_array_equal(groups["all"], rewards)
    np.testing.assert_array_equal(groups["hard"], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(groups["easy"], [[0, 0]])


def test_problems_of_one_level_have_no_rows_of_their_own():
    assert list(examination.by_level(problems("", ""), np.ones((2, 1)))) == ["all"]


# ---- the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taught", "passed", "verdict"),
    [
        (0.85, True, "at least 0.85: the self-teacher can teach"),
        (0.8499, False, "under 0.85: the self-teacher cannot teach; warm-start the base longer"),
        (1.0, True, "can teach"),
        (0.0, False, "cannot teach"),
    ],
)
def test_the_gate_says_whether_the_teacher_can_teach(taught, passed, verdict):
    gate = Gate(base=0.25, taught=taught, levels={"easy": (0.5, 0.9), "hard": (0.0, 0.7)})
    assert gate.passed is passed
    text = str(gate)
    assert verdict in text and "\n" not in text
    assert "sibling" not in text and "sibling" in str(Gate(base=0.0, taught=taught, levels={}))
    assert "pass rate 0.250" in text and "(easy 0.50 -> 0.90, hard 0.00 -> 0.70)" in text


def test_the_gate_compares_the_base_with_and_without_the_gold_solution(parts):
    with small_run.one_device():
        gate = examination.measure_gate(
            parts.config, parts.model, parts.params, parts.tokenizer, parts.mesh
        )
    assert gate is not None
    assert gate.passed and gate.base < 0.6
    assert gate.levels == {}  # the small run has easy problems only
    assert "()" not in str(gate)


def test_a_task_of_files_without_validation_problems_has_no_gate(parts):
    config = small_run.config(task="biology")
    nothing: Any = None
    assert examination.measure_gate(config, nothing, nothing, nothing, nothing) is None


def test_a_wanted_number_of_problems_is_a_sample_of_them(parts):
    few = Parts(evaluation__max_problems=3)
    wanted = source.sample(parts.exam.problems, 3)
    assert [p.id for p in few.exam.problems] == [p.id for p in wanted]


def test_a_task_of_files_has_a_gate_once_it_keeps_validation_problems(tmp_path, parts):
    settings = small_run.config(
        task="tooluse",
        data__path=str(tmp_path),
        data__validation_fraction=0.5,
        data__max_prompt_tokens=300,
        rollout__prompt_buckets=(300,),
        teacher__max_prompt_tokens=400,
        teacher__prompt_buckets=(400,),
        evaluation__max_problems=2,
    )
    write_tool_rows(tmp_path, count=12)
    with small_run.one_device():
        gate = examination.measure_gate(
            settings, parts.model, parts.params, parts.tokenizer, parts.mesh
        )
    assert gate is not None and (gate.base, gate.taught) == (0.0, 0.0)  # it knows no such task
    assert "self-teacher cannot teach" in str(gate)


def test_the_evaluation_of_a_run_is_this_one(parts, result, tmp_path: Path):
    settings = small_run.config(train__steps=0)
    assert small_run.run(settings, tmp_path)
    (row,) = small_run.metrics(tmp_path)
    assert {name: row[name] for name in result[0]} == result[0]
    written = json.loads((tmp_path / "eval" / "0.json").read_text())
    assert [problem["responses"] for problem in written["problems"]] == result[1].responses
