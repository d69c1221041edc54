"""The learning rate of each method, chosen by the validation problems."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax import config as configs
from drift_jax import record
from drift_jax.comparison.plan import Cell
from drift_jax.config import ConfigError


def choose(tried: Mapping[float, Sequence[Cell]], file: Path) -> dict[str, float]:
    """The factor with the best last validation mean of each method; writes all that was tried.

    The mean is over the variants. Of equal factors the one nearest to 1 wins. A factor with a run
    that failed is out; a method without any other is not in the answer.

    Args:
      tried: factor -> its cells, finished or failed.
      file: where to write the choice.
    """
    methods: dict[str, dict[str, Any]] = {}
    for factor, cells in tried.items():
        for method in dict.fromkeys(cell.method for cell in cells):
            row = _row(factor, [cell for cell in cells if cell.method == method], file.parent)
            methods.setdefault(method, {"tried": []})["tried"].append(row)
    chosen = {}
    for method, found in methods.items():
        usable = [row for row in found["tried"] if row["mean"] is not None]
        best = max(usable, key=lambda row: (row["mean"], -abs(np.log(row["factor"]))), default=None)
        found["chosen"] = None if best is None else best["factor"]
        if best is not None:
            chosen[method] = float(best["factor"])
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"split": "validation", "methods": methods}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    return chosen


def read(file: str, methods: Sequence[str]) -> dict[str, float]:
    """The factors that an earlier sweep chose for these methods.

    Raises:
      ConfigError: if the file is none of `choose`'s, or a method has no factor in it.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))["methods"]
        factors = {method: row["chosen"] for method, row in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--rates={file} is no sweep.json of a comparison ({error}); make one with --sweep"
        ) from None
    if missing := [method for method in methods if not factors.get(method)]:
        raise ConfigError(
            f"--rates={file} has no factor for {', '.join(missing)}; sweep these methods too"
        )
    return {method: float(factors[method]) for method in methods}


def _row(factor: float, cells: Sequence[Cell], root: Path) -> dict[str, Any]:
    """What came of one method with one factor."""
    scores: dict[str, float] = {}
    for cell in cells:
        if cell.record.is_file():
            found = record.read(cell.record)
            assert found.split == "validation", f"{cell.record} was evaluated on {found.split}"
            scores[str(cell.record.relative_to(root))] = float(found.eval_means[-1].mean())
    complete = len(scores) == len(cells)
    return {
        "factor": factor,
        "learning_rate": configs.learning_rate(cells[0].config),
        "mean": float(np.mean(list(scores.values()))) if complete else None,
        "runs": scores,
    }


def text(file: Path) -> str:
    """The table of choices."""
    content = json.loads(file.read_text(encoding="utf-8"))
    lines = ["", "learning rate, chosen by the last mean on the validation split"]
    for method, found in content["methods"].items():
        cells = []
        for row in found["tried"]:
            mean = "failed" if row["mean"] is None else f"{row['mean']:.3f}"
            mark = "*" if row["factor"] == found["chosen"] else " "
            cells.append(f"{mark}x{row['factor']:g} ({row['learning_rate']:.3g}) {mean}")
        lines.append(f"  {method:<24}{'   '.join(cells)}")
        factors = [row["factor"] for row in found["tried"]]
        if len(factors) > 1 and found["chosen"] in (min(factors), max(factors)):
            lines.append(f"  {'':<24}the best stands at the edge: a wider sweep may find a better")
    return "\n".join([*lines, ""])
