"""The table of a comparison: scores with intervals, what they cost, and paired differences."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax import statistics
from drift_jax.comparison import fairness
from drift_jax.comparison.measures import EQUAL, common_budgets, measures, steps_to
from drift_jax.config import ConfigError
from drift_jax.record import Record
from drift_jax.statistics import NestedEstimate

_NAMES = {
    "last": "last mean@{k}",
    "peak": "peak mean@{k} (optimistic)",
    "best": "last best@{k}",
    "area": "mean over steps",
    "equal_tokens": "at equal tokens",
    "equal_compute": "at equal compute",
}
# Heading -> metric of stage 2, and its format.
_PARTS = {
    "easy": ("routing/easy_fraction", ".2f"),
    "medium": ("routing/medium_fraction", ".2f"),
    "hard": ("routing/hard_fraction", ".2f"),
    "no loss": ("routing/dropped_fraction", ".2f"),
    "with teacher": ("teacher/available_fraction", ".2f"),
    "from buffer": ("teacher/buffer_fraction", ".3f"),
    "gated rows": ("rhythm/rows", ".2f"),
    "open tokens": ("rhythm/open_fraction", ".3f"),
    "M - 1": ("rhythm/weight_excess", ".5f"),
    "entropy": ("actor/entropy", ".3f"),
    "length": ("rollout/response_length_mean", ".1f"),
}
_COMPARED = ("last", "area", "equal_tokens", "equal_compute")
_PRIMARY = "last"


@dataclasses.dataclass(frozen=True)
class Section:
    """A table: its title, and its cells; the first row is the heading."""

    title: str
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """All of a comparison in text and numbers."""

    methods: list[str]
    sections: list[Section]
    notes: list[str]
    values: dict[str, Any]

    @property
    def text(self) -> str:
        """For a terminal."""
        parts = [f"{section.title}\n{_aligned(section.rows)}" for section in self.sections]
        return "\n\n".join([*parts, "\n".join(f"* {note}" for note in self.notes)])

    @property
    def markdown(self) -> str:
        """For a page."""
        parts = [f"**{section.title}**\n\n{_markdown(section.rows)}" for section in self.sections]
        return "\n\n".join([*parts, "\n".join(f"* {note}" for note in self.notes)])


def make(records: Sequence[Record], *, level: float = 0.5, order: Sequence[str] = ()) -> Table:
    """The table of some runs.

    Args:
      records: of the runs; blocks (variant and seed) in which a method is missing are left out.
      level: score whose first step is told.
      order: of the methods; the first is the reference of the differences. Others follow.

    Raises:
      ConfigError: if no block is complete, or if runs of a block were not given the same.
    """
    methods = list(dict.fromkeys([*order, *sorted({run.method for run in records})]))
    methods = [name for name in methods if any(run.method == name for run in records)]
    blocks: dict[tuple[str, int], dict[str, Record]] = {}
    for run in sorted(records, key=lambda run: (run.variant, run.seed)):
        blocks.setdefault((run.variant, run.seed), {})[run.method] = run
    whole = {key: block for key, block in blocks.items() if set(block) == set(methods)}
    if not whole:
        raise ConfigError("no variant and seed has a finished run of every method: no table yet")
    fairness.check(whole.values())
    budgets = {key: common_budgets(block) for key, block in whole.items()}
    values = {
        name: {key: measures(block[name], budgets[key]) for key, block in whole.items()}
        for name in methods
    }
    scores = {name: _estimates(values[name], list(_NAMES)) for name in methods}
    differences = _differences(values, methods)
    runs = {name: [block[name] for block in whole.values()] for name in methods}
    costs = {name: _cost(found, level) for name, found in runs.items()}
    parts = {name: _parts(found) for name, found in runs.items()}
    k, split = runs[methods[0]][0].samples, runs[methods[0]][0].split
    left_out = [run.name for key, block in blocks.items() if key not in whole
                for run in block.values()]  # fmt: skip
    return Table(
        methods,
        _sections(scores, costs, differences, parts, k=k, split=split, level=level),
        _notes(whole, budgets, left_out) + _discrimination(values, methods),
        {
            "methods": methods,
            "level": level,
            "split": split,
            "k": k,
            "blocks": [list(key) for key in whole],
            "left_out": left_out,
            "fair": fairness.VERDICT,
            "budgets": [{"variant": v, "seed": s, **b} for (v, s), b in budgets.items()],
            "scores": {
                name: {measure: dataclasses.asdict(one) for measure, one in found.items()}
                for name, found in scores.items()
            },
            "costs": costs,
            "stage2": parts,
            "differences": differences,
            "settings": fairness.differences([found[0] for found in runs.values()]),
        },
    )


def write(folder: Path, table: Table, hashes: Mapping[str, str], stem: str = "table") -> None:
    """Writes STEM.txt, .md and .json; the last lists the records with their SHA-256."""
    (folder / f"{stem}.txt").write_text(table.text + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text(table.markdown + "\n", encoding="utf-8")
    content = {**table.values, "records": dict(hashes)}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ---- numbers ------------------------------------------------------------------------------------


def _estimates(
    values: Mapping[tuple[str, int], Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, NestedEstimate]:
    """Means and intervals over variants, seeds and problems."""
    worlds: dict[str, list[np.ndarray]] = {}
    for (variant, _), found in values.items():
        worlds.setdefault(variant, []).append(np.stack([found[name] for name in names]))
    arrays = [np.stack(seeds, axis=1) for seeds in worlds.values()]  # [measure, seed, problem]
    return dict(zip(names, statistics.nested_mean(arrays), strict=True))


def _differences(
    values: Mapping[str, Mapping[tuple[str, int], Mapping[str, np.ndarray]]], methods: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Each method less the first, on the same problems of the same variants and seeds."""
    reference, *others = methods
    found = {}
    for name in others:
        paired = {
            key: {measure: ours[measure] - values[reference][key][measure] for measure in _COMPARED}
            for key, ours in values[name].items()
        }
        estimates = _estimates(paired, _COMPARED)
        found[name] = {measure: dataclasses.asdict(one) for measure, one in estimates.items()}
    for measure in _COMPARED:
        raw = [one[measure]["p_value"] for one in found.values()]
        for one, corrected in zip(found.values(), statistics.holm(raw), strict=True):
            one[measure]["p_holm"] = corrected
    return found


def _cost(runs: Sequence[Record], level: float) -> dict[str, float | None]:
    """What a run of this method consumes, on average."""

    def mean(name: str) -> float:
        return float(np.mean([run.totals[name] for run in runs]))

    reached = [step for run in runs if (step := steps_to(run, level)) is not None]
    parts = {part: mean(f"flops_{part}") for part in ("sampling", "student", "teacher")}
    return {
        "runs": len(runs),
        "steps_to_level": float(np.mean(reached)) if reached else None,
        "reached_level": len(reached),
        "sampled_tokens": mean("sampled_tokens"),
        **{f"flops_{part}": value for part, value in parts.items()},
        "flops": sum(parts.values()),
        "cpu_seconds": mean("cpu_seconds"),
        "training_seconds": mean("training_seconds"),
        "updates_skipped": mean("updates_skipped"),
    }


def _parts(runs: Sequence[Record]) -> dict[str, float | None]:
    """What the parts of the algorithm did in stage 2, mean of the runs."""
    found: dict[str, float | None] = {}
    for metric, _ in _PARTS.values():
        known = [value for run in runs if (value := run.stage2.get(metric)) is not None]
        found[metric] = float(np.mean(known)) if known else None
    return found


# ---- text ---------------------------------------------------------------------------------------


def _sections(
    scores: Mapping[str, Mapping[str, NestedEstimate]],
    costs: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Mapping[str, float]]],
    parts: Mapping[str, Mapping[str, float | None]],
    *,
    k: int,
    split: str,
    level: float,
) -> list[Section]:
    def titles(names: Sequence[str]) -> list[str]:
        return [_NAMES[name].format(k=k) for name in names]

    steps, budget = ("last", "peak", "best", "area"), ("equal_tokens", "equal_compute")
    sections = [
        Section(
            f"{split} problems, equal steps (percent, 95 % intervals)",
            [["method", *titles(steps)]]
            + [[name, *(_interval(one[m]) for m in steps)] for name, one in scores.items()],
        ),
        Section(
            "equal budgets, and what a run consumed",
            [
                ["method", *titles(budget), f"steps to {100 * level:g} %", "sampled tokens",
                 "TFLOP (sampling + student + teacher)", "CPU s", "training s"]
            ]
            + [
                [name, *(_interval(scores[name][m]) for m in budget), *_cost_cells(one)]
                for name, one in costs.items()
            ],
        ),
    ]  # fmt: skip
    if differences:
        reference = next(iter(scores))
        title = f"paired differences to {reference} (percentage points; p for the first column"
        title += ", after Holm)" if len(differences) > 1 else ")"
        sections.append(
            Section(
                title,
                [["method", *titles(_COMPARED), "p"]]
                + [
                    [name, *(_difference(one[m]) for m in _COMPARED),
                     _p_value(one[_PRIMARY]["p_holm"])]
                    for name, one in differences.items()
                ],
            )
        )  # fmt: skip
    rows = [["method", *_PARTS]]
    for name, one in parts.items():
        values = [(one[metric], form) for metric, form in _PARTS.values()]
        rows.append([name, *("-" if v is None else f"{v:{form}}" for v, form in values)])
    return [*sections, Section("what the parts did in stage 2 (means of its steps)", rows)]


def _cost_cells(cost: Mapping[str, Any]) -> list[str]:
    steps = "never" if cost["steps_to_level"] is None else f"{cost['steps_to_level']:.0f}"
    if 0 < cost["reached_level"] < cost["runs"]:
        steps += f" ({cost['reached_level']} of {cost['runs']} runs)"
    parts = [cost[f"flops_{part}"] / 1e12 for part in ("sampling", "student", "teacher")]
    return [
        steps,
        f"{cost['sampled_tokens']:,.0f}",
        f"{sum(parts):.3g} ({' + '.join(f'{part:.2g}' for part in parts)})",
        f"{cost['cpu_seconds']:.0f}",
        f"{cost['training_seconds']:.0f}",
    ]


def _notes(
    blocks: Mapping[tuple[str, int], Mapping[str, Record]],
    budgets: Mapping[tuple[str, int], Mapping[str, float]],
    left_out: Sequence[str],
) -> list[str]:
    variants, seeds = dict.fromkeys(v for v, _ in blocks), dict.fromkeys(s for _, s in blocks)
    runs = [run for block in blocks.values() for run in block.values()]
    one = runs[0]
    problems = " and ".join(map(str, sorted({len(run.problem_ids) for run in runs})))
    varied = f"variants {', '.join(variants)}; " if any(variants) else ""
    tokens, compute = _range(budgets, "tokens", 1, ",.0f"), _range(budgets, "flops", 1e12, ".3g")
    notes = [
        f"Fair: {fairness.VERDICT} ({len(runs)} runs checked).",
        f"{varied}seeds {', '.join(map(str, seeds))}; {problems} problems, {one.samples} samples "
        f"of each; {one.steps} steps of {one.rollouts_per_step} rollouts. Intervals resample "
        "variants, seeds within, and problems within."
        + ("" if len(variants) > 1 else " With one variant they say nothing about others.")
        + ("" if len(seeds) > 1 else " With one seed they say nothing about other seeds."),
        *_base_score(list(blocks.values())),
        "Peak is the best evaluation, chosen on the very problems that it is measured on.",
        "Mean over steps is the area under the curve of mean@k, divided by the steps.",
        "Equal budgets: the score at the largest amount that all runs of a block reached, linear "
        f"between evaluations; {tokens} sampled tokens, {compute} TFLOP.",
        "FLOP = 2 P (prompt + sampled tokens) + 6 P (tokens of the student's pass) + 2 P (tokens "
        f"of the teacher's pass), P = {_several(run.parameters for run in runs)} parameters; "
        "without attention over the context, padding and evaluations. CPU s is the whole process, "
        "start, compilation and evaluations included; training s is wall-clock time of the steps.",
    ]
    if len(methods := {run.method for run in runs}) > 1:
        smallest = min(1.0, (len(methods) - 1) * 2 / (1 + statistics.RESAMPLES))
        notes.append(
            "p is two-sided, from the same resamples"
            + (", corrected after Holm" if len(methods) > 2 else "")
            + f"; the smallest that can come out is {smallest:.4f}."
        )
    notes.append(
        "Parts: shares of a step's problems by difficulty; of its rollouts without a loss, with a "
        "teacher, with one from the buffer, and under the rhythm gate; of their tokens with an "
        "open gate and mean of M - 1 there; entropy in nats a token; length in tokens."
    )
    if left_out:
        notes.append(f"Left out, as their block lacks other methods: {', '.join(left_out)}.")
    versions = {f"drift_jax {run.version}, jax {run.packages['jax']}" for run in runs}
    if len(versions) > 1:
        notes.append(f"The runs were made by different versions: {'; '.join(sorted(versions))}.")
    return notes


def _base_score(blocks: Sequence[Mapping[str, Record]]) -> list[str]:
    """What all began with, where it was evaluated."""
    first = [next(iter(block.values())) for block in blocks]
    if any(run.eval_steps[0] for run in first):
        return []
    score = np.mean([run.eval_means[0].mean() for run in first])
    return [f"Before the first step all score {100 * score:.1f}."]


def _discrimination(
    values: Mapping[str, Mapping[tuple[str, int], Mapping[str, np.ndarray]]], methods: Sequence[str]
) -> list[str]:
    """Whether these runs tell methods apart, where all variants have the same seeds."""
    keys = list(values[methods[0]])
    variants, seeds = dict.fromkeys(v for v, _ in keys), dict.fromkeys(s for _, s in keys)
    whole = len(keys) == len(variants) * len(seeds)
    if len(methods) < 2 or len(variants) < 2 or not whole:
        return []
    scores = [
        [[values[name][v, s][_PRIMARY].mean() for s in seeds] for v in variants] for name in methods
    ]
    found = statistics.discrimination(np.array(scores))
    return [
        f"{str(found).capitalize()}. The ratio is about 1 where nothing is told apart; it is of "
        "these methods, variants and seeds, last score."
    ]


def _range(budgets: Mapping[Any, Mapping[str, float]], name: str, unit: float, form: str) -> str:
    assert name in EQUAL
    amounts = sorted(one[name] / unit for one in budgets.values())
    ends = dict.fromkeys(f"{amount:{form}}" for amount in (amounts[0], amounts[-1]))
    return " to ".join(ends)


def _several(numbers: Any) -> str:
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def _interval(one: NestedEstimate) -> str:
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _difference(one: Mapping[str, float]) -> str:
    return f"{100 * one['value']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    heading, *rest = rows
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rest))
