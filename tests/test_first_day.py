"""docs/FIRST_DAY.md: every command is valid, every number follows from code or arithmetic."""

import contextlib
import importlib
import importlib.util
import io
import math
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from drift_jax import config, metrics
from drift_jax.planning import estimate, sizes
from drift_jax.prepare import __main__ as prepare
from drift_jax.prepare import published

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "FIRST_DAY.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "configs").glob("*.py")}
# Programs of the machine, which only it can check.
OTHER = ("pip", "nvidia-smi", "df", "git")
EXPERIMENTS = ("qwen3_8b", "qwen3_4b", "olmo3_7b")

# ml_collections loads experiment files by a method that Python wants to drop one day.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")


def commands() -> list[str]:
    """The lines of the code blocks."""
    return [
        line for block in re.findall(r"```\n(.*?)```", TEXT, re.S) for line in block.split("\n")
    ]


def python_commands(of: str) -> list[list[str]]:
    """Arguments of the lines `python -m drift_jax.<of> ...`."""
    start = ["python", "-m", f"drift_jax.{of}"]
    return [words[3:] for words in map(shlex.split, commands()) if words[:3] == start]


def parsed(arguments: list[str], of: str) -> config.ConfigDict:
    """The configuration of a command line, read by the same parsers as the command's."""
    config.check_command_line(arguments)
    own, mine = [], flags.FlagValues()
    value = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=mine)
    module = importlib.import_module(f"drift_jax.{of}")
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if name == "config" or name.startswith("config."):
            own.append(argument)
        else:
            where = flags.FLAGS.find_module_defining_flag(name)
            assert where in ("drift_jax.command", module.__name__), f"{argument} is not a flag"
    with mock.patch.object(sys, "argv", ["command", *own]):  # where overrides are looked for
        mine(sys.argv)
    return value.value


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first line begins with `heading`."""
    table = TEXT[TEXT.index(f"| {heading}") :].partition("\n\n")[0]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.split("\n")]


# ---- commands -----------------------------------------------------------------------------------


def test_every_line_is_of_a_kind_that_is_checked_here():
    kinds = ("main", "evaluate", "prepare", "plan")
    for line in filter(None, commands()):
        words = shlex.split(line)
        known = words[0] in OTHER or words[:2] == ["python", "-c"]
        known |= words[:2] == ["python", "-m"] and words[2] in {f"drift_jax.{k}" for k in kinds}
        assert known, line
    assert [len(python_commands(kind)) for kind in kinds] == [6, 6, 7, 1]


@pytest.mark.parametrize("of", ["main", "evaluate", "plan"])
def test_every_run_loads_its_config_with_its_flags_and_validates_on_eight_devices(of, monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments in python_commands(of):
        loaded = parsed(arguments, of)
        count = 256 if loaded.task == "toolcalls" else published.FILES[loaded.task, "train"].rows
        assert config.validate(loaded, device_count=8, problem_count=count) is None
        if of == "evaluate":
            assert any(argument.startswith("--workdir=") for argument in arguments)


def test_a_misspelt_flag_would_be_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    good = python_commands("main")[0]
    for bad in ("--wrkdir=x", "--model=x"):  # --model is evaluate's
        with pytest.raises(AssertionError):
            parsed([*good, bad], "main")
    with pytest.raises(config.ConfigError, match="did you mean"):
        parsed([*good, "--config.train.stepz=3"], "main")


def test_every_preparation_parses_and_names_what_a_run_reads(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = [prepare.make_parser().parse_args(words) for words in python_commands("prepare")]
    assert {options.task for options in made if options.task} == {*published_tasks()}
    (model,) = [options for options in made if options.model]
    for of in ("main", "evaluate"):
        for arguments in python_commands(of):
            loaded = parsed(arguments, of)
            assert loaded.model.path in (model.out, "quickstart_base")
            assert loaded.data.path in ("data", "data/stand_in")


def published_tasks() -> list[str]:
    return [task for task, split in published.FILES if split == "test"]


def test_the_one_liners_run():
    lines = [shlex.split(line)[2] for line in commands() if line.startswith("python -c")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for line in lines:
            exec(compile(line, "FIRST_DAY", "exec"), {})
    assert len(lines) == 2 and printed.getvalue().endswith("4096\n")


def test_the_second_command_of_rung_4_continues_the_first(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = [words for words in python_commands("main") if "toolcalls" in words[0]]
    first, second = (parsed(words, "main") for words in runs)
    may, must_not = config.changed_fields(first.to_dict(), second.to_dict())
    assert ([change.name for change in may], must_not) == (["train.steps"], [])
    assert runs[0][-1] == runs[1][-1] and first.train.steps == 4


# ---- numbers ------------------------------------------------------------------------------------


def test_the_base_row_is_the_cards_with_three_deviations_of_two_runs():
    card = CARDS["qwen3_8b.py"]
    header, _, *table = rows("task | problems | published")
    assert header[-1] == "accept" and [row[0] for row in table] == published_tasks()
    for task, problems, score, tolerance, accept in table:
        count, mean = published.FILES[task, "test"].rows, float(score) / 100
        assert int(problems) == count
        base = re.search(rf"^ +{task} +\d+ +\d+ +[\d.]+ +\d+ +([\d.]+)", card, re.M)
        assert base[1] == score
        wide = 300 * math.sqrt(2 * mean * (1 - mean) / (16 * count))
        assert tolerance == f"{wide:.1f}"
        assert accept == f"{100 * mean - wide:.1f} to {100 * mean + wide:.1f}"


def planned(name: str, method: str = "drift", **values: config.Value):
    """Configuration, sizes and plan of an experiment on 8 x H200."""
    chosen = {field.replace("__", "."): value for field, value in values.items()}
    loaded = config.load(f"{ROOT}/configs/{name}.py:task=biology,method={method}")
    config.assign(loaded, chosen)
    model = sizes.PUBLISHED[Path(loaded.model.path).name.lower()]
    return loaded, model, estimate.make(loaded, model, **MACHINE)


MACHINE = {"device": "h200", "devices": 8}


def test_memory_is_that_of_the_plan():
    plans = [planned(name)[2] for name in EXPERIMENTS]
    written = {row[0]: row[2:] for row in rows("part | formula")}

    def shown(of) -> list[str]:
        return [f"{of(plan) / 1e9:.1f}" for plan in plans]

    count = [f"{sizes.parameters(plan.model) / 1e9:.2f}" for plan in plans]
    assert written["parameters, B"] == count
    assert written["state"] == shown(lambda plan: sum(plan.state.values()))
    assert written["cache"] == shown(lambda plan: plan.phases["sampling"]["cache"])
    scores = shown(lambda plan: plan.phases["teacher forward"]["scores"])
    assert written["teacher's scores"] == scores
    for phase in ("sampling", "teacher forward", "student backward"):
        assert written[phase] == shown(lambda plan, phase=phase: plan.needs(phase))
    checkpoint = shown(lambda plan: estimate.checkpoint_bytes(plan.model))
    assert written["a checkpoint on disk"] == checkpoint
    whole = planned("olmo3_7b", rollout__max_rows=256)[2].phases["sampling"]["cache"]
    assert f"would need {whole / 1e9:.1f} GB of cache" in TEXT
    assert f"{4 * estimate.checkpoint_bytes(plans[0].model) / 1e9:.0f} GB" in TEXT


def test_what_rung_2_says_of_the_plan_is_so():
    plan = planned("qwen3_8b")[2]
    over = [phase for phase in plan.phases if plan.needs(phase) > plan.device.memory]
    assert over == ["teacher's evaluation"]
    assert f"({plan.peak / 1e9:.1f} GB)" in TEXT
    mended = planned("qwen3_8b", rollout__max_rows=64)[2]
    assert mended.fits and f"then the update, {mended.peak / 1e9:.1f} GB" in TEXT
    (share,) = re.findall(r"XLA_PYTHON_CLIENT_MEM_FRACTION=([\d.]+)", TEXT)
    assert mended.peak / mended.device.memory < float(share) < 1
    sampling, backward = plan.needs("sampling") / 1e9, plan.needs("student backward") / 1e9
    cache = plan.phases["sampling"]["cache"] / 1e9
    assert (
        f"at most {sampling:.1f} GB while sampling, of which the cache has {cache:.1f},"
        f" and {backward:.1f} in the backward pass"
    ) in TEXT


def test_step_times_are_those_of_the_plan():
    table = rows("longest answer")[2:]
    loaded, model, _ = planned("qwen3_8b")
    assert [int(row[0]) for row in table] == [*loaded.rollout.response_buckets]
    for length, rollout, *updates in table:
        for method, written in zip(("grpo", "drift"), updates, strict=True):
            loaded = planned("qwen3_8b", method)[0]
            step = estimate.step(
                loaded, model, **MACHINE, lengths=estimate.usual(loaded, int(length))
            )
            low, high = step.rollout.expected, step.rollout.expected + step.gathering
            assert rollout == f"{low:.0f} to {high:.0f}"
            assert written == f"{step.update.expected:.0f}"


def test_the_stages_of_rung_7_are_those_of_its_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = [words for words in python_commands("main") if words[-1].endswith("first_day_drift")]
    loaded = parsed(run, "main")
    epoch = published.FILES["biology", "train"].rows // loaded.rollout.problems_per_step
    stage_1 = config.warmup_length(loaded, epoch)
    written = [row[0] for row in rows("steps | what acts")[2:]]
    assert written == [
        f"1 to {epoch * loaded.buffer.fill_epochs}",
        f"{epoch * loaded.buffer.fill_epochs + 1} to {stage_1}",
        f"{stage_1 + 1} to {loaded.train.steps}",
    ]
    changes = [1 + epoch * passed for passed in (1, 2, 3)]
    assert f"epochs change at {changes[0]}, {changes[1]}, {changes[2]}" in TEXT


def test_learning_rates_are_those_of_grpo(monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = [words for words in python_commands("main") if words[-1].endswith("first_day_grpo")]
    loaded = parsed(run, "main")
    peak = config.learning_rate(loaded)
    first = peak / loaded.optimizer.warmup_steps
    assert f"{first:.0e} at step 1".replace("e-0", "e-") in TEXT
    assert (
        f"rising to {peak:.0e} at step {loaded.optimizer.warmup_steps}".replace("e-0", "e-") in TEXT
    )


def test_every_metric_that_is_named_exists():
    named = re.findall(
        r"`((?:rollout|teacher|buffer|routing|rhythm|loss|actor|sampler|train|time|eval|data)/[\w@]+)`",
        TEXT,
    )
    assert len(named) > 20
    for name in named:
        assert metrics.is_documented(name), name


def test_until_a_gpu_has_run_it_readme_and_ladder_say_so_in_a_box():
    assert re.search(r"^> \*\*Not yet run on a GPU\.\*\*", README, re.M)
    assert re.search(r"^> \*\*No GPU has run any of this yet\.\*\*", TEXT, re.M)
    assert "(docs/FIRST_DAY.md)" in README
    for name in EXPERIMENTS:
        assert f"(configs/{name}.py)" in README
