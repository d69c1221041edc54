"""A Hugging Face checkpoint folder from a GGUF file of the Llama architecture.

GGUF files keep the rows of the query and key projections in another order, for a rotary embedding
of neighbouring pairs; Hugging Face rotates the first half of a head against the second. The rows
are put back, the numbers are dequantised and otherwise kept.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from drift_jax.prepare import gguf_tokenizer
from drift_jax.prepare.gguf_file import GGUFFile

ARCHITECTURE = "llama"
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where the embedding is used again
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Settings of the header that make a Llama another model.
NOT_CONVERTED = (
    "expert_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "attention.sliding_window",
)


def convert(source: Path, folder: Path, *, dtype: str) -> str:
    """Fills an existing folder with config, weights, tokenizer and generation settings.

    Args:
      source: the GGUF file.
      folder: where the files go.
      dtype: of the weights on disk, a key of `DTYPES`.

    Returns:
      What the file is, in a line.

    Raises:
      ValueError: in one line, if the file is damaged, of another architecture, or has tensors,
        settings or a tokenizer that this converter does not know.
    """
    file = GGUFFile(source)
    config = make_config(file, dtype)
    names = match_tensors(file, config)
    tokens = gguf_tokenizer.save(file, folder)
    config |= tokens
    tensors = {}
    for name, theirs in names.items():
        values = restore_rows(file.read(theirs), name, config)
        tensors[name] = np.ascontiguousarray(values.astype(DTYPES[dtype]))
    _write_json(folder / "config.json", config)
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # it is made readable to its owner only
    _write_json(folder / "generation_config.json", tokens)
    return (
        f"{file.settings.get('general.name', source.name)}: {len(tensors)} tensors, "
        f"{sum(tensor.size for tensor in tensors.values()):,} parameters, {dtype}"
    )


def make_config(file: GGUFFile, dtype: str) -> dict[str, Any]:
    """The fields of config.json, from the header.

    Raises:
      ValueError: naming what is missing or not supported.
    """
    found = file.settings.get("general.architecture")
    if found != ARCHITECTURE:
        raise ValueError(
            f"{file.path} holds the architecture {found!r}; only {ARCHITECTURE!r} is converted"
        )
    for key in NOT_CONVERTED:
        if file.settings.get(f"{ARCHITECTURE}.{key}") not in (None, 0, "none"):
            raise ValueError(f"{file.path}: {ARCHITECTURE}.{key} is set, which is not converted")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} lacks the matrix token_embd.weight")
    heads, width = _size(file, "attention.head_count"), _size(file, "embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "head_dim": _size(file, "attention.key_length", width // heads),
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": _size(file, "feed_forward_length"),
        "max_position_embeddings": _size(file, "context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": _size(file, "block_count"),
        "num_key_value_heads": _size(file, "attention.head_count_kv", heads),
        "rms_norm_eps": _decimal(file, "attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": _decimal(file, "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": embedding.shape[0],
    }


def match_tensors(file: GGUFFile, config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face's name of every tensor, and the name in the file.

    Raises:
      ValueError: listing tensors that are missing, not known, or of another shape.
    """
    names = dict(TOP_TENSORS)
    if config["tie_word_embeddings"]:
        del names["output.weight"]
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER_TENSORS.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    missing = sorted(set(names) - set(file.tensors))
    unknown = sorted(set(file.tensors) - set(names))
    misshapen = [
        f"{theirs} {file.tensors[theirs].shape} instead of {shape}"
        for theirs, ours in names.items()
        if theirs in file.tensors and file.tensors[theirs].shape != (shape := _shape(ours, config))
    ]
    if missing or unknown or misshapen:
        raise ValueError(
            f"{file.path} does not fit its header: missing {missing}, unknown {unknown}, "
            f"misshapen {misshapen}"
        )
    return {ours: theirs for theirs, ours in names.items()}


def restore_rows(values: np.ndarray, name: str, config: dict[str, Any]) -> np.ndarray:
    """The rows of a query or key projection in Hugging Face's order; other tensors unchanged.

    GGUF interleaves the halves of each head: rows 0, 1, 2, 3, … of a head of d rows are rows
    0, d/2, 1, d/2 + 1, … of Hugging Face's.

    Args:
      values: [out, in].
      name: Hugging Face's name.
      config: for the number of heads.
    """
    heads = {
        "q_proj.weight": config["num_attention_heads"],
        "k_proj.weight": config["num_key_value_heads"],
    }
    for ending, count in heads.items():
        if name.endswith(ending):
            pairs = values.reshape(count, -1, 2, values.shape[-1])  # [head, d / 2, half, in]
            return pairs.swapaxes(1, 2).reshape(values.shape)
    return values


def _shape(name: str, config: dict[str, Any]) -> tuple[int, ...]:
    """The shape that a tensor must have, [out, in] for matrices."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "embed_tokens": (config["vocab_size"], width),
        "lm_head": (config["vocab_size"], width),
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    return shapes.get(name.split(".")[-2], (width,))


def _size(file: GGUFFile, key: str, default: int | None = None) -> int:
    """A whole number above 0 from the header."""
    value = file.settings.get(f"{ARCHITECTURE}.{key}", default)
    if type(value) is not int or value <= 0:
        raise ValueError(f"{file.path}: {ARCHITECTURE}.{key} is {value!r}, expected a whole number")
    return value


def _decimal(file: GGUFFile, key: str, default: float | None = None) -> float:
    """A number above 0 from the header; the shortest decimal of its float32."""
    value = file.settings.get(f"{ARCHITECTURE}.{key}", default)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise ValueError(f"{file.path}: {ARCHITECTURE}.{key} is {value!r}, expected a number")
    return float(str(np.float32(value)))


def _write_json(file: Path, fields: dict[str, Any]) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
