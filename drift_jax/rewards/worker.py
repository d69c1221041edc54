"""One process of the reward pool: imports a user's function and calls it, a line of JSON each way.

A worker is a fresh interpreter that knows nothing of jax, so it starts in a tenth of a second and
may be killed at any moment. It lies in a session of its own: neither Ctrl-C nor a SIGTERM for the
run's processes ends it, and whatever the function starts can be killed with it.

    {"ready": true}                      once the function is imported, or {"error": "..."}
    ["response", "answer"]           ->  {"score": [reward, prediction, well_formed, feedback]}
                                         or {"error": "..."}: the call failed, the worker goes on
"""

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import math
import numbers
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drift_jax.types import Score

Function = Callable[[str, str], Any]


def main(descriptor: int, function: str, timeout: float) -> None:
    """Answers requests until the other end closes.

    Args:
      descriptor: of the socket to the pool.
      function: "module:name" or "path/file.py:name".
      timeout: seconds that the pool allows a call.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # A handler, not SIG_IGN: what the function starts would inherit that.
        signal.signal(number, lambda *_: None)
    os.set_inheritable(descriptor, False)
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError),  # the pool has gone
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rwb") as stream,
    ):
        _serve(stream, function, timeout)


def _serve(stream: Any, name: str, timeout: float) -> None:
    try:
        function = find(name)
        _send(stream, {"ready": True})
    except BaseException as error:  # also what a script's sys.exit() raises
        _send(stream, {"error": _described(error)})
        return
    with open(os.devnull, "w") as nowhere:
        for line in stream:
            # The pool kills a worker that takes too long. Where the pool is gone this does, even
            # out of a loop in C.
            faulthandler.dump_traceback_later(2 * timeout + 1, exit=True, file=nowhere)
            reply = call(function, *json.loads(line))
            faulthandler.cancel_dump_traceback_later()
            _send(stream, reply)


def find(name: str) -> Function:
    """Imports the function that a user names; nothing else is ever imported.

    Args:
      name: "module:function", found as Python finds modules, or "path/file.py:function".

    Raises:
      ValueError: if there is no such file, or no such function in it.
    """
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        # Last, so that a file beside it is found and hides no installed package.
        sys.path.append(str(path.absolute().parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # holds for any .py path
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"{place} has no function {attribute!r}")
    function: Function = found
    return function


def call(function: Function, response: str, answer: str) -> dict[str, Any]:
    """The function's score as a reply, or what went wrong in it."""
    try:
        result = function(response, answer)
        score = result if isinstance(result, Score) else _from_number(result, response)
        reward = float(score.reward)
        if not math.isfinite(reward):
            raise ValueError(f"returned a reward of {reward}, expected a finite number")
        words = (str(score.prediction), bool(score.well_formed), str(score.feedback))
        return {"score": [reward, *words]}
    except BaseException as error:  # sys.exit() in a grader fails the call and not the worker
        return {"error": _described(error)}


def _from_number(result: object, response: str) -> Score:
    """A bare reward; the response itself stands for the answer that majority votes count."""
    # Scalars of numpy and torch are no `numbers.Real`, but one number has no other length.
    is_scalar = getattr(result, "ndim", None) == 0 and hasattr(result, "__float__")
    if not isinstance(result, numbers.Real) and not is_scalar:
        raise TypeError(
            f"returned {_short(repr(result))}, expected a number or a drift_jax.types.Score"
        )
    number: Any = result
    return Score(float(number), response.strip(), True, "")


def _described(error: BaseException) -> str:
    """An error in one line, with the place in the user's file where it arose."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<frozen")
    ]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError):
        where = f" ({Path(error.filename or '?').name}, line {error.lineno})"
    text = str(error.msg if isinstance(error, SyntaxError) else error)
    kind = "" if not own and isinstance(error, ValueError | TypeError) else type(error).__name__
    return _short(f"{kind}{': ' if kind and text else ''}{text}{where}", 400)


def _short(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _send(stream: Any, reply: dict[str, Any]) -> None:
    stream.write(json.dumps(reply).encode() + b"\n")
    stream.flush()
