"""The golden checkpoints made anew, and our exports read by `transformers`. Needs torch."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from drift_jax import models
from tests import golden_models

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None,
        reason="needs torch: install the extra `parity`",
    ),
    pytest.mark.filterwarnings("default"),  # those of torch are not ours
]
SCRIPT = golden_models.ROOT.parent / "make_golden.py"


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """All golden checkpoints, made by the installed torch and transformers."""
    folder = tmp_path_factory.mktemp("golden")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), f"--out={folder}"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return folder


def test_the_script_makes_the_checkpoints_that_the_tests_know(remade):
    made = {path.name for path in remade.iterdir()}
    assert made == set(golden_models.NAMES) == {path.name for path in golden_models.ROOT.iterdir()}


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_golden_checkpoints_are_what_this_transformers_makes(remade, name):
    old, new = golden_models.ROOT / name, remade / name
    assert {file.name for file in old.iterdir()} == {file.name for file in new.iterdir()}
    for file in old.glob("*.safetensors"):
        before, after = load_file(file), load_file(new / file.name)
        assert before.keys() == after.keys()
        for tensor in before:
            assert before[tensor].tobytes() == after[tensor].tobytes()
    fields = [json.loads((folder / "config.json").read_text()) for folder in (old, new)]
    for written in fields:
        del written["transformers_version"]
    assert fields[0] == fields[1]
    before, after = np.load(old / "golden.npz"), np.load(new / "golden.npz")
    np.testing.assert_array_equal(before["tokens"], after["tokens"])
    real = golden_models.load(name).mask
    np.testing.assert_allclose(before["logits"][real], after["logits"][real], atol=1e-4)


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_transformers_computes_the_same_from_what_we_save(tmp_path, name):
    import torch
    import transformers

    golden = golden_models.load(name)
    models.save(str(tmp_path / "ours"), golden.config, golden.params, shard_bytes=40_000)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours",
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    positions = np.maximum(np.cumsum(golden.mask, -1) - 1, 0)
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(golden.tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(golden.mask.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
            use_cache=False,
        ).logits.numpy()
    differs = np.abs(logits - golden.logits)[golden.mask]
    assert differs.max() < 1e-5
