"""The evaluate command: every sample kept, nothing sampled twice, and other evaluations refused."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from drift_jax import assemble, evaluate, examination
from drift_jax.checkpoint import Checkpoints
from drift_jax.config import ConfigError
from tests import small_run


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    """Configuration, examination and parameters of the packaged model."""
    config = small_run.config()
    with small_run.one_device():
        tokenizer, mesh = assemble.open_tokenizer(config), assemble.make_mesh(config)
        model, params = assemble.open_model(config, tokenizer, mesh)
    return config, examination.examination(config, model, tokenizer, mesh), params


def test_an_interrupted_evaluation_goes_on_to_the_same_rows(parts, tmp_path, monkeypatch):
    _, exam, params = parts
    straight = evaluate.complete(exam, params, tmp_path / "a.jsonl", 19)
    assert [row["id"] for row in straight] == [problem.id for problem in exam.problems]

    file = tmp_path / "b.jsonl"
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:8]) + lines[8][:20])  # killed in the middle of a line
    asked = []
    student = examination.Examination.student

    def counted(self, params, step, problems=None):
        asked.extend(problem.id for problem in problems)
        return student(self, params, step, problems)

    monkeypatch.setattr(examination.Examination, "student", counted)
    assert evaluate.complete(exam, params, file, 19) == straight
    assert asked == [problem.id for problem in exam.problems[7:]]
    evaluate.complete(exam, params, file, 19)
    assert len(asked) == 12  # a complete one samples nothing


def test_any_text_that_a_model_writes_survives_an_interruption(parts, tmp_path, monkeypatch):
    _, exam, params = parts
    odd = "a\u2028b\x85c\u2029 \udc80 é\r\n"  # line ends that JSON leaves bare, half a pair
    real = examination.result_rows

    def written(problems, answers):
        return [{**row, "responses": [odd, odd]} for row in real(problems, answers)]

    monkeypatch.setattr(examination, "result_rows", written)
    few = dataclasses.replace(exam, problems=exam.problems[:2])
    rows = evaluate.complete(few, params, tmp_path / "a.jsonl", 1)
    assert evaluate.complete(few, params, tmp_path / "a.jsonl", 1) == rows
    assert rows[1]["responses"] == [odd, odd]
    assert "difference" in evaluate.compare(tmp_path / "a.jsonl", str(tmp_path / "a.jsonl"))


def test_an_evaluation_sampled_in_another_way_is_refused(parts, tmp_path):
    _, exam, params = parts
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"settings": exam.settings() | {"temperature": 0.1}}) + "\n")
    with pytest.raises(ConfigError, match=r"was sampled with .*0\.1.* and this evaluation wants"):
        evaluate.complete(exam, params, file, 19)


def test_a_folder_is_evaluated_and_compared_with_itself(parts, tmp_path, capsys):
    config, exam, _ = parts
    folder = str(assemble.model_folder(config))
    with small_run.one_device():
        file = evaluate.evaluate(small_run.config(), str(tmp_path), step=None, model=folder)
    printed = capsys.readouterr().out
    assert "19 problems, 2 samples each" in printed and "pass@2" in printed
    assert file.name == "test_quickstart_base.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][1:]
    assert len(rows) == len(exam.problems)
    assert np.shape([row["rewards"] for row in rows]) == (19, 2)
    assert "0.000 [0.000, 0.000], p = 1.0000" in evaluate.compare(file, str(file))
    with pytest.raises(ConfigError, match="does not exist"):
        evaluate.compare(file, str(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("step", ["newest", "7", "best"])
def test_a_checkpoint_that_is_not_there_is_refused_in_one_line(tmp_path, step):
    with pytest.raises(ConfigError, match="has no checkpoint|give a number, or best"):
        evaluate._choose_step(Checkpoints(tmp_path), str(tmp_path), step)
