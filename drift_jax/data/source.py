"""Where problems come from, and in which order.

`load_task` gives the problems of a task and split, generated or read from benchmark files;
`ProblemStream` deals them out, a batch for every training step. Each problem has a persistent id
`task/split/idx` under which its pass rate and its past successes are kept.

grain is imported when a stream is made: importing it takes a second and brings jax with it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from drift_jax.data import toolcalls
from drift_jax.types import Problem

# Benchmark files hold one kind of row each.
KINDS = {
    "biology": "mcq",
    "chemistry": "mcq",
    "material": "mcq",
    "physics": "mcq",
    "tooluse": "tooluse",
}
TASKS = (*KINDS, "toolcalls")
SPLITS = ("train", "validation", "test")

# Sub-tasks of SciKnowEval (level L3) by row number: each ends before the number given.
SUBTASKS = {
    "biology": (
        (100, "GB1 fitness"),
        (200, "fluorescence"),
        (300, "beta-lactamase activity"),
        (400, "protein-protein interaction"),
        (500, "folding stability"),
    ),
    "chemistry": (
        (300, "molecule structure"),
        (900, "molar weight"),
        (1400, "molecular property"),
        (1700, "retrosynthesis"),
        (2100, "reaction prediction"),
    ),
    "material": (
        (149, "diffusion rate"),
        (309, "lattice volume"),
        (789, "perovskite stability"),
        (935, "valence-electron difference"),
    ),
    "physics": ((800, "general physics calculation"),),
}
# A task of the user's own: the folder of its files, and the first part of its problems' ids.
OWN_NAME = re.compile(r"\w[\w.-]*")
API_NAME = re.compile(r"^Name: (.+)$", re.MULTILINE)  # the sub-task of a tool-use row


def load_task(
    task: str,
    split: str,
    *,
    path: str | Path | None = None,
    world_seed: int = 0,
    instructions: bool = False,
    validation_fraction: float = 0.0,
    own: bool = False,
) -> list[Problem]:
    """Loads the problems of a split.

    `toolcalls` is generated from `world_seed` and has a validation split of its own; with
    `instructions` its problems say what a response looks like. The other
    tasks are read from `<path>/<task>/train.json` and `test.json`, one JSON object a line. Their
    validation split is a share of the train file, chosen by a hash of the row number: with a
    `validation_fraction` above 0, train is what it leaves.

    With `own`, a name that is not known is a user's task, whose rows may have any answer.

    Raises:
      ValueError: for an unknown task or split, a missing or damaged file (named, with the line),
        or a split without problems.
    """
    if task not in TASKS and not own:
        raise ValueError(
            f"unknown task {task!r}; expected one of {', '.join(TASKS)}, or a name of your own "
            "together with data.rewards=FILE.py:FUNCTION"
        )
    if not OWN_NAME.fullmatch(task):
        raise ValueError(
            f"task {task!r} cannot name a folder; use letters, digits, '.', '_' and '-'"
        )
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if task == "toolcalls":
        made = toolcalls.problems(toolcalls.World(world_seed), split)
        return [toolcalls.with_instructions(problem) for problem in made] if instructions else made
    if path is None:
        raise ValueError(
            f"task {task} is read from files and no folder is given; name the folder that "
            f"`python -m drift_jax.prepare --task={task} --out=FOLDER` has filled"
        )
    return _load_benchmark(task, split, Path(path), validation_fraction)


class ProblemStream:
    """The problems of each training step: a pure function of (seed, step).

    Every epoch is another permutation in which each problem comes at most once; the last batch of
    an epoch is dropped if it is short. Steps and epochs count from 1.

    Attributes:
      steps_per_epoch: full batches in an epoch.
      fingerprint: identifies the problems; see `fingerprint`.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, problems_per_step: int):
        if not 0 < problems_per_step <= len(problems):
            raise ValueError(
                f"problems_per_step is {problems_per_step} and there are {len(problems)} problems; "
                f"use 1 to {len(problems)} problems a step, or a larger task"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed} does not fit; use 0 to {2**32 - 1}")
        import grain

        self.problems_per_step = problems_per_step
        self.steps_per_epoch = len(problems) // problems_per_step
        self.fingerprint = fingerprint(problems)
        self._size = len(problems)
        # `.seed` before `.shuffle`, not `.shuffle(seed=…)`: that one shuffles epoch e with
        # seed + e, so that runs with neighbouring seeds would share their epochs.
        self._shuffled = grain.MapDataset.source(list(problems)).seed(seed).shuffle()

    def __getitem__(self, step: int) -> list[Problem]:
        """The problems of a training step; the first step is 1."""
        epoch, step_in_epoch = self.epoch(step) - 1, (step - 1) % self.steps_per_epoch
        # grain's index goes on from epoch to epoch; what an epoch's last full batch leaves is
        # skipped.
        first = epoch * self._size + step_in_epoch * self.problems_per_step
        return [self._shuffled[first + offset] for offset in range(self.problems_per_step)]

    def epoch(self, step: int) -> int:
        """The epoch that a training step belongs to; both count from 1."""
        # Not IndexError: it would make `for batch in stream` end silently at step 0.
        if step < 1:
            raise ValueError(f"there is no step {step}; training steps count from 1")
        return (step - 1) // self.steps_per_epoch + 1


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 over ids, messages and answers, in order: equal for equal data only."""
    digest = hashlib.sha256()
    for problem in problems:
        row = [problem.id, problem.task, list(problem.messages), problem.answer]
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def sample(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The `count` problems whose ids have the smallest hashes, in the order that they came in.

    Files are sorted by sub-task, so the first problems are all of one kind. A larger sample
    contains a smaller one.
    """
    hashes = sorted(problems, key=lambda problem: _hash(problem.id))
    chosen = {problem.id for problem in hashes[:count]}
    return [problem for problem in problems if problem.id in chosen]


# ---- benchmark files ---------------------------------------------------------------------------


def _load_benchmark(task: str, split: str, path: Path, validation_fraction: float) -> list[Problem]:
    """A split of a benchmark; see `load_task`."""
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; use 0 or more, below 1")
    if split == "validation" and validation_fraction == 0:
        raise ValueError(
            f"{task} has a validation split only with validation_fraction above 0; try 0.1"
        )
    file = path / task / ("test.json" if split == "test" else "train.json")
    rows = read_rows(file, task, path)
    if split != "test":
        wanted = split == "validation"
        rows = [row for row in rows if _is_held_out(task, row, validation_fraction) == wanted]
    if not rows:
        raise ValueError(
            f"{file} leaves no {split} problem at validation_fraction {validation_fraction}; "
            "change it"
        )
    return [_make_problem(task, split, row) for row in rows]


def read_rows(file: Path, task: str, path: Path) -> list[dict]:
    """Reads and checks a JSON-lines file; an error names the file and the line."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        remedy = (
            f"type `python -m drift_jax.prepare --task={task} --out={path}`"
            if task in KINDS
            else "put your problems there, one JSON object a line, or change task or data.path"
        )
        raise ValueError(f"{file} does not exist; {remedy}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if lines[-1] == b"":  # what follows the last newline
        lines.pop()
    if not lines:
        raise ValueError(f"{file} is empty; expected one problem a line")
    rows = []
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except json.JSONDecodeError as error:
            reason = f"not a JSON object: {error.msg} at column {error.colno}"
            raise ValueError(f"{file}, line {number}: {reason}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, a huge number, deep nesting
            raise ValueError(f"{file}, line {number}: not readable: {error}") from error
        fault = _find_fault(row, KINDS.get(task))
        if not fault and row["idx"] in seen:
            fault = f"idx {row['idx']} is also that of line {seen[row['idx']]}"
        if fault:
            raise ValueError(f"{file}, line {number}: {fault}")
        seen[row["idx"]] = number
        rows.append(row)
    return rows


def _find_fault(row: object, kind: str | None) -> str:
    """What is wrong with a row, or the empty string; a user's own rows have no kind."""
    if not isinstance(row, dict):
        return f"expected a JSON object, got {_shown(row)}"
    needed = ("idx", "prompt", "answer") if kind is None else ("idx", "kind", "prompt", "answer")
    missing = [name for name in needed if name not in row]
    if missing:
        return f"missing {', '.join(missing)}"
    if type(row["idx"]) is not int or row["idx"] < 0:
        return f"idx is {_shown(row['idx'])}, expected a whole number from 0"
    if kind is not None and row["kind"] != kind:
        return f"kind is {_shown(row['kind'])}, expected {kind!r}"
    if not _is_text(row["prompt"]) or not row["prompt"].strip():
        return f"prompt is {_shown(row['prompt'])}, expected text"
    if row.get("system") is not None and not _is_text(row["system"]):
        return f"system is {_shown(row['system'])}, expected text or null"
    if kind is None:
        return _find_own_fault(row)
    if kind == "mcq" and row["answer"] not in ("A", "B", "C", "D"):
        return f"answer is {_shown(row['answer'])}, expected a letter from A to D"
    if kind == "tooluse" and not _is_call_list(row["answer"]):
        return (
            f"answer is {_shown(row['answer'])}, expected text with a JSON list of objects "
            "that have Action and Action_Input"
        )
    return ""


def _find_own_fault(row: dict) -> str:
    """The same for what a user's task has in place of a known kind of answer."""
    if not _is_text(row["answer"]):
        return f"answer is {_shown(row['answer'])}, expected text; your reward function parses it"
    level = row.get("level", "")
    # It becomes a part of a metric's name.
    if not isinstance(level, str) or not re.fullmatch(r"[\w .,:()+-]*", level):
        return f"level is {_shown(level)}, expected a few words without a slash"
    return ""


def _is_text(value: object) -> bool:
    """Whether a tokenizer can take the value: text without halves of surrogate pairs."""
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)


def _is_call_list(answer: object) -> bool:
    """Whether an answer is what the tool-use graders read."""
    try:
        calls = json.loads(answer) if isinstance(answer, str) else None
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(calls, list)
        and bool(calls)
        and all(
            isinstance(call, dict)
            and isinstance(call.get("Action"), str)
            and isinstance(call.get("Action_Input"), str | dict)
            for call in calls
        )
    )


def _make_problem(task: str, split: str, row: dict) -> Problem:
    """A benchmark row as chat messages; the system turn is there if the row has one."""
    system = row.get("system")
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": row["prompt"]})
    return Problem(
        id=f"{task}/{split}/{row['idx']}",
        task=task,
        messages=tuple(turns),
        answer=row["answer"],
        level=_subtask(task, row),
    )


def _subtask(task: str, row: dict) -> str:
    """The sub-task of a row, for result tables; empty where it is not known."""
    if task not in KINDS:
        return str(row.get("level", ""))
    if task == "tooluse":
        found = API_NAME.search(row["prompt"])
        return found.group(1).strip() if found else ""
    return next((name for end, name in SUBTASKS[task] if row["idx"] < end), "")


def _is_held_out(task: str, row: dict, fraction: float) -> bool:
    """Whether a train row belongs to the validation split: the same rows on every machine."""
    return _hash(f"{task}/{row['idx']}") < fraction * 2**64


def _hash(text: str) -> int:
    """64 bits that depend on the text alone: the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _shown(value: object) -> str:
    """A value for an error message: on one line and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
