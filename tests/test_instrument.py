"""The findability gate as a command: from the demonstrations' rates, and from a base policy."""

import itertools
import re
import sys

import pytest
from absl.testing import flagsaver

from drift_jax import assemble, command, instrument
from drift_jax import config as configs
from drift_jax.data import generated
from drift_jax.methods import METHODS
from drift_jax.models.transformer import ModelConfig
from tests import small_run

FILE = small_run.ROOT / "configs" / "instrument.py"


def config(task, **values):
    chosen = {name.replace("__", "."): value for name, value in values.items()}
    return configs.locked(configs.assign(configs.load(f"{FILE}:task={task}"), chosen))


def test_the_verdict_of_a_world_comes_first_and_its_rarest_facts_follow():
    lines = instrument.report(config("toolsteps"), "")
    assert lines[0].startswith(
        "world 0 takes part: 0 of 24 facts cannot be found; success by level"
    )
    assert "easy 0.5" in lines[0] and "extreme 0.01" in lines[0]
    assert len(lines) == 4
    assert lines[1] == ("    oil: 10.6 successes expected on 12 problems, the easiest at 0.056")


def test_a_run_too_short_to_find_the_rare_facts_leaves_the_world_out():
    short = config("toolsteps", train__steps=64)  # two visits in the first half
    lines = instrument.report(short, "")
    assert lines[0].startswith("world 0 is left out: 2 of 24 facts cannot be found")
    assert lines[1].endswith("<- too few") and not lines[3].endswith("<- too few")


def test_facts_of_a_table_are_named_by_row():
    assert " of " in instrument.report(config("lookup"), "")[1].partition(":")[0]


def test_a_base_policy_is_measured_in_place_of_the_demonstrations():
    small = config("toolcalls", evaluation__max_problems=3, evaluation__problems_per_batch=3)
    with small_run.one_device():
        lines = instrument.report(small, "quickstart_base")
    assert re.match(r"world 0 (takes part|is left out): \d of \d facts cannot be found", lines[0])
    demonstrated = instrument.report(config("toolcalls"), "")
    assert lines[1] not in demonstrated and "of 16 facts" in demonstrated[0]
    assert any(line.startswith("    gate: pass rate ") for line in lines)
    assert lines[-1].startswith("    sibling: ")


@pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")
@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        ("", ("--worlds=eight",), "--worlds is 'eight'; expected first:end such as 0:8"),
        ("", ("--worlds=3:3",), "--worlds is '3:3'"),
        ("", ("--worlds=-1",), "--worlds is '-1'"),
        (":task=toolstep", (), "task is 'toolstep', which is unknown; did you mean 'toolsteps'?"),
        (
            "",
            ("--config.task=biology",),
            "task 'biology' has no worlds; those that have: toolcalls",
        ),
    ],
)
def test_bad_input_is_one_line(spec, arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(command, "tune_cpu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["instrument", f"--config={FILE}{spec}", *arguments])
    with flagsaver.flagsaver(), small_run.one_device(), pytest.raises(SystemExit) as exit_:
        command.run(instrument.main, instrument.__doc__ or "")
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")
def test_the_command_prints_every_world(monkeypatch, capsys):
    monkeypatch.setattr(command, "tune_cpu", lambda: None)
    arguments = ["instrument", f"--config={FILE}:task=toolsteps", "--worlds=0:2"]
    monkeypatch.setattr(sys, "argv", arguments)
    with flagsaver.flagsaver(), small_run.one_device(), pytest.raises(SystemExit) as exit_:
        command.run(instrument.main, instrument.__doc__ or "")
    printed = capsys.readouterr().out
    assert exit_.value.code in (0, None)
    assert printed.count("takes part") == 2 and "world 1 takes part" in printed


def test_every_method_runs_at_one_rate_over_the_whole_vocabulary():
    for task, method in itertools.product(generated.TASKS, METHODS):
        made = configs.load(f"{FILE}:task={task},method={method},world=3,seed=2,base=somewhere")
        configs.validate(made)
        assert (made.task, made.method, made.data.world_seed, made.seed) == (task, method, 3, 2)
        assert (made.model.init, made.model.path) == ("checkpoint", "somewhere")
        assert configs.learning_rate(made) == 2e-4
        assert made.objective.top_k == 0


def test_more_candidates_than_tokens_are_refused_in_one_line():
    model = ModelConfig(48, 16, 16, 1, 1, 1, 8)
    small = config("lookup", objective__top_k=100)
    with pytest.raises(
        configs.ConfigError, match="top_k is 100, more than the 48 tokens"
    ) as caught:
        assemble.make_update(small, model, None)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_on_a_task_with_derivations_writes_how_often_they_are_right(tmp_path):
    small = config(
        "lookup",
        method="sdpo",
        model__preset__hidden_size=16,
        model__preset__num_layers=1,
        model__preset__head_dim=8,
        model__preset__intermediate_size=16,
        rollout__problems_per_step=2,
        rollout__group_size=2,
        train__steps=1,
        evaluation__max_problems=2,
        evaluation__problems_per_batch=2,
        evaluation__samples=2,
        logging__tensorboard=False,
        logging__samples_every=1,
    )
    assert small_run.run(small, tmp_path)
    rows = small_run.metrics(tmp_path)
    # A random model derives nothing and solves nothing, so that nothing can be lucky.
    assert rows[1]["rollout/derived_fraction"] == rows[0]["eval/derived_fraction"] == 0
    assert not any("lucky" in name for name in rows[1])
    assert all(
        sample["derived"] is False for sample in small_run.lines(tmp_path, "samples/1.jsonl")
    )
