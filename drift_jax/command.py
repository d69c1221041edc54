"""What the commands share: flags, one-line errors, and checks before anything compiles."""

import ctypes
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jaxlib
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from drift_jax import config as configs
from drift_jax.grading import RewardsFailed

EXIT_BAD_INPUT = 2

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, with its arguments: configs/quickstart.py:method=grpo",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the command writes.")


# mallopt's names for these numbers are in malloc.h: keep freed memory (trim threshold), serve large
# blocks from the heap (no mmap), and use one heap for all threads.
_MALLOC_SETTINGS = {-1: 2**31 - 1, -4: 0, -8: 1}


def tune_cpu() -> None:
    """Settings that speed up XLA:CPU; call before jax starts its backend. No effect elsewhere.

    * Without them glibc returns each step's buffers to the kernel and faults them in again: 80,000
      page faults and 0.17 of 0.46 CPU-seconds in one gradient of the quickstart's model (jax
      0.10.2).
    * jaxlib 0.10's fusions for the YNN library double the time of a layer's backward pass with
      QK-norm (88 against 45 ms). Other versions may not know the flag, and an unknown flag ends the
      process.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _MALLOC_SETTINGS.items():
                libc.mallopt(parameter, value)
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    if jaxlib.__version__.startswith("0.10.") and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def run(main: Callable[[Any], None], usage: str) -> None:
    """Parses the flags, hands the configuration to `main`, and turns bad input into one line.

    Exit code 2 means that the input was refused; nothing was written then.

    Args:
      main: the work, given the resolved configuration.
      usage: text of `--help`, with an example.
    """

    def parse(arguments: Sequence[str]) -> list[str]:
        if {"--help", "-h"} & set(arguments):
            print(usage)
            sys.exit(0)
        try:
            configs.check_command_line(arguments[1:])
            rest = flags.FLAGS(list(arguments))
            if _CONFIG.value is None:
                raise configs.ConfigError(f"--config is missing; for example: {example(usage)}")
            if rest[1:]:
                raise configs.ConfigError(
                    f"{rest[1]!r} is not a flag; flags look like --name=value"
                )
            return rest
        except (flags.Error, ValueError) as error:
            raise refuse(error) from None

    def guarded(_: Sequence[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells of every file otherwise
        try:
            main(_CONFIG.value)
        except configs.ConfigError as error:
            raise refuse(error) from None
        except RewardsFailed as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    tune_cpu()
    app.run(guarded, flags_parser=parse)


def refuse(error: Exception) -> SystemExit:
    """Prints an error as one line; raise what it returns to leave with the code of bad input."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return SystemExit(EXIT_BAD_INPUT)


def example(usage: str) -> str:
    """The example line of a usage text."""
    return next(line.strip() for line in usage.splitlines() if "python -m" in line)


def config_name() -> str:
    """Name of the experiment file of this command, without folder, ending and arguments."""
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    return pathlib.Path(file.partition(":")[0]).stem


def check_writable(folder: str) -> pathlib.Path:
    """Raises ConfigError unless files can be made in `folder`; leaves nothing behind.

    The nearest existing parent is what counts for a folder that does not exist yet.
    """
    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise configs.ConfigError(f"workdir {folder!r} is a file; name a folder")
    nearest = next(
        parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
    )
    try:
        # Tried, not asked: permissions say nothing about read-only and virtual file systems.
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise configs.ConfigError(
            f"workdir {folder!r} cannot be written ({nearest}: {error.strerror}); choose another"
        ) from None
    return path
