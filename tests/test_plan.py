"""The command: a plan in text and JSON, from sizes that need no checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.planning import advice, estimate, sizes, text
from drift_jax.planning.flops import Flops

ROOT = Path(__file__).resolve().parent.parent
MODEL = sizes.PUBLISHED["qwen3-8b"]
WORK = Flops(1e17, 5e16)


def answer(device: str, devices: int, render=text.render, **values):
    of = configs.load(f"{ROOT}/configs/qwen3_8b.py")
    configs.assign(of, {name.replace("__", "."): value for name, value in values.items()})
    where = {"device": device, "devices": devices}
    plan = estimate.make(of, MODEL, **where)
    step = estimate.step(of, MODEL, **where, flops=WORK)
    found = [] if plan.fits else advice.proposals(of, MODEL, plan, device)
    return render("qwen3_8b", plan, step, None, found, estimate.executables(of))


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "drift_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_plans_the_quickstart_in_seconds_as_one_json_object():
    done = run("--config=configs/quickstart.py", "--devices=1", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["fits"] and said["modelled"] and said["changes"] == []
    assert said["executables"]["update"] == 1
    assert said["lengths"] == {"student": 68, "teacher": 92}
    assert sum(said["state"].values()) == pytest.approx(16 * said["parameters"], rel=1e-3)
    assert said["peak"] == max(said["needs"].values())


def test_bad_input_is_one_line_and_code_2():
    done = run("--config=configs/quickstart.py", "--device=h300")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device is 'h300', which is unknown; did you mean")
    assert done.stderr.count("\n") == 1


def test_a_run_that_fits_says_how_much_of_what_and_proposes_nothing():
    said = answer("h200", 8, rollout__max_rows=64)
    assert "\nfits: 140 of 149 GB (teacher forward)" in said
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.97" in said
    assert "change" not in said.splitlines()[-1]


def test_a_run_that_does_not_says_where_and_what_to_change():
    said = answer("h100", 8)
    assert "does not fit: needs 393 of 83.8 GB (sampling 88.8, teacher's evaluation 393," in said
    changes = said[said.index("\nchange ") :].splitlines()[2:]
    assert changes[0].startswith("--config.") and changes[0].endswith("fits")
    assert "modelled, not measured" in said.splitlines()[0]


def test_columns_are_aligned_and_sums_are_sums():
    lines = answer("h200", 8).splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("GB on"))) :]
    table = table[: table.index("")]
    ends = {len(line) for line in table if line.split()[-1] == table[-1].split()[-1]}
    assert len(ends) == 1 and table[-1].startswith("sum ")


def test_json_says_what_the_text_says():
    said = json.loads(json.dumps(answer("h100", 8, render=text.as_json)))
    assert not said["fits"] and said["changes"][0]["fits"]
    total = sum(said["state"].values()) + sum(said["phases"]["sampling"].values())
    assert said["needs"]["sampling"] == total
    assert said["flops"] == {"weights": 1e17, "attention": 5e16}


# ---- sizes --------------------------------------------------------------------------------------


def test_sizes_come_from_a_config_json_or_a_folder_or_are_known(tmp_path):
    packaged = ROOT / "drift_jax" / "assets" / "quickstart_base"
    of = configs.load(f"{ROOT}/configs/qwen3_8b.py")
    assert sizes.of(of) == MODEL
    quickstart = configs.load(f"{ROOT}/configs/quickstart.py")
    small = sizes.of(quickstart)
    assert sizes.of(of, str(packaged)) == sizes.of(of, str(packaged / "config.json")) == small
    configs.assign(of, {"model.path": str(packaged)})
    assert sizes.of(of) == small
    configs.assign(quickstart, {"model.init": "random"})
    assert sizes.of(quickstart).hidden_size == quickstart.model.preset.hidden_size


def test_unknown_sizes_are_asked_for(tmp_path):
    of = configs.load(f"{ROOT}/configs/qwen3_8b.py")
    configs.assign(of, {"model.path": "models/Mystery-9B"})
    with pytest.raises(ConfigError, match="--model_config=FILE .* one of: qwen3-0.6b"):
        sizes.of(of)
    with pytest.raises(ConfigError, match="does not exist"):
        sizes.of(of, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json"):
        sizes.of(of, str(tmp_path / "config.json"))
