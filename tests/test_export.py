"""The export command: from a run's checkpoint to a folder whose receiver can check it."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import assemble, export, models, sharding
from drift_jax import config as configs
from drift_jax.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory with checkpoints of steps 1 (the best) and 2, and their parameters."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    folder.mkdir()
    config = configs.load(f"{ROOT}/configs/quickstart.py")
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    tokenizer = assemble.open_tokenizer(config)
    mesh = sharding.make_mesh(data=4, fsdp=2)  # not the mesh that the export has
    model, params = assemble.open_model(config, tokenizer, mesh)
    state = assemble.open_state(config, params, mesh, model)
    saved = {}
    with Checkpoints(folder) as checkpoints:
        for step, metric in ((1, 0.9), (2, 0.5)):
            state = dataclasses.replace(
                state,
                step=jnp.int32(step),
                trainable=jax.tree.map(lambda leaf: leaf * 1.01, state.trainable),
            )
            saved[step] = jax.device_get((state.trainable, state.teacher))
            checkpoints.save(step, state, {}, metric=metric)
    return folder, model, saved


def command(*arguments):
    """Exit code of the command."""
    try:
        export.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "last"
    assert command(f"--workdir={run[0]}", f"--out={out}") == 0
    return out


def rounded(params):
    """What remains of parameters in the base model's dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), params)


def test_the_newest_student_is_exported_in_the_dtype_of_the_base_model(run, exported):
    _, model, saved = run
    config, params = models.load(str(exported))
    assert config == model
    assert set(models.stored_dtypes(str(exported)).values()) == {np.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, params, rounded(saved[2][0]))


def test_another_step_the_best_one_the_teacher_and_the_dtype_can_be_asked_for(run, tmp_path):
    folder, _, saved = run
    for name, flags, expected in (
        ("best", ["--step=best", "--dtype=float32"], saved[1][0]),
        ("teacher", ["--step=2", "--teacher", "--dtype=float32"], saved[2][1]),
    ):
        assert command(f"--workdir={folder}", f"--out={tmp_path / name}", *flags) == 0
        _, params = models.load(str(tmp_path / name))
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    source = json.loads((tmp_path / "teacher" / "manifest.json").read_text())["source"]
    assert (source["step"], source["parameters"], source["run"]) == (2, "teacher", "quick")


def test_the_tokenizer_and_the_stop_tokens_come_with_it(exported):
    from drift_jax.data import prompting

    tokenizer = prompting.load_tokenizer(exported)
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert prompting.stop_tokens(tokenizer) == (tokenizer.eos_token_id,)


def test_the_manifest_holds_the_largest_logits_of_its_prompts(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    config, params = models.load(str(exported))
    assert len(manifest["checks"]) == 4
    for check in manifest["checks"]:
        tokens = np.array(check["tokens"])
        logits = np.asarray(models.forward(params, config, tokens[None]))[0, -1]
        order = np.argsort(-logits)[:5]
        assert check["top_ids"] == order.tolist()
        np.testing.assert_allclose(check["top_logits"], logits[order], atol=1e-4)
    assert manifest["files"].keys() == {
        file.name for file in exported.iterdir() if file.name != "manifest.json"
    }


def test_a_receiver_can_verify_the_folder(exported, capsys):
    assert command(f"--verify={exported}") == 0
    assert "4 prompts, largest logit difference" in capsys.readouterr().out


def test_changed_weights_are_found_by_hash_and_by_logits(run, exported, tmp_path, capsys):
    folder, *_ = run
    other = tmp_path / "other"
    assert command(f"--workdir={folder}", f"--out={other}", "--step=1") == 0
    manifest = json.loads((exported / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert command(f"--verify={other}") == 1
    assert "model.safetensors is missing or changed" in capsys.readouterr().err
    manifest["files"] = {}  # as if only the numbers were known
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert command(f"--verify={other}") == 1
    assert "logits differ by" in capsys.readouterr().err


def test_a_changed_prompt_or_tokenizer_is_found(exported, tmp_path):
    import shutil

    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["checks"][0]["tokens"][0] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert export.verify(copy) == ["prompt 0 is not the one that was hashed"]
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["files"] = {}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert all("the tokenizer gives other tokens" in fault for fault in export.verify(copy))
    assert len(export.verify(copy)) == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        ([], "--workdir and --out, or --verify"),
        (["--workdir=nowhere", "--out=x"], "no config.json in nowhere"),
        (["--workdir={run}", "--out={exported}"], "exists"),
        (["--workdir={run}", "--out=x", "--step=7"], "no checkpoint of step 7"),
        (["--workdir={run}", "--out=x", "--step=newest"], "expected a step, best or last"),
        (["--workdir={run}", "--out=x", "--dtype=int4"], "int4"),
        (["--workdir={run}", "--out=/proc/x/y"], "cannot be made"),
        (["--wrokdir={run}"], "--wrokdir"),
        (["--verify={run}"], "no manifest.json in"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_two(
    run, exported, tmp_path, monkeypatch, capsys, flags, named
):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(run=run[0], exported=exported) for flag in flags]
    assert command(*flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not list(tmp_path.iterdir())


def test_help_has_an_example(capsys):
    assert command("--help") == 0
    assert "example: python -m drift_jax.export --workdir=" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: install the extra `parity`"
)
@pytest.mark.filterwarnings("default")  # those of torch are not ours
def test_transformers_gives_the_logits_of_the_manifest(exported):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        exported, dtype=torch.float32, local_files_only=True
    )
    manifest = json.loads((exported / "manifest.json").read_text())
    for check in manifest["checks"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([check["tokens"]])).logits[0, -1].numpy()
        gap = np.abs(logits[check["top_ids"]] - check["top_logits"]).max()
        assert gap < manifest["tolerance"]
