"""Benchmark files in a data folder: collected, checked against the published split, written."""

from pathlib import Path

from drift_jax.prepare import files, published, sources
from drift_jax.prepare.sources import TaskFile

# Runs on the stand-in take this as their data folder, so that their configuration names it.
STAND_IN_FOLDER = "stand_in"


def prepare_task(task: str, out: Path, source: Path | None, *, revision: str | None) -> list[str]:
    """Writes `out/task/train.json` and `test.json`.

    Returns:
      What was done, a line a file.

    Raises:
      ValueError: in one line; nothing is written then.
    """
    if source is None:
        found = sources.from_hub(task, revision=revision)
    else:
        found = sources.from_local(task, source)
    lines = _write(task, out / task, found)
    absent = [split for split in sources.SPLITS if split not in {file.split for file in found}]
    return lines + [
        f"{out / task / split}.json: NOT WRITTEN, {source} has no {sources.RAW_TOOL_FILES[split]} "
        "and no other form of it"
        for split in absent
    ]


def prepare_stand_in(out: Path, source: Path | None) -> list[str]:
    """Writes a tool-use folder whose train file is the stand-in, apart from the published one.

    Returns:
      What was done, a line a file.

    Raises:
      ValueError: in one line; nothing is written then.
    """
    if source is None:
        raise ValueError("--stand-in needs --source, a folder with ToolAlpaca's eval_real.json")
    folder = out / STAND_IN_FOLDER
    return [
        *_write("tooluse", folder / "tooluse", sources.stand_in(source)),
        f"use it with --config.data.path={folder}; results on it are not Tool Use results",
    ]


def _write(task: str, folder: Path, found: list[TaskFile]) -> list[str]:
    targets = {}
    for file in found:
        _refuse_other(task, file)
        name = "train" if file.split == "stand_in" else file.split
        targets[folder / f"{name}.json"] = file
    written = files.write_all({target: file.data for target, file in targets.items()})
    return [
        f"{target}: {_describe(task, file)}{'' if written[target] else ' (was there already)'}"
        for target, file in targets.items()
    ]


def _refuse_other(task: str, file: TaskFile) -> None:
    """Raises ValueError for a file that must be the published one and is not.

    The train split of tool use may differ: how it was made is not wholly known, so what the user
    has may be as good as it gets.
    """
    if (task, file.split) != ("tooluse", "train") and not published.is_published(
        task, file.split, file.data
    ):
        raise ValueError(
            f"{file.origin} gives another {task} {file.split} file than the published one: "
            f"{published.difference(task, file.split, file.data)}; nothing was written"
        )


def _describe(task: str, file: TaskFile) -> str:
    if not published.is_published(task, file.split, file.data):
        return f"NOT the published split: {published.difference(task, file.split, file.data)}"
    expected = published.FILES[task, file.split]
    kind = "the stand-in" if file.split == "stand_in" else "the published split"
    return f"{kind}, {expected.rows} rows, {expected.checksum}"
