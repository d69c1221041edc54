"""The configuration: each field once, refusals that help, and what a resumed run may change."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax.config import (
    FIELDS,
    ConfigError,
    assign,
    changed_fields,
    check_command_line,
    default,
    describe,
    flatten,
    from_json,
    get,
    learning_rate,
    load,
    locked,
    mesh_shape,
    nearest_field,
    needs_teacher,
    parse_arg,
    resume_refusal,
    to_json,
    validate,
    warmup_length,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def refusal(config: ConfigDict, **facts) -> str:
    """The message of validate, which must be one line with a remedy after a semicolon."""
    with pytest.raises(ConfigError) as error:
        validate(config, **facts)
    message = str(error.value)
    assert "\n" not in message
    assert "; " in message
    return message


def with_values(**values) -> ConfigDict:
    """The defaults, but for section__field=value."""
    return assign(default(), {name.replace("__", "."): value for name, value in values.items()})


# ---- the table of fields ------------------------------------------------------------------------


def test_every_field_stands_once_and_says_what_it_means_and_who_chose_it():
    names = [field.name for field in FIELDS]
    assert len(names) == len(set(names))
    for field in FIELDS:
        assert field.doc.endswith("."), field.name
        assert re.match(r"(paper|reference|readings?|ours)\b", field.source), field.name


def test_no_name_hides_behind_a_method_of_configdict():
    # `config.teacher.update` would be the method of ConfigDict, whatever the field holds.
    for field in FIELDS:
        for part in field.name.split("."):
            assert not hasattr(ConfigDict, part), field.name


def test_both_stages_have_the_same_fields():
    assert set(default().warmup) == set(default().mixed)


def test_the_defaults_are_the_numbers_that_the_paper_prints():
    config = default()
    assert (config.difficulty.easy_above, config.difficulty.hard_below) == (0.8, 0.2)
    assert (config.difficulty.easy_weight, config.difficulty.hard_weight) == (0.5, 0.0)
    assert config.buffer.capacity == 3
    assert config.train.steps == 400
    assert config.objective.alpha == 0.5  # Eq. 3


def test_the_defaults_validate_on_one_device_and_on_eight():
    for devices in (1, 8):
        assert validate(default(), device_count=devices, problem_count=4046) is None


def test_no_field_is_a_list_because_the_command_line_cannot_change_one():
    assert not [name for name, value in flatten(default()).items() if isinstance(value, list)]


def test_the_described_table_has_a_row_for_every_field():
    rows = describe().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [field.name for field in FIELDS]
    assert all(row.count(" | ") == 4 for row in rows)


def test_a_locked_config_refuses_a_new_field():
    config = locked(default())
    with pytest.raises(AttributeError):
        config.rollout.group_sise = 4
    config.rollout.group_size = 4
    assert config.rollout.group_size == 4


# ---- assigning and parsing ----------------------------------------------------------------------


def test_assign_converts_whole_numbers_to_floats_and_lists_to_tuples():
    config = with_values(optimizer__learning_rate=1, rollout__prompt_buckets=[16, 32])
    assert type(config.optimizer.learning_rate) is float
    assert config.rollout.prompt_buckets == (16, 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout.group_size", 2.5),
        ("rollout.group_size", True),
        ("rollout.temperature", "1.0"),
        ("logging.tensorboard", 1),
        ("task", None),
    ],
)
def test_assign_refuses_a_value_of_another_type(name, value):
    with pytest.raises(ConfigError, match=rf"{name} is .*, expected .*; the default is"):
        assign(default(), {name: value})


def test_a_misspelt_field_names_the_nearest_one():
    assert nearest_field("rolout.group_size") == "rollout.group_size"
    assert nearest_field("group_size") == "rollout.group_size"
    assert nearest_field("buffer.pass_rate_decay") == "difficulty.pass_rate_decay"
    assert nearest_field("zzz") is None
    with pytest.raises(ConfigError) as error:
        assign(default(), {"rolout.group_size": 8})
    expected = "unknown config field 'rolout.group_size'; did you mean 'rollout.group_size'?"
    assert str(error.value) == expected


def test_a_field_like_no_other_lists_the_sections():
    assert "the sections are: data, model, rollout" in configuration.unknown_field_message("zzz")


DEFAULTS = {"task": "tooluse", "seed": 0, "rate": 0.5, "runlocal": False}


def test_config_arguments_take_their_types_from_the_defaults():
    assert parse_arg("", DEFAULTS) == DEFAULTS
    given = parse_arg("task=biology,seed=3,rate=1e-3,runlocal", DEFAULTS)
    assert given == {"task": "biology", "seed": 3, "rate": 1e-3, "runlocal": True}
    assert parse_arg("runlocal=false", DEFAULTS)["runlocal"] is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tusk=biology", "unknown config argument 'tusk'; the known ones are: task, seed, rate"),
        ("seed=one", "'seed' is 'one', expected a whole number; write for example 1000"),
        ("seed", "config argument 'seed' has no value; write seed=0"),
        ("runlocal=maybe", "'runlocal' is 'maybe', expected true or false"),
    ],
)
def test_a_bad_config_argument_is_refused_in_one_line(arg, message):
    with pytest.raises(ConfigError) as error:
        parse_arg(arg, DEFAULTS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- the command line ---------------------------------------------------------------------------

QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"


@pytest.mark.parametrize(
    "arguments",
    [
        [QUICKSTART],
        [QUICKSTART + ":method=grpo,seed=3", "--workdir=/tmp/x"],
        [QUICKSTART, "--config.rollout.group_size=4", "--config.optimizer.learning_rate=1e-4"],
        [QUICKSTART, "--config.rollout.prompt_buckets=(24,48)", "--noconfig.logging.tensorboard"],
        ["--config", str(ROOT / "configs" / "quickstart.py"), "--config.train.steps", "3"],
        ["--helpshort"],
    ],
)
def test_a_good_command_line_passes(arguments):
    assert check_command_line(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICKSTART, "--config.rolout.group_size=4"], "did you mean 'rollout.group_size'?"),
        ([QUICKSTART, "--config.train.steps=1e3"], "train.steps is '1e3', expected a whole number"),
        (
            [QUICKSTART, "--config.rollout.prompt_buckets=(a,)"],
            "expected whole numbers in brackets",
        ),
        ([QUICKSTART, "--noconfig.logging.tensorbord"], "did you mean 'logging.tensorboard'?"),
        (["--config.train.steps=3", QUICKSTART], "put --config=FILE first"),
        ([QUICKSTART + ":methd=grpo"], "unknown config argument 'methd'"),
        ([QUICKSTART + ":method=gropo"], "did you mean 'grpo'?"),
        (["--config=configs/nothing.py"], "'configs/nothing.py' is not a Python file that exists"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        check_command_line(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_line_has_the_last_word_over_experiment_method_and_default():
    script = (
        "from absl import app; from ml_collections import config_flags as f\n"
        "c = f.DEFINE_config_file('config', None, lock_config=True)\n"
        "app.run(lambda _: print(c.value.train.steps, c.value.mixed.sibling,"
        " c.value.optimizer.b2, c.value.rollout.group_size, c.value.rollout.response_buckets))"
    )
    overrides = ["--config.train.steps=7", "--config.rollout.response_buckets=(32,)"]
    command = [sys.executable, "-c", script, QUICKSTART + ":method=sdpo", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    # steps: command line; sibling: method; b2: experiment file; group_size: default.
    assert done.stdout.strip() == "7 first 0.99 8 (32,)", done.stderr


# ---- validation ---------------------------------------------------------------------------------


def test_a_group_of_one_is_refused_where_a_sibling_is_needed():
    assert "no sibling to learn from" in refusal(with_values(rollout__group_size=1))


def test_a_group_of_one_is_refused_for_grpo_too_because_its_advantages_are_zero():
    config = load(f"{ROOT / 'configs' / 'qwen3_8b.py'}:method=grpo")
    config.rollout.group_size = 1
    assert "makes every advantage 0" in refusal(config)


def test_a_batch_that_devices_cannot_share_names_both_numbers_and_the_remedy():
    config = with_values(rollout__group_size=6, rollout__problems_per_step=5)
    assert refusal(config, device_count=8) == (
        "rollout.group_size 6 x problems_per_step 5 = 30 is not divisible by 8 devices"
        " (mesh data x fsdp); use a multiple of 8"
    )
    assert validate(config, device_count=2) is None


def test_mini_batches_must_divide_the_problems_and_fit_the_devices():
    with pytest.raises(ConfigError, match="mini_batches 5 does not divide .* 32; use a divisor of"):
        validate(with_values(optimizer__mini_batches=5))
    config = with_values(optimizer__mini_batches=8)
    validate(config, device_count=8)
    with pytest.raises(ConfigError, match="a mini-batch has 32 rows .* by 64 devices .* use fewer"):
        validate(config, device_count=64)
    validate(with_values(optimizer__mini_batches=4, compute__micro_batch=128))
    validate(with_values(optimizer__mini_batches=4, compute__micro_batch=16))
    config = with_values(
        rollout__problems_per_step=12, optimizer__mini_batches=3, compute__micro_batch=24
    )
    with pytest.raises(ConfigError, match="micro_batch 24 does not divide the 32 rows of a mini-"):
        validate(config)


def test_an_advantage_mixture_is_refused_off_policy():
    both = {"mixed__policy_wrong": 0.9, "mixed__distill_wrong": 0.1}
    reverse = {"objective__divergence": "reverse_kl", "optimizer__mini_batches": 4}
    with pytest.raises(ConfigError, match="mini_batches is 4, .* mixture .* use .*mini_batches=1"):
        validate(with_values(**both, **reverse))
    validate(with_values(**both, objective__divergence="reverse_kl"))
    validate(with_values(**reverse))  # the branches never meet in a sample
    validate(with_values(**both, optimizer__mini_batches=4))  # a divergence beside the policy term


@pytest.mark.parametrize(
    "values, message",
    [
        ({"objective__distill_ratio_cap": 0.5}, r"distill_ratio_cap is 0.5, .* or at least 1"),
        ({"objective__sampler_correction_cap": 0.9}, r"correction_cap is 0.9, .* or at least 1"),
        ({"objective__reshape_clip": 1.5}, r"reshape_clip is 1.5, expected at most 1"),
        ({"optimizer__information_floor": 3.0}, r"floor 3.0 is above optimizer.information_max 2"),
    ],
)
def test_caps_and_floors_that_contradict_themselves_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        validate(with_values(**values))


def test_a_micro_batch_must_fit_the_devices_and_the_batch():
    config = with_values(compute__micro_batch=12)
    assert "12 is not divisible by 8 devices" in refusal(config, device_count=8)
    assert "12 does not divide the batch, rollout.group_size 8 x" in refusal(config)
    config.compute.micro_batch = 64
    assert validate(config, device_count=8) is None


def test_replayed_members_count_in_the_batch_and_must_find_room_in_the_buffer():
    values = {"buffer__group_members": 2, "rollout__problems_per_step": 3, "buffer__capacity": 2}
    message = refusal(with_values(**values), device_count=8)
    assert "(rollout.group_size 8 + buffer.group_members 2) x problems_per_step 3 = 30" in message
    assert validate(with_values(**values), device_count=6) is None
    message = refusal(with_values(**{**values, "buffer__capacity": 1}))
    assert "buffer.group_members 2 is more than buffer.capacity 1" in message
    assert "use a capacity of at least 2" in message


def test_thresholds_out_of_order_are_refused():
    config = with_values(difficulty__easy_above=0.2, difficulty__hard_below=0.8)
    assert "hard_below 0.8 is above difficulty.easy_above 0.2" in refusal(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rollout.group_size", -8, "is -8, expected at least 1; the default is 8"),
        ("optimizer.learning_rate", -1e-6, "is -1e-06, expected at least 0"),
        ("rollout.temperature", 0.0, "is 0.0, expected more than 0"),
        ("teacher.rate", 1.5, "is 1.5, expected at most 1"),
        ("rollout.top_p", 1.1, "is 1.1, expected at most 1"),
        ("rhythm.margin", float("nan"), "is nan, expected a finite number"),
        ("optimizer.learning_rate", float("inf"), "is inf, expected a finite number"),
        ("rhythm.max_bonus", 0.5, "is 0.5, expected at least 1"),
        ("seed", 2**32, "is 4294967296, expected at most 4294967295"),
    ],
)
def test_a_number_out_of_range_is_refused(name, value, message):
    assert f"{name} {message}" in refusal(assign(default(), {name: value}))


def test_every_number_that_must_not_be_negative_refuses_minus_two():
    for field in FIELDS:
        if field.at_least is None and not field.positive:
            continue
        if isinstance(field.default, int | float) and field.name != "mesh.fsdp":
            config = assign(default(), {field.name: -2})
            assert f"{field.name} is -2" in refusal(config)


def test_an_unknown_word_names_the_nearest_and_all():
    message = refusal(with_values(objective__aggregation="sequence_men"))
    assert "objective.aggregation is 'sequence_men', which is unknown" in message
    assert "did you mean 'sequence_mean'?" in message
    assert "the known ones are: sequence_mean, token_mean, token_sum" in message


def test_every_choice_of_every_field_validates():
    for field in FIELDS:
        for choice in field.choices:
            assert validate(assign(default(), {field.name: choice})) is None


@pytest.mark.parametrize(
    ("buckets", "limit"),
    [
        ("rollout.prompt_buckets", "data.max_prompt_tokens"),
        ("rollout.response_buckets", "rollout.max_new_tokens"),
        ("teacher.prompt_buckets", "teacher.max_prompt_tokens"),
    ],
)
def test_buckets_shorter_than_the_limit_are_refused(buckets, limit):
    needed = get(default(), limit)
    message = refusal(assign(default(), {buckets: (16, 32)}))
    assert message == (
        f"the longest of {buckets} is 32, shorter than {limit} {needed}; add a bucket of {needed}"
    )


@pytest.mark.parametrize("buckets", [(), (0, 8192), (8192, 512), (512, 512, 8192)])
def test_buckets_must_rise(buckets):
    config = with_values(rollout__response_buckets=buckets)
    assert "expected positive lengths in rising order" in refusal(config)


@pytest.mark.parametrize("name", ["rollout.row_buckets", "rollout.cache_buckets"])
def test_the_samplers_smaller_shapes_may_be_none_but_must_rise(name):
    assert refusal(assign(default(), {name: (8, 4)})).startswith(f"{name} is (8, 4), expected")
    without = assign(default(), {name: ()})
    validate(without, device_count=1)


def test_a_teacher_prompt_without_room_for_a_demonstration_is_refused():
    config = with_values(teacher__max_prompt_tokens=2048)
    message = refusal(config)
    assert "teacher.max_prompt_tokens 2048 is not more than data.max_prompt_tokens 2048" in message


def test_a_gate_that_divides_by_zero_is_refused():
    config = with_values(rhythm__max_multiplier=1.0)
    assert "rhythm.max_multiplier is 1.0, expected more than 1" in refusal(config)
    config = with_values(rhythm__min_multiplier=3.0)
    assert "min_multiplier 3.0 is above rhythm.max_multiplier 2.0" in refusal(config)


def test_more_problems_a_step_than_problems_is_refused():
    message = refusal(default(), problem_count=12)
    assert "rollout.problems_per_step 32 is more than the 12 training problems" in message


def test_key_value_heads_must_divide_the_heads():
    config = with_values(model__preset__num_heads=4, model__preset__num_kv_heads=3)
    assert "num_heads 4 is not a multiple" in refusal(config)


def test_a_mesh_takes_all_devices_or_is_refused():
    config = with_values(mesh__tensor=2)
    assert mesh_shape(config, 8) == (1, 4, 2)
    assert "= 2 does not divide 7 devices" in refusal(config, device_count=7)
    config = with_values(mesh__data=2, mesh__fsdp=2)
    assert mesh_shape(config, 4) == (2, 2, 1)
    assert "is not the number of devices, 8; use mesh.fsdp=-1" in refusal(config, device_count=8)


# ---- derived values -----------------------------------------------------------------------------


def test_the_learning_rate_in_use_is_the_experiments_times_the_methods_factor():
    config = with_values(optimizer__learning_rate=2e-4, optimizer__learning_rate_factor=0.2)
    assert math.isclose(learning_rate(config), 4e-5)


def test_warm_up_epochs_win_over_warm_up_steps():
    config = default()
    assert warmup_length(config, steps_per_epoch=16) == 50
    config.curriculum.warmup_epochs = 2.0
    assert warmup_length(config, steps_per_epoch=16) == 32
    config.curriculum.warmup_epochs = 0.1
    assert warmup_length(config, steps_per_epoch=16) == 2


def test_only_a_method_that_distils_or_gates_needs_a_teacher():
    path = ROOT / "configs" / "quickstart.py"
    assert needs_teacher(load(f"{path}:method=drift"))
    assert needs_teacher(load(f"{path}:method=sdpo"))
    assert not needs_teacher(load(f"{path}:method=grpo"))


# ---- resuming -----------------------------------------------------------------------------------


def test_lengths_and_intervals_may_change_on_resume_and_the_method_may_not():
    old = default()
    new = with_values(
        train__steps=800, evaluation__every=10, checkpoint__every=1, logging__every=5,
        rollout__group_size=16, task="biology", seed=1,
    )  # fmt: skip
    may, must_not = changed_fields(old.to_dict(), new.to_dict())
    assert {change.name for change in may} == {
        "train.steps", "evaluation.every", "checkpoint.every", "logging.every",
    }  # fmt: skip
    assert {change.name for change in must_not} == {"rollout.group_size", "task", "seed"}


def test_a_config_that_went_through_json_has_not_changed():
    config = default()
    assert changed_fields(json.loads(to_json(config)), config.to_dict()) == ([], [])


def test_a_field_that_the_old_run_did_not_know_counts_as_its_default():
    old = default().to_dict()
    del old["buffer"]["use_in_warmup"]
    assert changed_fields(old, default().to_dict()) == ([], [])
    _, must_not = changed_fields(old, with_values(buffer__use_in_warmup=False).to_dict())
    assert [str(change) for change in must_not] == ["buffer.use_in_warmup True -> False"]


def test_a_field_that_no_longer_exists_must_not_change():
    old = default().to_dict() | {"forgotten": {"field": 3}}
    _, must_not = changed_fields(old, default().to_dict())
    assert [str(change) for change in must_not] == ["forgotten.field 3 -> (absent)"]


def test_the_refusal_to_resume_says_which_fields_differ_and_which_may():
    new = with_values(train__steps=800, seed=1)
    message = resume_refusal("runs/a", *changed_fields(default().to_dict(), new.to_dict()))
    assert message == (
        "runs/a holds a run with other values: seed 0 -> 1; these differ too, and may:"
        " train.steps 400 -> 800; use the values of the run, another --workdir, or"
        " --fork_from=runs/a"
    )


def test_json_gives_the_same_config_back():
    config = with_values(rollout__prompt_buckets=(24, 2048), optimizer__learning_rate=2e-4)
    again = from_json(to_json(config))
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.rollout.prompt_buckets, tuple)


def test_json_with_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="unknown config field 'rolout.group_size'"):
        from_json('{"rolout": {"group_size": 8}}')


# ---- the experiment files -----------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_validates_and_its_card_has_a_command(path):
    config = load(str(path))
    assert validate(config, device_count=8) is None
    card = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in card
    assert "estimate" in card
    assert set(flatten(config)) == {field.name for field in FIELDS}


def test_the_quickstart_changes_only_model_data_batch_rate_and_lengths():
    config, paper = load(str(ROOT / "configs" / "quickstart.py")), default()
    kept = ("difficulty", "warmup", "mixed", "buffer", "objective", "rhythm")
    for section in kept:
        assert config[section].to_dict() == paper[section].to_dict()
    assert config.teacher.rate == paper.teacher.rate
    assert config.teacher.update_rule == paper.teacher.update_rule


def test_the_quickstart_takes_its_arguments():
    config = load(f"{ROOT / 'configs' / 'quickstart.py'}:method=grpo,world=2,seed=5,task=toolcalls")
    assert (config.method, config.data.world_seed, config.seed) == ("grpo", 2, 5)
    assert validate(config, problem_count=256) is None


def test_the_small_real_model_takes_every_benchmark_and_grows_for_a_gpu():
    path = ROOT / "configs" / "smollm2_135m.py"
    for task in ("physics", "biology", "chemistry", "material", "tooluse"):
        config = load(f"{path}:task={task},method=sdpo,seed=3")
        assert (config.task, config.method, config.seed) == (task, "sdpo", 3)
        assert validate(config, problem_count=100) is None
    large = load(f"{path}:gpu")
    assert large.rollout.problems_per_step == 32 and large.model.compute_dtype == "bfloat16"
    assert validate(large, device_count=8, problem_count=3644) is None
    for config in (load(str(path)), large):
        rows = config.compute.micro_batch
        batches = config.warm_start.plain_batch, config.warm_start.reference_batch
        assert all(batch % rows == 0 for batch in batches)


def test_the_papers_setting_is_complete():
    config = load(str(ROOT / "configs" / "qwen3_8b.py"))
    assert config.task == "tooluse"
    assert (config.rollout.problems_per_step, config.rollout.group_size) == (32, 8)
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens) == (2048, 8192)
    assert config.optimizer.learning_rate == 5e-6
    assert config.model.compute_dtype == "bfloat16"
    assert mesh_shape(config, 8) == (1, 8, 1)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_runlocal_is_tiny_and_needs_no_files(devices):
    config = load(f"{ROOT / 'configs' / 'qwen3_8b.py'}:runlocal,method=sdpo")
    assert validate(config, device_count=devices, problem_count=256) is None
    assert config.model.path == "quickstart_base"
    assert config.model.compute_dtype == "float32"
    assert config.train.steps * config.rollout.problems_per_step * config.rollout.group_size < 100
    assert 0 < config.curriculum.warmup_steps < config.train.steps  # both stages are run


def test_overrides_are_read_as_the_command_line_reads_them():
    arguments = ["--config.train.steps=7", "--config.rollout.prompt_buckets=(8,16)"]
    config = configuration.override(
        configuration.default(), [*arguments, "--config.model.path=a=b"]
    )
    assert config.train.steps == 7 and config.rollout.prompt_buckets == (8, 16)
    assert config.model.path == "a=b"
    for argument, words in (
        ("--config.train.step=7", "did you mean 'train.steps'"),
        ("--config.train.steps=x", "expected a whole number"),
        ("--config.train.steps", "is not --config.section.field=value"),
        ("train.steps=7", "is not --config.section.field=value"),
    ):
        with pytest.raises(configuration.ConfigError, match=re.escape(words)):
            configuration.override(configuration.default(), [argument])
