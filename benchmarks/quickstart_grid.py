"""The quickstart on several worlds and seeds: does it learn, and what did each part do?

    python benchmarks/quickstart_grid.py --out=runs/grid

Runs every warm start and every training through the package's own commands, two at a time on one
thread each, skips what is there already, and writes DIR/RESULTS.md. Worlds other than 0 get a base
policy of their own; 0 has the packaged one. About 90 CPU-minutes for 3 worlds x 3 seeds.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from drift_jax import statistics

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def command(module: str, *arguments: str, log: pathlib.Path) -> None:
    """One command of the package, its output in a file."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_THREAD}
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", f"drift_jax.{module}", *arguments],
            check=True,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def base_policy(out: pathlib.Path, world: int) -> str:
    """Where the base policy of a world lies; it is warm-started if it is not there."""
    if world == 0:
        return "quickstart_base"
    folder = out / f"base{world}"
    if not (folder / "model").is_dir():
        config = f"--config=configs/quickstart.py:base,world={world}"
        command("warm_start", config, f"--workdir={folder}", log=out / f"base{world}.log")
    return str(folder / "model")


def one_run(out: pathlib.Path, world: int, seed: int, base: str) -> pathlib.Path:
    """One training run; a finished one ends at once, a stopped one goes on."""
    folder = out / f"world{world}_seed{seed}"
    command(
        "main",
        f"--config=configs/quickstart.py:world={world},seed={seed}",
        f"--config.model.path={base}",
        f"--workdir={folder}",
        log=out / f"{folder.name}.log",
    )
    return folder


def rewards(folder: pathlib.Path, step: int) -> np.ndarray:
    """[problem, sample] of an evaluation."""
    result = json.loads((folder / "eval" / f"{step}.json").read_text())
    return np.array([problem["rewards"] for problem in result["problems"]])


def rows(folder: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learning_table(folders: list[pathlib.Path]) -> list[str]:
    """Before and after, with intervals over problems, one line a run."""
    lines = [
        "| run | teacher with gold | mean@8 before | after | gain | best@8 before | after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    gains = []
    for folder in folders:
        log = rows(folder)
        before, after = rewards(folder, 0), rewards(folder, log[-1]["step"])
        gain = statistics.paired_difference(after, before)
        gains.append(gain.value)
        cells = (
            folder.name.replace("_", ", ").replace("world", "world ").replace("seed", "seed "),
            f"{log[0]['eval/gold_mean@8']:.3f}",
            statistics.mean_at_k(before),
            statistics.mean_at_k(after),
            gain,
            f"{statistics.best_at_k(before, 8).value:.3f}",
            f"{statistics.best_at_k(after, 8).value:.3f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"Gain over the runs: mean {np.mean(gains):.3f}, smallest {min(gains):.3f}."]
    return lines


def parts_table(folders: list[pathlib.Path]) -> list[str]:
    """What routing, buffer, gate and bonus did in stage 2, one line a run."""
    lines = [
        "| run | easy / medium / hard | no loss | groups taught from the buffer |"
        " rows with gate | tokens with open gate | mean bonus | mean M - 1 | max M |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for folder in folders:
        log = [row for row in rows(folder)[1:] if row["step"] > 32]
        gated = [row for row in log if row["rhythm/rows"] > 0]

        def mean(name: str, over: list[dict] = log) -> float:
            return float(np.mean([row[name] for row in over])) if over else 0.0

        bins = " / ".join(
            f"{mean(f'routing/{level}_fraction'):.2f}" for level in ("easy", "medium", "hard")
        )
        hits = sum(row["buffer/fallback_hits"] for row in rows(folder)[1:])
        cells = (
            folder.name,
            bins,
            f"{mean('routing/dropped_fraction'):.2f}",
            f"{hits:.0f} of {16 * (len(rows(folder)) - 1)}",
            f"{mean('rhythm/rows'):.3f}",
            f"{mean('rhythm/open_fraction', gated):.3f}",
            f"{mean('rhythm/bonus_mean', gated):.4f}",
            f"{mean('rhythm/weight_excess', gated):.5f}",
            f"{max(row['rhythm/weight_max'] for row in log):.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs the grid and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    worlds, seeds = range(given.worlds), range(given.seeds)
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        bases = list(pool.map(lambda world: base_policy(given.out, world), worlds))
        cells = [(world, seed) for seed in seeds for world in worlds]
        folders = list(pool.map(lambda cell: one_run(given.out, *cell, bases[cell[0]]), cells))
    folders.sort()
    text = [*learning_table(folders), "", *parts_table(folders)]
    (given.out / "RESULTS.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
