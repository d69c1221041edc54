"""Where a task's files come from: a local copy in one of upstream's forms, or the hub.

In a local source these are looked for, in the order given:

    the published split               <task>/train.json and test.json
    SciKnowEval's data set            sciknoweval_test_v2.jsonl
    SciKnowEval's git repository      raw_data/<Domain>/L3/<sub-task>.jsonl
    ToolAlpaca's git repository       train_data.json, eval_simulated.json, eval_real.json
    ToolAlpaca as a data set          train-00000-of-00001.parquet, test-00000-of-00001.parquet
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drift_jax.data import source as task_files
from drift_jax.prepare import files, hub, published, science, tooluse

# As others document these data sets; the checksums are what decides.
SCIKNOWEVAL = "hicai-zju/SciKnowEval"
SCIKNOWEVAL_FILE = "data/v2/sciknoweval_test_v2.jsonl"
SCIKNOWEVAL_REVISION = "92ef969ad0a8bd6e195e0ac18af2c46e307e0cc2"
TOOLALPACA = "Ahren09/ToolAlpaca"
TOOLALPACA_FILE = "data/{split}-00000-of-00001.parquet"
TOOLALPACA_REVISION = "main"

SPLITS = ("train", "test")
RAW_TOOL_FILES = {"train": "train_data.json", "test": "eval_simulated.json"}
RAW_STAND_IN_FILE = "eval_real.json"


@dataclass(frozen=True)
class TaskFile:
    """The content of a file to write.

    Attributes:
      split: train, test, or stand_in for a train file that is not the published one.
      data: the content.
      origin: the file that it was made from.
    """

    split: str
    data: bytes
    origin: str


def from_hub(task: str, *, revision: str | None = None) -> list[TaskFile]:
    """Downloads and builds a task's files.

    Raises:
      ValueError: in one line, if a download fails or what came is damaged.
    """
    if task == "tooluse":
        revision = revision or TOOLALPACA_REVISION
        names = {split: TOOLALPACA_FILE.format(split=split) for split in SPLITS}
        tables = {
            split: hub.download_file(TOOLALPACA, name, revision) for split, name in names.items()
        }
        return [
            TaskFile(split, _from_table(split, tables[split]), f"{TOOLALPACA}, {names[split]}")
            for split in SPLITS
        ]
    file = hub.download_file(SCIKNOWEVAL, SCIKNOWEVAL_FILE, revision or SCIKNOWEVAL_REVISION)
    return _from_questions(task, [file], f"{SCIKNOWEVAL}, {SCIKNOWEVAL_FILE}")


def from_local(task: str, source: Path) -> list[TaskFile]:
    """Copies or builds a task's files from a folder or a file.

    Raises:
      ValueError: in one line, if nothing known is there or what is there is damaged.
    """
    if not source.exists():
        raise ValueError(f"--source={source} does not exist")
    found = _tooluse_files(source) if task == "tooluse" else _science_files(task, source)
    if found:
        return found
    expected = (
        "train.json and test.json, train_data.json, eval_simulated.json, or *.parquet"
        if task == "tooluse"
        else "train.json and test.json, sciknoweval_test_v2.jsonl, or raw_data"
    )
    raise ValueError(f"--source={source} holds nothing for task {task}; expected {expected}")


def stand_in(source: Path) -> list[TaskFile]:
    """A train file for smoke runs, and the test file if the source has a form of it.

    The stand-in is made from real APIs, those of ToolAlpaca's second evaluation file.

    Raises:
      ValueError: in one line, if the file is not there or damaged.
    """
    file = _find_raw(source, RAW_STAND_IN_FILE)
    if file is None:
        raise ValueError(
            f"--source={source} has no {RAW_STAND_IN_FILE}; name a folder with ToolAlpaca's data"
        )
    test = [found for found in _tooluse_files(source) if found.split == "test"]
    return [TaskFile("stand_in", tooluse.build_test(file, first_idx=0), str(file)), *test]


def _science_files(task: str, source: Path) -> list[TaskFile]:
    """The files of a science task, or nothing if the source has no form of them."""
    found = _split_files(task, source, f"datasets/sciknoweval/{task}", f"sciknoweval/{task}")
    if len(found) == 1:
        raise ValueError(f"--source={source} has only {found[0].origin}; expected train and test")
    if found:
        return found
    name = Path(SCIKNOWEVAL_FILE).name
    file = files.find(source, SCIKNOWEVAL_FILE, f"v2/{name}", name)
    if file is None and source.suffix == ".jsonl":
        file = source
    if file is not None:
        return _from_questions(task, [file], str(file))
    places = [
        f"{folder}{domain}/{science.LEVEL}"
        for folder in ("raw_data/", "")
        for domain in science.DOMAINS[task][::-1]  # the plural folder is the newer one
    ]
    folder = files.find(source, *places)
    if folder is None or not folder.is_dir():
        return []
    return _from_questions(task, science.order_files(task, folder), str(folder))


def _tooluse_files(source: Path) -> list[TaskFile]:
    """The files of tool use that the source has some form of; there may be but one."""
    found = {file.split: file for file in _split_files("tooluse", source, "datasets/tooluse")}
    builders: dict[str, Callable[[Path], bytes]] = {
        "train": tooluse.build_train,
        "test": tooluse.build_test,
    }
    for split, build in builders.items():
        raw = None if split in found else _find_raw(source, RAW_TOOL_FILES[split])
        if raw is not None:
            found[split] = TaskFile(split, build(raw), str(raw))
    for split in SPLITS:
        name = TOOLALPACA_FILE.format(split=split)
        table = None if split in found else files.find(source, name, Path(name).name)
        if table is not None:
            found[split] = TaskFile(split, _from_table(split, table), str(table))
    return [found[split] for split in SPLITS if split in found]


def _find_raw(source: Path, name: str) -> Path | None:
    return files.find(source, name, f"data/{name}", f"toolalpaca_raw/{name}")


def _split_files(task: str, source: Path, *folders: str) -> list[TaskFile]:
    """The split files that the source has, read by the loader of a run unless as published."""
    found = []
    for split in SPLITS:
        file = files.find(source, *(f"{folder}/{split}.json" for folder in (task, *folders, ".")))
        if file is None:
            continue
        data = files.read(file)
        if not published.is_published(task, split, data):
            task_files.read_rows(file, task, file.parent)  # names a damaged line
        found.append(TaskFile(split, data, str(file)))
    return found


def _from_questions(task: str, sources: list[Path], origin: str) -> list[TaskFile]:
    built = science.build(science.read_questions(task, sources))
    return [TaskFile(split, built[split], origin) for split in SPLITS]


def _from_table(split: str, table: Path) -> bytes:
    return tooluse.build_from_table(table, first_idx=0 if split == "train" else tooluse.TRAIN_ROWS)
