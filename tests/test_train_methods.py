"""Every method through the loop, by its name: it trains, moves what it should, and resumes."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import config as configs
from drift_jax import methods
from tests import small_run

# Two steps and nothing around them.
BARE = {"evaluation__at_start": False, "evaluation__max_problems": 4, "train__steps": 2}
# Methods whose update no other method of the default run compiles are left to the slow run, but for
# these: each is a kind of its own.
KINDS = ("drift", "grpo", "sdpo", "srpo", "distil", "rlep")
# One learning rate for all, so that methods which differ on the host alone share an executable.
ONE_RATE = {"optimizer__learning_rate_factor": 1.0}


def update_of(name: str) -> str:
    """What the update of a method is compiled from."""
    settings = small_run.config(name, **ONE_RATE)
    return small_run.update_key(settings) + str(configs.needs_teacher(settings))


def by_cost() -> list[Any]:
    """Every method; those that need an executable of their own are marked as slow."""
    known = {update_of(name) for name in KINDS}
    return [
        pytest.param(name, marks=() if update_of(name) in known else pytest.mark.slow)
        for name in methods.METHODS
    ]


@pytest.fixture(scope="module", params=by_cost())
def two_steps(request, tmp_path_factory) -> tuple[str, list[dict[str, Any]], Path]:
    """One step of each stage with every method."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = small_run.config(request.param, **BARE, **ONE_RATE, curriculum__warmup_steps=1)
    assert small_run.run(settings, folder)
    return request.param, small_run.lines(folder)[1:], folder


def test_every_method_takes_steps_with_finite_metrics(two_steps):
    _, rows, folder = two_steps
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values()), row  # null would fail too
        assert row["actor/grad_norm"] > 0
        assert row["actor/update_skipped"] == 0
        assert row["sampler/log_prob_gap_max"] < 1e-5
    assert len(small_run.files(folder, "samples")) == 2


def test_every_method_moves_the_parameters_and_its_teacher_by_its_rule(two_steps):
    name, rows, folder = two_steps
    settings = small_run.config(name)
    state, host = small_run.checkpoint(settings, folder)
    start = small_run.initial(settings)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, state.trainable)
    assert all(jax.tree.leaves(moved))
    followed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, state.teacher)
    assert any(jax.tree.leaves(followed)) == (settings.teacher.update_rule == "ema")
    assert {row["teacher/rate"] for row in rows} == {
        settings.teacher.rate if settings.teacher.update_rule == "ema" else 0.0
    }
    assert len(host["memory"]["schedule"]["recent"]) == 2 * (
        settings.teacher.update_rule == "gated_copy"
    )


def test_a_method_uses_the_terms_that_it_is_made_of(two_steps):
    name, rows, _ = two_steps
    settings = small_run.config(name)
    # The packaged policy has mixed groups in each of these steps, so every branch has samples.
    for row, stage in zip(rows, (settings.warmup, settings.mixed), strict=True):
        has_policy = stage.policy_correct > 0 or stage.policy_wrong > 0
        has_distill = stage.distill_correct > 0 or stage.distill_wrong > 0
        assert (row["routing/policy_fraction"] > 0) == has_policy
        assert (row["routing/distill_fraction"] > 0) == has_distill
        assert (row["loss/distill"] != 0) == has_distill
        gated = stage.use_rhythm and settings.objective.advantage_over == "group"
        assert (row["rhythm/rows"] > 0) == gated


def test_without_a_buffer_nothing_is_stored(two_steps):
    name, rows, folder = two_steps
    without = small_run.config(name).buffer.capacity == 0
    assert all((row["buffer/entries"] == 0) == without for row in rows)
    memory = small_run.checkpoint(small_run.config(name), folder)[1]["memory"]
    assert (memory["buffer"]["problems"] == {}) == without


def test_replayed_successes_train_and_are_no_part_of_what_was_sampled(tmp_path):
    # From the second epoch on, so four steps.
    settings = small_run.config("rlep", **BARE | {"train__steps": 4}, **ONE_RATE)
    assert small_run.run(settings, tmp_path)
    rows = small_run.lines(tmp_path)[1:]
    assert [row["buffer/replayed_rows"] > 0 for row in rows] == [False] * 3 + [True]
    last = small_run.lines(tmp_path / "samples", "4.jsonl")
    fresh = [sample for sample in last if not sample["replayed"]]
    stored = [sample for sample in last if sample["replayed"]]
    assert len(fresh) == 20 * 4 and len(stored) == rows[-1]["buffer/replayed_rows"]
    rewards = [sample["reward"] for sample in fresh]
    assert rows[-1]["rollout/tokens"] == sum(sample["length"] for sample in fresh)
    assert rows[-1]["rollout/reward_mean"] == pytest.approx(np.mean(rewards))
    assert rows[-1]["sampler/log_prob_gap_max"] < 1e-5  # nobody sampled the stored ones now
    for sample in stored:
        assert sample["reward"] == 1 and sample["teacher_source"] == "none"
        assert sample["policy_weight"] == 1
    # A group of all its own successes and stored ones has no advantage; others have.
    assert any(sample["advantage"] > 0 for sample in stored)
    detailed = [sample for sample in last if "tokens" in sample]
    assert all(len(sample["student_entropy"]) == sample["length"] for sample in detailed)


def test_the_words_of_the_grader_reach_the_teacher_and_the_sample_files(tmp_path):
    settings = small_run.config("sdpo_feedback", **BARE, **ONE_RATE)
    assert small_run.run(settings, tmp_path)
    rows = small_run.lines(tmp_path)[1:]
    for row in rows:
        samples = small_run.lines(tmp_path / "samples", f"{row['step']}.jsonl")
        told = [sample for sample in samples if sample["teacher_source"] == "feedback"]
        assert 0 < len(told) == row["teacher/feedback_fraction"] * len(samples)
        for sample in told:
            assert not sample["correct"] and sample["teacher_text"] is None
            assert sample["teacher_feedback"] and sample["distill_weight"] == 1


ALWAYS_COPIED = {
    "teacher__update_rule": "gated_copy",
    "teacher__check_every": 2,
    "teacher__min_steps": 2,
    "teacher__window": 1,
    "teacher__reward_gain": -1.0,
    "teacher__length_ratio": 99.0,
}


@pytest.mark.parametrize(
    ("method", "values"),
    [("drift_release", {}), ("rlep", {}), ("sdpo", ALWAYS_COPIED)],
    ids=["drift_release", "rlep", "gated copies"],
)
def test_what_other_methods_remember_resumes_to_the_same_bits(method, values, tmp_path):
    # Three steps make an epoch: the stop lies before the buffer is read, the end after.
    values = BARE | ONE_RATE | values | {"train__steps": 5, "checkpoint__every": 1}
    settings = small_run.config(method, **values)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert small_run.run(settings, straight)
    with small_run.at_step(3, small_run.terminate):
        assert not small_run.run(settings, stopped)
    assert small_run.run(settings, stopped)
    state, host = small_run.checkpoint(settings, straight)
    other_state, other_host = small_run.checkpoint(settings, stopped)
    small_run.assert_same_bits(state, other_state)
    assert host["memory"] == other_host["memory"]
    assert small_run.metrics(straight) == small_run.metrics(stopped)
    assert small_run.files(straight, "samples") == small_run.files(stopped, "samples")


def test_a_refreshed_teacher_is_the_student_to_the_bit_and_stays_it_until_the_next(tmp_path):
    values = BARE | ONE_RATE | ALWAYS_COPIED
    values |= {"train__steps": 3, "checkpoint__every": 1, "checkpoint__keep_last": 3}
    settings = small_run.config("sdpo", **values)
    assert small_run.run(settings, tmp_path)
    rows = small_run.lines(tmp_path)[1:]
    assert [row["teacher/refreshed"] for row in rows] == [0, 1, 0]
    first, second, third = (small_run.checkpoint(settings, tmp_path, n)[0] for n in (1, 2, 3))
    small_run.assert_same_bits(first.teacher, small_run.initial(settings))
    small_run.assert_same_bits(second.teacher, second.trainable)
    small_run.assert_same_bits(third.teacher, second.trainable)
