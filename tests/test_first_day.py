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


def arithmetic():
    """benchmarks/first_day.py."""
    spec = importlib.util.spec_from_file_location("first_day", ROOT / "benchmarks" / "first_day.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first line begins with `heading`."""
    table = TEXT[TEXT.index(f"| {heading}") :].partition("\n\n")[0]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.split("\n")]


# ---- commands -----------------------------------------------------------------------------------


def test_every_line_is_of_a_kind_that_is_checked_here():
    kinds = ("main", "evaluate", "prepare")
    for line in filter(None, commands()):
        words = shlex.split(line)
        known = words[0] in OTHER or words[:2] == ["python", "-c"]
        known |= words == ["python", "benchmarks/first_day.py"]
        known |= words[:2] == ["python", "-m"] and words[2] in {f"drift_jax.{k}" for k in kinds}
        assert known, line
    assert [len(python_commands(kind)) for kind in kinds] == [6, 6, 7]


@pytest.mark.parametrize("of", ["main", "evaluate"])
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


def test_memory_is_that_of_the_arithmetic(monkeypatch):
    monkeypatch.chdir(ROOT)
    sums = arithmetic()
    models = [sums.MODELS[name] for name in EXPERIMENTS]
    loaded = [config.load(f"configs/{name}.py:task=biology") for name in EXPERIMENTS]
    parts = [sums.memory(*pair) for pair in zip(models, loaded, strict=True)]
    written = {row[0]: row[2:] for row in rows("part | formula")}
    assert written["parameters, B"] == [f"{sums.parameters(m) / 1e9:.2f}" for m in models]
    for row, part in (
        ("state", "state"),
        ("gradient and copies", "gradient"),
        ("cache", "cache"),
        ("student's scores", "student_scores"),
        ("teacher's scores", "teacher_scores"),
        ("a checkpoint on disk", "checkpoint"),
    ):
        assert written[row] == [f"{sizes[part]:.1f}" for sizes in parts]
    config.assign(loaded[2], {"rollout.max_rows": 256})
    assert f"would need {sums.memory(models[2], loaded[2])['cache']:.1f} GB of cache" in TEXT
    most = parts[0]["state"] + parts[0]["gradient"] + 2 * parts[0]["teacher_scores"]
    assert f"= {most:.0f} GB" in TEXT
    assert f"{4 * parts[0]['checkpoint']:.0f} GB" in TEXT


def test_step_times_are_those_of_the_arithmetic(monkeypatch):
    monkeypatch.chdir(ROOT)
    sums = arithmetic()
    model, loaded = sums.MODELS["qwen3_8b"], config.load("configs/qwen3_8b.py:task=biology")
    table = rows("longest answer")[2:]
    assert [int(row[0]) for row in table] == [*loaded.rollout.response_buckets]
    for length, rollout, grpo, drift in table:
        response = int(length)
        low, high = sums.decode_seconds(model, loaded, response)
        assert rollout == f"{low:.0f} to {high:.0f}"
        needed = min(512 + response, loaded.teacher.prompt_buckets[-1])
        prompt = next(size for size in loaded.teacher.prompt_buckets if size >= needed)
        assert drift == f"{sums.update_seconds(model, loaded, response, prompt):.0f}"
        # No teacher is run: a sequence of length 0.
        assert grpo == f"{sums.update_seconds(model, loaded, response, -response):.0f}"


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
