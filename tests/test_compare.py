"""The compare command: cells in processes of their own, stopped, resumed, swept, and a table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drift_jax import command, compare, record
from drift_jax.comparison import sweep
from drift_jax.comparison.plan import Plan
from drift_jax.config import ConfigError
from tests import small_run
from tests.records import grid, made_up

QUICKSTART = str(small_run.ROOT / "configs" / "quickstart.py")
SMALL = [
    f"--config={QUICKSTART}",
    "--config.train.steps=3",
    "--config.rollout.problems_per_step=8",
    "--config.evaluation.every=2",
    "--config.evaluation.max_problems=4",
    "--config.evaluation.problems_per_batch=4",
    "--config.evaluation.samples=2",
    "--config.evaluation.teacher_samples=0",
    "--config.checkpoint.every=1",
    "--config.logging.samples_every=0",
    "--config.logging.tensorboard=false",
]


def start(out: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own, on one device."""
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT)}
    flags = environment.pop("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    return subprocess.Popen(
        [sys.executable, "-m", "drift_jax.compare", *arguments, f"--out={out}"],
        cwd=out.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code, and what it printed."""
    printed, _ = process.communicate(timeout=600)
    return process.returncode, printed


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit code, output, errors."""
    capsys.readouterr()
    try:
        compare.main(arguments)
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    return code, *capsys.readouterr()


# ---- a comparison through the command line ------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[list[tuple[int, str]], Path]:
    """Two methods, stopped after the first step of one of them, and started again, twice."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = [*SMALL, "--methods=grpo,sdpo", "--jobs=2"]
    process = start(out, *arguments)
    files = [out / method / "seed0" / "metrics.jsonl" for method in ("grpo", "sdpo")]
    while process.poll() is None:
        if any(file.is_file() and file.read_text().count("\n") > 1 for file in files):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    results = [finish(process)]
    return [*results, finish(start(out, *arguments)), finish(start(out, *arguments))], out


def test_a_stopped_comparison_says_so_and_goes_on_where_it_stopped(compared):
    (stopped, resumed, again), out = compared
    assert stopped[0] == 75, stopped[1]
    assert "asked to stop" in stopped[1] and "the same command goes on from there" in stopped[1]
    assert resumed[0] == 0, resumed[1]
    assert "[2/2] finished" in resumed[1] and "mean@2" in resumed[1]
    diaries = [small_run.lines(out / name / "seed0", "events.jsonl") for name in ("grpo", "sdpo")]
    events = [event["event"] for diary in diaries for event in diary]
    assert "stop" in events and "resume" in events
    assert again[0] == 0, again[1]
    assert "2 of 2 runs are there already" in again[1] and "started" not in again[1]
    for name in ("grpo", "sdpo"):
        assert [row["step"] for row in small_run.lines(out / name / "seed0")] == [0, 1, 2, 3]


def test_the_table_holds_both_methods_and_names_its_records(compared):
    _, out = compared
    content = json.loads((out / "table.json").read_text())
    assert content["methods"] == ["grpo", "sdpo"] and content["k"] == 2
    assert content["records"] == {
        f"raw/{file.name}": record.sha256(file) for file in (out / "raw").iterdir()
    }
    found = {name: record.read(out / "raw" / f"{name}_seed0.json") for name in ("grpo", "sdpo")}
    assert found["grpo"].base == found["sdpo"].base and found["grpo"].order == found["sdpo"].order
    # GRPO runs no teacher; SDPO does, and pays for it.
    assert found["grpo"].totals["teacher_tokens"] == 0 < found["sdpo"].totals["teacher_tokens"]
    assert content["costs"]["sdpo"]["flops_teacher"] > 0
    text = (out / "table.txt").read_text()
    assert "Fair: all runs of a block" in text and "paired differences to grpo" in text


def test_the_records_alone_make_the_same_table(compared, tmp_path, capsys):
    _, out = compared
    (tmp_path / "raw").mkdir()
    for file in (out / "raw").iterdir():
        (tmp_path / "raw" / file.name).write_bytes(file.read_bytes())
    code, _, errors = call(capsys, "--table-only", f"--out={tmp_path}", "--methods=grpo,sdpo")
    assert (code, errors) == (0, "")
    for name in ("table.txt", "table.md", "table.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_another_configuration_in_the_same_folder_is_refused_before_anything_runs(compared, capsys):
    _, out = compared
    before = small_run.snapshot(out)
    changed = [*SMALL, "--config.objective.clip_low=0.1"]
    code, printed, errors = call(capsys, *changed, "--methods=grpo,sdpo", f"--out={out}")
    assert (code, printed) == (2, "") and small_run.snapshot(out) == before
    assert "objective.clip_low 0.2 -> 0.1" in errors and errors.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_chooses_on_validation_and_a_failed_cell_does_not_stop_the_others(tmp_path):
    out = tmp_path / "out"
    # World 1 has no base policy here: its cells fail, and those of world 0 go on.
    bases = tmp_path / "bases"
    bases.mkdir()
    packaged = small_run.ROOT / "drift_jax" / "assets" / "quickstart_base"
    (bases / "0").symlink_to(packaged)
    arguments = [*SMALL, f"--config.model.path={bases}/{{world}}", "--methods=grpo"]
    swept = ["--worlds=0", "--sweep=0.5,2", "--jobs=2"]
    code, printed = finish(start(out, *arguments, *swept, "--sweep-only"))
    assert code == 0 and not (out / "raw").exists() and not (out / "table.json").exists(), printed
    code, printed = finish(start(out, *arguments, *swept))
    assert code == 0, printed
    content = json.loads((out / "sweep.json").read_text())
    found = content["methods"]["grpo"]
    assert [row["factor"] for row in found["tried"]] == [0.5, 2.0]
    means = {row["factor"]: row["mean"] for row in found["tried"]}
    assert means[found["chosen"]] == max(means.values())
    files = list((out / "sweep").rglob("eval/*.json"))
    assert len(files) == 6  # two runs, steps 0, 2 and 3
    for file in files:
        ids = [problem["id"] for problem in json.loads(file.read_text())["problems"]]
        assert ids and all(name.startswith("toolcalls/validation/") for name in ids)
    main = record.read(out / "raw" / "grpo_world0_seed0.json")
    assert main.split == "test" and main.problem_ids[0].startswith("toolcalls/test/")
    assert main.config["optimizer.learning_rate"] == pytest.approx(2e-4 * found["chosen"])

    rates = f"--rates={out / 'sweep.json'}"
    code, printed = finish(start(out, *arguments, "--worlds=0", rates))
    assert code == 0 and "1 of 1 runs are there already" in printed

    code, printed = finish(start(tmp_path / "two", *arguments, "--worlds=0,1"))
    assert code == 1
    assert "FAILED grpo, world=1, seed=0 (exit code 2)" in printed
    assert "is not a folder" in printed and "error: 1 failed: grpo, world=1, seed=0" in printed
    assert "last mean@2" in printed  # of world 0


# ---- parts --------------------------------------------------------------------------------------


def test_the_best_validation_mean_over_the_variants_is_chosen_and_failures_are_out(tmp_path):
    made = Plan(QUICKSTART, (), ("drift", "grpo"), (0,), ("world", ("0", "1")), tmp_path)
    tried = {factor: made.sweep_cells(factor) for factor in (0.5, 1.0, 2.0)}
    skills = {"drift": {0.5: 0.3, 1.0: 0.5, 2.0: 0.7}, "grpo": {0.5: 0.7, 1.0: 0.5, 2.0: 0.3}}
    for factor, cells in tried.items():
        for cell in cells:
            skill = skills[cell.method][factor]
            found = made_up(cell.method, cell.variant, skill=skill, split="validation")
            if (cell.method, factor, cell.variant) != ("drift", 2.0, "world=1"):
                record.write(cell.record, found)
    file = tmp_path / "sweep.json"
    assert sweep.choose(tried, file) == {"drift": 1.0, "grpo": 0.5}
    assert sweep.read(str(file), ["grpo"]) == {"grpo": 0.5}
    with pytest.raises(ConfigError, match="has no factor for sdpo; sweep these methods too"):
        sweep.read(str(file), ["grpo", "sdpo"])
    with pytest.raises(ConfigError, match="is no sweep.json of a comparison"):
        sweep.read(str(tmp_path / "none.json"), ["grpo"])
    printed = sweep.text(file)
    assert "x2 (0.0004) failed" in printed and "*x1 (0.0002)" in printed
    assert printed.count("stands at the edge") == 1
    # GRPO's rate is a fifth of DRIFT's.
    rates = [
        row["learning_rate"] for row in json.loads(file.read_text())["methods"]["grpo"]["tried"]
    ]
    assert rates == pytest.approx([2e-5, 4e-5, 8e-5])
    # A record of the test problems must never get here.
    record.write(tried[1.0][0].record, made_up(split="test"))
    with pytest.raises(AssertionError, match="evaluated on test"):
        sweep.choose(tried, file)


def test_two_comparisons_do_not_share_a_folder(tmp_path, capsys):
    with compare._locked(tmp_path):
        code, printed, errors = call(capsys, *SMALL, "--methods=grpo", f"--out={tmp_path}")
    assert (code, printed) == (2, "") and "is in use by another comparison" in errors


def test_runs_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dummy")
    assert compare.child_environment(3)["NPROC"] == "2"
    alone = compare.child_environment(8)
    assert alone["NPROC"] == "1"
    assert alone["XLA_FLAGS"] == "--xla_dummy --xla_cpu_multi_thread_eigen=false"
    assert "NPROC" not in compare.child_environment(1) or "NPROC" in os.environ


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out"),
        (["--out=x"], "--config is missing; for example: python -m drift_jax.compare --config="),
        (["--out=x", SMALL[0]], "--methods is missing"),
        (["--out=x", SMALL[0], "--methods=grop"], "did you mean 'grpo'?"),
        (["--out=x", SMALL[0], "--methods=grpo", "--seeds=many"], "is no number of seeds"),
        (["--out=x", SMALL[0], "--methods=grpo", "--sweep=0"], "are no factors"),
        (["--out=x", SMALL[0], "--methods=grpo", "--sweep-only"], "add --sweep="),
        (["--out=x", SMALL[0], "--methods=grpo", "--sweep=2", "--rates=r"], "leave one out"),
        (["--out=x", SMALL[0], "--methods=grpo", "--jobs=0"], "is not a number from 1 up"),
        (["--out=x", SMALL[0], "--methods=grpo", "--vary=world"], "is not NAME=VALUES"),
        (["--out=x", SMALL[0], "--methods=grpo", "--stray"], "'--stray' is not --config.section"),
        (["--out=x", "--table-only"], "x/raw has no records"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, printed, errors = call(capsys, *arguments)
    assert (code, printed) == (command.EXIT_BAD_INPUT, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and words in errors
    assert list(tmp_path.iterdir()) == []


def test_seeds_and_varied_values_are_numbers_lists_or_ranges():
    parse = compare.make_parser().parse_args
    assert parse(["--out=x", "--seeds=3"]).seeds == (0, 1, 2)
    assert parse(["--out=x", "--seeds=5,7"]).seeds == (5, 7)
    assert parse(["--out=x", "--seeds=2:4"]).seeds == (2, 3)
    assert parse(["--out=x", "--worlds=0:3"]).vary == ("world", ("0", "1", "2"))
    assert parse(["--out=x", "--vary=task=biology,physics"]).vary == (
        "task",
        ("biology", "physics"),
    )


def test_the_order_of_an_earlier_table_is_kept_and_changed_records_are_told(tmp_path, capsys):
    for run in grid({"drift": 0.7, "grpo": 0.3}):
        record.write(tmp_path / "raw" / record.file_name(run.method, run.variant, run.seed), run)
    out = f"--out={tmp_path}"
    assert call(capsys, "--table-only", out, "--methods=grpo,drift")[0] == 0
    code, printed, _ = call(capsys, "--table-only", out)
    assert code == 0 and "paired differences to grpo" in printed and "changed" not in printed
    name = record.file_name("grpo", "world=0", 0)
    record.write(tmp_path / "raw" / name, made_up("grpo", "world=0", skill=0.9))
    assert f"changed since the last table: raw/{name}" in call(capsys, "--table-only", out)[1]
