"""Runs commands in processes of their own, some at a time, and stops them when asked to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from drift_jax.progress import duration


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
      name: what a person calls it.
      module: of the package, which `python -m` runs.
      arguments: its own.
      log: file for what it prints; a resumed one appends.
      folder: where it writes metrics.jsonl; None where it does not.
      steps: the step that it ends with.
    """

    name: str
    module: str
    arguments: Sequence[str]
    log: Path
    folder: Path | None = None
    steps: int = 0


@dataclass
class _Running:
    job: Job
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]
    began: float


class Pool:
    """Up to `size` processes at a time; a context manager in which SIGINT and SIGTERM stop them.

    The processes are sessions of their own, so Ctrl-C reaches this one alone, which asks them to
    save and end (SIGTERM). A second request ends them at once.

    Args:
      size: processes at a time.
      environment: of the processes.
      say: prints a line.
      keep_open: file descriptors that the processes inherit, such as a lock.
      every: seconds between two lines about what is running.
    """

    def __init__(
        self,
        size: int,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        *,
        keep_open: Sequence[int] = (),
        every: float = 30.0,
    ) -> None:
        self._size = size
        self._environment = dict(environment)
        self._say = say
        self._keep_open = tuple(keep_open)
        self._every = every
        self._running: list[_Running] = []
        self._handlers: dict[int, Any] = {}
        self.stopping = False

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signal_all()  # after an error of ours; there are none otherwise
        for running in self._running:
            running.process.wait()
            running.output.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, jobs: Sequence[Job], done: Callable[[Job], None] = lambda job: None) -> list[Job]:
        """Runs all jobs; returns those that failed. None is started after a request to stop.

        Args:
          jobs: in the order in which they are started.
          done: called after each job that ended well; with a ValueError of it the job has failed.
        """
        waiting, failed = list(jobs), []
        finished = 0
        told = began = time.monotonic()
        while (waiting and not self.stopping) or self._running:
            while waiting and len(self._running) < self._size and not self.stopping:
                self._start(waiting.pop(0))
            time.sleep(0.1)
            for running in [one for one in self._running if one.process.poll() is not None]:
                self._running.remove(running)
                running.output.close()
                finished += 1
                if not self._ended_well(running, f"[{finished}/{len(jobs)}]"):
                    failed += [] if self.stopping else [running.job]
                    continue
                try:
                    done(running.job)
                except ValueError as error:  # of this job's files; the others go on
                    self._say(f"FAILED {running.job.name}: {error}")
                    failed.append(running.job)
            if self._running and time.monotonic() - told > self._every:
                told = time.monotonic()
                states = "; ".join(_state(running) for running in self._running)
                rest = (
                    duration((told - began) / finished * (len(jobs) - finished))
                    if finished
                    else "-"
                )
                self._say(f"[{finished}/{len(jobs)}] {states}  left about {rest}")
        return failed

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        output = job.log.open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", f"drift_jax.{job.module}", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
            pass_fds=self._keep_open,
        )
        self._running.append(_Running(job, process, output, time.monotonic()))
        self._say(f"started {job.name}")

    def _ended_well(self, running: _Running, count: str) -> bool:
        job, code = running.job, running.process.returncode
        took = duration(time.monotonic() - running.began)
        if code == 0:
            self._say(f"{count} finished {job.name} in {took}{_score(job.folder)}")
        elif self.stopping:
            self._say(f"stopped {job.name}")
        else:
            self._say(
                f"{count} FAILED {job.name} (exit code {code}): {_last_line(job.log)}; {job.log}"
            )
        return code == 0

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stopping:
            self._say("asked to stop: the runs finish their step and save")
        self.stopping = True
        self._signal_all()

    def _signal_all(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                os.kill(running.process.pid, signal.SIGTERM)


def _state(running: _Running) -> str:
    """Name and step of a run."""
    if running.job.folder is None:
        return running.job.name
    row = _last_row(running.job.folder)
    return f"{running.job.name}: step {row.get('step', '-')}/{running.job.steps}"


def _score(folder: Path | None) -> str:
    """The last evaluation, as its metrics say."""
    row = _last_row(folder)
    return "".join(
        f", {name.removeprefix('eval/')} {value:.3f}"
        for name, value in row.items()
        if name.startswith(("eval/mean@", "eval/best@"))
    )


def _last_row(folder: Path | None) -> dict[str, Any]:
    """The newest whole line of metrics.jsonl."""
    file = folder / "metrics.jsonl" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - (1 << 14)))
        whole = lines.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    try:
        row: dict[str, Any] = json.loads(whole)
    except ValueError:  # none yet, or a line that was cut
        return {}
    return row


def _last_line(log: Path) -> str:
    """What a command said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
