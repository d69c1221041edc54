"""Figures of runs, one function a figure, from records (`drift_jax.record`).

A record comes from a work directory's metrics and evaluation files, or from the small file that
`compare` keeps. Every function returns a matplotlib figure and shows nothing: no display is
needed. matplotlib is imported at the first call (extra `report`).
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax import statistics
from drift_jax.record import Record

# Okabe and Ito's colours, which are told apart with any colour vision; then other strokes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STROKES = ("-", "--", ":", "-.")
_BINS = {"easy": "#009E73", "medium": "#E69F00", "hard": "#D55E00"}

_DYNAMICS = {
    "actor/entropy": "entropy (nats a token)",
    "rollout/response_length_mean": "response length (tokens)",
    "buffer/entries": "entries in the success buffer",
    "rollout/reward_mean": "training reward",
}


def learning_curves(
    records: Sequence[Record], *, order: Sequence[str] = (), over: str = "steps"
) -> Any:
    """Evaluation score by method, with 95 % bands over variants, seeds and problems.

    Args:
      records: of the runs; those of a method must be evaluated at the same steps.
      order: of the methods.
      over: "steps", or a budget of the records: "tokens", "flops" or "cpu_seconds" (the mean over
        a method's runs at each evaluation).
    """
    titles = {
        "steps": "training step",
        "tokens": "sampled tokens",
        "flops": "model compute (FLOP, estimate)",
        "cpu_seconds": "CPU time (s)",
    }
    figure, (axes,) = _canvas(1)
    for name, runs, style in _by_method(records, order):
        places = [
            np.array(run.eval_steps) if over == "steps" else run.budgets[over] for run in runs
        ]
        estimates = statistics.nested_mean(_worlds(runs, lambda run: run.eval_means))
        x = np.mean(np.stack(places), axis=0)
        axes.plot(x, [100 * one.value for one in estimates], label=name, marker="o", **style)
        band = [[100 * one.low for one in estimates], [100 * one.high for one in estimates]]
        axes.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)
    run = records[0]
    axes.set_xlabel(titles[over])
    axes.set_ylabel(f"{run.split} mean@{run.samples} (%)")
    axes.set_ylim(0, 100)
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(axes.lines) > 4 else {}
    axes.legend(title="95 % bands", frameon=False, **beside)
    return figure


def paired_differences(records: Sequence[Record], *, order: Sequence[str] = ()) -> Any:
    """Last score of each method less that of the first, with 95 % intervals over paired problems.

    Small dots are the variants and seeds, each averaged over its problems. Blocks in which a method
    is missing are left out.
    """
    groups = _by_method(records, order)
    names = [name for name, _, _ in groups]
    by_key = {(run.method, run.variant, run.seed): run for run in records}
    blocks = [
        (run.variant, run.seed)
        for run in groups[0][1]
        if all((name, run.variant, run.seed) in by_key for name in names)
    ]
    figure, (axes,) = _canvas(1, height=1.2 + 0.45 * len(names))
    axes.axvline(0, color="0.6", linewidth=1)
    for place, (name, _, style) in enumerate(groups[1:]):
        runs = [by_key[name, *block] for block in blocks]
        differences = {
            id(run): (run.eval_means[-1] - by_key[names[0], run.variant, run.seed].eval_means[-1])
            for run in runs
        }
        (one,) = statistics.nested_mean(_worlds(runs, lambda run: differences[id(run)][None]))  # noqa: B023
        axes.plot([100 * one.low, 100 * one.high], [place] * 2, color=style["color"], linewidth=2)
        axes.plot(100 * one.value, place, "o", color=style["color"], markersize=8)
        each = [100 * differences[id(run)].mean() for run in runs]
        if len(each) > 1:
            axes.plot(each, [place + 0.18] * len(each), ".", color="0.4", markersize=4)
    axes.set_yticks(range(len(names) - 1), names[1:])
    axes.set_ylim(len(names) - 1.5, -0.6)
    run = records[0]
    axes.set_xlabel(f"last mean@{run.samples} less that of {names[0]} (percentage points)")
    return figure


def routing_fractions(records: Sequence[Record], *, order: Sequence[str] = ()) -> Any:
    """Shares of easy, medium and hard problems over the steps; a panel a method, mean of its runs.

    Stage 2 begins at the dotted line.
    """
    groups = _by_method(records, order)
    figure, panels = _canvas(len(groups), height=2.6, share=True)
    for axes, (name, runs, _) in zip(panels, groups, strict=True):
        steps = runs[0].series["step"]
        shares = [_mean_series(runs, f"routing/{level}_fraction") for level in _BINS]
        axes.stackplot(steps, *shares, labels=_BINS, colors=_BINS.values(), alpha=0.85, linewidth=0)
        axes.axvline(runs[0].warmup_steps, color="black", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0, 1)
        axes.set_xlabel("training step (dotted: stage 2)")
    panels[0].set_ylabel("share of a step's problems")
    panels[-1].legend(
        *_reversed(panels[-1]), frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def dynamics(records: Sequence[Record], *, order: Sequence[str] = ()) -> Any:
    """Entropy, response length, buffer and training reward over the steps, mean of the runs."""
    groups = _by_method(records, order)
    figure, panels = _canvas(len(_DYNAMICS), columns=2, height=2.5)
    for axes, (metric, title) in zip(panels, _DYNAMICS.items(), strict=True):
        for name, runs, style in groups:
            if all(metric in run.series for run in runs):
                axes.plot(runs[0].series["step"], _mean_series(runs, metric), label=name, **style)
        axes.set_ylabel(title)
        axes.set_xlabel("training step")
        axes.set_ylim(0, None if axes.get_ylim()[1] > 0.1 else 1)  # all 0: no buffer
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def write_all(folder: Path, records: Sequence[Record], *, order: Sequence[str] = ()) -> list[str]:
    """Draws every figure and saves it as SVG and PNG.

    Returns:
      The names, without ending.

    Raises:
      ModuleNotFoundError: without matplotlib.
    """
    makers: dict[str, Callable[[], Any]] = {
        "curves_steps": lambda: learning_curves(records, order=order),
        "curves_tokens": lambda: learning_curves(records, order=order, over="tokens"),
        "curves_compute": lambda: learning_curves(records, order=order, over="flops"),
        "routing": lambda: routing_fractions(records, order=order),
        "dynamics": lambda: dynamics(records, order=order),
    }
    if len({run.method for run in records}) > 1:
        makers["differences"] = lambda: paired_differences(records, order=order)
    for name, make in makers.items():
        save(make(), folder / name)
    return list(makers)


def save(figure: Any, file: Path) -> None:
    """Writes `file`.svg and `file`.png; the same figure gives the same bytes."""
    import matplotlib

    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "drift_jax", "svg.fonttype": "none"}):
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(file.with_suffix(".png"), dpi=120, metadata={"Software": None})


# ---- parts --------------------------------------------------------------------------------------


def _canvas(
    count: int, *, columns: int = 0, height: float = 3.4, share: bool = False
) -> tuple[Any, list[Any]]:
    """A figure with so many panels, made without pyplot: it needs no display and no closing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or min(count, 4)
    rows = -(-count // columns)
    width = 6.0 if count == 1 else 3.2 * columns
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False, sharey=share)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _by_method(
    records: Sequence[Record], order: Sequence[str]
) -> list[tuple[str, list[Record], dict[str, Any]]]:
    """Name, runs and line style of each method."""
    found = {run.method for run in records}
    names = [*(name for name in order if name in found), *sorted(found - set(order))]
    return [
        (
            name,
            [run for run in records if run.method == name],
            {
                "color": _COLOURS[place % len(_COLOURS)],
                "linestyle": _STROKES[place // len(_COLOURS) % len(_STROKES)],
                "markersize": 3.5,
                "linewidth": 1.6,
            },
        )
        for place, name in enumerate(names)
    ]


def _worlds(runs: Iterable[Record], values: Callable[[Record], np.ndarray]) -> list[np.ndarray]:
    """What `statistics.nested_mean` takes: [measure, seed, problem] a variant."""
    worlds: dict[str, list[np.ndarray]] = {}
    for run in runs:
        worlds.setdefault(run.variant, []).append(values(run))
    return [np.stack(seeds, axis=1) for seeds in worlds.values()]


def _mean_series(runs: Sequence[Record], metric: str) -> np.ndarray:
    """Mean over runs of equal length; NaN, a gap in the line, where none has a value."""
    values = np.array([run.series[metric] for run in runs], np.float64)  # None becomes NaN
    there = np.isfinite(values)
    counts = there.sum(axis=0)
    sums = np.where(there, values, 0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _reversed(axes: Any) -> tuple[list[Any], list[str]]:
    """Legend entries in the order in which a stack is seen, from the top."""
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]
