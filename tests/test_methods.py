"""Methods are values: what each sets, that experiments leave it alone, and that no name is read."""

import ast
import contextlib
import io
from pathlib import Path

import pytest

from drift_jax import methods
from drift_jax.config import ConfigError, default, flatten, get, load, validate
from drift_jax.methods import DESCRIPTIONS, METHODS, apply, table

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("warmup", "mixed")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_applies_and_validates(name):
    config = apply(default(), name)
    assert config.method == name
    assert validate(config, device_count=8) is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_no_experiment_overrides_what_a_method_sets(path, name):
    config = load(f"{path}:method={name}")
    for field, value in METHODS[name].items():
        assert get(config, field) == value


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


@pytest.mark.parametrize("name", ["grpo", "sdpo", "drift_without_warmup"])
def test_a_method_without_curriculum_is_the_same_in_both_stages(name):
    # Else an experiment that sets the length of the warm-up would give it one.
    config = apply(default(), name)
    ours, theirs = config.warmup.to_dict(), config.mixed.to_dict()
    if name == "grpo":  # has no teacher, so the rule that picks one does not matter
        del ours["sibling"], theirs["sibling"]
    assert ours == theirs


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


@pytest.mark.parametrize(
    ("name", "factor"), [("drift", 1.0), ("grpo", 0.2), ("sdpo", 2.0), ("drift_literal", 1.0)]
)
def test_a_method_carries_a_factor_and_leaves_the_rate_to_the_experiment(name, factor):
    config = apply(default(), name)
    assert config.optimizer.learning_rate_factor == factor
    assert config.optimizer.learning_rate == default().optimizer.learning_rate


def test_an_ablation_differs_from_drift_in_its_component_only():
    component = {
        "drift_without_routing": {"difficulty"},
        "drift_without_buffer": {"buffer"},
        "drift_without_warmup": {"warmup"},
        "drift_without_rhythm": {"mixed"},
    }
    for name, sections in component.items():
        assert {field.partition(".")[0] for field in METHODS[name]} == sections


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
