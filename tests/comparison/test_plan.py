"""Which runs a comparison consists of, and what it refuses before it starts any."""

import json
from pathlib import Path
from typing import Any

import pytest

from drift_jax import config as configs
from drift_jax import record
from drift_jax.comparison import plan as plans
from drift_jax.comparison.plan import Plan
from drift_jax.config import ConfigError
from tests import small_run
from tests.records import made_up

CONFIG = str(small_run.ROOT / "configs" / "quickstart.py")


def plan(out: Path, **changes: Any) -> Plan:
    values = {
        "config": CONFIG,
        "overrides": (),
        "methods": ("drift", "grpo"),
        "seeds": (0, 1),
        "vary": ("world", ("0", "1")),
        "out": out,
    }
    return Plan(**{**values, **changes})


def test_a_cell_is_a_command_whose_configuration_is_the_resolved_one(tmp_path):
    made = plan(tmp_path, overrides=("--config.model.path=bases/{world}/{seed}/{method}",))
    cells = made.cells({"grpo": 0.5})
    assert [cell.name for cell in cells[:3]] == [
        "drift, world=0, seed=0",
        "grpo, world=0, seed=0",
        "drift, world=1, seed=0",
    ]
    assert len(cells) == 8 and len({cell.folder for cell in cells}) == 8
    cell = cells[3]
    assert cell.folder == tmp_path / "grpo" / "world1" / "seed0"
    assert cell.record == tmp_path / "raw" / "grpo_world1_seed0.json"
    assert cell.command() == [
        f"--config={CONFIG}:world=1,method=grpo,seed=0",
        "--config.model.path=bases/1/0/grpo",
        "--config.optimizer.learning_rate=0.0001",
        f"--workdir={cell.folder}",
    ]
    values = configs.flatten(cell.config)
    assert values["data.world_seed"] == 1 and values["method"] == "grpo"
    assert values["model.path"] == "bases/1/0/grpo"
    assert values["optimizer.learning_rate"] == pytest.approx(1e-4)
    # Drift's factor is 1: nothing about its rate stands on its command line.
    assert not any("learning_rate" in word for word in cells[2].command())


def test_what_the_comparison_sets_itself_is_refused_in_the_config_argument(tmp_path):
    for argument in ("method=grpo", "seed=3", "world=2"):
        with pytest.raises(ConfigError, match="which the comparison sets itself"):
            plan(tmp_path, config=f"{CONFIG}:{argument}")
    with pytest.raises(ConfigError, match="each must stand there once"):
        plan(tmp_path, methods=("drift", "drift"))
    with pytest.raises(ConfigError, match="unknown config argument 'planet'"):
        plan(tmp_path, vary=("planet", ("0",))).cells()
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        plan(tmp_path, methods=("grop",)).cells()
    with pytest.raises(ConfigError, match=r"drift, world=0, seed=0: .*use at least 2"):
        plans.check_settings(plan(tmp_path, overrides=("--config.rollout.group_size=1",)).cells())
    with pytest.raises(ConfigError, match="did you mean 'rollout.group_size'"):
        plan(tmp_path, overrides=("--config.rollout.groupsize=1",)).cells()
    with pytest.raises(ConfigError, match="write it so"):
        plan(tmp_path, overrides=("--stray",)).cells()


# ---- what is there already ----------------------------------------------------------------------


def test_a_folder_of_another_configuration_is_refused_with_the_field(tmp_path):
    cells = plan(tmp_path).cells()
    plans.check_folders(cells)
    cells[0].folder.mkdir(parents=True)
    file = cells[0].folder / "config.json"
    file.write_text(json.dumps({"config": cells[0].config.to_dict()}))
    plans.check_folders(cells)
    # A field that a run alone might change on resume counts too.
    for override in ("--config.evaluation.every=3", "--config.optimizer.b1=0.5"):
        changed = plan(tmp_path, overrides=(override,)).cells()
        with pytest.raises(ConfigError) as error:
            plans.check_folders(changed)
        name = override.removeprefix("--config.").partition("=")[0]
        assert f"{cells[0].folder} holds drift, world=0, seed=0" in str(error.value)
        assert f"{name} " in str(error.value) and "another --out" in str(error.value)
    file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        plans.check_folders(cells)


def test_a_record_of_another_configuration_is_refused_when_its_folder_is_gone(tmp_path):
    cells = plan(tmp_path).cells()
    same = made_up(config=record.differing(configs.flatten(cells[0].config)))
    record.write(cells[0].record, same)
    plans.check_folders(cells)
    with pytest.raises(ConfigError, match=r"raw/drift_world0_seed0.json holds .* train.steps"):
        plans.check_folders(plan(tmp_path, overrides=("--config.train.steps=9",)).cells())


# ---- learning-rate sweep ------------------------------------------------------------------------


def test_a_sweep_never_looks_at_the_test_problems_whatever_the_overrides_say(tmp_path):
    made = plan(tmp_path, overrides=("--config.evaluation.split=test",))
    for factor in (0.5, 2.0):
        for cell in made.sweep_cells(factor):
            assert cell.config.evaluation.split == "validation"
            assert cell.command()[-2] == "--config.evaluation.split=validation"
            assert cell.seed == 0 and cell.folder.is_relative_to(tmp_path / "sweep" / f"{factor:g}")
            assert cell.config.optimizer.learning_rate == pytest.approx(2e-4 * factor)
    assert all(cell.config.evaluation.split == "test" for cell in made.cells())


def test_a_task_without_validation_problems_cannot_be_swept(tmp_path):
    config = str(small_run.ROOT / "configs" / "qwen3_8b.py")
    overrides = ("--config.model.path=quickstart_base", f"--config.data.path={tmp_path}")
    made = plan(tmp_path, config=config, vary=("", ("",)), overrides=overrides)
    with pytest.raises(ConfigError, match="validation_fraction above 0"):
        plans.check_validation(made.cells())


# ---- shared stage 1 -----------------------------------------------------------------------------


def shared(out: Path, *methods: str) -> list[plans.Cell]:
    return plans.share_stage1(plan(out, methods=methods, seeds=(0,), vary=("", ("",))).cells())


def test_methods_that_differ_in_stage_2_decisions_share_a_run_of_stage_1(tmp_path):
    cells = shared(tmp_path, "drift", "grpo", "drift_without_rhythm")
    first, grpo, other = cells
    assert grpo.stage1 is None
    assert first.stage1 is not None and other.stage1 is not None
    assert first.stage1.folder == other.stage1.folder == tmp_path / "stage1" / "drift" / "seed0"
    # Two epochs of 16 steps.
    assert first.stage1.command()[-2] == "--config.train.steps=32"
    assert other.command()[-1] == f"--fork_from={first.stage1.folder}@32"
    assert list(plans.stage1_runs(cells)) == [first.stage1]


@pytest.mark.parametrize(
    "methods",
    [
        ("drift", "grpo"),
        ("drift", "drift_without_buffer"),  # the buffer is filled in stage 1
        ("drift", "drift_sdpo_stack"),  # another divergence
        ("drift", "drift_without_warmup"),
    ],
)
def test_what_reaches_into_stage_1_is_not_shared(tmp_path, methods):
    with pytest.raises(ConfigError, match="no two cells differ in nothing but `mixed"):
        shared(tmp_path, *methods)
