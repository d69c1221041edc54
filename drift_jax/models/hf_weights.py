"""Hugging Face checkpoints in and out: a folder with `config.json` and safetensors files.

Only safetensors are read (a pickle can run code), only the models built here are loaded (no remote
code). Every device reads its own slices, a layer at a time, so the host holds about one tensor;
on the way out it holds one file.
"""

import contextlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors.numpy import save_file

from drift_jax import sharding
from drift_jax.models import hf_config, tensor_files
from drift_jax.models.tensor_files import StoredTensor
from drift_jax.models.transformer import ModelConfig, Params, parameter_shapes

# Where each parameter stands in the checkpoint. Matrices are [out, in] there, [in, out] here.
_LAYER_TENSORS = {
    "input_layernorm": "input_layernorm.weight",
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "post_attention_layernorm": "post_attention_layernorm.weight",
    "post_feedforward_layernorm": "post_feedforward_layernorm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
}
_TOP_TENSORS = {
    "embed_tokens": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
SHARD_BYTES = 5_000_000_000
_LISTED = 20  # names of a kind in a message

Axes = tuple[str | None, ...]
DTypes = Any  # None, a dtype, or a mapping from tensor name to dtype


def tensor_names(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """Checkpoint name -> (our leaf, layer) of every tensor; layer is None outside the stack."""
    shapes = parameter_shapes(config)
    stacked = {
        _layer_name(leaf, layer): (leaf, layer)
        for layer in range(config.num_layers)
        for leaf in shapes["layers"]
    }
    top: dict[str, tuple[str, int | None]] = {
        name: (leaf, None) for leaf, name in _TOP_TENSORS.items() if leaf in shapes
    }
    return top | stacked


def _layer_name(leaf: str, layer: int) -> str:
    return f"model.layers.{layer}.{_LAYER_TENSORS[leaf]}"


def _transposed(leaf: str) -> bool:
    return leaf == "lm_head" or leaf.endswith("_proj")


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> stored shape of every tensor that a checkpoint must have."""
    shapes = parameter_shapes(config)
    expected = {}
    for name, (leaf, layer) in tensor_names(config).items():
        shape = shapes[leaf][0] if layer is None else shapes["layers"][leaf][0][1:]
        expected[name] = shape[::-1] if _transposed(leaf) else shape
    return expected


def _check(folder: pathlib.Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    expected = _expected_shapes(config)
    # Some files repeat the tied matrix.
    spare = {_TOP_TENSORS["lm_head"]} if config.tie_embeddings else set()
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys() - spare)
    misshapen = [
        f"{name} {stored[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{folder} does not fit its config.json: missing {_list(missing)}, "
            f"unexpected {_list(unexpected)}, misshapen {_list(misshapen)}"
        )


def _list(names: list[str]) -> str:
    more = len(names) - _LISTED
    return f"{names[:_LISTED]}" + (f" and {more} more" if more > 0 else "")


# ---- in -----------------------------------------------------------------------------------------


def load(path: str, *, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder; every device reads only its own slices.

    Args:
      path: folder with `config.json` and safetensors files.
      mesh: where to put the parameters (`drift_jax.sharding`); None is the default device.
      dtype: dtype of the parameters; None is float32, which holds every stored dtype exactly.

    Raises:
      ValueError: one line naming the file and what does not fit, before anything is allocated.
    """
    folder = pathlib.Path(path)
    config = hf_config.read_config(folder)
    stored = tensor_files.open_folder(folder)
    _check(folder, config, stored)
    dtype = jnp.dtype(dtype or jnp.float32)
    shapes, names = parameter_shapes(config), tensor_names(config)

    def tensor(name: str, shape: tuple[int, ...], axes: Axes) -> jax.Array:
        transposed = _transposed(names[name][0])
        return _read(stored[name], transposed, shape, _place(mesh, shape, axes), dtype)

    params: Params = {
        leaf: tensor(_TOP_TENSORS[leaf], *shapes[leaf]) for leaf in shapes if leaf != "layers"
    }
    params["layers"] = {
        leaf: _stack(
            (tensor(_layer_name(leaf, layer), shape[1:], axes[1:]) for layer in range(shape[0])),
            shape,
            _place(mesh, shape, axes),
            dtype,
        )
        for leaf, (shape, axes) in shapes["layers"].items()
    }
    return config, params


def _place(mesh: Mesh | None, shape: tuple[int, ...], axes: Axes) -> Sharding:
    return sharding.named(mesh, shape, axes) if mesh else SingleDeviceSharding(jax.devices()[0])


def _read(
    stored: StoredTensor,
    transposed: bool,
    shape: tuple[int, ...],
    place: Sharding,
    dtype: jnp.dtype,
) -> jax.Array:
    """One stored tensor on the devices."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        array = stored.read(index[::-1]).T if transposed else stored.read(index)
        return np.ascontiguousarray(array, dtype)

    return jax.make_array_from_callback(shape, place, part)


def _stack(
    layers: Iterator[jax.Array], shape: tuple[int, ...], place: Sharding, dtype: jnp.dtype
) -> jax.Array:
    """Layers on a leading axis, each put in its place on the devices as soon as it is read."""
    stacked = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=place)(shape, dtype)
    fill = jax.jit(_put_layer, donate_argnums=0, out_shardings=place)
    for index, layer in enumerate(layers):
        stacked = fill(stacked, layer, index)
    return stacked


def _put_layer(stacked: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def stored_dtypes(path: str) -> dict[str, np.dtype]:
    """The dtype of every tensor of a checkpoint folder, for `save(dtype=...)`."""
    tensors = tensor_files.open_folder(pathlib.Path(path))
    return {name: tensor.dtype for name, tensor in tensors.items()}


# ---- out ----------------------------------------------------------------------------------------


def save(
    path: str,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Any = None,
    dtype: DTypes = None,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `load` and `transformers` read; it appears whole or not at all.

    Args:
      path: the folder to make; it must not exist.
      config: the settings.
      params: the parameters.
      tokenizer: a Hugging Face tokenizer to save beside them; its special tokens enter the config.
      dtype: dtype on disk; None keeps the parameters' own; a mapping from tensor name to dtype
        (`stored_dtypes` of the checkpoint that they came from) gives back that checkpoint's.
      generation: fields of generation_config.json; None is the tokenizer's special tokens.
      shard_bytes: a file ends before it grows over this; the host holds one file at a time.

    Raises:
      ValueError: if `path` exists, or `transformers` has no model with these settings.
    """
    with new_folder(pathlib.Path(path)) as folder:
        write(
            folder,
            config,
            params,
            tokenizer=tokenizer,
            dtype=dtype,
            generation=generation,
            shard_bytes=shard_bytes,
        )


def write(
    folder: pathlib.Path,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Any = None,
    dtype: DTypes = None,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the files of `save` into a folder that is there."""
    fields = hf_config.to_fields(config, hf_config.family_of(config))
    special = _special_tokens(tokenizer)
    dtypes = _dtypes(config, params, dtype)
    _write_tensors(folder, config, params, dtypes, shard_bytes)
    fields |= {"dtype": str(dtypes[_TOP_TENSORS["embed_tokens"]]), **special}
    write_json(folder / "config.json", fields)
    if generation is not None or special:
        write_json(folder / "generation_config.json", {**special, **(generation or {})})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which gets its name when the block ends, and is gone if it fails.

    Raises:
      ValueError: if `folder` exists or cannot be made.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder, nothing is overwritten")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{partial} cannot be made ({error.strerror})") from None
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(file: pathlib.Path, fields: Any) -> None:
    """Indented JSON, sorted, so that two exports of one model are the same bytes."""
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: getattr(tokenizer, name, None) for name in names}
    return {name: token for name, token in found.items() if token is not None}


def _dtypes(config: ModelConfig, params: Params, dtype: DTypes) -> dict[str, np.dtype]:
    """The dtype on disk of every tensor, by name."""
    chosen = {}
    for name, (leaf, layer) in tensor_names(config).items():
        own = (params if layer is None else params["layers"])[leaf].dtype
        wanted = dtype.get(name) if isinstance(dtype, Mapping) else dtype
        chosen[name] = np.dtype(own if wanted is None else wanted)
    return chosen


def _write_tensors(
    folder: pathlib.Path,
    config: ModelConfig,
    params: Params,
    dtypes: Mapping[str, np.dtype],
    shard_bytes: int,
) -> None:
    """All tensors as one file, or as several with their index."""
    names = tensor_names(config)
    shapes = _expected_shapes(config)
    sizes = {name: math.prod(shapes[name]) * dtypes[name].itemsize for name in names}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = tensor_files.SINGLE if len(shards) == 1 else file
        arrays = {name: _fetch(params, *names[name], dtypes[name]) for name in shard}
        save_file(arrays, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # else its owner alone could read it
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_json(folder / tensor_files.INDEX, index)


def _fetch(params: Params, leaf: str, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One tensor on the host, as it is stored."""
    array = params[leaf] if layer is None else _take_layer(params["layers"][leaf], layer)
    array = np.asarray(jax.device_get(array)).astype(dtype)
    return np.ascontiguousarray(array.T if _transposed(leaf) else array)


@jax.jit
def _take_layer(stacked: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False)
