"""What happens to each sample of a step: the host's part of the algorithm, in the paper's order.

    pass rates (Eqs. 7-8) -> routes (section 3.2) -> teachers (section 3.1, Eqs. 19-20)
    -> weights of the two branches (Eq. 4) -> whose tokens may weigh more (Eq. 16)

Every process computes the same decisions from the same samples.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from drift_jax import difficulty, teacher
from drift_jax.grading import Answers
from drift_jax.memory import Memory
from drift_jax.teacher import Choice
from drift_jax.types import Routes


@dataclasses.dataclass(frozen=True)
class Stage:
    """The values of a stage of the curriculum, named as in the configuration."""

    policy_correct: float
    policy_wrong: float
    distill_correct: float
    distill_wrong: float
    sibling: str
    use_difficulty: bool
    use_rhythm: bool
    no_teacher: str


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds in both stages, named as in the configuration.

    `fallback_above` is Eq. 19's bound: None is the success threshold, 0 the equation as printed.
    """

    easy_above: float
    hard_below: float
    easy_weight: float
    medium_weight: float
    hard_weight: float
    success_threshold: float
    reward_tolerance: float
    fallback_above: float | None
    every_sign: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """A step's decisions; arrays are [problem] or [problem, group]."""

    advantages: np.ndarray  # [problem, group]
    pass_rate: np.ndarray  # [problem]
    routes: Routes
    choice: Choice
    policy_weight: np.ndarray  # [problem, group], u
    distill_weight: np.ndarray  # [problem, group], v
    gate: np.ndarray  # [problem, group], beta: 1 where token weights act, else 0

    @property
    def needs_teacher(self) -> np.ndarray:
        """Samples whose teacher context enters the loss (reading R18). [problem, group] bool"""
        return (self.distill_weight > 0) | (self.gate > 0)


def decide(
    ids: Sequence[str],
    answers: Answers,
    advantages: np.ndarray,
    memory: Memory,
    *,
    stage: Stage,
    rules: Rules,
    buffer_enabled: bool,
    rng_for: Callable[[str], np.random.Generator],
) -> Decision:
    """Decides what each sample learns from. Updates the pass rates; leaves the buffer alone.

    Args:
      ids: problem ids of the step.
      answers: the graded rollouts.
      advantages: over the whole group. [problem, group]
      memory: pass rates and buffer.
      stage: values of the current stage.
      rules: values of both stages.
      buffer_enabled: whether the buffer may teach in this step (Eq. 18).
      rng_for: random numbers of a problem's buffer draw.
    """
    correct = answers.rewards >= rules.success_threshold
    pass_rate = memory.pass_rates.update(ids, correct.mean(axis=1))
    routes = difficulty.route(
        pass_rate,
        answers.rewards,
        easy_above=rules.easy_above,
        hard_below=rules.hard_below,
        easy_weight=rules.easy_weight,
        medium_weight=rules.medium_weight,
        hard_weight=rules.hard_weight,
        success_threshold=rules.success_threshold,
    )
    choice = teacher.select(
        ids,
        answers.responses,
        answers.rewards,
        answers.entropies,
        answers.lengths,
        memory.buffer,
        sibling=stage.sibling,
        success_threshold=rules.success_threshold,
        reward_tolerance=rules.reward_tolerance,
        buffer_enabled=buffer_enabled,
        rng_for=rng_for,
        fallback_above=rules.fallback_above,
    )
    policy_weight, distill_weight = difficulty.branch_weights(
        routes,
        choice.has_teacher,
        policy_correct=stage.policy_correct,
        policy_wrong=stage.policy_wrong,
        distill_correct=stage.distill_correct,
        distill_wrong=stage.distill_wrong,
        no_teacher=stage.no_teacher,
        use_difficulty=stage.use_difficulty,
    )
    gate = difficulty.gate_rows(routes, choice.has_teacher, advantages, every_sign=rules.every_sign)
    gate &= stage.use_rhythm & (policy_weight > 0)
    return Decision(
        advantages,
        pass_rate,
        routes,
        choice,
        policy_weight,
        distill_weight,
        gate.astype(np.float32),
    )
