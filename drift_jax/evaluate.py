"""Evaluate a checkpoint of a run, or any Hugging Face folder, on the problems of a task.

    python -m drift_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE[:ARGS]   the run's experiment file; `evaluation.*` says how many samples and how
  --workdir=DIR          the run; its newest checkpoint is evaluated, results go to DIR/evaluate
  --step=N|best          another checkpoint of it: a number, or the best (on validation, if any)
  --model=HF_DIR         a checkpoint folder instead; results still go to --workdir
  --against=FILE         compare with the result of another evaluation: paired difference, p-value

All samples are kept. An interrupted evaluation goes on where it stopped. The statistics that the
table is made of are functions of [problem, sample] arrays, and importable from here.
"""

import json
import pathlib
from typing import Any

import jax
from absl import flags

from drift_jax import assemble, command, examination, scorecard, selection
from drift_jax import config as configs
from drift_jax.checkpoint import CheckpointError, Checkpoints
from drift_jax.config import ConfigError
from drift_jax.examination import Examination
from drift_jax.grading import Grader
from drift_jax.models.transformer import Params
from drift_jax.statistics import Estimate as Estimate
from drift_jax.statistics import best_at_k as best_at_k
from drift_jax.statistics import majority_at_k as majority_at_k
from drift_jax.statistics import mean_at_k as mean_at_k
from drift_jax.statistics import paired_difference as paired_difference
from drift_jax.statistics import pass_at_k as pass_at_k
from drift_jax.statistics import worst_at_k as worst_at_k

_STEP = flags.DEFINE_string("step", None, "Checkpoint to evaluate: a step, or best.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder to evaluate instead of a run.")
_AGAINST = flags.DEFINE_string(
    "against", None, "Result file of another evaluation to compare with."
)


def evaluate(config: Any, workdir: str, *, step: str | None, model: str | None) -> pathlib.Path:
    """Evaluates and prints the scorecard.

    Args:
      config: the configuration; `evaluation.split` says which problems.
      workdir: of the run, and where the result goes.
      step: a step or "best"; None is the newest checkpoint.
      model: a checkpoint folder to evaluate instead.

    Returns:
      The result file: a JSON object a problem, a line each.
    """
    if model is not None:
        configs.assign(config, {"model.path": model, "model.init": "checkpoint"})
    with assemble.open_grader(config) as grader:
        return _evaluate(config, workdir, step, model, grader)


def _evaluate(
    config: Any, workdir: str, step: str | None, model: str | None, grader: Grader
) -> pathlib.Path:
    tokenizer = assemble.open_tokenizer(config)
    training, _ = assemble.open_problems(config, tokenizer, "train")
    mesh = assemble.make_mesh(config)
    sizes, params = assemble.open_model(config, tokenizer, mesh)
    exam = examination.examination(config, sizes, tokenizer, mesh, grader)
    name = pathlib.Path(model).name if model is not None else ""
    if model is None:
        checkpoints = Checkpoints(workdir)
        number = _choose_step(checkpoints, workdir, step)
        template = assemble.state_template(config, mesh, sizes)
        restored = checkpoints.restore(template, number)
        assert restored is not None  # `number` is one of its steps
        params, name = restored[0].trainable, str(number)
    folder = command.check_writable(workdir) / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.evaluation.split}_{name}.jsonl"
    rows = complete(exam, params, file, config.evaluation.problems_per_batch)
    print(scorecard.text(rows, exam.problems, training, grader))
    if model is None and (chosen := selection.lines(workdir)):
        print("\n  ".join(["evaluated while it trained:", *chosen]))
    print(f"every sample is in {file}")
    return file


def complete(
    exam: Examination, params: Params, file: pathlib.Path, problems_per_batch: int
) -> list[dict[str, Any]]:
    """The rows of an evaluation; those that `file` has already are not sampled again.

    Args:
      exam: what is asked, and how.
      params: of the policy.
      file: JSON lines; the first says how was sampled, then comes one a problem.
      problems_per_batch: problems between two appends.

    Raises:
      ConfigError: if the file was sampled in another way.
    """
    settings = exam.settings()
    known = _read(file, settings)
    if not known:
        file.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
    left = [problem for problem in exam.problems if problem.id not in known]
    for start in range(0, len(left), problems_per_batch):
        asked = left[start : start + problems_per_batch]
        rows = examination.result_rows(asked, exam.student(params, 0, asked))
        # A lone half of a surrogate pair, which a decoder may emit, has no UTF-8 form.
        with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        known |= {row["id"]: row for row in rows}
    return [known[problem.id] for problem in exam.problems]


def _read(file: pathlib.Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of an earlier, perhaps interrupted, evaluation by id; a half line is cut off."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    first, *rows = _objects(whole) or [{}]
    if first.get("settings") != settings:
        raise ConfigError(
            f"{file} was sampled with {first.get('settings')} and this evaluation wants "
            f"{settings}; move it away, or choose another --workdir"
        )
    return {row["id"]: row for row in rows}


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; a response may hold other line ends, such as U+2028."""
    return [json.loads(line) for line in text.split("\n") if line]


def _choose_step(checkpoints: Checkpoints, workdir: str, step: str | None) -> int:
    if step not in (None, "best") and not step.isdecimal():
        raise ConfigError(f"--step is {step!r}; give a number, or best")
    if step is None:
        number = checkpoints.latest_step()
    else:
        number = checkpoints.best_step() if step == "best" else int(step)
    if number is None or number not in checkpoints.steps():
        raise ConfigError(
            f"{workdir} has no checkpoint {step or ''}; present: {list(checkpoints.steps())}; "
            "name the work directory of a run, or --model=HF_DIR"
        )
    return number


def compare(file: pathlib.Path, against: str) -> str:
    """One line about the difference of two result files.

    Raises:
      ConfigError: if the other file is missing or of other problems.
    """
    other = pathlib.Path(against)
    if not other.is_file():
        raise ConfigError(f"--against={against} does not exist; name a result file (.jsonl)")
    rows, others = (
        [row for row in _objects(path.read_text(encoding="utf-8")) if "id" in row]
        for path in (file, other)
    )
    with assemble.boundary():
        difference, p_value = scorecard.paired_test(rows, others)
    return f"difference to {other}: {difference}, p = {p_value:.4f} (sign flips over problems)"


def main(config: Any) -> None:
    """Checks the flags and evaluates."""
    if command.WORKDIR.value is None:
        raise ConfigError(f"--workdir is missing; for example: {command.example(__doc__ or '')}")
    configs.validate(config, device_count=jax.device_count())
    try:
        file = evaluate(config, command.WORKDIR.value, step=_STEP.value, model=_MODEL.value)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if _AGAINST.value is not None:
        print(compare(file, _AGAINST.value))


if __name__ == "__main__":
    command.run(main, __doc__ or "")
