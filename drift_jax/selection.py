"""Which step of a run a result is reported at: the last, the best on validation, the peak on test.

The paper reports the peak of the test curve. That is a maximum over steps of a noisy number, so it
is optimistic, and more so the oftener a run is evaluated. The step that is best on problems held
back from training is chosen without a look at test, and its test score is an honest one.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax import statistics

LAST, BEST, PEAK = "last", "best on validation", "peak"
_MEAN = re.compile(r"eval/mean@\d+")
_VALIDATION = re.compile(r"validation/mean@\d+")


@dataclass(frozen=True)
class Pick:
    """A step, and why it was picked.

    Attributes:
      name: LAST, BEST (only where there are validation problems) or PEAK.
      step: of the run.
      measure: of the score, such as "mean@16".
      score: mean reward on the evaluated problems at that step.
      validation: (measure, mean reward on the validation problems), or None.
    """

    name: str
    step: int
    measure: str
    score: float
    validation: tuple[str, float] | None


def picks(rows: Iterable[Mapping[str, Any]]) -> list[Pick]:
    """The steps of a run that can be reported, in the order last, best on validation, peak.

    Args:
      rows: of metrics.jsonl. What was evaluated before the first step is not a result of training.
        Of equal scores the later counts, as it does for checkpoints.
    """
    evaluated = [pick for row in rows if row["step"] > 0 and (pick := _read(row))]
    if not evaluated:
        return []
    validated = [(pick.validation[1], pick.step, pick) for pick in evaluated if pick.validation]
    found = {LAST: evaluated[-1], BEST: max(validated)[2]} if validated else {LAST: evaluated[-1]}
    found[PEAK] = max(evaluated, key=lambda pick: (pick.score, pick.step))
    return [dataclasses.replace(pick, name=name) for name, pick in found.items()]


def _read(row: Mapping[str, Any]) -> Pick | None:
    """What a row of metrics says of an evaluation; None where its step had none."""
    score, validation = (
        next(((n.partition("/")[2], row[n]) for n in row if pattern.fullmatch(n)), None)
        for pattern in (_MEAN, _VALIDATION)
    )
    return None if score is None else Pick("", row["step"], *score, validation)


def lines(workdir: str | Path, split: str | None = None) -> list[str]:
    """The picks of a run as text, one a line; empty where nothing was evaluated after a step.

    Args:
      workdir: of the run: metrics.jsonl, and eval/<step>.json for the intervals over problems.
      split: name of the evaluated problems; None is that of config.json.
    """
    file, record = Path(workdir) / "metrics.jsonl", Path(workdir) / "config.json"
    if not file.is_file() or (split is None and not record.is_file()):
        return []
    if split is None:
        split = json.loads(record.read_text(encoding="utf-8"))["config"]["evaluation"]["split"]
    # The last line may be half written: a run may go on while its scores are looked at.
    whole = file.read_bytes().rpartition(b"\n")[0].splitlines()
    found = picks(map(json.loads, whole))
    return [_line(pick, str(split), Path(workdir) / "eval") for pick in found]


def _line(pick: Pick, split: str, folder: Path) -> str:
    file = folder / f"{pick.step}.json"
    score = f"{100 * pick.score:.1f}"
    if file.is_file():
        score = _with_interval(json.loads(file.read_text(encoding="utf-8"))["problems"])
    name = f"{PEAK} on {split}" if pick.name == PEAK else pick.name
    text = f"{name}: step {pick.step}, {split} {pick.measure} {score} %"
    if pick.name == BEST and pick.validation is not None:
        text += f" (validation {pick.validation[0]} {100 * pick.validation[1]:.1f} %)"
    if pick.name == PEAK:
        text += f" (as the paper reports; optimistic, as it is chosen on {split})"
    return text


def _with_interval(problems: Sequence[Mapping[str, Any]]) -> str:
    found = statistics.mean_at_k(np.array([problem["rewards"] for problem in problems]))
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
