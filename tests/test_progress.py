"""The display shows a step's numbers anywhere, and never stops a run."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from drift_jax.metrics import is_documented
from drift_jax.progress import _SHOWN, Progress, Row, duration, final_table

METRICS = {
    "rollout/reward_mean": 0.25,
    "routing/easy_fraction": 0.125,
    "routing/medium_fraction": 0.5,
    "routing/hard_fraction": 0.375,
    "buffer/entries": 37.0,
    "buffer/fallback_hits": 2.0,
    "rollout/tokens_per_second": 8123.4,
}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=80)


def terminal(kind: str) -> Console:
    environment = {"TERM": kind}
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, highlight=False, _environ=environment
    )


def text_of(console: Console) -> str:
    return console.file.getvalue()


def test_every_number_that_is_shown_is_a_documented_metric():
    assert all(is_documented(name) for _, name, _ in _SHOWN)


def test_where_there_is_no_terminal_a_step_is_one_plain_line():
    console, clock = plain_console(), Clock()
    with Progress(160, done=0, console=console, clock=clock) as progress:
        clock.now = 2.0
        progress.update(1, METRICS)
    assert text_of(console) == (
        "step 1/160  reward 0.250  easy 0.12  medium 0.50  hard 0.38  buffer 37  fallbacks 2"
        "  tokens/s 8123  left 5m18s\n"
    )


def test_a_metric_that_is_absent_shows_as_a_dash():
    console = plain_console()
    with Progress(2, console=console) as progress:
        progress.update(1, {})
    assert "reward -  easy -" in text_of(console)


def test_plain_lines_come_every_so_many_steps_and_at_the_last():
    console = plain_console()
    with Progress(7, every=3, console=console) as progress:
        for step in range(1, 8):
            progress.update(step, METRICS)
    steps = [line.split()[1] for line in text_of(console).splitlines()]
    assert steps == ["3/7", "6/7", "7/7"]


def test_the_time_left_follows_the_latest_steps():
    clock = Clock()
    progress = Progress(100, done=40, console=plain_console(), clock=clock)
    assert progress.time_left() == "-"
    for step in range(41, 51):  # slow at first: compilation
        clock.now += 10
        progress.update(step, {})
    for step in range(51, 91):
        clock.now += 2
        progress.update(step, {})
    assert progress.time_left() == "20s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (3600, "1h00m"), (7530, "2h05m")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_on_a_terminal_the_block_is_redrawn_and_lines_stay_above_it():
    console = terminal("xterm")
    with Progress(2, console=console) as progress:
        progress.update(1, METRICS)
        progress.print("evaluated [0.3]")
        progress.update(2, METRICS)
    text = text_of(console)
    assert "\x1b[" in text  # cursor moves: the block is redrawn
    assert "evaluated [0.3]" in text
    assert "fallbacks" in text


def test_a_dumb_terminal_gets_plain_lines():
    console = terminal("dumb")
    with Progress(2, console=console) as progress:
        progress.update(1, METRICS)
    assert "\x1b" not in text_of(console)
    assert text_of(console).startswith("step 1/2")


def test_a_terminal_without_letters_beyond_ascii_gets_ascii():
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii", errors="strict")
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with Progress(2, console=console) as progress:
        progress.update(1, METRICS)
        progress.print(final_table([Row("all", "mean@8", (0.2, 0.1, 0.3), None)], title="results"))
    file.flush()
    assert "step 1/2" in buffer.getvalue().decode("ascii")


def test_a_display_that_fails_falls_silent_and_the_run_goes_on():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    done = []
    with Progress(3, console=Console(file=Broken())) as progress:
        for step in (1, 2, 3):
            progress.update(step, METRICS)
            done.append(step)
    assert done == [1, 2, 3]


def test_a_reader_that_leaves_does_not_end_the_run():
    script = (
        "import sys\n"
        "from drift_jax.progress import Progress\n"
        "with Progress(500) as progress:\n"
        "    for step in range(1, 501):\n"
        "        progress.update(step, {})\n"
        "print('finished', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline().startswith("step 1/500")
        process.stdout.close()
        assert process.stderr.read() == "finished\n"
    assert process.returncode == 0


def test_the_final_table_shows_before_and_after_in_percent_with_intervals():
    rows = [
        Row("all", "mean@8", (0.204, 0.15, 0.262), (0.961, 0.94, 0.98), (0.757, 0.7, 0.8)),
        Row("hard", "best@8", (0.031, 0.0, 0.08), None),
    ]
    console = plain_console()
    console.print(final_table(rows, title="held out", caption="logs: runs/quickstart"))
    title, heading, first, second, caption = text_of(console).splitlines()
    assert title.strip() == "held out"
    assert heading.split() == ["problems", "measure", "before", "%", "after", "%", "gain"]
    assert " ".join(first.split()) == (
        "all mean@8 20.4 [15.0, 26.2] 96.1 [94.0, 98.0] +75.7 [+70.0, +80.0]"
    )
    assert " ".join(second.split()) == "hard best@8 3.1 [0.0, 8.0] - -"
    assert caption.strip() == "logs: runs/quickstart"


def test_a_long_level_wraps_and_brackets_in_it_are_no_markup():
    rows = [Row("[bold]protein-protein interaction", "mean@16", (0.5, 0.4, 0.6), (0.6, 0.5, 0.7))]
    console = plain_console()
    console.print(final_table(rows, title="t"))
    text = text_of(console)
    assert "[bold]" in text
    assert "50.0 [40.0, 60.0]" in text
    assert text.isascii()
