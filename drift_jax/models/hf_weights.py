"""Hugging Face checkpoints in and out: a folder with `config.json` and safetensors files.

Only safetensors are read (a pickle can run code), only the models built here are loaded (no remote
code), and a setting of `config.json` that would change the numbers and is not implemented is
refused by name instead of being ignored.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from drift_jax import sharding
from drift_jax.models.transformer import ModelConfig, Params, parameter_shapes

# Where each parameter stands in the checkpoint. Matrices are [out, in] there, [in, out] here.
_LAYER_TENSORS = {
    "input_layernorm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "post_attention_layernorm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_TOP_TENSORS = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}

# Fields of config.json that set a number of ModelConfig.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
# Fields that must have one of these values, since nothing else is implemented.
_FIXED: dict[str, tuple] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
}
# Fields that do not enter the computation.
_IRRELEVANT = frozenset(
    [
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "max_window_layers",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)


def read_config(path: pathlib.Path) -> ModelConfig:
    """The sizes in `path/config.json`.

    Raises:
      ValueError: naming the file and the field that is missing, unknown or not implemented.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(
            f"no config.json in {path}; expected a folder with a Hugging Face checkpoint"
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not valid JSON ({error}); download the checkpoint again"
        ) from None
    for name, allowed in _FIXED.items():
        # Qwen3 configs always write `sliding_window`; it acts only under `use_sliding_window`.
        if name == "sliding_window" and not fields.get("use_sliding_window", False):
            continue
        if name in fields and fields[name] not in allowed:
            raise ValueError(
                f"{file}: {name} = {fields[name]!r} is not implemented; expected {allowed[0]!r}"
            )
    theta = _rope_theta(file, fields)
    if any(kind != "full_attention" for kind in fields.get("layer_types") or ()):
        raise ValueError(f"{file}: layer_types other than 'full_attention' are not implemented")
    known = {*_SIZES, *_FIXED, *_IRRELEVANT, "rope_theta", "rope_parameters", "layer_types"}
    if unknown := sorted(set(fields) - known):
        raise ValueError(
            f"{file}: fields {unknown} are not known; they may change the model's numbers"
        )
    if missing := sorted(set(_SIZES) - {"tie_word_embeddings", "rms_norm_eps"} - set(fields)):
        raise ValueError(f"{file}: fields {missing} are missing")
    sizes: dict[str, Any] = {
        ours: fields[theirs] for theirs, ours in _SIZES.items() if theirs in fields
    }
    return ModelConfig(rope_theta=theta, **{"tie_embeddings": False, **sizes})


def _rope_theta(file: pathlib.Path, fields: dict[str, Any]) -> float:
    """The rotary base: `rope_theta` in old files, inside `rope_parameters` in new ones."""
    rope = fields.get("rope_parameters") or {
        "rope_type": "default",
        "rope_theta": fields.get("rope_theta"),
    }
    if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
        raise ValueError(
            f"{file}: rope_parameters {rope} are not implemented; expected rope_type 'default'"
        )
    if rope.get("rope_theta") is None:
        raise ValueError(f"{file}: rope_theta is missing")
    return float(rope["rope_theta"])


def _tensor_name(leaf: str, layer: int | None) -> str:
    stem = _TOP_TENSORS[leaf] if layer is None else f"model.layers.{layer}.{_LAYER_TENSORS[leaf]}"
    return f"{stem}.weight"


class _Reader:
    """Names, shapes and slices of the tensors of a folder's safetensors files."""

    def __init__(self, path: pathlib.Path) -> None:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"no *.safetensors in {path}; other weight formats are not read")
        self._slices: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(str(file), framework="numpy")
                self._slices |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged ({error}); download it again") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.get_shape()) for name, tensor in self._slices.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._slices[name][index]


def _expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and stored shape of every tensor that the checkpoint must have."""
    shapes = parameter_shapes(config)
    expected = {}
    for leaf, (shape, _) in shapes["layers"].items():
        for layer in range(config.num_layers):
            expected[_tensor_name(leaf, layer)] = tuple(reversed(shape[1:]))
    for leaf, stem in _TOP_TENSORS.items():
        if leaf in shapes:
            shape = shapes[leaf][0]
            expected[f"{stem}.weight"] = tuple(reversed(shape)) if leaf == "lm_head" else shape
    return expected


def _check(path: pathlib.Path, config: ModelConfig, stored: dict[str, tuple[int, ...]]) -> None:
    expected = _expected(config)
    tied = (
        {"lm_head.weight"} if config.tie_embeddings else set()
    )  # some files repeat the tied matrix
    missing, unexpected = (
        sorted(set(expected) - set(stored)),
        sorted(set(stored) - set(expected) - tied),
    )
    misshapen = [
        f"{name} {stored[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} does not fit its config.json: missing {missing}, unexpected {unexpected}, "
            f"misshapen {misshapen}"
        )


def load(path: str, *, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder; every device reads only its own slices.

    Args:
      path: folder with `config.json` and safetensors files.
      mesh: where to put the parameters (`drift_jax.sharding`); None is the default device.
      dtype: dtype of the parameters; None is float32.

    Raises:
      ValueError: one line naming the file and what does not fit, before anything is allocated.
    """
    folder = pathlib.Path(path)
    config = read_config(folder)
    reader = _Reader(folder)
    _check(folder, config, reader.shapes())
    dtype = jnp.dtype(dtype or jnp.float32)

    def leaf(
        name: str, stacked: bool, shape: tuple[int, ...], axes: tuple[str | None, ...]
    ) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            if not stacked:
                return _slice(reader, _tensor_name(name, None), index, name == "lm_head").astype(
                    dtype
                )
            layers = range(*index[0].indices(shape[0]))
            return np.stack(
                [_slice(reader, _tensor_name(name, i), index[1:], len(shape) == 3) for i in layers]
            ).astype(dtype)

        place = (
            sharding.named(mesh, shape, axes) if mesh else SingleDeviceSharding(jax.devices()[0])
        )
        return jax.make_array_from_callback(shape, place, part)

    shapes = parameter_shapes(config)
    params = {k: leaf(k, False, *v) for k, v in shapes.items() if k != "layers"}
    params["layers"] = {k: leaf(k, True, *v) for k, v in shapes["layers"].items()}
    return config, params


def _slice(reader: _Reader, name: str, index: tuple[slice, ...], transposed: bool) -> np.ndarray:
    return reader.read(name, index[::-1]).T if transposed else reader.read(name, index)


def save(
    path: str, config: ModelConfig, params: Params, *, tokenizer: Any = None, dtype: Any = None
) -> None:
    """Writes a folder that `load` and `transformers` read; it appears whole or not at all.

    Args:
      path: the folder to make; it must not exist.
      config: the sizes.
      params: the parameters.
      tokenizer: a Hugging Face tokenizer to save beside them; its special tokens enter the config.
      dtype: dtype on disk; None keeps the parameters' own.

    Raises:
      ValueError: if `path` exists.
    """
    folder = pathlib.Path(path)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder, nothing is overwritten")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    convert = _to_host(dtype)
    tensors = {}
    for leaf in ("embed_tokens", "norm", "lm_head"):
        if leaf in params:
            array = convert(params[leaf])
            tensors[_tensor_name(leaf, None)] = np.ascontiguousarray(
                array.T if leaf == "lm_head" else array
            )
    for leaf, stacked in params["layers"].items():
        for layer, array in enumerate(convert(stacked)):
            tensors[_tensor_name(leaf, layer)] = np.ascontiguousarray(array.T)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    stored_dtype = str(next(iter(tensors.values())).dtype)
    (partial / "config.json").write_text(
        json.dumps(_fields(config, tokenizer, stored_dtype), indent=2) + "\n"
    )
    if tokenizer is not None:
        tokenizer.save_pretrained(str(partial))
    partial.rename(folder)


def _to_host(dtype: Any) -> Callable[[jax.Array], np.ndarray]:
    return lambda array: np.asarray(jax.device_get(array if dtype is None else array.astype(dtype)))


def _fields(config: ModelConfig, tokenizer: Any, dtype: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "dtype": dtype}
    fields |= {name: allowed[0] for name, allowed in _FIXED.items() if name != "attention_dropout"}
    fields |= {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
    fields |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    if tokenizer is not None:
        fields |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return fields
