"""A step in numbers and in lines: host metrics, and the rows of the sample files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from drift_jax import difficulty
from drift_jax.decision import Decision
from drift_jax.grading import Answers
from drift_jax.memory import Memory
from drift_jax.metrics import detail_rows
from drift_jax.teacher import Choice
from drift_jax.types import Problem, Routes

# Per-token values of the update that are written for a share of the samples.
TOKEN_DETAILS = (
    "student_log_probs",
    "teacher_log_probs",
    "student_entropy",
    "teacher_entropy",
    "divergence",
    "rhythm_gate",
    "rebellious_bonus",
    "token_weights",
)


def rollout_metrics(answers: Answers, routes: Routes, advantages: np.ndarray) -> dict[str, float]:
    """What was sampled (`rollout/...`)."""
    correct = routes.is_correct
    return {
        "rollout/reward_mean": float(answers.rewards.mean()),
        "rollout/success_fraction": float(correct.mean()),
        "rollout/all_correct_fraction": float(correct.all(axis=1).mean()),
        "rollout/all_wrong_fraction": float((~correct).all(axis=1).mean()),
        "rollout/well_formed_fraction": float(answers.well_formed.mean()),
        "rollout/response_length_mean": float(answers.lengths.mean()),
        "rollout/response_length_max": float(answers.lengths.max()),
        "rollout/truncated_fraction": float(1 - answers.finished.mean()),
        "rollout/tokens": float(answers.lengths.sum()),
        "rollout/advantage_abs_mean": float(np.abs(advantages).mean()),
    }


def routing_metrics(
    pass_rate: np.ndarray,
    routes: Routes,
    policy_weight: np.ndarray,
    distill_weight: np.ndarray,
    *,
    easy_above: float,
    hard_below: float,
) -> dict[str, float]:
    """Where samples and problems went (`routing/...`)."""
    easy, medium, hard = difficulty.bin_fractions(pass_rate, easy_above, hard_below)
    policy, distill = policy_weight > 0, distill_weight > 0
    return {
        "routing/easy_fraction": easy,
        "routing/medium_fraction": medium,
        "routing/hard_fraction": hard,
        "routing/pass_rate_mean": float(pass_rate.mean()),
        "routing/weight_mean": float(routes.routing_weight.mean()),
        "routing/policy_fraction": float(policy.mean()),
        "routing/distill_fraction": float(distill.mean()),
        "routing/dropped_fraction": float((~policy & ~distill).mean()),
    }


def lucky_metrics(
    pass_rate: np.ndarray,
    correct: np.ndarray,
    derived: np.ndarray | None,
    *,
    easy_above: float,
    hard_below: float,
) -> dict[str, float]:
    """Successes for wrong reasons, of all problems and by bin (`routing/...`).

    A bin without a success has no number. Nothing is known, and nothing written, for a task whose
    derivations cannot be checked.

    Args:
      pass_rate: smoothed. [problem]
      correct: bool [problem, group].
      derived: whether the derivation is right. bool [problem, group], or None.
      easy_above, hard_below: edges of the bins, as in `difficulty.route`.
    """
    if derived is None:
        return {}
    bins = {
        "": np.ones(len(pass_rate), bool),
        "easy/": pass_rate > easy_above,
        "medium/": (pass_rate <= easy_above) & (pass_rate >= hard_below),
        "hard/": pass_rate < hard_below,
    }
    metrics = {"rollout/derived_fraction": float(derived.mean())}
    for name, members in bins.items():
        reasons = derived[members][correct[members]]
        if reasons.size:
            metrics[f"routing/{name}lucky_positive_fraction"] = float(1 - reasons.mean())
    return metrics


def teacher_metrics(choice: Choice) -> dict[str, float]:
    """Who had a teacher, and from where (`teacher/...`, `buffer/fallback_hits`)."""
    return {
        "teacher/available_fraction": float(choice.has_teacher.mean()),
        "teacher/sibling_fraction": float((choice.source == "sibling").mean()),
        "teacher/buffer_fraction": float((choice.source == "buffer").mean()),
        "buffer/fallback_hits": float((choice.source == "buffer").any(axis=1).sum()),
    }


def window_metrics(
    rewards: np.ndarray, *, success_threshold: float, reward_tolerance: float
) -> dict[str, float]:
    """Whether the tolerance window of stage 1 has anything to decide (`teacher/window_...`).

    Candidates are the successes of a group within `reward_tolerance` of its best. Rewards of 0 and
    1 never mix in a window.

    Args:
      rewards: [problem, group].
      success_threshold: theta_r.
      reward_tolerance: delta.
    """
    best = rewards.max(axis=1, keepdims=True)
    inside = (rewards >= success_threshold) & (rewards >= best - reward_tolerance)
    lowest = np.where(inside, rewards, np.inf).min(axis=1)
    solved = inside.any(axis=1)
    return {
        "teacher/window_mean": float(inside.sum(axis=1)[solved].mean()) if solved.any() else 0.0,
        "teacher/window_mixed_fraction": float((solved & (lowest < best[:, 0])).mean()),
    }


def memory_metrics(memory: Memory, step: int, added: int, replaced_before: int) -> dict[str, float]:
    """What is remembered (`buffer/...`)."""
    buffer = memory.buffer
    metrics = {
        "rollout/tokens_total": float(memory.tokens_total),
        "routing/problems_seen": float(len(memory.pass_rates)),
        "buffer/problems": float(buffer.problem_count),
        "buffer/entries": float(buffer.entry_count),
        "buffer/bytes": float(buffer.text_bytes),
        "buffer/added": float(added),
        "buffer/replaced": float(buffer.replaced - replaced_before),
    }
    if buffer.entry_count:
        metrics["buffer/reward_mean"] = buffer.reward_mean
        metrics["buffer/age_mean"] = buffer.age_mean(step)
    return metrics


def sample_rows(
    problems: Sequence[Problem],
    answers: Answers,
    decision: Decision,
    tokens: np.ndarray,
    details: Mapping[str, np.ndarray],
    *,
    detail_fraction: float,
) -> Iterator[dict[str, Any]]:
    """One object a sample for samples/<step>.jsonl, in the order of the batch.

    Args:
      problems: of the step.
      answers: their graded rollouts.
      decision: what the step decided about them.
      tokens: sampled token ids. [batch, time]
      details: per-token values of the update. [batch, time] each
      detail_fraction: share of the samples that get them.
    """
    count, group_size = answers.rewards.size, answers.rewards.shape[1]
    detailed = set(detail_rows(count, detail_fraction))
    for index in range(count):
        row, rollout = divmod(index, group_size)
        length = int(answers.lengths[row, rollout])
        sample: dict[str, Any] = {
            "id": problems[row].id,
            "rollout": rollout,
            "level": problems[row].level,
            "prompt": problems[row].messages[-1]["content"],
            "response": answers.responses[row][rollout],
            "answer": problems[row].answer,
            "reward": float(answers.rewards[row, rollout]),
            "prediction": answers.predictions[row][rollout],
            "finished": bool(answers.finished[row, rollout]),
            "length": length,
            "entropy": float(answers.entropies[row, rollout]),
            "advantage": float(decision.advantages[row, rollout]),
            "pass_rate": float(decision.pass_rate[row]),
            "gamma": float(decision.routes.routing_weight[row]),
            "medium": bool(decision.routes.is_medium[row]),
            "correct": bool(decision.routes.is_correct[row, rollout]),
            "derived": None if answers.derived is None else bool(answers.derived[row, rollout]),
            "policy_weight": float(decision.policy_weight[row, rollout]),
            "distill_weight": float(decision.distill_weight[row, rollout]),
            "teacher_source": str(decision.choice.source[row, rollout]),
            "teacher_text": decision.choice.text[row][rollout],
        }
        if index in detailed:
            sample["tokens"] = tokens[index, :length].tolist()
            sample |= {
                name: np.round(details[name][index, :length].astype(float), 6).tolist()
                for name in TOKEN_DETAILS
            }
        yield sample
