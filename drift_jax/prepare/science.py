"""The science tasks: multiple-choice questions of SciKnowEval V2, level L3.

Upstream keeps questions as `question`, `choices` and `answerKey`. The published rows are those of
one domain in file order, numbered, with a fixed system turn; a tenth, chosen by a seeded
permutation, is the test split.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax.prepare import files

LEVEL = "L3"
KINDS = ("mcq-4-choices", "mcq-2-choices")
# Upstream's git repository says Materials in folder names, its data set says Material.
DOMAINS = {
    "biology": ("Biology",),
    "chemistry": ("Chemistry",),
    "material": ("Material", "Materials"),
    "physics": ("Physics",),
}
# The data set is one file; the git repository has a file for each sub-task, and this is the order
# in which the data set has them. Other files of the folder hold no multiple-choice questions.
SUBTASK_FILES = {
    "biology": (
        "GB1_ftness_prediction",
        "fluorescence_prediction",
        "beta_lactamase_activity_prediction",
        "Protein_Protein_Interaction",
        "stability_prediction",
    ),
    "chemistry": (
        "molecule_structure_prediction",
        "molar_weight_calculation",
        "molecular_property_calculation",
        "retrosynthesis",
        "reaction_prediction",
    ),
    "material": (
        "diffusion_rate_analysis",
        "lattice_volume_calculation",
        "perovskite_stability_prediction",
        "valence_electron_difference_calculation",
    ),
    "physics": ("general_physics_calculation",),
}
SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and \
nothing else. Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
TEST_FRACTION = 0.1
SPLIT_SEED = 42


def order_files(task: str, folder: Path) -> list[Path]:
    """The sub-task files of a domain's folder, in the order of the data set.

    Raises:
      ValueError: naming those that the folder lacks.
    """
    found = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    missing = [name for name in SUBTASK_FILES[task] if name not in found]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(f'{name}.jsonl' for name in missing)}")
    return [found[name] for name in SUBTASK_FILES[task]]


def read_questions(task: str, sources: Iterable[Path]) -> list[dict[str, Any]]:
    """The questions of a task's domain, level and kinds in upstream's files, in file order.

    Raises:
      ValueError: naming file and line of a damaged row, or the files if they have no question.
    """
    sources = list(sources)
    questions = []
    for file in sources:
        for number, row in files.read_json_lines(file):
            try:
                if _belongs(row, task):
                    _check_question(row)
                    questions.append(row)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    if not questions:
        names = ", ".join(str(file) for file in sources)
        raise ValueError(f"{names}: no multiple-choice question of level {LEVEL} for {task}")
    return questions


def build(questions: list[dict[str, Any]]) -> dict[str, bytes]:
    """The train and test file made from all questions of a task."""
    rows = [_make_row(index, question) for index, question in enumerate(questions)]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    test_rows = int(np.ceil(TEST_FRACTION * len(rows)))
    return {
        "train": files.encode_rows([rows[index] for index in order[test_rows:]]),
        "test": files.encode_rows([rows[index] for index in order[:test_rows]]),
    }


def _make_row(index: int, question: dict[str, Any]) -> dict[str, Any]:
    """A published row; the order of the fields is that of the published files."""
    choices = question["choices"]
    options = zip(choices["label"], choices["text"], strict=True)
    listed = "\n".join(f"{label}: {text}" for label, text in options)
    text = question["question"]
    return {
        "idx": index,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": question["answerKey"],
        "elo": 1500,
        "prompt": f"{text}\n\n{listed}\nPlease reason step by step.",
        "description": f"{text} The solution will be evaluated in a mcq environment.",
        "tests": "-",
        "embedding": [],
        "system": SYSTEM,
    }


def _belongs(row: Any, task: str) -> bool:
    """Whether a row of upstream's files is a question of the task.

    Raises:
      ValueError: if the row does not say what it is.
    """
    expected = {"domain": str, "type": str, "details": dict}
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    for name, kind in expected.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(
                f"{name} is missing, expected {'text' if kind is str else 'an object'}"
            )
    return (
        row["domain"] in DOMAINS[task]
        and row["details"].get("level") == LEVEL
        and row["type"] in KINDS
    )


def _check_question(row: dict[str, Any]) -> None:
    """Raises ValueError if the question cannot become a published row."""
    choices = row.get("choices")
    if not isinstance(row.get("question"), str) or not isinstance(choices, dict):
        raise ValueError("question or choices is missing")
    labels, texts = choices.get("label"), choices.get("text")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise ValueError("choices is damaged, expected as many entries of label as of text")
    if not all(isinstance(item, str) for item in labels + texts):
        raise ValueError("choices is damaged, expected text")
    if row.get("answerKey") not in labels:
        raise ValueError(f"answerKey is {row.get('answerKey')!r}, expected one of {labels}")
