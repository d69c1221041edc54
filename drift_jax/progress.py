"""What a person sees while a run goes on, and the table at its end.

On a terminal one block is redrawn in place (rich); anywhere else a plain line is printed a step,
with the same numbers. Only ASCII is written, and a display that cannot be written to any more (a
closed pipe) falls silent: the run is worth more than its display.
"""

import itertools
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# Label, metric, format: what is shown of a step.
_SHOWN: tuple[tuple[str, str, str], ...] = (
    ("reward", "rollout/reward_mean", "{:.3f}"),
    ("easy", "routing/easy_fraction", "{:.2f}"),
    ("medium", "routing/medium_fraction", "{:.2f}"),
    ("hard", "routing/hard_fraction", "{:.2f}"),
    ("buffer", "buffer/entries", "{:.0f}"),
    ("fallbacks", "buffer/fallback_hits", "{:.0f}"),
    ("tokens/s", "rollout/tokens_per_second", "{:.0f}"),
)
_STEPS_FOR_ETA = 20


class Progress:
    """The live display of a run; use it as a context manager.

    Args:
      total_steps: steps of the run.
      done: steps that were done before this process (a resumed run).
      every: steps between two lines where the display is plain.
      console: where to write; standard output when None.
      clock: seconds, only ever rising.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        done: int = 0,
        every: int = 1,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total_steps
        self._done = done
        self._every = every
        self._console = console or _Console(highlight=False)
        self._clock = clock
        self._finished_at = deque([clock()], maxlen=_STEPS_FOR_ETA + 1)
        self._live: Live | None = None
        self._silent = False

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._attempt(self._live.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._attempt(self._live.stop)
            self._live = None

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows a finished step: `metrics` are those of metrics.jsonl; absent ones show as '-'."""
        self._done = step
        self._finished_at.append(self._clock())
        if self._live is not None:
            live, block = self._live, self._block(metrics)
            self._attempt(lambda: live.update(block, refresh=True))
        elif step % self._every == 0 or step == self._total:
            cells = "  ".join(f"{label} {text}" for label, text in _cells(metrics))
            self.print(f"step {step}/{self._total}  {cells}  left {self.time_left()}")

    def print(self, text: RenderableType) -> None:
        """Prints a line (or a table) that stays, above the live block."""
        self._attempt(lambda: self._console.print(text, markup=False, soft_wrap=True))

    def time_left(self) -> str:
        """Estimated time to the last step, from the latest steps; '-' before any.

        By the median step: a compilation or an evaluation among them says little about the rest.
        """
        steps = [after - before for before, after in itertools.pairwise(self._finished_at)]
        if not steps:
            return "-"
        return duration(statistics.median(steps) * max(self._total - self._done, 0))

    def _block(self, metrics: Mapping[str, Any]) -> Table:
        block = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self._total, 1), completed=self._done, width=30)
        block.add_row(f"step {self._done}/{self._total}", bar, f"left {self.time_left()}")
        numbers = Table.grid(padding=(0, 2))
        for cells in zip(*_cells(metrics), strict=True):
            numbers.add_row(*cells)
        outer = Table.grid()
        outer.add_row(block)
        outer.add_row(numbers)
        return outer

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._silent:
            return
        try:
            action()
        except (OSError, UnicodeError):  # closed pipe, full disk, a terminal without the letters
            self._silent = True


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader of standard output has gone (`| head`): write on, to nowhere.

        rich would end the process. The file descriptor is replaced, as the Python documentation
        advises, so that the interpreter does not stumble over it when it exits either.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """Seconds as a person reads them: '45s', '3m20s', '2h05m'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


Interval = tuple[float, float, float]  # value, and the ends of its confidence interval


@dataclass(frozen=True)
class Row:
    """One line of the final table.

    Attributes:
      level: which problems: "all", or a level or sub-task.
      measure: what was measured, such as "mean@8".
      before, after: (value, low, high) at the start and at the end, 1 being perfect; None where
        not measured.
      gain: the same of the difference, paired over problems; None where not measured.
    """

    level: str
    measure: str
    before: Interval | None
    after: Interval | None
    gain: Interval | None = None


def final_table(rows: Sequence[Row], *, title: str, caption: str = "") -> Table:
    """The table at the end of a run: before and after in percent, with intervals.

    Args:
      rows: in the order in which they are shown.
      title: above the table.
      caption: below it, such as where the logs are.
    """
    # Without a frame it fits into 80 columns, the width of a display that is no terminal.
    table = Table(
        title=Text(title), caption=Text(caption), box=None, title_justify="left",
        caption_justify="left", pad_edge=False, padding=(0, 1),
    )  # fmt: skip
    table.add_column("problems", overflow="fold")
    table.add_column("measure")
    for heading in ("before %", "after %", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        gain = _interval(row.gain, signed=True)
        cells = (row.level, row.measure, _interval(row.before), _interval(row.after), gain)
        table.add_row(*map(Text, cells))
    return table


def _interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    sign = "+" if signed else ""
    value, low, high = (100 * number for number in interval)
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _cells(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text) of every number that is shown."""
    return [
        (label, form.format(float(metrics[name])) if name in metrics else "-")
        for label, name, form in _SHOWN
    ]
