"""What happens to each sample of a step: the host's part of the algorithm, in the paper's order.

    pass rates (Eqs. 7-8) -> routes (section 3.2) -> teachers (section 3.1, Eqs. 19-20)
    -> weights of the two branches (Eq. 4) -> whose tokens may weigh more (Eq. 16)
    -> which rows the normalisers count

Every process computes the same decisions from the same samples.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from drift_jax import difficulty, teacher
from drift_jax.grading import Answers
from drift_jax.memory import Memory
from drift_jax.replay import Replayed
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
    easy_distill_weight: float = 1.0
    medium_distill_weight: float = 1.0
    hard_distill_weight: float = 1.0
    bins: str = "strict"
    softness: float = 0.08
    question_weight: str = "none"
    question_exponent: float = 0.5
    feedback: str = "none"
    weighted_rows: str = "medium_correct"
    normaliser_rows: str = "valid"


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """A step's decisions; arrays are [problem] or [problem, member].

    The members of a group are its rollouts and, after them, the places of `replayed`; without
    replay there are rollouts only.
    """

    replayed: Replayed
    advantages: np.ndarray  # [problem, member]
    pass_rate: np.ndarray  # [problem]
    routes: Routes  # is_correct is [problem, member]
    choice: Choice  # [problem, member]
    policy_weight: np.ndarray  # [problem, member], u
    distill_weight: np.ndarray  # [problem, member], v
    gate: np.ndarray  # [problem, member], beta: how far token weights act, from 0 to 1
    policy_rows: np.ndarray  # [problem, member] bool, counted by the policy term's normaliser
    distill_rows: np.ndarray  # [problem, member] bool, the same of the distillation term

    @property
    def group_size(self) -> int:
        """Rollouts of a group: the first so many members."""
        return self.advantages.shape[1] - self.replayed.members

    @property
    def fresh(self) -> np.ndarray:
        """Members that were sampled in this step. [problem, member] bool"""
        return np.broadcast_to(
            np.arange(self.advantages.shape[1]) < self.group_size, self.advantages.shape
        )

    @property
    def needs_teacher(self) -> np.ndarray:
        """Samples whose teacher context enters the loss (reading R18). [problem, member] bool"""
        return (self.distill_weight > 0) | (self.gate > 0)


def decide(
    ids: Sequence[str],
    answers: Answers,
    replayed: Replayed,
    advantages: np.ndarray,
    memory: Memory,
    *,
    step: int,
    stage: Stage,
    rules: Rules,
    buffer_enabled: bool,
    rng_for: Callable[[str], np.random.Generator],
) -> Decision:
    """Decides what each sample learns from. Updates the pass rates; leaves the buffer alone.

    Args:
      ids: problem ids of the step.
      answers: the graded rollouts.
      replayed: what joined their groups.
      advantages: over the whole group, replayed members included. [problem, member]
      memory: pass rates and buffer.
      step: training step, from 1.
      stage: values of the current stage.
      rules: values of both stages.
      buffer_enabled: whether the buffer may teach in this step (Eq. 18).
      rng_for: random numbers of a problem's buffer draw.
    """
    correct = answers.rewards >= rules.success_threshold
    pass_rate = memory.visit(ids, correct, step=step)
    rewards, present = replayed.joined_rewards(answers.rewards)
    routes = difficulty.route(
        pass_rate,
        rewards,
        easy_above=rules.easy_above,
        hard_below=rules.hard_below,
        easy_weight=rules.easy_weight,
        medium_weight=rules.medium_weight,
        hard_weight=rules.hard_weight,
        success_threshold=rules.success_threshold,
        easy_distill_weight=rules.easy_distill_weight,
        medium_distill_weight=rules.medium_distill_weight,
        hard_distill_weight=rules.hard_distill_weight,
        bins=rules.bins,
        softness=rules.softness,
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
        feedback=rules.feedback,
        verdicts=answers.feedback,
    ).widened(replayed.members)
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
    policy_weight = np.where(present, policy_weight, 0).astype(np.float32)
    of_question = _QUESTION_WEIGHTS[rules.question_weight](correct, rules.question_exponent)
    distill_weight = (distill_weight * of_question[:, None]).astype(np.float32)
    gate = difficulty.gate_rows(
        routes,
        choice.has_teacher,
        advantages,
        every_sign=rules.every_sign,
        rows=rules.weighted_rows,
    )
    gate = np.where(stage.use_rhythm & (policy_weight > 0), gate, 0).astype(np.float32)
    policy_rows, distill_rows = _NORMALISER_ROWS[rules.normaliser_rows](
        choice.has_teacher, (policy_weight > 0) | (distill_weight > 0)
    )
    return Decision(
        replayed,
        advantages,
        pass_rate,
        routes,
        choice,
        policy_weight,
        distill_weight,
        gate,
        policy_rows & present,
        distill_rows & present,
    )


# The configuration's `question_weight`: (which rollouts succeeded, exponent) -> [problem].
_QUESTION_WEIGHTS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "none": lambda correct, exponent: np.ones(len(correct)),
    "bernoulli": lambda correct, exponent: difficulty.bernoulli_weights(correct, exponent=exponent),
}

# The configuration's `normaliser_rows`: (has a teacher, has any weight) -> the rows that the policy
# term and the distillation term count. A term must count every row that it acts on.
_NORMALISER_ROWS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "valid": lambda taught, routed: (np.ones_like(taught), np.ones_like(taught)),
    "with_teacher": lambda taught, routed: (np.ones_like(taught), taught),
    "routed": lambda taught, routed: (routed, routed),
}
