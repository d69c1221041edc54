"""Compare methods: the same start, the same problems in the same order, the same rollouts.

    python -m drift_jax.compare --config=configs/quickstart.py --methods=drift,sdpo --out=runs/two

Every cell (method x variant x seed) is a run of `drift_jax.main` in a process and a folder of its
own. The same command goes on where it stopped, and never runs a finished cell again. It writes

  DIR/table.txt, table.md, table.json   the table, with intervals and paired differences
  DIR/figures/                          curves (SVG and PNG; extra `report`)
  DIR/raw/                              one small file a run; --table-only needs nothing else
  DIR/<method>/<variant>/seed<n>/       the work directories

--config.section.field=VALUE overrides a field in every cell; {method}, {seed} and the varied
argument in braces stand for the cell's. Exit codes: 0 done; 1 some cells failed; 2 bad input;
75 stopped on request, run it again.
"""

import argparse
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from drift_jax import command, record
from drift_jax.comparison import plan as plans
from drift_jax.comparison import sweep, table
from drift_jax.comparison.plan import Cell, Plan
from drift_jax.comparison.pool import Job, Pool
from drift_jax.config import ConfigError
from drift_jax.report import figures

EXIT_FAILED = 1
EXIT_STOPPED = 75


class _Stopped(Exception):
    """A request to stop; everything is saved."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuses the arguments in one line."""
        raise ConfigError(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table."""
    try:
        options, overrides = make_parser().parse_known_args(arguments)
        out = command.check_writable(options.out)
        if options.table_only:
            failed = []
        else:
            plan = make_plan(options, overrides)
            rates = sweep.read(options.rates, plan.methods) if options.rates else {}
            with _locked(out) as lock:
                failed = run(plan, options, rates, lock)
        if not options.sweep_only:
            write_table(out, options.level, methods=options.methods, vary=options.vary)
    except ConfigError as error:
        raise command.refuse(error) from None
    except _Stopped:
        _say("stopped; the same command goes on from there")
        sys.exit(EXIT_STOPPED)
    if failed:
        print(f"error: {len(failed)} failed: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = _Parser(
        prog="python -m drift_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="experiment file; no method, seed")
    parser.add_argument(
        "--methods", type=_words, default=(), metavar="A,B", help="the first is the reference"
    )
    parser.add_argument(
        "--seeds", type=_seeds, default=(0,), metavar="N|A,B", help="a number of seeds, or a list"
    )
    varied = parser.add_mutually_exclusive_group()
    varied.add_argument(
        "--vary",
        type=_vary,
        default=("", ("",)),
        metavar="NAME=A,B|NAME=0:5",
        help="an argument of the experiment file, and its values",
    )
    varied.add_argument(
        "--worlds",
        dest="vary",
        type=lambda text: _vary(f"world={text}"),
        metavar="0,1|0:5",
        help="short for --vary=world=...",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the comparison")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time; default 1")
    parser.add_argument(
        "--base",
        metavar="FILE[:ARGS]",
        help="warm-start a base policy for every variant first, with this experiment file, such as "
        "configs/quickstart.py:base,world={world}; --config.warm_start.* goes to it",
    )
    parser.add_argument(
        "--sweep",
        type=_factors,
        default=(),
        metavar="0.5,1,2",
        help="choose a factor of the learning rate for each method, on the validation split",
    )
    parser.add_argument(
        "--sweep-only", action="store_true", help="choose the factors, and run nothing else"
    )
    parser.add_argument(
        "--rates",
        metavar="FILE",
        help="factors of the learning rate that an earlier sweep chose: its sweep.json",
    )
    parser.add_argument(
        "--share-stage1",
        action="store_true",
        help="run the first stage once for methods that differ in `mixed.*` alone",
    )
    parser.add_argument(
        "--level", type=float, default=0.5, help="score whose first step is told; default 0.5"
    )
    parser.add_argument(
        "--table-only",
        action="store_true",
        help="run nothing: the table of DIR/raw; with --worlds or --vary one of these alone, which "
        "is written as table_selected",
    )
    return parser


def make_plan(options: argparse.Namespace, overrides: Sequence[str]) -> Plan:
    """What to run; refuses what cannot."""
    if not options.config or not options.methods:
        missing = "--methods" if options.config else "--config"
        raise ConfigError(f"{missing} is missing; for example: {command.example(__doc__ or '')}")
    if options.sweep_only and not options.sweep:
        raise ConfigError("--sweep-only without --sweep has nothing to run; add --sweep=0.5,1,2")
    if options.sweep and options.rates:
        raise ConfigError("--sweep and --rates both give the learning rates; leave one out")
    plan = Plan(
        options.config,
        tuple(overrides),
        options.methods,
        options.seeds,
        options.vary,
        Path(options.out),
    )
    plans.check_settings(plan.cells())
    if options.sweep:
        plans.check_validation(plan.cells())
    return plan


def run(
    plan: Plan, options: argparse.Namespace, chosen: Mapping[str, float], lock: IO[str]
) -> list[str]:
    """Runs what is not there yet; returns the names of what failed.

    `chosen` are the methods' factors of the learning rate; none is 1, and a sweep finds its own.
    """
    environment = child_environment(options.jobs)
    based = options.base is not None
    with Pool(options.jobs, environment, _say, keep_open=[lock.fileno()]) as pool:
        if not options.sweep:  # before anything runs; with a sweep the rates are not known yet
            plans.check_folders(plan.cells(chosen, based))
        if based:
            _run_bases(pool, plan, options.base)
        failed: list[str] = []
        if options.sweep:
            tried = {factor: plan.sweep_cells(factor, based) for factor in options.sweep}
            failed += _run_cells(pool, [cell for cells in tried.values() for cell in cells])
            chosen = sweep.choose(tried, plan.out / "sweep.json")
            _say(sweep.text(plan.out / "sweep.json"))
            if options.sweep_only:
                return failed
        cells = [cell for cell in plan.cells(chosen, based) if not chosen or cell.method in chosen]
        if options.share_stage1:
            cells = plans.share_stage1(cells)
            first = list(plans.stage1_runs(cells))
            plans.check_folders([*first, *cells])
            failed += _run_stage1(pool, first, cells)
        else:
            plans.check_folders(cells)
        return failed + _run_cells(pool, cells)


def _run_bases(pool: Pool, plan: Plan, spec: str) -> None:
    jobs = []
    for variant in plan.variants():
        folder, arguments = plan.base_command(spec, variant)
        if not (folder / "model").is_dir():
            name = f"warm start{variant and f' of {variant}'}"
            jobs.append(Job(name, "warm_start", arguments, folder.with_suffix(".log")))
    failed = pool.run(jobs)
    if pool.stopping:
        raise _Stopped
    if failed:
        raise ConfigError(f"{failed[0].name} failed; {failed[0].log} says why")


def _run_stage1(pool: Pool, first: Sequence[Cell], cells: Sequence[Cell]) -> list[str]:
    """The shared first stages that some unfinished cell needs; returns what failed."""
    waiting = []
    for run in first:
        users = [cell for cell in cells if cell.stage1 and cell.stage1.folder == run.folder]
        if _is_complete(run) or all(cell.record.is_file() for cell in users):
            continue
        methods = ", ".join(cell.method for cell in users)
        _say(f"stage 1 of {run.variant or 'all'}, seed={run.seed} is run once, for {methods}")
        waiting.append(run)
    failed = pool.run([_job(cell) for cell in waiting])
    if pool.stopping:
        raise _Stopped
    return [job.name for job in failed]


def _is_complete(cell: Cell) -> bool:
    return (cell.folder / "checkpoints" / str(cell.config.train.steps)).is_dir()


def _run_cells(pool: Pool, cells: Sequence[Cell]) -> list[str]:
    """Cells without a record are run; returns the names of those that failed."""
    waiting = [cell for cell in cells if not cell.record.is_file()]
    if len(waiting) < len(cells):
        _say(f"{len(cells) - len(waiting)} of {len(cells)} runs are there already")
    ready = {cell.folder: cell for cell in waiting if not cell.stage1 or _is_complete(cell.stage1)}

    def keep(job: Job) -> None:
        assert job.folder is not None  # cells have one
        cell = ready[job.folder]
        folders = [cell.folder] if cell.stage1 is None else [cell.stage1.folder, cell.folder]
        found = record.from_work_directory(folders, method=cell.method, variant=cell.variant)
        record.write(cell.record, found)

    failed = pool.run([_job(cell) for cell in ready.values()], keep)
    if pool.stopping:
        raise _Stopped
    return [cell.name for cell in waiting if cell.folder not in ready] + [j.name for j in failed]


def _job(cell: Cell) -> Job:
    log = cell.folder.with_name(f"{cell.folder.name}.log")
    return Job(cell.name, "main", cell.command(), log, cell.folder, cell.config.train.steps)


def child_environment(jobs: int) -> dict[str, str]:
    """The environment of a run when so many share the processors.

    XLA:CPU takes the size of its thread pools from NPROC. A run of one thread also computes without
    the pool, which is faster than handing single pieces to it.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = filter(None, (root, os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = max(1, allowed // jobs)
    if jobs > 1:
        environment |= {"NPROC": str(threads), "OMP_NUM_THREADS": str(threads)}
    if jobs > 1 and threads == 1:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        environment["XLA_FLAGS"] = flags.strip()
    return environment


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    """Holds the folder: two comparisons in one would write over each other.

    The runs inherit the lock, so it is held as long as one of them lives, even if this process was
    killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{out} is in use by another comparison, or by a run that it left behind; wait for "
                "it, or choose another --out"
            ) from None
        yield file


def write_table(
    out: Path, level: float, methods: Sequence[str], vary: tuple[str, tuple[str, ...]] = ("", ("",))
) -> None:
    """Writes and prints the table of DIR/raw, and the figures where matplotlib is there.

    `vary` selects variants: a table of some of them leaves that of all as it is.
    """
    found = {file: record.read(file) for file in sorted((out / "raw").glob("*.json"))}
    name, values = vary
    wanted = (
        {f"{name}={value}" for value in values} if name else {r.variant for r in found.values()}
    )
    kept = {file: run for file, run in found.items() if run.variant in wanted}
    if not kept:
        of = f" of {', '.join(sorted(wanted))}" if found else ""
        raise ConfigError(f"{out / 'raw'} has no records{of}; run the comparison first")
    selected = len(kept) < len(found)
    records = list(kept.values())
    hashes = {f"raw/{file.name}": record.sha256(file) for file in kept}
    earlier = _earlier_table(out / "table.json")
    made = table.make(records, level=level, order=methods or earlier["methods"])
    table.write(out, made, hashes, stem="table_selected" if selected else "table")
    known = earlier["records"]
    if changed := [name for name in hashes if known.get(name, hashes[name]) != hashes[name]]:
        _say(f"changed since the last table: {', '.join(changed)}")
    _say(f"\n{made.text}\n")
    try:
        folder = out / ("figures_selected" if selected else "figures")
        drawn = figures.write_all(folder, records, order=made.methods)
        _say(f"figures: {', '.join(drawn)} in {folder}")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        _say("no figures without matplotlib; pip install matplotlib")
    _say(f"everything is in {out}: table.txt, table.md, table.json, raw")


def _earlier_table(file: Path) -> dict[str, Any]:
    """Methods and records of the table that is there, if one is."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"methods": list(content["methods"]), "records": dict(content["records"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"methods": [], "records": {}}


# ---- readers of flags ---------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("it is empty; name at least one")
    return words


def _numbers(text: str) -> tuple[str, ...]:
    """`a:b` is a to b - 1; anything else is a list."""
    first, colon, end = text.partition(":")
    if colon and first.isdecimal() and end.isdecimal() and int(first) < int(end):
        return tuple(map(str, range(int(first), int(end))))
    return _words(text)


def _seeds(text: str) -> tuple[int, ...]:
    numbers = _numbers(text if {",", ":"} & set(text) else f"0:{text}")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seeds, such as 3 or 0,5,7")
    return tuple(map(int, numbers))


def _vary(text: str) -> tuple[str, tuple[str, ...]]:
    name, separator, values = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUES, such as world=0,1")
    return name, _numbers(values)


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(sorted({float(word) for word in _words(text)}))
    except ValueError:
        factors = ()
    if not factors or factors[0] <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} are no factors, such as 0.5,1,2")
    return factors


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _say(line: str) -> None:
    """Prints a line; once nobody reads (`| head`), to nowhere: the runs are worth more."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
