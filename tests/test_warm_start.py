"""The supervised warm start: it learns, saves a model that loads, and overwrites nothing."""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from drift_jax import assemble, command, models, sharding, warm_start
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data import demonstrations
from tests import small_run, tool_rows

SMALL = {
    "model__init": "random",
    "model__preset__hidden_size": 32,
    "model__preset__num_layers": 1,
    "model__preset__head_dim": 16,
    "model__preset__intermediate_size": 64,
    "warm_start__steps": 30,
    "warm_start__plain_batch": 16,
    "warm_start__reference_batch": 16,
    "warm_start__learning_rate": 1e-2,
    "warm_start__warmup_steps": 3,
    # Demonstrations have every length.
    "data__max_prompt_tokens": 40,
    "rollout__prompt_buckets": (40,),
    "rollout__max_new_tokens": 28,
    "rollout__response_buckets": (28,),
    "teacher__max_prompt_tokens": 64,
    "teacher__prompt_buckets": (64,),
    "evaluation__max_problems": 4,
}


def config(**values):
    return small_run.config(**SMALL | values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A short warm start, and what it printed."""
    folder = tmp_path_factory.mktemp("base")
    with small_run.one_device(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warm_start.train(config(), str(folder))
    return folder, printed.getvalue()


@pytest.mark.parametrize("reference", [False, True])
def test_a_few_steps_lower_the_loss(reference):
    settings = config()
    with small_run.one_device():
        tokenizer = assemble.open_tokenizer(settings)
        mesh = assemble.make_mesh(settings)
        model, params = assemble.open_model(settings, tokenizer, mesh)
        state, step_once = warm_start.supervised_step(settings, model, params, mesh)
        draw = warm_start.demonstrations(settings, tokenizer)
        losses = []
        for step in range(30):
            examples = draw(np.random.default_rng(step), reference)
            batch = warm_start.supervised_batch(settings, examples, reference=reference)
            state, metrics, _ = step_once(state, sharding.put_batch(mesh, batch, axis=1), 0.0)
            losses.append(-float(metrics["actor/log_prob_mean"]))
    assert losses[0] > 0.9 * np.log(len(tokenizer))  # it knew nothing
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    # As a gradient of maximum likelihood: the loss is that of the samples, and nothing else acts.
    assert float(metrics["loss/distill"]) == 0 and float(metrics["rhythm/rows"]) == 0


def test_demonstrations_end_with_the_stop_token_and_show_their_reference(finished):
    settings = config()
    tokenizer = assemble.open_tokenizer(settings)
    draw = warm_start.demonstrations(settings, tokenizer)
    plain, shown = (draw(np.random.default_rng(0), reference) for reference in (False, True))
    assert len(plain) == len(shown) == 16
    for prompt, response in plain + shown:
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in response[:-1]
        assert len(prompt) and len(response) > 1
    assert all("Correct solution" not in tokenizer.decode(prompt) for prompt, _ in plain)
    assert all("Correct solution" in tokenizer.decode(prompt) for prompt, _ in shown)


def test_the_saved_folder_loads_with_its_tokenizer_and_its_changed_weights(finished):
    folder, _ = finished
    settings = config(model__init="checkpoint", model__path=str(folder / "model"))
    with small_run.one_device():
        tokenizer = assemble.open_tokenizer(settings)
        mesh = assemble.make_mesh(settings)
        model, params = assemble.open_model(settings, tokenizer, mesh)
        _, first = assemble.open_model(config(), tokenizer, mesh)
    assert (model.hidden_size, model.num_layers, model.vocab_size) == (32, 1, len(tokenizer))
    assert jax.tree.structure(params) == jax.tree.structure(first)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), params, first)
    assert min(jax.tree.leaves(moved)) > 0
    assert json.loads((folder / "model" / "config.json").read_text())["hidden_size"] == 32
    logits = models.forward(params, model, np.array([[1, 2, 3]]))
    assert np.isfinite(logits).all()


def test_it_prints_both_losses_the_gate_and_where_the_model_is(finished):
    folder, text = finished
    assert "step 30/30  nats a token: plain " in text and "with a reference " in text
    assert "under 0.85: the self-teacher cannot teach; warm-start the base longer" in text
    assert f"\nsaved {folder / 'model'}\ngate: " in text
    assert "nan" not in text


def test_the_same_seed_gives_the_same_base(finished, tmp_path):
    folder, _ = finished
    with small_run.one_device():
        warm_start.train(config(), str(tmp_path))
    name = "model.safetensors"
    assert (tmp_path / "model" / name).read_bytes() == (folder / "model" / name).read_bytes()


def test_an_existing_model_is_not_overwritten(finished):
    folder, _ = finished
    before = small_run.snapshot(folder)
    with pytest.raises(ConfigError, match="exists; choose another --workdir") as error:
        warm_start.train(config(), str(folder))
    assert "\n" not in str(error.value)
    assert small_run.snapshot(folder) == before


@pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((":task=biology", "--workdir=run"), "train.json does not exist; type `python -m"),
        (
            ("", "--config.compute.micro_batch=128", "--workdir=run"),
            "micro_batch 128 does not divide warm_start.plain_batch 64; use a multiple of 128",
        ),
        (("",), "--workdir is missing; for example: python -m drift_jax.warm_start"),
        (("", "--workdir=/proc/nothing"), "cannot be written"),
        (("", "--config.warm_start.steps=0", "--workdir=run"), "warm_start.steps is 0"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "tune_cpu", lambda: None)
    spec, *rest = arguments
    file = small_run.ROOT / "configs" / "quickstart.py"
    monkeypatch.setattr(sys, "argv", ["warm_start", f"--config={file}{spec}", *rest])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
        command.run(warm_start.main, warm_start.__doc__ or "")
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert list(tmp_path.iterdir()) == []


# ---- a task of files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool_config(tmp_path_factory):
    """A random model of a few bytes' vocabulary, and twelve tool-use rows."""
    folder = tmp_path_factory.mktemp("tools")
    tool_rows.write_tool_rows(folder / "data", 12)
    (folder / "tokenizer").mkdir()
    tool_rows.write_byte_tokenizer(folder / "tokenizer")
    return config(
        task="tooluse",
        data__path=str(folder / "data"),
        data__validation_fraction=0.3,
        data__max_prompt_tokens=80,
        model__path=str(folder / "tokenizer"),
        rollout__prompt_buckets=(80,),
        rollout__max_new_tokens=90,
        rollout__response_buckets=(90,),
        teacher__max_prompt_tokens=240,
        teacher__prompt_buckets=(240,),
        compute__micro_batch=4,
        warm_start__steps=8,
        warm_start__plain_batch=8,
        warm_start__reference_batch=4,
        warm_start__reference_fraction=0.5,
        evaluation__max_problems=2,
    )


def changed(settings, values):
    """A copy with other values."""
    copy = configs.from_json(configs.to_json(settings))
    return configs.locked(configs.assign(copy, values))


def test_a_task_of_files_warm_starts_on_its_gold_calls_and_not_on_validation(tool_config):
    tokenizer = assemble.open_tokenizer(tool_config)
    draw = warm_start.demonstrations(tool_config, tokenizer)
    (prompt, response), *_ = draw(np.random.default_rng(0), True)
    assert "Correct solution:\n\nThought: The question asks for get" in tokenizer.decode(prompt)
    written = tokenizer.decode(response)
    assert written.startswith("Thought: I should call get") and written.endswith("<|end|>")
    held, _ = assemble.open_problems(tool_config, tokenizer, "validation")
    names = {problem.level.replace("api", "get") for problem in held}
    rng = np.random.default_rng(1)
    texts = [tokenizer.decode(text) for _ in range(20) for _, text in draw(rng, False)]
    assert names and not any(f"Action: {name}\n" in text for name in names for text in texts)


def test_solutions_longer_than_a_response_may_be_are_left_out(tool_config):
    tokenizer = assemble.open_tokenizer(tool_config)
    problems, _ = assemble.open_problems(tool_config, tokenizer, "train")
    lengths = [len(tokenizer.encode(demonstrations.solution(p))) + 1 for p in problems]
    assert len(set(lengths)) > 1  # one digit or two
    shorter = changed(tool_config, {"rollout.max_new_tokens": min(lengths)})
    draw = warm_start.demonstrations(shorter, tokenizer)
    drawn = [draw(np.random.default_rng(seed), False) for seed in range(10)]
    assert {len(text) for examples in drawn for _, text in examples} == {min(lengths)}
    shorter = changed(tool_config, {"rollout.max_new_tokens": min(lengths) - 1})
    with pytest.raises(ConfigError, match=f"max_new_tokens {min(lengths) - 1}; the shortest has"):
        warm_start.demonstrations(shorter, tokenizer)


def test_the_base_of_a_task_of_files_is_a_model_path_of_a_later_run(tool_config, tmp_path):
    with small_run.one_device(), contextlib.redirect_stdout(io.StringIO()) as printed:
        plain = {"warm_start.reference_fraction": 0.0, "data.validation_fraction": 0.0}
        warm_start.train(changed(tool_config, plain), str(tmp_path))
        later = changed(
            tool_config, {"model.init": "checkpoint", "model.path": str(tmp_path / "model")}
        )
        tokenizer = assemble.open_tokenizer(later)
        model, params = assemble.open_model(later, tokenizer, assemble.make_mesh(later))
    text = printed.getvalue()
    assert "step 8/8  nats a token: plain " in text and "reference" not in text
    assert text.endswith("no gate: it needs validation problems; set data.validation_fraction\n")
    assert tokenizer.decode(tokenizer.encode("Action: é\n")) == "Action: é\n"
    assert model.vocab_size == params["embed_tokens"].shape[0] == len(tokenizer)


def test_a_supervised_batch_is_split_into_the_configured_micro_batches(tool_config):
    draw = warm_start.demonstrations(tool_config, assemble.open_tokenizer(tool_config))
    for reference, shape in ((False, (2, 4, 80 + 90)), (True, (1, 4, 240 + 90))):
        examples = draw(np.random.default_rng(0), reference)
        batch = warm_start.supervised_batch(tool_config, examples, reference=reference)
        assert batch.student_tokens.shape == shape
        assert batch.response_mask.sum() == sum(len(response) for _, response in examples)
