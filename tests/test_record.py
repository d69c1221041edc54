"""Records: read from work directories, written small, and of forks as of runs in one piece."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import assemble, record
from drift_jax import config as configs
from drift_jax.checkpoint import parse_fork
from drift_jax.comparison import plan as plans
from drift_jax.comparison.plan import Cell
from drift_jax.config import ConfigError
from tests import small_run
from tests.records import made_up


def test_a_record_survives_its_file_and_a_damaged_one_is_named(tmp_path):
    made = made_up(variant="world=1")
    file = tmp_path / record.file_name(made.method, made.variant, made.seed)
    assert file.name == "drift_world1_seed0.json"
    record.write(file, made)
    back = record.read(file)
    for field in dataclasses.fields(made):
        np.testing.assert_equal(getattr(back, field.name), getattr(made, field.name))
    assert back.name == "drift, world=1, seed=0"
    for text in ("", "{}", "[]", json.dumps({"format": 1}), file.read_text().replace("1", "2", 1)):
        file.write_text(text)
        with pytest.raises(ConfigError, match="drift_world1_seed0.json is not a record"):
            record.read(file)


def test_operations_are_counted_from_tokens_and_parameters():
    row = {
        "compute/prompt_tokens": 3.0,
        "rollout/tokens": 5.0,
        "compute/student_tokens": 7.0,
        "compute/teacher_tokens": 11.0,
    }
    assert record.flops(10, [row]) == {"sampling": [160.0], "student": [420.0], "teacher": [220.0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run in one piece; a run of its stage 1, and its fork."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: root / name for name in ("whole", "stage1", "fork")}
    # Stage 1 ends with step 3, which is neither evaluated nor saved otherwise.
    config = small_run.config("drift_without_rhythm", curriculum__warmup_steps=3, train__steps=5)
    drift = small_run.config("drift", curriculum__warmup_steps=3, train__steps=5)
    cells = [Cell(c.method, "", 0, root, (), c) for c in (drift, config)]
    (first,) = plans.stage1_runs(plans.share_stage1(cells))
    assert first.config.method == "drift" and first.config.train.steps == 3
    assert small_run.run(config, folders["whole"])
    assert small_run.run(first.config, folders["stage1"])
    fork = parse_fork(f"{folders['stage1']}@3")
    assert small_run.run(config, folders["fork"], fork)
    return folders


def test_a_fork_of_anothers_stage_1_ends_with_the_bits_of_a_run_in_one_piece(runs):
    config = small_run.config("drift_without_rhythm", curriculum__warmup_steps=3, train__steps=5)
    whole, fork = (small_run.checkpoint(config, runs[name]) for name in ("whole", "fork"))
    small_run.assert_same_bits(whole[0], fork[0])
    assert whole[1]["memory"] == fork[1]["memory"]
    assert small_run.metrics(runs["whole"])[4:] == small_run.metrics(runs["fork"])


def test_the_record_of_a_fork_is_that_of_a_run_in_one_piece_but_for_clocks(runs):
    whole = record.from_work_directory([runs["whole"]], method="x")
    fork = record.from_work_directory([runs["stage1"], runs["fork"]], method="x")
    assert whole.eval_steps == fork.eval_steps == [0, 4, 5]
    for field in dataclasses.fields(whole):
        one, other = getattr(whole, field.name), getattr(fork, field.name)
        if field.name in ("totals", "budgets"):
            assert one.keys() == other.keys()
            clocks = [name for name in one if name.endswith("seconds")]
            assert clocks
            one, other = (
                {name: value for name, value in both.items() if name not in clocks}
                for both in (one, other)
            )
        np.testing.assert_equal(one, other, err_msg=field.name)


def test_a_record_has_what_the_work_directory_says(runs):
    rows = small_run.lines(runs["whole"])
    found = record.from_work_directory([runs["whole"]], method="x", variant="world=0")
    assert (found.method, found.variant, found.seed, found.steps) == ("x", "world=0", 0, 5)
    assert (found.warmup_steps, found.rollouts_per_step, found.samples) == (3, 80, 2)
    assert found.config["method"] == "drift_without_rhythm" and "seed" not in found.config
    scores = [row["eval/mean@2"] for row in rows if "eval/mean@2" in row]
    assert found.eval_means.mean(axis=1) == pytest.approx(scores)
    assert found.eval_metrics["eval/mean@2"] == scores
    assert found.final_rewards.mean(axis=1) == pytest.approx(found.eval_means[-1])
    assert found.totals["sampled_tokens"] == rows[-1]["rollout/tokens_total"]
    assert list(found.budgets["tokens"]) == [
        sum(row["rollout/tokens"] for row in rows[1 : 1 + step]) for step in (0, 4, 5)
    ]
    assert found.totals["cpu_seconds"] == pytest.approx(
        sum(row["time/cpu"] for row in rows), abs=0.01
    )
    # Student rows are prompt and response; the prompts are read once a group by the sampler.
    totals = found.totals
    expected = 4 * totals["prompt_tokens"] + totals["sampled_tokens"]
    assert totals["student_tokens"] == expected and totals["teacher_tokens"] > expected
    assert found.series["step"] == [1, 2, 3, 4, 5]
    assert found.series["actor/entropy"][0] == pytest.approx(rows[1]["actor/entropy"], rel=1e-3)
    for row in rows[1:]:
        samples = small_run.lines(runs["whole"] / "samples", f"{row['step']}.jsonl")
        ids = dict.fromkeys(sample["id"] for sample in samples)
        assert row["data/order"] == zlib.crc32("\n".join(ids).encode())
    second = [row["routing/easy_fraction"] for row in rows[4:]]
    assert found.stage2["routing/easy_fraction"] == pytest.approx(sum(second) / 2, rel=1e-3)
    # The packaged model: the tied table is multiplied with, so all weights count.
    assert found.parameters == 155_200 and len(found.base) == 64
    file = runs["whole"] / "record.json"
    record.write(file, found)
    assert file.stat().st_size < 12_000
    rebuilt = configs.flatten(configs.default()) | record.read(file).config
    assert record.config_fingerprint(rebuilt) == found.config_sha256


def test_unfinished_and_old_work_directories_are_refused_in_one_line(runs, tmp_path):
    with pytest.raises(ConfigError, match="config.json does not exist"):
        record.from_work_directory([tmp_path], method="x")
    content = json.loads((runs["whole"] / "config.json").read_text())
    del content["base"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text((runs["whole"] / "metrics.jsonl").read_text())
    with pytest.raises(ConfigError, match="older version"):
        record.from_work_directory([tmp_path], method="x")


def test_an_untied_embedding_is_looked_up_and_not_counted():
    tied = {"embed_tokens": jnp.ones((5, 2)), "layers": {"norm": jnp.ones(3)}}
    untied = {**tied, "lm_head": jnp.ones((2, 5))}
    first, second = map(assemble.describe_base, (tied, untied))
    assert first["parameters"] == second["parameters"] == 13
    assert first["fingerprint"] != second["fingerprint"]
