"""Examinations: how good a policy is, how strong its self-teacher, and whether a base may start."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from drift_jax import assemble, teacher
from drift_jax.data import demonstrations, prompting, source
from drift_jax.grading import Answers, Grader, grade
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.sampling import Precompiled, Sampler, random_streams
from drift_jax.statistics import best_at_k, mean_at_k
from drift_jax.types import Problem

# A self-teacher that cannot use a solution it is shown has nothing to teach: measured on generated
# tasks, students of teachers under this pass rate did not improve by distillation.
TEACHER_GATE = 0.85
GATE_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class Examination:
    """A fixed set of problems and the way of sampling answers to them."""

    tokenizer: Any
    problems: Sequence[Problem]
    sampler: Sampler
    teacher_sampler: Sampler
    seed: int
    samples: int
    teacher_samples: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    teacher_prompt_tokens: int
    thinking: bool
    remove_thinking: bool
    grader: Grader | None = None
    validation: "Examination | None" = None  # the problems that choose the best step

    def settings(self) -> dict[str, Any]:
        """How answers are sampled, for the file that keeps them."""
        names = ("seed", "samples", "max_new_tokens", "temperature", "top_p", "top_k", "thinking")
        return {name: getattr(self, name) for name in names}

    def student(
        self, params: Params, step: int, problems: Sequence[Problem] | None = None
    ) -> Answers:
        """Answers to the bare problems; to some of them only where `problems` says so."""
        problems = self.problems if problems is None else problems
        prompts = [
            prompting.render(self.tokenizer, problem, thinking=self.thinking)
            for problem in problems
        ]
        return self._answer(self.sampler, params, problems, prompts, self.samples, f"eval/{step}")

    def precompile(self, params: Params) -> Precompiled:
        """Compiles what `student` and `with_solutions` may need for any of the problems."""
        done = self.validation.precompile(params) if self.validation else Precompiled(0, 0.0)
        for sampler, samples in (
            (self.sampler, self.samples),
            (self.teacher_sampler, self.teacher_samples),
        ):
            if samples:
                done += sampler.precompile(
                    params,
                    problems=range(1, len(self.problems) + 1),
                    group_size=samples,
                    max_new_tokens=self.max_new_tokens,
                )
        return done

    def with_solutions(
        self, params: Params, problems: Sequence[Problem], solutions: Sequence[str], step: int
    ) -> Answers:
        """Answers to problems whose prompt also shows a solution, as the self-teacher's does."""
        prompts = [
            prompting.render_teacher(
                self.tokenizer,
                problem,
                solution,
                max_tokens=self.teacher_prompt_tokens,
                thinking=self.thinking,
                remove_thinking=self.remove_thinking,
            )
            for problem, solution in zip(problems, solutions, strict=True)
        ]
        purpose = f"teacher/{step}"
        return self._answer(
            self.teacher_sampler, params, problems, prompts, self.teacher_samples, purpose
        )

    def _answer(
        self,
        sampler: Sampler,
        params: Params,
        problems: Sequence[Problem],
        prompts: Sequence[np.ndarray],
        samples: int,
        purpose: str,
    ) -> Answers:
        rollouts = sampler.generate(
            params,
            prompts,
            group_size=samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_tokens=prompting.stop_tokens(self.tokenizer),
            stream=random_streams(
                self.seed, 0, [problem.id for problem in problems], purpose=purpose
            ),
        )
        return grade(self.tokenizer, problems, rollouts, self.grader)


def precompile(
    config: Any, sampler: Sampler, exam: Examination, params: Params
) -> Precompiled | None:
    """Compiles all that rollouts and evaluations of a run may need; None where that is off."""
    if not config.rollout.precompile:
        return None
    rollouts = sampler.precompile(
        params,
        problems=[config.rollout.problems_per_step],
        group_size=config.rollout.group_size,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    return rollouts + exam.precompile(params)


def examination(
    config: Any,
    model: ModelConfig,
    tokenizer: Any,
    mesh: Mesh,
    grader: Grader | None = None,
    *,
    split: str | None = None,
) -> Examination:
    """The examination of the `evaluation` section.

    Args:
      config: the configuration.
      model: the sizes.
      tokenizer: of the model.
      mesh: where it runs.
      grader: scores the answers; None is the task's own verifier.
      split: which problems; None is evaluation.split.
    """
    section = config.evaluation
    problems, _ = assemble.open_problems(config, tokenizer, split or section.split)
    exam = Examination(
        tokenizer=tokenizer,
        problems=source.sample(problems, section.max_problems or len(problems)),
        sampler=assemble.make_sampler(config, model, mesh),
        teacher_sampler=assemble.make_sampler(config, model, mesh, teacher=True),
        seed=config.seed,
        samples=section.samples,
        teacher_samples=section.teacher_samples,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        teacher_prompt_tokens=config.teacher.max_prompt_tokens,
        thinking=config.data.thinking,
        remove_thinking=config.teacher.remove_thinking,
        grader=grader,
    )
    if split or section.split == "validation" or not config.data.validation_fraction:
        return exam
    problems, _ = assemble.open_problems(config, tokenizer, "validation")
    held_back = dataclasses.replace(
        exam,
        problems=source.sample(problems, section.max_problems or len(problems)),
        samples=section.validation_samples,
        teacher_samples=0,
    )
    return dataclasses.replace(exam, validation=held_back)


def examine(
    exam: Examination, student: Params, self_teacher: Params | None, step: int
) -> tuple[dict[str, float], Answers]:
    """Metrics of the student and, with a sibling in context, of its self-teacher.

    The teacher is asked about the problems that the student solved at least once in this
    evaluation, with the shortest of these answers in its prompt; its gap is to the student on the
    same problems.

    Args:
      exam: what is asked.
      student: parameters of the policy.
      self_teacher: parameters of the teacher; None skips it.
      step: training step; it enters the random numbers.

    Returns:
      Metrics (`eval/...`, `teacher/gap`) and the student's answers.
    """
    answers = exam.student(student, step)
    k = exam.samples
    metrics = {
        f"eval/mean@{k}": mean_at_k(answers.rewards).value,
        f"eval/best@{k}": best_at_k(answers.rewards, k).value,
        "eval/length_mean": float(answers.lengths.mean()),
        "eval/truncated_fraction": float(1 - answers.finished.mean()),
        "eval/well_formed_fraction": float(answers.well_formed.mean()),
        "eval/failed_fraction": len(answers.failures) / answers.rewards.size,
    }
    if answers.derived is not None:
        metrics["eval/derived_fraction"] = float(answers.derived.mean())
    metrics |= {
        f"eval/{level or 'none'}/mean@{k}": mean_at_k(rewards).value
        for level, rewards in by_level(exam.problems, answers.rewards).items()
        if level != "all"
    }
    order = [
        teacher.preference_order(*group, sibling="shortest")
        for group in zip(answers.rewards, answers.entropies, answers.lengths, strict=True)
    ]
    solved = [row for row, chosen in enumerate(order) if len(chosen)]
    if self_teacher is not None and exam.teacher_samples and solved:
        shown = [answers.responses[row][order[row][0]] for row in solved]
        taught = exam.with_solutions(
            self_teacher, [exam.problems[row] for row in solved], shown, step
        )
        mean = float(taught.rewards.mean())
        metrics |= {
            f"eval/teacher_mean@{exam.teacher_samples}": mean,
            "eval/teacher_problems": len(solved) / len(exam.problems),
            "teacher/gap": mean - float(answers.rewards[solved].mean()),
        }
    return metrics, answers


def write_result(
    folder: pathlib.Path, exam: Examination, answers: Answers, metrics: dict[str, float], step: int
) -> None:
    """Writes `folder`/<step>.json: the aggregates, and every sample of every problem."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = result_rows(exam.problems, answers)
    text = json.dumps({"step": step, "metrics": metrics, "problems": rows}, ensure_ascii=False)
    partial = folder / f"{step}.json.partial"
    # A lone half of a surrogate pair, which a decoder may emit, has no UTF-8 form.
    partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    partial.rename(folder / f"{step}.json")


def result_rows(problems: Sequence[Problem], answers: Answers) -> list[dict[str, Any]]:
    """One object a problem with all its samples, as evaluation files hold them."""
    return [
        {
            "id": problem.id,
            "level": problem.level,
            "rewards": answers.rewards[i].tolist(),
            "predictions": answers.predictions[i],
            "responses": answers.responses[i],
            "lengths": answers.lengths[i].tolist(),
            "finished": answers.finished[i].tolist(),
            "well_formed": answers.well_formed[i].tolist(),
            "derived": None if answers.derived is None else answers.derived[i].tolist(),
        }
        for i, problem in enumerate(problems)
    ]


def by_level(problems: Sequence[Problem], rewards: np.ndarray) -> dict[str, np.ndarray]:
    """Rewards of all problems and of each level, in order of appearance. [problem, sample] each"""
    levels = dict.fromkeys(problem.level for problem in problems)
    groups = {"all": rewards}
    if len(levels) > 1:
        rows = np.array([problem.level for problem in problems])
        groups |= {level: rewards[rows == level] for level in levels}
    return groups


@dataclasses.dataclass(frozen=True)
class Gate:
    """Whether a base policy can start to teach itself.

    Attributes:
      base: pass rate on the bare problems.
      taught: pass rate with the gold solution in the prompt.
      levels: both by level.
    """

    base: float
    taught: float
    levels: dict[str, tuple[float, float]]

    @property
    def passed(self) -> bool:
        """Whether the self-teacher uses the solution it is shown."""
        return self.taught >= TEACHER_GATE

    def __str__(self) -> str:
        levels = ", ".join(f"{level} {a:.2f} -> {b:.2f}" for level, (a, b) in self.levels.items())
        levels = f" ({levels})" if levels else ""
        verdict = (
            f"at least {TEACHER_GATE}: the self-teacher can teach"
            if self.passed
            else f"under {TEACHER_GATE}: the self-teacher cannot teach; warm-start the base longer"
        )
        if not self.base:
            verdict += "; no bare answer was right, so no rollout has a sibling to learn from"
        return (
            f"gate: pass rate {self.base:.3f}, with the gold solution in context {self.taught:.3f}"
            f"{levels}, {verdict}"
        )


def measure_gate(
    config: Any,
    model: ModelConfig,
    params: Params,
    tokenizer: Any,
    mesh: Mesh,
    grader: Grader | None = None,
) -> Gate | None:
    """Pass rates at temperature 1 on the validation problems, bare and with the gold solution.

    Returns None for a task without validation problems: one of files keeps some back only with
    data.validation_fraction.
    """
    if not demonstrations.is_generated(config.task) and config.data.validation_fraction == 0:
        return None
    exam = dataclasses.replace(
        examination(config, model, tokenizer, mesh, grader, split="validation"),
        samples=GATE_SAMPLES,
        teacher_samples=GATE_SAMPLES,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    base = exam.student(params, step=0).rewards
    gold = [demonstrations.solution(problem) for problem in exam.problems]
    taught = exam.with_solutions(params, exam.problems, gold, step=0).rewards
    levels = {
        level: (float(rewards.mean()), float(other.mean()))
        for (level, rewards), other in zip(
            by_level(exam.problems, base).items(),
            by_level(exam.problems, taught).values(),
            strict=True,
        )
    }
    return Gate(*levels.pop("all"), levels=levels)
