"""Methods are values: what each sets, that experiments leave it alone, and that no name is read."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from drift_jax import methods
from drift_jax.config import ConfigError, default, flatten, get, learning_rate, load, validate
from drift_jax.methods import DESCRIPTIONS, METHODS, apply, table

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("warmup", "mixed")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_applies_and_validates(name):
    config = apply(default(), name)
    assert config.method == name
    assert validate(config, device_count=8) is None


# Studies on generated worlds give all methods one learning rate and the full vocabulary.
COMMON = {"instrument": {"optimizer.learning_rate_factor": 1.0, "objective.top_k": 0}}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_no_experiment_overrides_what_a_method_sets(path, name):
    config = load(f"{path}:method={name}")
    for field, value in METHODS[name].items():
        assert get(config, field) == COMMON.get(path.stem, {}).get(field, value)


def test_the_default_is_drift():
    config = apply(default(), "drift")
    assert config.to_dict() == default().to_dict()


def test_every_method_has_a_description():
    assert list(DESCRIPTIONS) == list(METHODS)


def test_grpo_has_no_distillation_no_routing_no_buffer_in_any_stage():
    config = apply(default(), "grpo")
    for stage in STAGES:
        assert (config[stage].policy_correct, config[stage].policy_wrong) == (1, 1)
        assert (config[stage].distill_correct, config[stage].distill_wrong) == (0, 0)
        assert not config[stage].use_difficulty
        assert not config[stage].use_rhythm
    assert config.buffer.capacity == 0
    assert not config.objective.scale_by_std


def test_sdpo_distils_every_sample_from_the_first_success():
    config = apply(default(), "sdpo")
    for stage in STAGES:
        assert (config[stage].policy_correct, config[stage].policy_wrong) == (0, 0)
        assert (config[stage].distill_correct, config[stage].distill_wrong) == (1, 1)
        assert config[stage].sibling == "first"
    assert config.buffer.capacity == 0


RIVALS = (
    "grpo", "grpo_offpolicy", "grpo_std", "grpo_lead", "sdpo", "srpo", "sc_sdpo", "distil", "pgpo",
    "rlep", "cgtr", "rlsd", "rlrt", "advantage_mix", "sdpo_feedback",
)  # fmt: skip


@pytest.mark.parametrize("name", [*RIVALS, "drift_without_warmup"])
def test_a_method_without_curriculum_is_the_same_in_both_stages(name):
    # Else an experiment that sets the length of the warm-up would give it one.
    config = apply(default(), name)
    assert config.warmup.to_dict() == config.mixed.to_dict()


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "rlep"])
def test_a_rival_has_nothing_of_drifts_buffer_routing_or_rhythm(name):
    config = apply(default(), name)
    assert config.buffer.capacity == 0
    assert not config.mixed.use_difficulty
    weighs = name in ("rlsd", "rlrt")  # not by Eq. 16
    assert config.mixed.use_rhythm == weighs == (config.objective.token_weight != "rhythm")


def test_rlep_keeps_a_buffer_that_joins_groups_and_teaches_nobody():
    config = apply(default(), "rlep")
    assert config.buffer.group_members == 2 <= config.buffer.capacity
    assert not config.buffer.teaches
    assert config.objective.scale_by_std


def test_without_warm_up_is_drifts_stage_2_from_the_first_step():
    config = apply(default(), "drift_without_warmup")
    assert config.warmup.to_dict() == default().mixed.to_dict()


def test_without_routing_every_pass_rate_is_medium():
    section = apply(default(), "drift_without_routing").difficulty
    for correct in range(9):
        rate = correct / 8
        assert not rate > section.easy_above
        assert not rate < section.hard_below
    assert section.medium_weight == 1


def test_the_literal_preset_reads_the_equations_as_printed():
    config = apply(default(), "drift_literal")
    assert config.objective.aggregation == "token_sum"
    assert config.buffer.group_success == "positive"
    assert config.rhythm.every_sign


@pytest.mark.parametrize("name", ["sdpo", "drift_sdpo_stack"])
def test_the_sdpo_stack_uses_the_top_100_and_a_tail(name):
    objective = apply(default(), name).objective
    assert (objective.top_k, objective.rest, objective.alpha) == (100, "tail", 0.5)


# Learning rates as published, on DRIFT's scale of 5e-6.
RATES = {
    "grpo": 1e-6, "grpo_offpolicy": 1e-6, "grpo_std": 1e-6, "grpo_lead": 1e-6, "rlep": 1e-6,
    "rlsd": 1e-6, "rlrt": 1e-6, "srpo": 5e-6, "advantage_mix": 5e-6, "sdpo": 1e-5, "sc_sdpo": 1e-5,
    "pgpo": 1e-5, "cgtr": 1e-5, "sdpo_feedback": 1e-5, "distil": 5e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_carries_a_factor_and_leaves_the_rate_to_the_experiment(name):
    config = apply(default(), name)
    assert config.optimizer.learning_rate == default().optimizer.learning_rate
    assert learning_rate(config) == pytest.approx(RATES.get(name, 5e-6))


def test_every_rival_names_its_paper_and_its_rate():
    for name in RIVALS:
        said = DESCRIPTIONS[name]
        if not name.startswith(("grpo", "advantage_mix")):  # baselines of the papers named here
            assert re.search(r"\b\d{4}\.\d{5}\b", said), name
        rate = f"{RATES[name]:.0e}".replace("e-0", "e-")
        assert f"rate {rate}" in said, name


def test_an_ablation_differs_from_drift_in_its_component_only():
    component = {
        "drift_without_routing": {"difficulty"},
        "drift_without_buffer": {"buffer"},
        "drift_without_warmup": {"warmup"},
        "drift_without_rhythm": {"mixed"},
        "drift_without_bonus": {"rhythm"},
        "drift_gate_only": {"rhythm"},
        "drift_screened_gate": {"rhythm"},
        "drift_bonus_only": {"rhythm"},
        "drift_soft_bins": {"difficulty"},
        "drift_newest_buffer": {"buffer"},
        "drift_warmup_first": {"warmup"},
        "drift_warmup_shortest": {"warmup"},
        "drift_mixed_first": {"mixed"},
        "drift_mixed_highest_entropy": {"mixed"},
        "drift_distil_correct": {"mixed"},
        "drift_wrong_by_grpo": {"mixed"},
        "drift_wrong_by_both": {"mixed"},
        "drift_success_advantage": {"objective"},
    }
    for name, sections in component.items():
        assert {field.partition(".")[0] for field in METHODS[name]} == sections
    presets = {"drift", "drift_literal", "drift_sdpo_stack", "drift_release"}
    assert set(METHODS) == presets | set(RIVALS) | set(component)


def test_no_two_methods_are_the_same_values():
    seen: dict[str, str] = {}
    for name in METHODS:
        values = flatten(apply(default(), name)) | {"method": ""}
        same = seen.setdefault(json.dumps(values, sort_keys=True), name)
        assert same == name, f"{name} is {same}"


def test_an_unknown_method_names_the_nearest_and_all():
    with pytest.raises(ConfigError) as error:
        apply(default(), "grop")
    message = str(error.value)
    assert "method is 'grop', which is unknown; did you mean 'grpo'?" in message
    assert ", ".join(METHODS) in message
    assert "\n" not in message


def test_the_table_says_for_each_method_what_differs_from_the_defaults():
    text = table()
    blocks = {block.partition(":")[0]: block for block in text.split("\n") if ": " in block}
    assert set(METHODS) <= set(blocks)
    assert "mixed.use_rhythm = False  (True)" in table(["drift_without_rhythm"])
    assert table(["drift"]).endswith("the defaults")
    for name in METHODS:
        shown = table([name])
        config, paper = flatten(apply(default(), name)), flatten(default())
        for field in paper:
            assert (f" {field} " in shown) == (field != "method" and config[field] != paper[field])


def test_the_command_prints_the_table_and_refuses_an_unknown_name():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out):
        methods.main(["grpo"])
    assert out.getvalue() == table(["grpo"]) + "\n"
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        methods.main(["grop"])
    assert stopped.value.code == 2
    assert "did you mean 'grpo'?" in err.getvalue()


def test_no_code_compares_with_a_methods_name():
    for path in sorted((ROOT / "drift_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                words = {item.value for item in operands if isinstance(item, ast.Constant)}
                assert not words & set(METHODS), f"{path.name}:{node.lineno}"
