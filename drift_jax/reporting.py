"""What surrounds a step: clock, metrics, samples, evaluations, checkpoints, requests to stop."""

import contextlib
import json
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np

from drift_jax import examination, metrics, selection, statistics, summary
from drift_jax.decision import Decision
from drift_jax.examination import Examination, Gate
from drift_jax.grading import Answers
from drift_jax.memory import Memory
from drift_jax.progress import Progress, Row, final_table
from drift_jax.sampling import Precompiled
from drift_jax.types import Problem, Rollouts
from drift_jax.update import TrainState
from drift_jax.workdir import WorkDir


class RunStopped(RuntimeError):
    """A run that cannot go on; its state is saved, and the message names the step and the cause."""


class Reporter:
    """Writes a run down while it happens; use it as a context manager around the loop.

    SIGTERM and SIGINT ask for a stop: the step in hand is finished and saved, then `step` returns
    True. A second one ends the process at once.
    """

    def __init__(
        self,
        config: Any,
        run: WorkDir,
        exam: Examination,
        memory: Memory,
        *,
        start: int,
        dropped: int,
    ) -> None:
        """
        Args:
          config: the configuration.
          run: the open work directory.
          exam: what evaluations ask.
          memory: pass rates and buffer before the first step; the loop goes on with them.
          start: steps that were done before.
          dropped: training problems that were left out as too long.
        """
        self._config = config
        self._run = run
        self._exam = exam
        self._dropped = dropped
        self._progress = Progress(config.train.steps, done=start, every=config.logging.every)
        self._times: defaultdict[str, float] = defaultdict(float)
        self._began = time.monotonic()
        self._cpu = 0.0  # not now: what the process has done so far belongs to its first step
        self._memory = memory
        self._replaced = memory.buffer.replaced  # a resumed buffer has a past
        self._warned = False
        self._stop = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._run.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        signal.signal(number, self._handlers[number])

    @contextlib.contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the wall-clock time of a block to `time/<phase>` of this step."""
        began = time.monotonic()
        yield
        self._times[phase] += time.monotonic() - began

    def compiled(self, done: Precompiled | None) -> None:
        """Says what compiling the sampler took; no later step compiles any of it."""
        if done is not None:
            self._progress.print(f"sampler: {done}")

    def begin(self, state: TrainState, gate: Gate | None) -> None:
        """Before the first step: the gate and an evaluation, written as step 0."""
        row: dict[str, float] = {"data/dropped_prompts": float(self._dropped)}
        if gate is not None:
            self._progress.print(str(gate))
            row[f"eval/gold_mean@{examination.GATE_SAMPLES}"] = gate.taught
            self._run.writer.event(
                "gate", 0, {"base": gate.base, "taught": gate.taught, "passed": gate.passed}
            )
        if self._config.evaluation.at_start:
            row |= self._evaluate(0, state)
        row["time/cpu"] = self._cpu_since()
        self._run.writer.write(0, row)
        self._times.clear()

    def step(
        self,
        step: int,
        state: TrainState,
        problems: Sequence[Problem],
        rollouts: Rollouts,
        answers: Answers,
        decision: Decision,
        added: int,
        numbers: Mapping[str, Any],
        details: Mapping[str, jax.Array],
    ) -> bool:
        """Writes down a finished step; evaluates, saves and stops where that is due.

        Args:
          step: number of the step.
          state: after the update.
          problems, rollouts, answers, decision: of the step.
          added: successes that entered the buffer.
          numbers: metrics of the update, on the host.
          details: its per-token values, on the device.

        Returns:
          True if the run was asked to stop; its state is saved then.

        Raises:
          RunStopped: too many updates in a row were not finite.
          NonFiniteMetric: another number was not.
        """
        config = self._config
        last = step == config.train.steps
        self._memory.tokens_total += int(answers.lengths.sum())
        self._note_failures(step, answers)
        row = self._row(step, answers, decision, added, numbers)
        evaluated, improved = None, False
        if last or _due(step, config.evaluation.every):
            row |= self._evaluate(step, state)
            evaluated, improved = self._judge(row)
        row["time/cpu"] = self._cpu_since()
        self._run.writer.write(step, row)
        self._progress.update(step, row)
        if _due(step, config.logging.samples_every):
            self._write_samples(step, problems, rollouts, answers, decision, details)
        # A request that comes from here on waits for the next step; after the last there is none.
        stopping = self._stop and not last
        skipped = int(state.skipped)
        failed = skipped >= config.train.max_skipped
        wanted = improved and config.checkpoint.keep_best
        if failed or last or stopping or wanted or _due(step, config.checkpoint.every):
            self._run.save(step, state, self._memory, evaluated)
        if failed:
            raise RunStopped(
                f"step {step}: {skipped} updates in a row had a gradient that is not finite; the "
                f"state is saved in {self._run.path}; lower optimizer.learning_rate, or fork from "
                "an earlier step"
            )
        metrics.check_finite(row, step)
        if stopping:
            self._run.writer.event("stop", step)
            self._progress.print(f"stopped after step {step}; the same command goes on from there")
        return stopping

    def end(self) -> None:
        """The table of before and after."""
        rows = self._table_rows()
        if rows:
            k = self._config.evaluation.samples
            split = self._config.evaluation.split
            title = f"{split} problems, {k} samples each (95 % intervals over problems)"
            caption = (
                f"everything is in {self._run.path}: metrics.jsonl, samples, eval, checkpoints"
            )
            self._progress.print(final_table(rows, title=title))
            for line in selection.lines(self._run.path, split):
                self._progress.print(line)
            self._progress.print(caption)

    def _row(
        self,
        step: int,
        answers: Answers,
        decision: Decision,
        added: int,
        numbers: Mapping[str, Any],
    ) -> dict[str, float]:
        bins = self._config.difficulty
        row = {name: float(value) for name, value in numbers.items()}
        row |= summary.rollout_metrics(answers, decision)
        row |= summary.routing_metrics(
            decision,
            easy_above=bins.easy_above,
            hard_below=bins.hard_below,
            bins=bins.bins,
            softness=bins.softness,
        )
        row |= summary.lucky_metrics(
            decision.pass_rate,
            decision.routes.is_correct[:, : decision.group_size],
            answers.derived,
            easy_above=bins.easy_above,
            hard_below=bins.hard_below,
        )
        row |= summary.teacher_metrics(decision)
        row |= summary.window_metrics(
            answers.rewards,
            success_threshold=bins.success_threshold,
            reward_tolerance=self._config.teacher.reward_tolerance,
        )
        row |= summary.memory_metrics(self._memory, step, added, self._replaced)
        self._replaced = self._memory.buffer.replaced
        row |= {f"time/{phase}": seconds for phase, seconds in self._times.items()}
        row["time/total"] = time.monotonic() - self._began
        row["rollout/tokens_per_second"] = row["rollout/tokens"] / max(self._times["rollout"], 1e-9)
        self._times.clear()
        return row

    def _cpu_since(self) -> float:
        """CPU seconds of the process since the call before."""
        before, self._cpu = self._cpu, time.process_time()
        return self._cpu - before

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        with self.clock("evaluate"):
            row, answers = examination.examine(self._exam, state.trainable, state.teacher, step)
            examination.write_result(self._run.path / "eval", self._exam, answers, row, step)
            held_back = self._exam.validation
            if held_back is not None:
                found, responses = examination.examine(held_back, state.trainable, None, step)
                name = f"mean@{held_back.samples}"
                row[f"validation/{name}"] = found[f"eval/{name}"]
                folder = self._run.path / "validation"
                examination.write_result(folder, held_back, responses, found, step)
        self._note_failures(step, answers)
        k = self._config.evaluation.samples
        text = (
            f"step {step}: {self._config.evaluation.split} mean@{k} {row[f'eval/mean@{k}']:.3f}, "
            f"best@{k} {row[f'eval/best@{k}']:.3f}"
        )
        if held_back is not None:
            text += f", validation {name} {row[f'validation/{name}']:.3f}"
        self._progress.print(text)
        return row

    def _judge(self, row: Mapping[str, float]) -> tuple[float, bool]:
        """What "best" is measured by, and whether this is the best on validation so far."""
        if self._exam.validation is None:
            return row[f"eval/mean@{self._exam.samples}"], False
        value = row[f"validation/mean@{self._exam.validation.samples}"]
        return value, self._memory.is_best(value)

    def _note_failures(self, step: int, answers: Answers) -> None:
        """Responses on which the user's reward function failed: an event, and the first aloud."""
        if not answers.failures:
            return
        count, first = len(answers.failures), answers.failures[0]
        self._run.writer.event("reward_failed", step, {"count": count, "first": first})
        if not self._warned:
            self._progress.print(f"step {step}: {first} ({count} responses; see events.jsonl)")
        self._warned = True

    def _write_samples(
        self,
        step: int,
        problems: Sequence[Problem],
        rollouts: Rollouts,
        answers: Answers,
        decision: Decision,
        details: Mapping[str, jax.Array],
    ) -> None:
        fetched = {
            name: np.asarray(jax.device_get(details[name])) for name in summary.TOKEN_DETAILS
        }
        rows = summary.sample_rows(
            problems,
            answers,
            decision,
            decision.replayed.joined(rollouts).tokens,
            {name: values.reshape(-1, values.shape[-1]) for name, values in fetched.items()},
            detail_fraction=self._config.logging.samples_token_detail_fraction,
        )
        metrics.write_step_file(self._run.path, step, rows)

    def _table_rows(self) -> list[Row]:
        """Before and after by level, from the evaluation files; empty where one is missing."""
        results = []
        for step in (0, self._config.train.steps):
            file = self._run.path / "eval" / f"{step}.json"
            if not file.is_file():
                return []
            results.append(json.loads(file.read_text(encoding="utf-8"))["problems"])
        before, after = (np.array([problem["rewards"] for problem in found]) for found in results)
        levels = examination.by_level(self._exam.problems, before)
        k = self._config.evaluation.samples
        rows = []
        for (level, first), last in zip(
            levels.items(), examination.by_level(self._exam.problems, after).values(), strict=True
        ):
            gain = statistics.paired_difference(last, first)
            rows.append(
                Row(
                    level,
                    f"mean@{k}",
                    _interval(statistics.mean_at_k(first)),
                    _interval(statistics.mean_at_k(last)),
                    _interval(gain),
                )
            )
        best = [_interval(statistics.best_at_k(rewards, k)) for rewards in (before, after)]
        return [*rows, Row("all", f"best@{k}", *best)]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _interval(estimate: statistics.Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
