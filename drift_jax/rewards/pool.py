"""A user's reward function, called in processes that may hang, crash or be slow.

Each worker (drift_jax/rewards/worker.py) is a new interpreter, not a fork: a process that has
started jax must not be forked. Replies are JSON, so nothing is unpickled. A worker that takes
longer than the time-out, or dies, is killed with all that it started, and replaced; its call gets
a reward of 0 and counts as failed. The pool leaves nothing behind: it kills its workers when it is
closed, collected, or when the process exits, and a worker ends by itself when the process has gone.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from drift_jax.types import Score

# Importing what a function needs may load a model; a worker that takes longer is given up.
START_SECONDS = 300.0

# The parent's path, and not the current folder: a json.py there must not stand in for a module.
_PROGRAM = """
import json, sys
descriptor, function, timeout, path = json.loads(sys.argv[1])
sys.path[:] = path
from drift_jax.rewards import worker
worker.main(descriptor, function, timeout)
"""


class RewardPool:
    """Calls a reward function in `workers` processes; use it as a context manager.

    The function is imported in one worker when the pool is made, so that a wrong name shows before
    anything else is done; the other workers start with the first responses.
    """

    def __init__(self, function: str, *, workers: int = 4, timeout: float = 10.0) -> None:
        """
        Args:
          function: "module:name" or "path/file.py:name" of `(response, answer) -> float | Score`.
          workers: processes.
          timeout: seconds that a call may take.

        Raises:
          ValueError: if there is no such function, or its file cannot be imported.
        """
        place, _, name = function.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(
                f"the reward function is {function!r}; write file.py:function or module:function"
            )
        self._function = f"{os.path.abspath(place) if place.endswith('.py') else place}:{name}"
        self._count = workers
        self._timeout = timeout
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)
        self._add_worker()
        first = self._workers[0]
        while first.starting and not first.fault:
            self._wait()
        if first.fault:
            self.close()
            raise ValueError(f"reward function {function}: {first.fault}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers. Closing twice is fine."""
        _kill_all(self._workers)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Scores of (response, answer) pairs, in their order.

        A call that raises, times out, ends its process, or returns something else than a finite
        number or a `Score` has reward 0, `failed` set, and the cause as `feedback`.
        """
        scores: list[Score | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))
        while waiting or any(worker.call is not None for worker in self._workers):
            for worker in [*self._workers]:
                if worker.call is None and not worker.starting:
                    worker.look()  # one that died between two calls must not get another
                    if worker.fault:
                        self._remove(worker)
                    elif waiting:
                        index = waiting.popleft()
                        worker.ask(index, pairs[index], self._timeout)
            open_calls = len(waiting) + sum(w.call is not None for w in self._workers)
            while len(self._workers) < min(self._count, open_calls):
                self._add_worker()
            self._wait()
            for worker in [*self._workers]:
                if worker.reply is not None and worker.call is not None:
                    scores[worker.call] = worker.reply
                    worker.call = worker.reply = None
                elif worker.fault:
                    self._remove(worker)
                    # One that cannot even start takes a call with it, or this might never end.
                    if worker.starting and waiting:
                        worker.call = waiting.popleft()
                    if worker.call is not None:
                        scores[worker.call] = _failure(worker.fault)
        return [score for score in scores if score is not None]

    def _add_worker(self) -> None:
        self._workers.append(_Worker(self._function, self._timeout))

    def _remove(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.remove(worker)

    def _wait(self) -> None:
        """Until a worker has something to say or has run out of time."""
        with selectors.DefaultSelector() as selector:
            active = [worker for worker in self._workers if worker.deadline is not None]
            for worker in active:
                selector.register(worker.connection, worker.events(), worker)
            nearest = min((worker.deadline for worker in active if worker.deadline), default=0.0)
            for key, events in selector.select(max(nearest - time.monotonic(), 0.0)):
                if events & selectors.EVENT_WRITE:
                    key.data.push()
                if events & selectors.EVENT_READ:
                    key.data.look()
            for worker in active:
                worker.check_time()


class _Worker:
    """The pool's end of one process.

    Attributes:
      call: index of the call that it works on, or None.
      reply: score of that call, once it is there.
      fault: why it cannot be used any more; empty while it can.
      deadline: when it must have answered, by the monotonic clock; None while nothing is asked.
    """

    def __init__(self, function: str, timeout: float) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.setblocking(False)
        with theirs:
            settings = [theirs.fileno(), function, timeout, sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the function prints goes where errors go
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.starting = True
        self.call: int | None = None
        self.reply: Score | None = None
        self.fault = ""
        self._allowed = START_SECONDS
        self.deadline: float | None = time.monotonic() + START_SECONDS
        self._received = bytearray()
        self._unsent = bytearray()

    def ask(self, index: int, pair: tuple[str, str], timeout: float) -> None:
        """Sends a call; its time runs from here."""
        self.call = index
        self._allowed, self.deadline = timeout, time.monotonic() + timeout
        self._unsent += json.dumps(pair).encode() + b"\n"
        self.push()

    def events(self) -> int:
        """What to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def push(self) -> None:
        """Sends as much as fits now."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self._unsent:
                    del self._unsent[: self.connection.send(self._unsent)]
            except (BrokenPipeError, ConnectionResetError):
                self._died()

    def look(self) -> None:
        """Takes what has arrived."""
        with contextlib.suppress(BlockingIOError):
            try:
                while data := self.connection.recv(1 << 16):
                    self._received += data
                    if self._received.endswith(b"\n"):
                        self._take(json.loads(self._received))
                        return
                self._died()
            except ConnectionResetError:
                self._died()

    def check_time(self) -> None:
        """Notes a fault where the time is up."""
        if self.deadline is not None and self.deadline <= time.monotonic() and not self.fault:
            what = "importing it" if self.starting else "a call"
            self.fault = f"{what} took longer than {self._allowed:g} s"

    def kill(self) -> None:
        """Ends the process and everything that it has started."""
        # Before the process is waited for: until then its number cannot be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # where the function has left its session
        self.connection.close()
        self._process.wait()

    def _take(self, message: dict[str, Any]) -> None:
        self._received.clear()
        self.deadline = None
        if self.starting:
            self.starting = "ready" not in message
            self.fault = message.get("error", "")
        elif "score" in message:
            self.reply = Score(*message["score"])
        else:
            self.reply = _failure(message["error"])

    def _died(self) -> None:
        # Not waited for: `kill` still needs its number.
        self.fault = self.fault or "it ended its process"


def _failure(cause: str) -> Score:
    return Score(0.0, "", False, f"the reward function failed: {cause}", failed=True)


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
