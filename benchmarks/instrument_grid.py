"""Methods over many worlds and seeds of a generated task, and whether the runs tell them apart.

    python benchmarks/instrument_grid.py --task=toolsteps --methods=grpo,sdpo --out=runs/instrument

Makes the base policy of every world, asks the findability gate, then runs every training through
the package's own command, a few at a time on one thread each. What is there already is skipped, so
methods can be added later. Writes DIR/RESULTS_<task>.md: a table over the worlds that pass the
gate, one over all worlds, and the discrimination of both.
"""

import argparse
import concurrent.futures
import pathlib

import numpy as np
from quickstart_grid import command, rewards

from drift_jax import statistics

CONFIG = "configs/instrument.py"


def base_policy(out: pathlib.Path, task: str, world: int) -> str:
    """Where the base policy of a world lies; it is warm-started if it is not there."""
    folder = out / f"{task}{world}_base"
    if not (folder / "model").is_dir():
        config = f"--config={CONFIG}:task={task},world={world}"
        command("warm_start", config, f"--workdir={folder}", log=out / f"{folder.name}.log")
    return str(folder / "model")


def takes_part(out: pathlib.Path, task: str, world: int) -> bool:
    """The verdict of the gate on a world and its base policy; the reasons are in the log."""
    log = out / f"{task}{world}_gate.log"
    if not log.is_file() or "world" not in log.read_text():
        command(
            "instrument",
            f"--config={CONFIG}:task={task}",
            f"--worlds={world}",
            f"--bases={out / (task + '{world}_base')}/model",
            log=log,
        )
    return f"world {world} takes part" in log.read_text()


def one_run(
    out: pathlib.Path, task: str, method: str, world: int, seed: int, extra: list[str]
) -> float:
    """Mean reward on the test problems after one training run."""
    folder = out / f"{task}{world}_{method}_{seed}"
    base = out / f"{task}{world}_base" / "model"
    command(
        "main",
        f"--config={CONFIG}:task={task},method={method},world={world},seed={seed},base={base}",
        "--config.logging.tensorboard=false",
        *extra,
        f"--workdir={folder}",
        log=out / f"{folder.name}.log",
    )
    last = max(int(file.stem) for file in (folder / "eval").glob("*.json"))
    return float(rewards(folder, last).mean())


def table(title: str, methods: list[str], worlds: list[int], scores: np.ndarray) -> list[str]:
    """Means of each world (seeds averaged) and over worlds, and the discrimination."""
    lines = [f"## {title}", "", f"| method | {' | '.join(f'world {w}' for w in worlds)} | mean |"]
    lines.append("| --- " * (len(worlds) + 2) + "|")
    for method, runs in zip(methods, scores.mean(axis=2), strict=True):
        cells = [*(f"{value:.3f}" for value in runs), f"{runs.mean():.3f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    enough = len(methods) > 1 and len(worlds) > 1
    verdict = str(statistics.discrimination(scores)) if enough else "too few runs to discriminate"
    return [*lines, "", verdict, ""]


def main() -> None:
    """Runs the grid and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--task", default="toolsteps")
    parser.add_argument("--methods", default="grpo,sdpo")
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("rest", nargs="*", help="after --: flags of the training command")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    methods, worlds = given.methods.split(","), list(range(given.worlds))
    cells = [(m, w, s) for m in methods for w in worlds for s in range(given.seeds)]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda world: base_policy(given.out, given.task, world), worlds))
        gate = list(pool.map(lambda world: takes_part(given.out, given.task, world), worlds))
        runs = list(pool.map(lambda cell: one_run(given.out, given.task, *cell, given.rest), cells))
    scores = np.array(runs).reshape(len(methods), len(worlds), given.seeds)
    gated = [world for world in worlds if gate[world]]
    text = [f"# {given.task}: mean reward on test problems, {given.seeds} seeds a world", ""]
    if gated:
        text += table("Worlds that pass the gate", methods, gated, scores[:, gated])
    text += table("All worlds", methods, worlds, scores)
    (given.out / f"RESULTS_{given.task}.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
