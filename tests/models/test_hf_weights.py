"""Checkpoint folders: round trip, and what is refused."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drift_jax import models, sharding
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    models.save(str(path), tiny.CONFIG, tiny.params())
    return path


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_parameters_come_back_bit_for_bit(tmp_path, tied):
    config = dataclasses.replace(tiny.CONFIG, tie_embeddings=tied)
    params = tiny.params(config)
    models.save(str(tmp_path / "model"), config, params)
    loaded_config, loaded = models.load(str(tmp_path / "model"))
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_sharded_loading_gives_the_same_numbers(folder):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    _, loaded = models.load(str(folder), mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, tiny.params())
    assert len(loaded["layers"]["q_proj"].sharding.device_set) == 8


def test_every_tensor_is_read_in_its_own_dtype(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    half = "model.layers.0.mlp.up_proj.weight"
    tensors[half] = tensors[half].astype(np.float16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)
    save_file(tensors, file)
    _, loaded = models.load(str(folder))
    np.testing.assert_array_equal(
        loaded["layers"]["up_proj"][0], tensors[half].astype(np.float32).T
    )
    np.testing.assert_array_equal(loaded["norm"], tensors["model.norm.weight"].astype(np.float32))


def test_missing_unexpected_and_misshapen_tensors_are_all_named(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.extra.weight"] = np.zeros(3, np.float32)
    tensors["model.layers.1.self_attn.q_norm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, file)
    with pytest.raises(ValueError) as error:
        models.load(str(folder))
    assert "missing ['model.norm.weight']" in str(error.value)
    assert "unexpected ['model.extra.weight']" in str(error.value)
    assert "model.layers.1.self_attn.q_norm.weight (3,) instead of (8,)" in str(error.value)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "llama"}, "model_type = 'llama' is not implemented"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented"),
        ({"attention_bias": True}, "attention_bias = True is not implemented"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"use_sliding_window": True, "sliding_window": 4}, "sliding_window = 4"),
        ({"new_trick": 1}, "fields ['new_trick'] are not known"),
    ],
)
def test_settings_that_are_not_implemented_are_refused_by_name(folder, changes, named):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match="config.json") as error:
        models.load(str(folder))
    assert named in str(error.value)


def test_the_old_spelling_of_the_rotary_base_is_read(folder):
    edit_config(folder, rope_parameters=None, rope_theta=5e6)
    config, _ = models.load(str(folder))
    assert config.rope_theta == 5e6


def test_a_damaged_weight_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])  # a header length beyond the file
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        models.load(str(folder))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json in"):
        models.load(str(tmp_path))


def test_saving_never_overwrites(folder):
    with pytest.raises(ValueError, match="exists"):
        models.save(str(folder), tiny.CONFIG, tiny.params())
