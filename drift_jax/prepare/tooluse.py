"""The tool-use task: requests to the simulated APIs of ToolAlpaca, with the calls that serve them.

The published test split is rebuilt to the byte from ToolAlpaca's evaluation file. How the train
split was made from ToolAlpaca's training file is only partly known, so the builder tries what may
have been meant and lets the published checksum decide.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_jax.prepare import files, published

TRAIN_ROWS = published.FILES["tooluse", "train"].rows
PROMPT = (
    "Your task is to answer the user's question using available tools. \n"  # the space is theirs
    "You have access to the following tools:\n"
    "Name: {Name}\n"
    "Description: {Description}\n"
    "Documentation:\n"
    "{NLDocumentation}\n"
    "Use the following format:\n"
    "Thought: you should always think about what to do\n"
    "Action: the action to take, should be one of the tool names.\n"
    "Action Input: the input to the action, must be in JSON format. "
    "All of the action input must be realistic and from the user.\n"
    "\n"
    "Begin!\n"
    "Question: "
)
PLACEHOLDER = "$"  # marks a value that an earlier call returns
LONGEST = 5  # calls; ToolAlpaca's own converter leaves out longer traces

Call = dict[str, Any]
Pair = tuple[str, list[Call]]  # prompt and gold calls


@dataclass(frozen=True)
class TrainRule:
    """How a training instance becomes a row, where upstream is silent; the defaults are ours.

    Attributes:
      cut_hint: take the line off that starts with `Hint: ` and follows some instructions.
      drop_placeholders: leave out an instance that refers to an earlier call's result.
      drop_long: leave out an instance with more than `LONGEST` calls.
      drop_questions: leave out an instance that only asks the user back.
      drop_unparsable: leave out an instance with an input that is not JSON.
    """

    cut_hint: bool = True
    drop_placeholders: bool = False
    drop_long: bool = False
    drop_questions: bool = False
    drop_unparsable: bool = False

    def keeps(self, calls: list[Call]) -> bool:
        """Whether an instance with these gold calls becomes a row."""
        inputs = [call["Action_Input"] for call in calls]
        return bool(calls) and not (
            (self.drop_placeholders and any(PLACEHOLDER in text for text in inputs))
            or (self.drop_long and len(calls) > LONGEST)
            or (self.drop_questions and all(call["Action"] == "getDetails" for call in calls))
            or (self.drop_unparsable and not all(_is_json(text) for text in inputs))
        )


def build_test(file: Path, *, first_idx: int = TRAIN_ROWS) -> bytes:
    """The rows of an evaluation file of ToolAlpaca, without those that need an earlier result.

    Raises:
      ValueError: naming the file and what is damaged in it.
    """
    kept = [
        (prompt, calls)
        for prompt, calls in _evaluation_pairs(file)
        if not any(PLACEHOLDER in call["Action_Input"] for call in calls)
    ]
    return _encode(kept, first_idx)


def build_train(file: Path) -> bytes:
    """The rows of ToolAlpaca's training file: the published ones if any rule gives them.

    Raises:
      ValueError: naming the file and what is damaged in it.
    """
    instances = list(_training_instances(file))
    no_first = (False, True)
    for flags in itertools.product((True, False), no_first, no_first, no_first, no_first):
        pairs = _apply(TrainRule(*flags), instances)
        if len(pairs) == TRAIN_ROWS and published.is_published(
            "tooluse", "train", data := _encode(pairs)
        ):
            return data
    return _encode(_apply(TrainRule(), instances))


def build_from_table(file: Path, *, first_idx: int) -> bytes:
    """The rows of a parquet file that has them as columns `prompt` and `golden_answer`.

    Raises:
      ValueError: naming the file and the row that is damaged, or what has to be installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"{file.name} is a parquet file and pyarrow is not installed; "
            "type `pip install pyarrow`, or name a JSON file with --source"
        ) from None
    try:
        rows = parquet.read_table(file, columns=["prompt", "golden_answer"]).to_pylist()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} cannot be read as parquet: {reason}") from error
    pairs = []
    for number, row in enumerate(rows, start=1):
        calls = row["golden_answer"]
        if isinstance(calls, str) and _is_json(calls):
            calls = json.loads(calls)
        if not isinstance(row["prompt"], str) or not calls or not _are_calls(calls):
            raise ValueError(f"{file}, row {number}: expected a prompt and its gold calls")
        ordered = [{name: call[name] for name in ("Action", "Action_Input")} for call in calls]
        pairs.append((row["prompt"], ordered))
    return _encode(pairs, first_idx)


def _evaluation_pairs(file: Path) -> Iterator[Pair]:
    for place, api in _apis(file, "Golden_Answers"):
        instructions, answers = api.get("Instructions"), api["Golden_Answers"]
        if not isinstance(instructions, list) or not isinstance(answers, list):
            raise ValueError(f"{place}: expected lists of Instructions and Golden_Answers")
        # Upstream pairs as far as both lists go.
        pairs = zip(instructions, answers, strict=False)
        for number, (instruction, calls) in enumerate(pairs, start=1):
            if not isinstance(instruction, str) or not _are_calls(calls):
                raise ValueError(
                    f"{place}, instruction {number}: expected text and a list of objects that have "
                    "Action and Action_Input"
                )
            yield _prompt(api, instruction), calls


def _training_instances(file: Path) -> Iterator[tuple[dict[str, Any], str, list[Call]]]:
    """API, instruction and gold calls of every training instance, the failed ones included."""
    for place, api in _apis(file, "Instances"):
        if not isinstance(api["Instances"], list):
            raise ValueError(f"{place}: expected a list of Instances")
        for number, instance in enumerate(api["Instances"], start=1):
            try:
                steps = instance.get("intermediate_steps") or []
                calls = [{"Action": step[0][0], "Action_Input": step[0][1]} for step in steps]
                sound = isinstance(instance["input"], str) and _are_calls(calls)
            except (AttributeError, IndexError, KeyError, TypeError):
                sound = False
            if not sound:
                raise ValueError(
                    f"{place}, instance {number}: expected input, and intermediate_steps as "
                    "[[action, input, text], observation]"
                )
            yield api, instance["input"], calls


def _apply(rule: TrainRule, instances: list[tuple[dict[str, Any], str, list[Call]]]) -> list[Pair]:
    return [
        (_prompt(api, text.rsplit("\nHint: ", 1)[0] if rule.cut_hint else text), calls)
        for api, text, calls in instances
        if rule.keeps(calls)
    ]


def _apis(file: Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each API of a ToolAlpaca file, checked, and where it stands."""
    apis = files.read_json(file)
    if not isinstance(apis, list) or not apis:
        raise ValueError(f"{file}: expected a JSON list of APIs")
    for number, api in enumerate(apis, start=1):
        place = f"{file}, API {number}"
        if not isinstance(api, dict) or field not in api:
            raise ValueError(f"{place}: expected an object that has {field}")
        for name in ("Name", "Description", "NLDocumentation"):
            if not isinstance(api.get(name), str):
                raise ValueError(f"{place}: {name} is missing, expected text")
        yield place, api


def _prompt(api: dict[str, Any], instruction: str) -> str:
    names = ("Name", "Description", "NLDocumentation")
    return PROMPT.format(**{name: api[name] for name in names}) + instruction


def _encode(pairs: list[Pair], first_idx: int = 0) -> bytes:
    """The pairs as published rows; the order of the fields is that of the published files."""
    return files.encode_rows(
        [
            {
                "prompt": prompt,
                "description": prompt,
                "idx": index,
                "dataset": "tooluse",
                "system": None,
                "answer": json.dumps(calls),
                "tests": None,
                "kind": "tooluse",
                "elo": 1500,
            }
            for index, (prompt, calls) in enumerate(pairs, start=first_idx)
        ]
    )


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("Action"), str)
        and isinstance(call.get("Action_Input"), str)
        for call in calls
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
