"""Processes of a comparison: failures are named with their log, and the others go on."""

import os
from pathlib import Path

from drift_jax.comparison.pool import Job, Pool
from tests import small_run


def test_a_failed_command_is_named_with_its_last_line_and_the_others_go_on(tmp_path):
    said: list[str] = []
    done: list[str] = []
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT)}
    jobs = [
        Job("bad", "methods", ["grop"], tmp_path / "logs" / "bad.log"),
        Job("good", "methods", ["grpo"], tmp_path / "good.log", tmp_path),
        Job("last", "methods", ["sdpo"], tmp_path / "last.log"),
    ]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "eval/mean@8": 0.25}\n{"st')
    with Pool(2, environment, said.append) as pool:
        failed = pool.run(jobs, lambda job: done.append(job.name))
    assert [job.name for job in failed] == ["bad"] and sorted(done) == ["good", "last"]
    (words,) = [line for line in said if "FAILED" in line]
    assert "FAILED bad (exit code 2)" in words and "did you mean 'grpo'?" in words
    assert str(tmp_path / "logs" / "bad.log") in words
    assert next(line for line in said if "finished good" in line).endswith("mean@8 0.250")
    assert said[0] == "started bad" and said[1] == "started good"
    assert "grpo: on-policy" in Path(tmp_path / "good.log").read_text()
    assert any(line.startswith("[3/3]") for line in said)


def test_a_run_whose_files_cannot_be_read_is_a_failed_one(tmp_path):
    said: list[str] = []
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT)}
    jobs = [Job(name, "methods", [name], tmp_path / f"{name}.log") for name in ("grpo", "sdpo")]

    def read(job: Job) -> None:
        if job.name == "grpo":
            raise ValueError("its files are damaged")

    with Pool(1, environment, said.append) as pool:
        failed = pool.run(jobs, read)
    assert [job.name for job in failed] == ["grpo"]
    assert "FAILED grpo: its files are damaged" in said
    assert any(line.startswith("[2/2] finished sdpo") for line in said)
