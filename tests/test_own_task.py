"""A user's own task: files and a function, through the commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drift_jax.data.source import load_task
from drift_jax.rewards.pool import RewardPool
from tests import small_run

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section() -> str:
    return README.partition("## Your own task\n")[2].partition("\n## ")[0]


def files_of_the_readme() -> dict[str, str]:
    """Name and text of the files that the example asks for."""
    pattern = r"[Ii]n `(mine/[\w/.]+)`[^`]*?:\n\n```\w+\n(.*?)```"
    return dict(re.findall(pattern, section(), re.DOTALL))


def commands_of_the_readme() -> list[list[str]]:
    [block] = re.findall(r"\nThen\n\n```\n(.*?)```", section(), re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


def write_example(folder: Path, **others: str) -> None:
    for name, text in (files_of_the_readme() | others).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def run(folder: Path, command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """A command line of the README, typed in `folder`."""
    python, *rest = command
    assert python == "python"
    (folder / "configs").mkdir(exist_ok=True)
    for config in (ROOT / "configs").glob("*.py"):
        (folder / "configs" / config.name).write_text(config.read_text())
    # The package is found though it may not be installed.
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[1:]; "
        f"runpy.run_module({rest[1]!r}, run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *rest[1:], *more],
        cwd=folder, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip


# ---- the example of the README ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("example")
    write_example(folder)
    command, _ = commands_of_the_readme()
    return folder, run(folder, command)


def test_the_example_trains_and_writes_down_what_it_was_graded(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    rows = small_run.lines(folder / "runs" / "hiring")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(0 <= row["reward/failed_fraction"] < 1 for row in rows[1:])
    assert 0 < rows[0]["eval/mean@8"] < rows[0]["eval/best@8"] <= 1
    [last] = small_run.lines(folder / "runs" / "hiring" / "eval", "3.json")
    graded = [
        (problem["id"], response, reward)
        for problem in last["problems"]
        for response, reward in zip(problem["responses"], problem["rewards"], strict=True)
    ]
    answers = {p.id: p.answer for p in load_task("hiring", "test", path=folder / "mine", own=True)}
    scope: dict[str, Any] = {}
    exec((folder / "mine" / "rewards.py").read_text(), scope)
    for name, response, reward in graded:
        try:
            expected = scope["score"](response, answers[name])
        except ValueError:
            expected = 0.0
        assert reward == expected
    assert {reward for *_, reward in graded} > {0.5}  # partial credit, and something else


def test_the_example_is_evaluated_with_the_same_function(trained):
    folder, _ = trained
    *_, command = commands_of_the_readme()
    done = run(folder, command)
    assert done.returncode == 0, done.stderr
    assert "2 problems, 8 samples each" in done.stdout
    rows = small_run.lines(folder / "runs" / "hiring" / "evaluate", "test_3.jsonl")[1:]
    assert {row["id"] for row in rows} == {"hiring/test/0", "hiring/test/1"}
    assert 0.5 in {reward for row in rows for reward in row["rewards"]}


# ---- what goes wrong ----------------------------------------------------------------------------


def test_a_function_that_always_fails_stops_the_run_with_one_line(tmp_path):
    broken = "def score(response, answer):\n    return int(response)\n"
    write_example(tmp_path, **{"mine/rewards.py": broken})
    done = run(tmp_path, commands_of_the_readme()[0], "--config.evaluation.at_start=False")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: all 32 calls of the reward function failed")
    assert "ValueError: invalid literal" in done.stderr and "rewards.py, line 2" in done.stderr
    assert len(small_run.lines(tmp_path / "runs" / "hiring")) == 1  # step 0, and no step on zeros


GOOD = {"idx": 0, "prompt": "What?", "answer": "42"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("[1]", "expected a JSON object, got [1]"),
        ("{", "not a JSON object"),
        ({"idx": 1}, "missing prompt, answer"),
        ({**GOOD, "idx": "1"}, "idx is '1', expected a whole number"),
        (GOOD, "idx 0 is also that of line 1"),
        ({**GOOD, "idx": 1, "prompt": " "}, "prompt is ' ', expected text"),
        ({**GOOD, "idx": 1, "system": 3}, "system is 3, expected text or null"),
        ({**GOOD, "idx": 1, "answer": 42}, "answer is 42, expected text; your reward function"),
        ({**GOOD, "idx": 1, "level": "a/b"}, "level is 'a/b', expected a few words"),
        ({**GOOD, "idx": 1, "level": 2}, "level is 2, expected a few words"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path, row, fault):
    folder = tmp_path / "mine"
    folder.mkdir()
    second = row if isinstance(row, str) else json.dumps(row)
    (folder / "train.json").write_text(f"{json.dumps(GOOD)}\n{second}\n")
    with pytest.raises(ValueError, match=re.escape(f"train.json, line 2: {fault}")):
        load_task("mine", "train", path=tmp_path, own=True)


def test_rows_become_problems_with_persistent_ids(tmp_path):
    (tmp_path / "mine").mkdir()
    rows = [{**GOOD, "idx": 7, "system": "Be brief.", "level": "easy"}, {**GOOD, "answer": ""}]
    (tmp_path / "mine" / "test.json").write_text("\n".join(map(json.dumps, rows)))
    first, second = load_task("mine", "test", path=tmp_path, own=True)
    assert (first.id, first.task, first.level) == ("mine/test/7", "mine", "easy")
    assert [turn["role"] for turn in first.messages] == ["system", "user"]
    assert (second.answer, second.level, len(second.messages)) == ("", "", 1)


def test_a_task_without_a_function_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'mine'; .*data.rewards=FILE.py:FUNCTION"):
        load_task("mine", "train", path=tmp_path)
    with pytest.raises(ValueError, match="mine/train.json does not exist; put your problems there"):
        load_task("mine", "train", path=tmp_path, own=True)
    for name in ("../mine", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="cannot name a folder"):
            load_task(name, "train", path=tmp_path, own=True)


# ---- in a run -----------------------------------------------------------------------------------


def test_a_run_with_a_fallible_function_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """A built-in task whose function ends its process on one word and raises on another."""
    (tmp_path / "rewards.py").write_text(
        "import os\nfrom drift_jax.rewards import score_tool_call_strict\n"
        "def score(response, answer):\n"
        "    if ' Rome' in response: os._exit(1)\n"
        "    if ' LIM' in response: raise ValueError('Lima')\n"
        "    return score_tool_call_strict(response, answer)\n"
    )
    values: dict[str, Any] = {
        "data__rewards": f"{tmp_path / 'rewards.py'}:score",
        "data__reward_workers": 2,
        "train__steps": 3,
        "evaluation__at_start": False,
        "evaluation__max_problems": 2,
        "checkpoint__every": 1,
    }
    pools: list[RewardPool] = []
    original = RewardPool.close

    def close(self: RewardPool) -> None:
        pools.append(self)
        original(self)

    monkeypatch.setattr(RewardPool, "close", close)
    settings = small_run.config(**values)
    assert small_run.run(settings, tmp_path / "straight")
    with small_run.at_step(2, small_run.terminate):
        assert not small_run.run(settings, tmp_path / "stopped")
    assert small_run.run(settings, tmp_path / "stopped")
    rows = small_run.metrics(tmp_path / "straight")
    assert small_run.metrics(tmp_path / "stopped") == rows
    assert 0 < sum(row["reward/failed_fraction"] for row in rows if row["step"]) < 3
    events = small_run.lines(tmp_path / "straight", "events.jsonl")
    told = [event for event in events if event["event"] == "reward_failed"]
    assert told and all(event["count"] > 0 and event["first"] for event in told)
    assert len(pools) == 3 and not any(pool._workers for pool in pools)
