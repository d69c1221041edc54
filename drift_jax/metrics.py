"""What a run writes down: metrics.jsonl, TensorBoard, events.jsonl, samples/<step>.jsonl.

`metrics.jsonl` has exactly one JSON object a step, for example

    {"step": 12, "rollout/reward_mean": 0.34, "routing/easy_fraction": 0.06}

and survives a kill at any moment: a checkpoint records the file's length in bytes and the list of
sample files; a resumed run cuts back to them and goes on, so that no step stands there twice.
TensorBoard gets the same values and hides the steps that are written again. `events.jsonl` is the
run's diary (start, resume, damaged checkpoint, ...) and is never cut.

A number that is not finite is written as null, since JSON has no word for it; TensorBoard omits
it. Every name must stand in `METRICS`, so the table in the documentation cannot lag behind.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

SAMPLES = "samples"

# Name -> one sentence with the unit. {k} is a number of samples, {level} a level or sub-task of the
# problems, {phase} a part of a step.
METRICS: dict[str, str] = {
    "train/epoch": "Epoch of this step, from 1 (reading B7).",
    "train/stage": "Stage of the curriculum: 1 warm-up, 2 mixed.",
    "rollout/reward_mean": "Mean reward of the step's rollouts.",
    "rollout/success_fraction": "Share of rollouts with a reward of at least success_threshold.",
    "rollout/all_correct_fraction": "Share of groups in which every rollout succeeds.",
    "rollout/all_wrong_fraction": "Share of groups in which no rollout succeeds.",
    "rollout/well_formed_fraction": "Share of rollouts that have the form of an answer.",
    "rollout/response_length_mean": "Mean response length, in tokens, stop token included.",
    "rollout/response_length_max": "Longest response, in tokens.",
    "rollout/truncated_fraction": "Share of rollouts that reach the limit without a stop token.",
    "rollout/tokens": "Sampled tokens of this step.",
    "rollout/tokens_total": "Sampled tokens of the run so far.",
    "rollout/tokens_per_second": "Sampled tokens per second of sampling.",
    "rollout/advantage_abs_mean": "Mean absolute group advantage (Eq. 1), in units of reward.",
    "reward/failed_fraction": "Share of rollouts on which your reward function failed (reward 0).",
    "routing/easy_fraction": "Share of the step's problems routed as easy (Figure 5).",
    "routing/medium_fraction": "Share of the step's problems routed as medium.",
    "routing/hard_fraction": "Share of the step's problems routed as hard.",
    "routing/pass_rate_mean": "Mean smoothed pass rate of the step's problems (Eq. 8).",
    "routing/weight_mean": "Mean routing weight gamma of the step's problems.",
    "routing/distill_weight_mean": "Mean distillation weight of the rollouts that have one.",
    "routing/problems_seen": "Problems that have a pass rate.",
    "routing/policy_fraction": "Share of rollouts with a policy-gradient term.",
    "routing/distill_fraction": "Share of rollouts with a distillation term.",
    "routing/dropped_fraction": "Share of rollouts with neither.",
    "teacher/available_fraction": "Share of rollouts with a teacher context.",
    "teacher/sibling_fraction": "Share of rollouts taught by a sibling.",
    "teacher/buffer_fraction": "Share of rollouts taught by a buffer entry.",
    "teacher/feedback_fraction": "Share of rollouts whose teacher is shown the grader's words.",
    "teacher/rate": "Share of the new student that entered the teacher after this step.",
    "teacher/refreshed": "1 when the teacher became a copy of the student, else 0.",
    "teacher/entropy": "Mean entropy of the teacher over distilled tokens, in nats.",
    "teacher/divergence": "Mean divergence of student and teacher over those tokens, in nats.",
    "teacher/gap": "eval/teacher_mean@k less the student's mean on the same problems.",
    "buffer/problems": "Problems with at least one entry in the success buffer.",
    "buffer/entries": "Entries in the success buffer (Figure 4).",
    "buffer/bytes": "Size of the buffer's texts, in bytes.",
    "buffer/added": "Entries added in this step.",
    "buffer/replaced": "Entries that took the place of another in this step (Eq. 22).",
    "buffer/fallback_hits": "Problems of this step that were taught from the buffer (Eq. 20).",
    "buffer/replayed_rows": "Stored successes that joined the groups of this step.",
    "buffer/reward_mean": "Mean reward of the entries.",
    "buffer/age_mean": "Mean age of the entries, in steps.",
    "rhythm/rows": "Share of rollouts to which the rhythm gate applies (beta = 1).",
    "rhythm/gate_mean": "Mean rhythm gate over the tokens to which it applies (Eq. 15).",
    "rhythm/open_fraction": "Share of those tokens with a gate above 0.",
    "rhythm/bonus_mean": "Mean rebellious bonus over those tokens (Eq. 10).",
    "rhythm/bonus_fraction": "Share of those tokens with a bonus above 0.",
    "rhythm/weight_excess": "Mean of M - 1 over those tokens (Eq. 16).",
    "rhythm/weight_max": "Largest token weight M of the step.",
    "loss/total": "The objective (Eq. 4).",
    "loss/distill": "Its distillation term (Eq. 5), in nats.",
    "loss/policy": "Its policy-gradient term (Eq. 6).",
    "actor/entropy": "Mean entropy of the policy over response tokens, in nats (Figure 4).",
    "actor/log_prob_mean": "Mean log-prob of the response tokens, in nats.",
    "actor/grad_norm": "Global norm of the gradient before clipping; the mean over mini-batches.",
    "actor/learning_rate": "Learning rate of this step.",
    "actor/update_skipped": "Share of the step's updates skipped because they were not finite.",
    "actor/ratio_max": "Largest ratio of the policy to that at the start of the step; 1 on-policy.",
    "actor/clip_fraction": "Share of the policy term's tokens that the clip holds.",
    "actor/information": "Mean student less teacher entropy of taught rows, in nats (PGPO's I).",
    "actor/update_scale": "Factor of the update by that information; 1 for other methods.",
    "distill/weight_max": "Largest token weight of the divergence; 0 when nothing is distilled.",
    "distill/credit_mean": "Mean future credit of the distilled tokens, in nats (DistIL).",
    "sampler/log_prob_gap_max": "Largest difference of sampler and trainer log-prob, in nats.",
    "sampler/log_prob_gap_mean": "Mean absolute difference of the two, in nats.",
    "data/order": "CRC-32 of the ids of the step's problems, in order: equal where these are.",
    "data/dropped_prompts": "Training problems dropped because their prompt is too long.",
    "compute/prompt_tokens": "Prompt tokens that the sampler read, once a group.",
    "compute/student_tokens": "Tokens of the student's pass, padding aside.",
    "compute/teacher_tokens": "Tokens of the teacher's pass, padding aside; 0 where none is run.",
    "time/cpu": "CPU time of the process since the step before, all threads; starting it counts.",
    "time/{phase}": "Wall-clock time of that part of the step, in seconds.",
    "time/total": "Wall-clock time since the process started, in seconds.",
    "eval/mean@{k}": "Mean reward of k samples per held-out problem.",
    "eval/best@{k}": "Expected best of k samples, by the reference's seeded bootstrap.",
    "eval/{level}/mean@{k}": "eval/mean@k of the problems of that level or sub-task.",
    "eval/teacher_mean@{k}": "Mean reward of the student with sibling or buffer context.",
    "eval/teacher_problems": "Share of the evaluated problems that have such a context.",
    "eval/gold_mean@{k}": "Mean reward with the gold solution in context (the warm start's gate).",
    "eval/length_mean": "Mean response length of the evaluation, in tokens.",
    "eval/truncated_fraction": "Share of evaluation samples without a stop token.",
    "eval/well_formed_fraction": "Share of evaluation samples that have the form of an answer.",
    "eval/failed_fraction": "Share of evaluation samples on which your reward function failed.",
    "validation/mean@{k}": "Mean reward of k samples per validation problem (chooses best).",
}

# Undefined, and so allowed to be non-finite, in a step whose update was skipped.
_OF_THE_UPDATE = ("loss/", "actor/", "rhythm/", "sampler/", "teacher/", "distill/")

_PLACEHOLDERS = {"{k}": r"\d+", "{level}": r"[^/]+", "{phase}": r"\w+"}


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name).replace(r"\{", "{").replace(r"\}", "}")
    for placeholder, expression in _PLACEHOLDERS.items():
        text = text.replace(placeholder, expression)
    return re.compile(text)


_PATTERNS = [_pattern(name) for name in METRICS if "{" in name]


class NonFiniteMetric(ArithmeticError):
    """A metric turned NaN or infinite; the message names it and the step."""


def is_documented(name: str) -> bool:
    """Whether `METRICS` has a sentence for this name."""
    return name in METRICS or any(pattern.fullmatch(name) for pattern in _PATTERNS)


def check_finite(metrics: Mapping[str, Any], step: int) -> None:
    """Stops a run whose numbers have gone bad.

    What the update computes is exempt in a step whose update was skipped for a non-finite gradient
    (`actor/update_skipped` above 0): that is counted, and a run of such steps stops elsewhere.

    Raises:
      NonFiniteMetric: naming the first metric that is not finite, and the step.
    """
    skipped = float(metrics.get("actor/update_skipped", 0)) > 0
    for name, value in metrics.items():
        if skipped and name.startswith(_OF_THE_UPDATE):
            continue
        if not math.isfinite(float(value)):
            raise NonFiniteMetric(
                f"{name} is {float(value)} at step {step}, expected a finite number;"
                " the checkpoint before this step is intact, look at the metrics that lead up to it"
            )


def table() -> str:
    """All metrics with their meaning, as a Markdown table."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in METRICS.items()]
    return "\n".join(["| metric | meaning |", "| --- | --- |", *rows])


class MetricsWriter:
    """Writes metrics.jsonl, events.jsonl and TensorBoard files into a work directory.

    Open it, `truncate` it to the length that the checkpoint recorded (0 for a new run), then write.
    Only one process may hold a work directory's writer; others pass `active=False`, and write
    nothing.
    """

    def __init__(self, workdir: str | Path, *, tensorboard: bool = True, active: bool = True):
        self._workdir = Path(workdir)
        self._active = active
        self._use_tensorboard = tensorboard and active
        self._tensorboard: Any = None
        self._summary: Any = None
        self._metrics: IO[bytes] | None = None
        self._events: IO[bytes] | None = None
        self._last_step: int | None = None
        if active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._metrics = _open_lines(self._workdir / "metrics.jsonl")
            self._events = _open_lines(self._workdir / "events.jsonl")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the step's metrics as one line, and hands it to the operating system.

        Args:
          step: training step; 0 is before the first update. Larger than any step written.
          metrics: name -> number (anything that `float` takes).

        Raises:
          ValueError: for a name that `METRICS` does not have, or a step that was written before.
        """
        unknown = [name for name in metrics if not is_documented(name)]
        if unknown:
            raise ValueError(
                f"metric '{unknown[0]}' is not documented; add a sentence to METRICS in metrics.py"
            )
        values = {name: float(value) for name, value in metrics.items()}
        if self._last_step is None and self._metrics is not None:
            self._last_step = _last_step(self._metrics)
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} come after those of step {self._last_step};"
                " write each step once, and truncate to the checkpoint's length first"
            )
        self._last_step = step
        if self._metrics is None:
            return
        _append(self._metrics, {"step": step, **values})
        self._metrics.flush()
        if self._use_tensorboard:
            self._write_tensorboard(step, values)

    def event(self, kind: str, step: int, details: Mapping[str, Any] | None = None) -> None:
        """Appends a line to events.jsonl: {"event": kind, "step": step, ...details}."""
        if self._events is not None:
            _append(self._events, {"event": kind, "step": step, **(details or {})})
            self._events.flush()

    def byte_length(self) -> int:
        """Length of metrics.jsonl in bytes, safely on disk: for the checkpoint. 0 if inactive."""
        if self._metrics is None:
            return 0
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()
        return self._metrics.seek(0, os.SEEK_END)

    def truncate(self, byte_length: int) -> None:
        """Cuts metrics.jsonl back to the length that a checkpoint recorded; 0 empties it.

        A file that is shorter than that has lost lines, which cannot be brought back: it is kept as
        it is, and an event says how much is missing.
        """
        if self._metrics is None:
            return
        present = self._metrics.seek(0, os.SEEK_END)
        if present < byte_length:
            step = _last_step(self._metrics) or 0
            missing = {"expected_bytes": byte_length, "found_bytes": present}
            self.event("metrics_lost", step, missing)
        else:
            self._metrics.truncate(byte_length)
        _drop_partial_line(self._metrics)
        self._last_step = None  # read again from the file at the next write

    def close(self) -> None:
        """Flushes and closes all files. Closing twice is fine."""
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._metrics = self._events = self._tensorboard = None

    def _write_tensorboard(self, step: int, values: Mapping[str, float]) -> None:
        if self._tensorboard is None:
            # Imported late: it takes a while, and many users of this module do not need it.
            from tensorboardX import SummaryWriter
            from tensorboardX.proto.summary_pb2 import Summary

            self._summary = Summary
            # Steps from here on that an earlier process wrote are hidden. The name of the file has
            # whole seconds only, and a second process in the same second would overwrite it.
            folder, suffix = str(self._workdir / "tensorboard"), f".{time.time_ns()}"
            self._tensorboard = SummaryWriter(folder, purge_step=step, filename_suffix=suffix)
        # Not `add_scalar`, which writes eval/mean@8 as eval/mean_8.
        summary = self._summary(
            value=[
                self._summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
                if math.isfinite(value)
            ]
        )
        self._tensorboard.file_writer.add_summary(summary, step)


# ---- samples ------------------------------------------------------------------------------------


def write_step_file(
    workdir: str | Path, step: int, rows: Iterable[Mapping[str, Any]], *, folder: str = SAMPLES
) -> Path:
    """Writes `folder`/<step>.jsonl, one object a line; whole or not at all.

    Numbers that are not finite become null. A file of the same step is replaced.
    """
    directory = Path(workdir) / folder
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{step}.jsonl"
    partial = path.with_suffix(".jsonl.tmp")
    with partial.open("wb") as file:
        for row in rows:
            _append(file, row)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def step_files(workdir: str | Path, *, folder: str = SAMPLES) -> list[str]:
    """Names of the files of `write_step_file`, in the order of their steps: for the checkpoint."""
    directory = Path(workdir) / folder
    names = [path.name for path in directory.glob("*.jsonl") if path.stem.isdecimal()]
    return sorted(names, key=lambda name: int(Path(name).stem))


def prune_step_files(
    workdir: str | Path, keep: Sequence[str], *, folder: str = SAMPLES
) -> list[str]:
    """Deletes the files of `folder` that are not in `keep` (the list that a checkpoint recorded).

    Returns:
      The names of the deleted files; half-written ones go too, without being named.
    """
    directory = Path(workdir) / folder
    for partial in directory.glob("*.jsonl.tmp"):
        partial.unlink()
    surplus = [name for name in step_files(workdir, folder=folder) if name not in set(keep)]
    for name in surplus:
        (directory / name).unlink()
    return surplus


def detail_rows(count: int, fraction: float) -> list[int]:
    """Which of `count` samples are written with full token detail: evenly spread, no randomness.

    At least one when `fraction` is above 0, so that there is always something to look at.
    """
    wanted = min(count, max(1, round(count * fraction))) if fraction > 0 else 0
    return [index * count // wanted for index in range(wanted)]


# ---- lines --------------------------------------------------------------------------------------


def _open_lines(path: Path) -> IO[bytes]:
    """Opens a JSON-lines file for appending; a last line that a kill cut short is removed."""
    file = path.open("a+b")
    _drop_partial_line(file)
    return file


def _drop_partial_line(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    length, block = end, 1 << 16
    while length > 0:
        start = max(0, length - block)
        file.seek(start)
        newline = file.read(length - start).rfind(b"\n")
        if newline >= 0:
            length = start + newline + 1
            break
        length = start
    if length < end:
        file.truncate(length)


def _last_step(file: IO[bytes]) -> int | None:
    """The step of the last line, or None where there is none."""
    end = file.seek(0, os.SEEK_END)
    block = 1 << 16
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        lines = file.read(end - start).splitlines()
        if len(lines) > 1 or start == 0:
            return _step_of(lines[-1], file.name)
        block *= 2  # one line fills the block: look further back
    return None


def _step_of(line: bytes, path: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the last line of {path} is not a step's metrics; delete that line, or the file"
        ) from error


def _append(file: IO[bytes], row: Mapping[str, Any]) -> None:
    """One object, one line."""
    text = json.dumps(_without_non_finite(row), ensure_ascii=False, allow_nan=False)
    # A lone half of a surrogate pair, which a decoder may emit, has no UTF-8 form.
    file.write(text.encode("utf-8", errors="backslashreplace") + b"\n")


def _without_non_finite(value: Any) -> Any:
    """NaN and infinities become None at any depth; numpy scalars and arrays become plain."""
    if isinstance(value, Mapping):
        return {str(key): _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy and jax, scalars and arrays
        return _without_non_finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
