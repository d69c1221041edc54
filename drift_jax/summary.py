"""A step in numbers and in lines: host metrics, and the rows of the sample files."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from drift_jax import difficulty
from drift_jax.batching import Batch
from drift_jax.decision import Decision
from drift_jax.grading import Answers
from drift_jax.memory import Memory
from drift_jax.metrics import detail_rows
from drift_jax.teacher_schedule import COPY
from drift_jax.types import Problem

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


def rollout_metrics(answers: Answers, decision: Decision) -> dict[str, float]:
    """What was sampled (`rollout/...`), and whether it could be graded; nothing replayed."""
    correct = decision.routes.is_correct[:, : decision.group_size]
    advantages = decision.advantages[:, : decision.group_size]
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
        "reward/failed_fraction": len(answers.failures) / answers.rewards.size,
    }


def routing_metrics(
    decision: Decision, *, easy_above: float, hard_below: float, bins: str, softness: float
) -> dict[str, float]:
    """Where rollouts and problems went (`routing/...`)."""
    easy, medium, hard = difficulty.bin_fractions(
        decision.pass_rate, easy_above, hard_below, bins=bins, softness=softness
    )
    policy = decision.policy_weight[:, : decision.group_size] > 0
    weights = decision.distill_weight[:, : decision.group_size]
    distill = weights > 0
    return {
        "routing/easy_fraction": easy,
        "routing/medium_fraction": medium,
        "routing/hard_fraction": hard,
        "routing/pass_rate_mean": float(decision.pass_rate.mean()),
        "routing/weight_mean": float(decision.routes.routing_weight.mean()),
        "routing/distill_weight_mean": float(weights.sum() / max(distill.sum(), 1)),
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


def teacher_metrics(decision: Decision) -> dict[str, float]:
    """Who had a teacher, and from where (`teacher/...`, `buffer/...`)."""
    source = decision.choice.source[:, : decision.group_size]
    told = [text is not None for row in decision.choice.feedback for text in row]
    return {
        "teacher/available_fraction": float((source != "none").mean()),
        "teacher/sibling_fraction": float((source == "sibling").mean()),
        "teacher/buffer_fraction": float((source == "buffer").mean()),
        "teacher/feedback_fraction": sum(told) / source.size,
        "buffer/fallback_hits": float((source == "buffer").any(axis=1).sum()),
        "buffer/replayed_rows": float(decision.replayed.present.sum()),
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


def work_metrics(
    ids: Sequence[str], prompts: Sequence[np.ndarray], batch: Batch
) -> dict[str, float]:
    """What the step was about and how many tokens went through the model (`compute/...`).

    Args:
      ids: of the step's problems, in order.
      prompts: their token ids.
      batch: the rows of the update, on the host.
    """
    teacher = 0 if batch.teacher_mask is None else batch.teacher_mask.sum()
    return {
        "data/order": float(zlib.crc32("\n".join(ids).encode())),
        "compute/prompt_tokens": float(sum(map(len, prompts))),
        "compute/student_tokens": float(batch.student_mask.sum()),
        "compute/teacher_tokens": float(teacher),
    }


def schedule_metrics(rate: float) -> dict[str, float]:
    """How far the self-teacher followed the student after a step (`teacher/...`)."""
    return {"teacher/rate": rate, "teacher/refreshed": float(rate == COPY)}


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

    A success that was replayed follows the rollouts of its group, with `replayed` true; empty
    places are left out.

    Args:
      problems: of the step.
      answers: their graded rollouts.
      decision: what the step decided about them.
      tokens: token ids of all members. [batch, time]
      details: per-token values of the update. [batch, time] each
      detail_fraction: share of the samples that get them.
    """
    shape = decision.advantages.shape
    present = np.concatenate([np.ones_like(answers.rewards, bool), decision.replayed.present], 1)
    indices = np.flatnonzero(present)
    detailed = set(indices[detail_rows(len(indices), detail_fraction)].tolist())
    for index in indices.tolist():
        row, member = divmod(index, shape[1])
        sample = {
            "id": problems[row].id,
            "rollout": member,
            "replayed": member >= decision.group_size,
            "level": problems[row].level,
            "prompt": problems[row].messages[-1]["content"],
            "answer": problems[row].answer,
            **_response(answers, decision, row, member),
            "advantage": float(decision.advantages[row, member]),
            "pass_rate": float(decision.pass_rate[row]),
            "gamma": float(decision.routes.routing_weight[row]),
            "medium": decision.routes.is_medium[row].item(),  # a share where bins are soft
            "correct": bool(decision.routes.is_correct[row, member]),
            "policy_weight": float(decision.policy_weight[row, member]),
            "distill_weight": float(decision.distill_weight[row, member]),
            "gate": float(decision.gate[row, member]),
            "teacher_source": str(decision.choice.source[row, member]),
            "teacher_text": decision.choice.text[row][member],
            "teacher_feedback": decision.choice.feedback[row][member],
        }
        if index in detailed:
            length = sample["length"]
            sample["tokens"] = tokens[index, :length].tolist()
            sample |= {
                name: np.round(details[name][index, :length].astype(float), 6).tolist()
                for name in TOKEN_DETAILS
            }
        yield sample


def _response(answers: Answers, decision: Decision, row: int, member: int) -> dict[str, Any]:
    """What is known of one member's response: sampled and graded now, or stored before."""
    if member < decision.group_size:
        return {
            "response": answers.responses[row][member],
            "reward": float(answers.rewards[row, member]),
            "prediction": answers.predictions[row][member],
            "finished": bool(answers.finished[row, member]),
            "length": int(answers.lengths[row, member]),
            "entropy": float(answers.entropies[row, member]),
            "derived": None if answers.derived is None else bool(answers.derived[row, member]),
        }
    place = member - decision.group_size
    entry = decision.replayed.entries[row][place]
    assert entry is not None  # the caller leaves empty places out
    return {
        "response": entry.response,
        "reward": entry.reward,
        "prediction": None,
        "finished": True,
        "length": len(decision.replayed.tokens[row][place]),
        "entropy": entry.entropy,
        "derived": None,
    }
