"""What surrounds a step: requests to stop, and the table at the end."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from drift_jax import config as configs
from drift_jax.buffer import SuccessBuffer
from drift_jax.difficulty import PassRates
from drift_jax.memory import Memory
from drift_jax.reporting import Reporter
from drift_jax.types import Problem

LEVELS = ("easy", "easy", "hard", "hard")


def reporter(folder: Path) -> Reporter:
    """A reporter of a run whose parts are not needed here."""
    settings: Any = configs.assign(configs.default(), {"train.steps": 4, "evaluation.samples": 2})
    turn = {"role": "user", "content": "?"}
    problems = [Problem(f"p/{i}", "p", (turn,), "A", level) for i, level in enumerate(LEVELS)]
    run: Any = SimpleNamespace(path=folder, close=lambda: None)
    exam: Any = SimpleNamespace(problems=problems)
    return Reporter(settings, run, exam, Memory(PassRates(), SuccessBuffer()), start=0, dropped=0)


def write_evaluation(folder: Path, step: int, rewards: list[list[float]]) -> None:
    (folder / "eval").mkdir(exist_ok=True)
    problems = [{"rewards": row} for row in rewards]
    (folder / "eval" / f"{step}.json").write_text(json.dumps({"problems": problems}))


# ---- requests to stop ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_request_is_remembered_and_the_second_ends_the_process(tmp_path, number):
    before = signal.getsignal(number)
    with reporter(tmp_path):
        assert signal.getsignal(number) is not before
        signal.raise_signal(number)  # the step in hand goes on
        assert signal.getsignal(number) is before  # so the next one does what it always does
    assert signal.getsignal(number) is before


def test_signals_are_handed_back_even_when_the_run_fails(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="in the loop"), reporter(tmp_path):
        raise ValueError("in the loop")
    assert signal.getsignal(signal.SIGTERM) is before


# ---- the table ----------------------------------------------------------------------------------


def test_the_table_compares_first_and_last_evaluation_by_level(tmp_path, capsys):
    write_evaluation(tmp_path, 0, [[0, 0], [1, 0], [0, 0], [0, 0]])
    write_evaluation(tmp_path, 4, [[1, 1], [1, 1], [0, 0], [1, 0]])
    with reporter(tmp_path) as report:
        report.end()
    rows = {
        tuple(line.split()[:2]): line.split()[2:]
        for line in capsys.readouterr().out.splitlines()
        if line.split()[:1] in (["all"], ["easy"], ["hard"])
    }
    assert list(rows) == [
        ("all", "mean@2"),
        ("easy", "mean@2"),
        ("hard", "mean@2"),
        ("all", "best@2"),
    ]
    means = {"all": (12.5, 62.5, 50.0), "easy": (25.0, 100.0, 75.0), "hard": (0.0, 25.0, 25.0)}
    for name, (before, after, gain) in means.items():
        numbers = [cell for cell in rows[name, "mean@2"] if not cell.startswith("[")]
        values = [float(cell) for cell in numbers if not cell.endswith("]")]
        np.testing.assert_allclose(values, (before, after, gain), atol=0.05)


def test_without_an_evaluation_at_the_start_there_is_no_table(tmp_path, capsys):
    write_evaluation(tmp_path, 4, [[1, 1]] * 4)
    with reporter(tmp_path) as report:
        report.end()
    assert capsys.readouterr().out == ""
