"""Checkpoint folders: bit-exact round trips, sharded files, and what is refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drift_jax import models, sharding
from drift_jax.models import hf_weights, transformer
from drift_jax.models.tensor_files import INDEX
from tests import golden_models, tiny


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    models.save(str(path), tiny.CONFIG, tiny.params())
    return path


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def stored(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, whatever its files are."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_saved_parameters_come_back_bit_for_bit(tmp_path, tied):
    config = dataclasses.replace(tiny.CONFIG, tie_embeddings=tied)
    params = tiny.params(config)
    models.save(str(tmp_path / "model"), config, params)
    loaded_config, loaded = models.load(str(tmp_path / "model"))
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_import_then_export_gives_the_tensors_of_transformers_bit_for_bit(tmp_path, name):
    source, copy = golden_models.ROOT / name, tmp_path / "copy"
    golden = golden_models.load(name)
    dtypes = models.stored_dtypes(str(source))
    models.save(str(copy), golden.config, golden.params, dtype=dtypes, shard_bytes=40_000)
    assert (copy / INDEX).is_file()
    before, after = stored(source), stored(copy)
    assert before.keys() == after.keys()
    for tensor in before:
        assert before[tensor].dtype == after[tensor].dtype == ml_dtypes.bfloat16
        assert before[tensor].tobytes() == after[tensor].tobytes()
    config, params = models.load(str(copy))
    assert config == golden.config
    jax.tree.map(np.testing.assert_array_equal, params, golden.params)


def test_each_tensor_keeps_its_own_dtype_on_the_way_in_and_out(folder, tmp_path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    half = "model.layers.0.mlp.up_proj.weight"  # its neighbour in the stack stays float32
    tensors[half] = tensors[half].astype(np.float16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)
    save_file(tensors, file)
    config, loaded = models.load(str(folder))
    np.testing.assert_array_equal(
        loaded["layers"]["up_proj"][0], tensors[half].astype(np.float32).T
    )
    np.testing.assert_array_equal(loaded["norm"], tensors["model.norm.weight"].astype(np.float32))
    copy = tmp_path / "copy"
    models.save(str(copy), config, loaded, dtype=models.stored_dtypes(str(folder)))
    for name, tensor in stored(copy).items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.tobytes() == tensors[name].tobytes()


def test_parameters_can_be_read_and_written_in_another_dtype(folder, tmp_path):
    _, loaded = models.load(str(folder), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(jnp.bfloat16)}
    models.save(str(tmp_path / "half"), tiny.CONFIG, tiny.params(), dtype=np.float16)
    assert {tensor.dtype for tensor in stored(tmp_path / "half").values()} == {np.dtype("f2")}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_files_stay_under_the_limit_and_the_index_names_them(folder, tmp_path):
    models.save(str(tmp_path / "parts"), tiny.CONFIG, tiny.params(), shard_bytes=5_000)
    parts = tmp_path / "parts"
    index = json.loads((parts / INDEX).read_text())
    files = sorted(file.name for file in parts.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    sizes = {name: tensor.nbytes for name, tensor in stored(parts).items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    for file in files:
        held = [name for name, place in index["weight_map"].items() if place == file]
        assert len(held) == 1 or sum(sizes[name] for name in held) <= 5_000
    for name, tensor in stored(folder).items():
        np.testing.assert_array_equal(stored(parts)[name], tensor)


def test_parameters_that_are_spread_over_devices_are_saved_whole(folder, tmp_path):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    config, loaded = models.load(str(folder), mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, tiny.params())
    assert len(loaded["layers"]["q_proj"].sharding.device_set) == 8
    models.save(str(tmp_path / "copy"), config, loaded)
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_each_device_reads_its_own_slice_and_no_more(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        hf_weights.StoredTensor,
        "read",
        lambda self, index, real=hf_weights.StoredTensor.read: (
            read.append(real(self, index)) or read[-1]
        ),
    )
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    models.load(str(folder), mesh=mesh)
    embed = tiny.CONFIG.hidden_size
    largest = max(tiny.CONFIG.vocab_size * embed, embed * tiny.CONFIG.intermediate_size)
    assert max(array.size for array in read) == largest // 8


# ---- what is refused ----------------------------------------------------------------------------


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


def test_a_repeated_tied_matrix_is_no_fault(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    _, loaded = models.load(str(folder))
    assert "lm_head" not in loaded


def test_a_checkpoint_of_another_family_is_refused_by_its_tensors(folder):
    edit_config(folder, model_type="llama", layer_types=None, sliding_window=None)
    with pytest.raises(ValueError, match="unexpected .*q_norm"):
        models.load(str(folder))


def test_a_setting_that_is_not_implemented_is_refused_with_the_file(folder):
    edit_config(folder, hidden_act="gelu")
    with pytest.raises(ValueError, match="config.json: hidden_act = 'gelu' is not implemented"):
        models.load(str(folder))


def test_the_old_spelling_of_the_rotary_base_is_read(folder):
    edit_config(folder, rope_parameters=None, rope_theta=5e6)
    config, _ = models.load(str(folder))
    assert config.rope_theta == 5e6


def test_a_damaged_weight_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])  # a header length beyond the file
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        models.load(str(folder))


def test_a_file_that_was_cut_short_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends 1 bytes after the file"):
        models.load(str(folder))


def test_a_pickle_is_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="other weight formats are not read"):
        models.load(str(folder))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json in"):
        models.load(str(tmp_path))


# ---- writing ------------------------------------------------------------------------------------


def test_saving_never_overwrites(folder):
    with pytest.raises(ValueError, match="exists"):
        models.save(str(folder), tiny.CONFIG, tiny.params())


def test_saving_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(hf_weights, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        models.save(str(tmp_path / "model"), tiny.CONFIG, tiny.params())
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_replaced(folder, tmp_path):
    half = tmp_path / "copy.partial"
    half.mkdir()
    shutil.copy(folder / "config.json", half / "stale.json")
    models.save(str(tmp_path / "copy"), tiny.CONFIG, tiny.params())
    assert not half.exists() and not (tmp_path / "copy" / "stale.json").exists()


def test_a_model_that_transformers_does_not_have_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(tiny.CONFIG, norm_after=True)
    params = transformer.init(config, jax.random.key(0))
    with pytest.raises(ValueError, match="cannot be saved as a Hugging Face checkpoint"):
        models.save(str(tmp_path / "model"), config, params)
    assert not list(tmp_path.iterdir())
