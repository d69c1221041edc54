"""Small made-up files in upstream's forms, and upstream's forms of the real rows."""

import json
import re

from drift_jax.data.source import SUBTASKS
from drift_jax.prepare import published, science

SUFFIX = " The solution will be evaluated in a mcq environment."
REQUEST = "\nPlease reason step by step."


def question(number, domain="Physics", level="L3", kind="mcq-4-choices"):
    """A row of SciKnowEval."""
    labels = ["A", "B", "C", "D"] if kind == "mcq-4-choices" else ["A", "B"]
    return {
        "question": f"What is {number} m/s, né?",
        "choices": {"text": [f"{number + i} m/s" for i in range(len(labels))], "label": labels},
        "answerKey": labels[number % len(labels)],
        "type": kind,
        "domain": domain,
        "details": {"level": level},
    }


def api(name="Weather", **fields):
    """An API of ToolAlpaca."""
    return {
        "Name": name,
        "Description": f"The {name} API",
        "NLDocumentation": f"get{name}: gets it.\n",
        **fields,
    }


def call(action="getX", text='{"a": 1}'):
    return {"Action": action, "Action_Input": text}


def instance(text, *calls):
    """A training instance of ToolAlpaca."""
    steps = [[[c["Action"], c["Action_Input"], "Thought: …"], "observed"] for c in calls]
    return {"input": text, "output": "done", "Final Thought": "ok", "intermediate_steps": steps}


def write_lines(file, rows):
    """A JSON-lines file; text stands for itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def write_json(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def publish(monkeypatch, task, split, data):
    """Makes this content the published one."""
    kind = published.FILES[task, split].checksum.split()[0]
    monkeypatch.setitem(published.FILES, (task, split), published.measure(data, kind))


def read_rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def original_question(row, task):
    """The row of SciKnowEval that a published row was made from."""
    text = row["description"].removesuffix(SUFFIX)
    options = row["prompt"].removeprefix(f"{text}\n\n").removesuffix(REQUEST)
    _, *pieces = re.split(r"(?:^|\n)([A-D]): ", options)
    labels, texts = pieces[::2], pieces[1::2]
    return {
        "question": text,
        "choices": {"text": texts, "label": labels},
        "answerKey": row["answer"],
        "type": f"mcq-{len(labels)}-choices",
        "domain": science.DOMAINS[task][0],
        "details": {"level": "L3"},
    }


def original_questions(folder, task):
    """All rows of a task as SciKnowEval has them, in its order."""
    rows = [
        row for split in ("train", "test") for row in read_rows(folder / task / f"{split}.json")
    ]
    return [original_question(row, task) for row in sorted(rows, key=lambda row: row["idx"])]


def write_git_form(folder, task, questions):
    """The sub-task files of SciKnowEval's git repository."""
    start = 0
    for (end, _), name in zip(SUBTASKS[task], science.SUBTASK_FILES[task], strict=True):
        domain = science.DOMAINS[task][-1]
        write_lines(folder / "raw_data" / domain / "L3" / f"{name}.jsonl", questions[start:end])
        start = end
    return folder
