"""A finished run in one small file: all that tables and figures of a comparison need of it.

The record holds the scores of every evaluation problem by problem, what the run consumed, and its
dynamics in at most 50 points, some tens of kB altogether; so it can be kept, and committed, where
the work directory cannot. A table made from records alone is the table of the runs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_jax import config as configs
from drift_jax.config import ConfigError

FORMAT = 1
POINTS = 50

# The dynamics that are kept, as means over equal stretches of the run.
SERIES = (
    "rollout/reward_mean",
    "rollout/response_length_mean",
    "routing/easy_fraction",
    "routing/medium_fraction",
    "routing/hard_fraction",
    "routing/policy_fraction",
    "routing/distill_fraction",
    "routing/dropped_fraction",
    "teacher/available_fraction",
    "teacher/buffer_fraction",
    "buffer/entries",
    "buffer/fallback_hits",
    "buffer/replaced",
    "rhythm/rows",
    "rhythm/open_fraction",
    "rhythm/bonus_mean",
    "rhythm/weight_excess",
    "actor/entropy",
    "actor/grad_norm",
    "sampler/log_prob_gap_max",
)
_TRAINING = ("rollout", "reward", "decide", "update")  # phases of a step, of the training itself


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One run.

    Attributes:
      method: name of the method.
      variant: what else was varied, such as "world=1"; "" for nothing.
      seed: of the run.
      config: the fields that differ from the defaults, by dotted name.
      config_sha256: of the whole configuration.
      version, packages, devices: of the code, and what it ran on.
      base: fingerprint of the base weights.
      problems: fingerprint of the training problems.
      order: fingerprint of the problems of all steps, in the order in which they were asked.
      parameters: weights that a token is multiplied with.
      steps, warmup_steps, rollouts_per_step: length of the run and of its stage 1, and the samples
        of a step.
      split, samples: the evaluated problems, and the answers to each (k).
      eval_steps: steps of the evaluations. [evaluation]
      eval_means: mean reward of each problem. float64 [evaluation, problem]
      eval_metrics: metric of an evaluation -> its values; None where it has none. [evaluation] each
      budgets: what was consumed up to each evaluation, by "tokens" (sampled ones), "flops" (see
        `flops`) and "cpu_seconds". float64 [evaluation] each
      problem_ids: of the evaluated problems. [problem]
      final_rewards: of the last evaluation. float64 [problem, sample]
      totals: what the run consumed; names carry the unit.
      stage2: metric -> mean over the steps of stage 2; over all steps where there is none.
      series: metric -> values, and "step" -> the last step of each stretch. [point] each
    """

    method: str
    variant: str
    seed: int
    config: dict[str, Any]
    config_sha256: str
    version: str
    packages: dict[str, str]
    devices: list[str]
    base: str
    problems: str
    order: str
    parameters: int
    steps: int
    warmup_steps: int
    rollouts_per_step: int
    split: str
    samples: int
    eval_steps: list[int]
    eval_means: np.ndarray
    eval_metrics: dict[str, list[float | None]]
    budgets: dict[str, np.ndarray]
    problem_ids: list[str]
    final_rewards: np.ndarray
    totals: dict[str, float]
    stage2: dict[str, float | None]
    series: dict[str, list[float | None]]

    @property
    def name(self) -> str:
        """What a person calls it."""
        return ", ".join(filter(None, (self.method, self.variant, f"seed={self.seed}")))


def file_name(method: str, variant: str, seed: int) -> str:
    """A name that no other cell of a comparison has."""
    words = (method, variant.replace("=", "").replace("/", "_"), f"seed{seed}")
    return "_".join(filter(None, words)) + ".json"


def from_work_directory(
    folders: Sequence[Path], *, method: str, variant: str = "", seed: int | None = None
) -> Record:
    """Reads what a finished run left.

    Args:
      folders: its work directory; before it that of the run that it forked, if it did.
      method, variant: what the record is called.
      seed: the same; None takes that of the configuration.

    Raises:
      ConfigError: if a file is missing, or of an older version that did not write what is needed.
    """
    main = json.loads(_text(folders[-1] / "config.json"))
    config = configs.flatten(main["config"])
    rows, owners = _rows(folders, config)
    found = [
        step
        for step in sorted(owners)
        if f"eval/mean@{config['evaluation.samples']}" in rows.get(step, {})
    ]
    if not main.get("base") or "problems" not in main or not found:
        raise ConfigError(
            f"{folders[-1]} has no evaluation, or an older version of drift_jax made it; run it "
            "anew"
        )
    results = [json.loads(_text(owners[step] / "eval" / f"{step}.json")) for step in found]
    ids = [problem["id"] for problem in results[-1]["problems"]]
    steps = [rows[step] for step in sorted(rows) if step > 0]
    costs = flops(main["base"]["parameters"], steps)
    return Record(
        method=method,
        variant=variant,
        seed=config["seed"] if seed is None else seed,
        config=differing(config),
        config_sha256=config_fingerprint(config),
        version=main["version"],
        packages=main["packages"],
        devices=main["devices"],
        base=main["base"]["fingerprint"],
        problems=main["problems"],
        order=_sha256([row["data/order"] for row in steps]),
        parameters=main["base"]["parameters"],
        steps=max(rows),
        warmup_steps=sum(row["train/stage"] == 1 for row in steps),
        rollouts_per_step=config["rollout.problems_per_step"] * config["rollout.group_size"],
        split=config["evaluation.split"],
        samples=config["evaluation.samples"],
        eval_steps=found,
        eval_means=np.array([_means(result, ids) for result in results]),
        eval_metrics=_eval_metrics([rows[step] for step in found]),
        budgets={
            "tokens": _up_to(found, [row["rollout/tokens"] for row in steps]),
            "flops": _up_to(found, [sum(cost) for cost in zip(*costs.values(), strict=True)]),
            "cpu_seconds": _up_to(found, [row["time/cpu"] for row in steps])
            + rows.get(0, {}).get("time/cpu", 0.0),
        },
        problem_ids=ids,
        final_rewards=np.array([problem["rewards"] for problem in results[-1]["problems"]]),
        totals=_totals(list(rows.values()), costs),
        stage2=_stage2(steps),
        series=_series(steps),
    )


def flops(parameters: int, rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """An estimate of each step's floating-point operations, from tokens and parameters.

    2 x parameters a token of a forward pass and 4 x parameters a token of a backward pass:

        sampling  2 P (prompt tokens, once a group + sampled tokens)
        student   6 P (tokens of its pass)
        teacher   2 P (tokens of its pass)

    Attention over the context, padding, evaluations and a head's second sweep are left out.

    Args:
      parameters: P, the weights that a token is multiplied with.
      rows: of metrics.jsonl, one a step.
    """
    sampled = [row["compute/prompt_tokens"] + row["rollout/tokens"] for row in rows]
    return {
        "sampling": [2.0 * parameters * count for count in sampled],
        "student": [6.0 * parameters * row["compute/student_tokens"] for row in rows],
        "teacher": [2.0 * parameters * row["compute/teacher_tokens"] for row in rows],
    }


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration by dotted names."""
    return _sha256(dict(sorted(config.items())))


def differing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    defaults = configs.flatten(configs.default())
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
        if name not in defaults or _plain(value) != defaults[name]
    }


# ---- files --------------------------------------------------------------------------------------


def write(file: Path, record: Record) -> None:
    """Writes a record as JSON, whole or not at all; a line a field."""
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    lines = [f"{json.dumps(name)}: {_json(value)}" for name, value in values.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    partial.replace(file)


def read(file: Path) -> Record:
    """Reads what `write` wrote.

    Raises:
      ConfigError: for a file that is damaged or of another format.
    """
    try:
        values = json.loads(_text(file))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        for name in ("eval_means", "final_rewards"):
            values[name] = np.array(values[name], np.float64)
        values["budgets"] = {name: np.array(v, np.float64) for name, v in values["budgets"].items()}
        return Record(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is not a record of this version ({error}); delete it, and it is made again"
        ) from None


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _json(value: Any) -> str:
    """JSON without spaces; a configuration's numbers keep their types, since 1 and 1.0 differ."""
    if isinstance(value, dict):
        value = {
            name: _short(inner) if _is_array(inner) else inner for name, inner in value.items()
        }
    elif _is_array(value):
        value = _short(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | list)


def _short(value: Any) -> Any:
    """Whole numbers without a decimal point, in arrays of any depth: half the size."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _text(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; the run is not finished, start it again")
    return file.read_text(encoding="utf-8")


# ---- from a work directory ----------------------------------------------------------------------


def _rows(
    folders: Sequence[Path], config: Mapping[str, Any]
) -> tuple[dict[int, dict[str, float]], dict[int, Path]]:
    """Metrics of each step, and the folder whose evaluation belongs to it.

    A run that others fork ends where they begin, and evaluates there as every run does at its end;
    where a run in one piece would not have, that evaluation is left out.
    """
    rows: dict[int, dict[str, float]] = {}
    owners: dict[int, Path] = {}
    every = config["evaluation.every"]
    for folder in folders:
        lines = _text(folder / "metrics.jsonl").splitlines()
        for row in map(json.loads, lines):
            step = int(row.pop("step"))
            due = folder == folders[-1] or step == 0 or (every > 0 and step % every == 0)
            if due and (folder / "eval" / f"{step}.json").is_file():
                owners[step] = folder
            elif not due:
                row = {
                    name: value
                    for name, value in row.items()
                    if not name.startswith("eval/") and name not in ("teacher/gap", "time/evaluate")
                }
            rows[step] = row
    return rows, owners


def _means(result: Mapping[str, Any], ids: Sequence[str]) -> list[float]:
    """Mean reward of each problem, in the order of `ids`."""
    found = {problem["id"]: float(np.mean(problem["rewards"])) for problem in result["problems"]}
    if set(found) != set(ids):
        raise ConfigError(
            f"the evaluation of step {result['step']} has other problems than the last one; "
            "give the comparison another --out"
        )
    return [found[name] for name in ids]


def _eval_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    names = [name for row in rows for name in row if name.startswith(("eval/", "teacher/gap"))]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(names)}


def _up_to(steps: Sequence[int], amounts: Sequence[float]) -> np.ndarray:
    """Sum of the amounts of steps 1 to each of `steps`."""
    return np.concatenate([[0.0], np.cumsum(amounts)])[list(steps)]


def _totals(
    rows: Sequence[Mapping[str, float]], costs: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    def total(name: str) -> float:
        return round(float(sum(row.get(name, 0.0) for row in rows)), 3)

    totals = {
        "sampled_tokens": total("rollout/tokens"),
        "prompt_tokens": total("compute/prompt_tokens"),
        "student_tokens": total("compute/student_tokens"),
        "teacher_tokens": total("compute/teacher_tokens"),
        "buffer_fallbacks": total("buffer/fallback_hits"),
        "updates_skipped": total("actor/update_skipped"),
        "cpu_seconds": total("time/cpu"),
        "training_seconds": sum(total(f"time/{phase}") for phase in _TRAINING),
        "evaluation_seconds": total("time/evaluate"),
    }
    return totals | {f"flops_{part}": float(sum(cost)) for part, cost in costs.items()}


def _series(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Means over stretches of steps, four digits; None where a stretch has no finite value."""
    stretches = np.array_split(np.arange(len(rows)), min(POINTS, len(rows)))
    series: dict[str, list[float | None]] = {"step": [float(part[-1] + 1) for part in stretches]}
    for name in SERIES:
        if any(name in row for row in rows):
            series[name] = [_mean(rows[i].get(name) for i in part) for part in stretches]
    return series


def _stage2(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    second = [row for row in rows if row["train/stage"] == 2] or rows
    return {
        name: _mean(row.get(name) for row in second)
        for name in SERIES
        if any(name in row for row in second)
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.4g}") if known else None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=list).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
