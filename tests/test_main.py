"""The command line: what bad input gets, and whole runs in processes of their own."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from absl.testing import flagsaver

from drift_jax import command, main, warm_start
from drift_jax import config as configs
from drift_jax.checkpoint import Checkpoints
from drift_jax.metrics import NonFiniteMetric, is_documented
from drift_jax.reporting import RunStopped
from tests import small_run

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
QWEN3 = f"--config={ROOT / 'configs' / 'qwen3_8b.py'}"
BASE = ROOT / "drift_jax" / "assets" / "quickstart_base"

# ml_collections loads experiment files by a method that Python wants to drop one day.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")

# The metrics that users and tools rely on. The quickstart draws 8 samples a problem.
PROMISED = {
    "rollout/reward_mean",
    "rollout/response_length_mean",
    "rollout/tokens_per_second",
    "routing/easy_fraction",
    "routing/medium_fraction",
    "routing/hard_fraction",
    "routing/pass_rate_mean",
    "teacher/available_fraction",
    "buffer/problems",
    "buffer/entries",
    "buffer/fallback_hits",
    "rhythm/gate_mean",
    "rhythm/open_fraction",
    "rhythm/weight_max",
    "loss/total",
    "loss/distill",
    "loss/policy",
    "actor/entropy",
    "actor/grad_norm",
    "actor/update_skipped",
    "sampler/log_prob_gap_max",
    "time/rollout",
    "time/update",
    "time/total",
    "eval/mean@8",
    "eval/best@8",
    "eval/teacher_mean@2",
    "teacher/gap",
    "buffer/reward_mean",
    "buffer/age_mean",
    "buffer/replaced",
    "buffer/bytes",
    "data/dropped_prompts",
}


class Result:
    """What a command answered."""

    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """Runs a command in this process, in an empty folder, as the shell would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "tune_cpu", lambda: None)  # the settings are the process's

    def run(*arguments: str, module: Any = main) -> Result:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
            command.run(module.main, module.__doc__)
        return Result(exit_.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(call, tmp_path) -> Callable[..., str]:
    """The one line that a command answers bad input with; nothing may have been written."""

    def run(*arguments: str, module: Any = main) -> str:
        before = small_run.snapshot(tmp_path), sorted(tmp_path.rglob("*"))
        result = call(*arguments, module=module)
        assert (result.code, result.out) == (2, ""), result.err
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        assert (small_run.snapshot(tmp_path), sorted(tmp_path.rglob("*"))) == before
        return result.err

    return run


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--config is missing", "python -m drift_jax.main --config="]),
        ((QUICKSTART, "stray"), ["'stray' is not a flag"]),
        ((QUICKSTART, "--wrkdir=x"), ["wrkdir"]),
        (("--config=nothing.py",), ["'nothing.py' is not a Python file that exists"]),
        ((f"{QUICKSTART}:method=grop",), ["did you mean 'grpo'?", "sdpo"]),
        ((f"{QUICKSTART}:steps=3",), ["unknown config argument 'steps'", "world"]),
        ((f"{QUICKSTART}:task=biologie",), ["unknown task 'biologie'", "biology", "toolcalls"]),
        (
            (QUICKSTART, "--config.rollout.groupsize=3"),
            ["'rollout.groupsize'", "did you mean 'rollout.group_size'?"],
        ),
        ((QUICKSTART, "--config.train.steps=many"), ["train.steps is 'many'"]),
        ((QUICKSTART, "--config.rollout.group_size=1"), ["use at least 2"]),
        (
            (QUICKSTART, "--config.rollout.group_size=3", "--config.rollout.problems_per_step=3"),
            ["group_size 3 x problems_per_step 3 = 9", "not divisible by 8 devices", "multiple"],
        ),
        ((QUICKSTART, "--config.rollout.problems_per_step=400"), ["400", "256 training problems"]),
        (
            (QUICKSTART, "--config.difficulty.hard_below=0.9"),
            ["hard_below 0.9", "easy_above 0.8"],
        ),
        (
            (QUICKSTART, "--config.data.max_prompt_tokens=5"),
            ["all 256 prompts are longer than the limit of 5", "shortest has 14"],
        ),
        ((QUICKSTART, "--config.mesh.data=3"), ["mesh.data 3"]),
        ((QUICKSTART, "--fork_from=nowhere@3"), ["nowhere has no checkpoints"]),
        (
            (QUICKSTART, "--config.data.rewards=absent.py:score"),
            ["reward function absent.py:score", "absent.py does not exist"],
        ),
        (
            (f"{QUICKSTART}:task=mine", "--config.data.rewards=json:dumps"),
            ["data/mine/train.json does not exist; put your problems there"],
        ),
        ((QUICKSTART, "--config.model.path=nowhere"), ["'nowhere' is not a folder", "prepare"]),
        (
            (f"{QUICKSTART}:task=biology",),
            ["data/biology/train.json does not exist", "prepare --task=biology --out=data"],
        ),
        ((QWEN3,), ["`python -m drift_jax.prepare --model=qwen3-8b --out=models/Qwen3-8B`"]),
    ],
)
def test_bad_input_is_answered_in_one_line_and_nothing_is_written(refused, arguments, words):
    text = refused(*arguments)
    for word in words:
        assert word in text


ROW = {"idx": 0, "kind": "mcq", "prompt": "Which gas?", "answer": "A", "system": None}


@pytest.mark.parametrize(
    ("split", "lines", "words"),
    [
        ("train", [], ["train.json is empty"]),
        ("train", [json.dumps(ROW), "{"], ["train.json, line 2: not a JSON object"]),
        ("train", [json.dumps({**ROW, "answer": "E"})], ["train.json, line 1: answer is 'E'"]),
        # Read before anything is written, although it is needed only after the first step.
        ("test", [json.dumps(ROW), json.dumps(ROW)], ["test.json, line 2: idx 0 is also"]),
    ],
)
def test_a_damaged_task_file_is_named_with_its_line(refused, tmp_path, split, lines, words):
    folder = tmp_path / "data" / "biology"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        rows = [json.dumps({**ROW, "idx": index}) for index in range(16)]
        (folder / f"{name}.json").write_text("".join(f"{row}\n" for row in rows))
    (folder / f"{split}.json").write_text("".join(f"{line}\n" for line in lines))
    text = refused(f"{QUICKSTART}:task=biology", "--config.data.max_prompt_tokens=40")
    for word in words:
        assert word in text


def copy_of_base(folder: Path, *missing: str) -> str:
    """The packaged model without some of its files, as a flag."""
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns(*missing))
    return f"--config.model.path={folder}"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("tokenizer*",), ["has no fast tokenizer (tokenizer.json)"]),
        (("chat_template*",), ["no chat template"]),
        (("*.safetensors",), ["safetensors"]),
        (("config.json",), ["config.json"]),
    ],
)
def test_a_model_folder_without_one_of_its_files_is_refused(refused, tmp_path, missing, words):
    flag = copy_of_base(tmp_path / "model", *missing)
    text = refused(QUICKSTART, flag)
    for word in words:
        assert word in text


def test_a_command_with_weights_but_without_data_names_the_command_that_brings_it(
    refused, tmp_path
):
    copy_of_base(tmp_path / "models" / "Qwen3-8B")
    assert "`python -m drift_jax.prepare --task=tooluse --out=data`" in refused(QWEN3)


@pytest.mark.parametrize("workdir", ["file", "file/below", "/proc/nothing"])
def test_an_unwritable_work_directory_is_refused(refused, tmp_path, workdir):
    (tmp_path / "file").write_text("mine")
    assert f"workdir '{workdir}'" in refused(QUICKSTART, f"--workdir={workdir}")


def test_a_work_directory_of_another_run_is_refused_with_the_fields_that_differ(refused, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    record = {"config": configs.load(QUICKSTART.partition("=")[2]).to_dict(), "lineage": None}
    (folder / "config.json").write_text(json.dumps(record))
    flags = ("--config.train.steps=9", "--config.rollout.temperature=0.5", f"--workdir={folder}")
    text = refused(QUICKSTART, *flags)
    assert "rollout.temperature 1.0 -> 0.5" in text.partition("and may")[0]
    assert "train.steps 160 -> 9" in text.partition("and may")[2]


def test_a_fork_into_a_run_is_refused(refused, tmp_path, straight):
    _, folder = straight
    shutil.copytree(folder, tmp_path / "run")
    text = refused(QUICKSTART, f"--fork_from={folder}@4", "--workdir=run")
    assert "holds a run already; fork into a new --workdir" in text


# ---- what the command does around a run ---------------------------------------------------------


@pytest.fixture
def trained(monkeypatch) -> list[tuple[Any, ...]]:
    """Stands in for the training: what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any) -> bool:
        calls.append(arguments)
        return True

    monkeypatch.setattr(main, "train", train)
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([QUICKSTART], "runs/quickstart_toolcalls_drift"),
        ([f"{QUICKSTART}:method=grpo"], "runs/quickstart_toolcalls_grpo"),
        ([f"{QWEN3}:task=biology,method=sdpo"], "runs/qwen3_8b_biology_sdpo"),
        (["--config", QWEN3.partition("=")[2]], "runs/qwen3_8b_tooluse_drift"),
        ([QUICKSTART, "--workdir=here"], "here"),
    ],
)
def test_the_default_work_directory_names_config_task_and_method(
    call, trained, arguments, expected
):
    result = call(*arguments)
    assert (result.code, result.err) == (0, "")
    ((_, folder, fork),) = trained
    assert (folder, fork) == (expected, None)


def test_the_command_line_has_the_last_word(call, trained):
    call(f"{QUICKSTART}:method=grpo,seed=3", "--config.buffer.capacity=2", "--config.seed=4")
    ((config, *_),) = trained
    assert (config.buffer.capacity, config.seed, config.mixed.policy_wrong) == (2, 4, 1.0)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (False, 75),
        (RunStopped("step 7: stopped"), 1),
        (NonFiniteMetric("loss/total is nan at step 7"), 1),
    ],
)
def test_exit_codes_tell_a_stop_from_a_failure(call, monkeypatch, outcome, code):
    def train(*_: Any) -> bool:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(main, "train", train)
    result = call(QUICKSTART)
    assert result.code == code
    assert result.err == (f"error: {outcome}\n" if code == 1 else "")


@pytest.mark.parametrize("module", [main, warm_start])
def test_help_has_an_example(call, module):
    result = call("--help", module=module)
    assert (result.code, result.err) == (0, "")
    assert f"python -m {module.__name__} --config=" in result.out


# ---- whole runs in processes of their own -------------------------------------------------------

# The quickstart as it is, six steps long, with few evaluations; stage 2 begins with step 4.
SHORT = [
    QUICKSTART,
    "--config.train.steps=6",
    "--config.curriculum.warmup_epochs=0",
    "--config.curriculum.warmup_steps=3",
    "--config.evaluation.every=4",
    "--config.evaluation.max_problems=12",
    "--config.evaluation.problems_per_batch=12",
    "--config.evaluation.teacher_samples=2",
    "--config.checkpoint.every=2",
    "--config.logging.samples_every=1",
]
# Ends its own process while it writes the metrics of a step.
ENDING = """
import os, signal
from drift_jax import command, main
from tests import small_run
with small_run.at_step({step}, lambda: os.kill(os.getpid(), signal.{signal})):
    command.run(main.main, main.__doc__)
"""


def process(
    arguments: Sequence[str], cwd: Path, start: Sequence[str] = ("-m", "drift_jax.main")
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, on one device and without a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    flags = environment.pop("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "device_count" not in flag]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=cwd,
        env={**environment, "XLA_FLAGS": " ".join(kept)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Six steps of the quickstart."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    return process([*SHORT, f"--workdir={folder}"], folder.parent), folder


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[list[subprocess.CompletedProcess[str]], Path]:
    """The same, ended by SIGTERM at step 3 and by SIGKILL at step 6, and started again."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    arguments = [*SHORT, f"--workdir={folder}"]
    results = [
        process(arguments, folder.parent, ["-c", ENDING.format(step=step, signal=name)])
        for step, name in ((3, "SIGTERM"), (6, "SIGKILL"))
    ]
    shutil.copytree(folder, folder.parent / "killed")
    return [*results, process(arguments, folder.parent)], folder


def test_the_quickstart_prints_the_gate_its_steps_and_a_table(straight):
    result, folder = straight
    assert (result.returncode, result.stderr) == (0, "")
    text = result.stdout.splitlines()
    assert re.fullmatch(r"sampler: \d+ executables in [\d.]+ s", text[0])
    assert text[1].startswith("gate: pass rate 0.") and "with the gold solution in" in text[1]
    assert "easy 0." in text[1] and "at least 0.85: the self-teacher can teach" in text[1]
    steps = [line for line in text if line.startswith("step ") and "reward" in line]
    assert [line.split()[1] for line in steps] == [f"{step}/6" for step in range(1, 7)]
    assert all(word in steps[0] for word in ("easy", "buffer", "fallbacks", "tokens/s", "left"))
    table = [line.split()[:2] for line in text[text.index(steps[-1]) :]]
    for row in (["all", "mean@8"], ["easy", "mean@8"], ["hard", "mean@8"], ["all", "best@8"]):
        assert row in table
    assert str(folder) in text[-1]


def test_the_metrics_that_users_rely_on_are_there_finite_and_documented(straight):
    _, folder = straight
    rows = small_run.lines(folder)
    assert [row["step"] for row in rows] == [*range(7)]
    present = {name for row in rows for name in row} - {"step"}
    assert PROMISED - present == set()
    assert [name for name in present if not is_documented(name)] == []
    assert all(math.isfinite(value) for row in rows for value in row.values())
    every_step = set.intersection(*(set(row) for row in rows[1:]))
    occasional = ("eval/", "teacher/gap", "data/")
    assert {name for name in PROMISED if not name.startswith(occasional)} <= every_step
    assert max(row["sampler/log_prob_gap_max"] for row in rows[1:]) < 2e-5  # float32, in nats
    assert all(row["buffer/bytes"] > 0 for row in rows[1:])


def test_the_work_directory_holds_what_the_documentation_says(straight):
    _, folder = straight
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "events.jsonl", "tensorboard", "checkpoints", "samples",
        "eval",
    }  # fmt: skip
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["train"]["steps"] == 6 and record["lineage"] is None
    assert Checkpoints(folder).latest_step() == 6
    first = small_run.lines(folder / "samples", "1.jsonl")
    assert len(first) == 16 * 8
    detailed = [sample for sample in first if "rhythm_gate" in sample]
    assert len(detailed) == round(0.1 * len(first))
    for sample in detailed:
        assert len(sample["student_entropy"]) == len(sample["tokens"]) == sample["length"]


def test_exit_codes_of_a_run_that_is_stopped_killed_and_finished(ended):
    results, folder = ended
    assert [result.returncode for result in results] == [75, -9, 0]
    assert [results[0].stderr, results[2].stderr] == ["", ""]
    assert "stopped after step 3; the same command goes on from there" in results[0].stdout
    assert "step 3/6" not in results[1].stdout and "step 4/6" in results[1].stdout
    assert "mean@8" in results[2].stdout
    diary = [(event["event"], event["step"]) for event in small_run.lines(folder, "events.jsonl")]
    assert [event for event in diary if event[0] != "gate"] == [
        ("start", 0),
        ("stop", 3),
        ("resume", 3),
        ("resume", 4),
    ]


def test_a_run_that_was_stopped_and_killed_gives_the_numbers_of_one_that_was_not(straight, ended):
    folders = straight[1], ended[1]
    one, other = (small_run.metrics(folder) for folder in folders)
    assert one == other
    for name in ("samples", "eval"):
        assert small_run.files(folders[0], name) == small_run.files(folders[1], name)
    settings = configs.load(QUICKSTART.partition("=")[2])
    one_state, other_state = (small_run.checkpoint(settings, folder) for folder in folders)
    small_run.assert_same_bits(one_state[0], other_state[0])
    assert one_state[1]["memory"] == other_state[1]["memory"]


def test_what_the_killed_process_wrote_after_its_checkpoint_was_there_and_is_gone(ended):
    _, folder = ended
    killed = folder.parent / "killed"
    assert [row["step"] for row in small_run.lines(killed)] == [*range(7)]
    assert Checkpoints(killed).latest_step() == 4
    assert [row["step"] for row in small_run.lines(folder)] == [*range(7)]
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    assert [event.step for event in reader.Scalars("rollout/reward_mean")] == [*range(1, 7)]


def test_the_papers_config_runs_locally_to_the_end_through_the_same_command(tmp_path):
    result = process([f"{QWEN3}:runlocal"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "step 4/4" in result.stdout and "mean@2" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    folder = tmp_path / "runs" / "qwen3_8b_toolcalls_drift"
    assert [row["step"] for row in small_run.lines(folder)] == [*range(5)]


def test_bad_input_reaches_the_shell_as_one_line_and_exit_code_2(tmp_path):
    result = process([QWEN3], tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: model.path") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
