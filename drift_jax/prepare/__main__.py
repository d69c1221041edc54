"""Gets benchmark files, or a checkpoint to start from, and checks what it got.

    python -m drift_jax.prepare --task=biology --out=data
    python -m drift_jax.prepare --task=tooluse --out=data --source=ToolAlpaca/data
    python -m drift_jax.prepare --model=smollm2-135m --out=models/SmolLM2-135M-Instruct

Exit codes: 0 done; 2 refused, in one line, and nothing was written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from drift_jax.data.source import KINDS
from drift_jax.prepare import benchmarks, checkpoints

EXIT_BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuses the arguments in one line."""
        refuse(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input ends it with code 2 and one line, and nothing written."""
    options = make_parser().parse_args(arguments)
    out = Path(options.out)
    source = Path(options.source) if options.source else None
    if options.stand_in and options.task != "tooluse":
        refuse("--stand-in is for the train split of tool use; add --task=tooluse")
    if options.dtype and not options.model:
        refuse("--dtype is for the weights of a --model; leave it out")
    if options.revision and source:
        refuse("--revision is for the hub and --source for a local copy; give one of them")
    try:
        if options.model:
            lines = checkpoints.prepare_model(
                options.model, out, source, dtype=options.dtype, revision=options.revision
            )
        elif options.stand_in:
            lines = benchmarks.prepare_stand_in(out, source)
        else:
            lines = benchmarks.prepare_task(options.task, out, source, revision=options.revision)
    except ValueError as error:
        refuse(str(error))
    print("\n".join(lines))


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = _Parser(
        prog="python -m drift_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", choices=KINDS, help="the benchmark")
    what.add_argument(
        "--model",
        metavar="NAME",
        help=f"the checkpoint: {', '.join(checkpoints.known_models())}, or a hub name",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="data folder, or folder of the checkpoint"
    )
    parser.add_argument(
        "--source",
        metavar="DIR|FILE",
        help="a local copy in any of upstream's forms; without it the hub is asked",
    )
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="with --task=tooluse: write the stand-in for the train split to DIR/stand_in",
    )
    parser.add_argument(
        "--dtype",
        choices=checkpoints.DTYPES,
        help="of the weights that are made from a GGUF file; default float32",
    )
    parser.add_argument("--revision", metavar="NAME", help="another revision on the hub")
    return parser


def refuse(message: str) -> NoReturn:
    """Prints one line and ends with the code of bad input."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
