"""Made-up records of runs, for tests of what is made from records."""

import dataclasses
from typing import Any

import numpy as np

from drift_jax.record import Record

STEPS = [0, 2, 4]


def made_up(
    method: str = "drift", variant: str = "", seed: int = 0, *, skill: float = 0.5, **changes: Any
) -> Record:
    """A run of four steps whose scores rise from 0.2 to `skill`, a little different each seed."""
    rng = np.random.default_rng([len(method), len(variant), seed])
    ease = np.linspace(-0.2, 0.2, 12)  # of the problems
    goals = np.clip(skill + ease + 0.02 * rng.normal(), 0, 1)
    rewards = (rng.random((12, 8)) < goals[:, None]).astype(float)
    means = np.stack([np.full(12, 0.2), (0.2 + goals) / 2, rewards.mean(axis=1)])
    record = Record(
        method=method,
        variant=variant,
        seed=seed,
        config={"method": method, "seed": seed, "evaluation.samples": 8},
        config_sha256="c",
        version="0.1.0",
        packages={"jax": "0.10.2"},
        devices=["cpu:0"],
        base="base",
        problems="problems",
        order=f"order{seed}",
        parameters=1000,
        steps=4,
        warmup_steps=2,
        rollouts_per_step=16,
        split="test",
        samples=8,
        eval_steps=STEPS,
        eval_means=means,
        eval_metrics={"eval/mean@8": [float(row.mean()) for row in means]},
        budgets={
            "tokens": np.array([0.0, 100, 200]),
            "flops": np.array([0.0, 3e6, 6e6]),
            "cpu_seconds": np.array([1.0, 2, 3]),
        },
        problem_ids=[f"{variant}/{index}" for index in range(12)],
        final_rewards=rewards,
        totals={
            "sampled_tokens": 200.0,
            "prompt_tokens": 50.0,
            "student_tokens": 250.0,
            "teacher_tokens": 0.0,
            "buffer_fallbacks": 0.0,
            "updates_skipped": 0.0,
            "cpu_seconds": 3.0,
            "training_seconds": 2.0,
            "evaluation_seconds": 1.0,
            "flops_sampling": 1e6,
            "flops_student": 5e6,
            "flops_teacher": 0.0,
        },
        stage2={"routing/easy_fraction": 0.35, "actor/entropy": 0.1, "rhythm/rows": None},
        series={
            "step": [1.0, 2, 3, 4],
            "routing/easy_fraction": [0.1, 0.2, 0.3, 0.4],
            "routing/medium_fraction": [0.3, 0.3, 0.3, 0.3],
            "routing/hard_fraction": [0.6, 0.5, 0.4, 0.3],
            "actor/entropy": [0.2, None, 0.1, 0.1],
            "rollout/response_length_mean": [9.0, 9, 8, 8],
            "buffer/entries": [0.0, 1, 2, 3],
            "rollout/reward_mean": [0.2, 0.3, 0.4, 0.5],
        },
    )
    return dataclasses.replace(record, **changes)


def grid(skills: dict[str, float], variants: int = 2, seeds: int = 2) -> list[Record]:
    """A run of every method in every variant and seed."""
    return [
        made_up(method, f"world={world}", seed, skill=skill)
        for method, skill in skills.items()
        for world in range(variants)
        for seed in range(seeds)
    ]
