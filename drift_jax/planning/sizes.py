"""The sizes of a configuration's model, without its weights."""

import json
import math
import pathlib
from typing import Any

import jax

from drift_jax import assemble
from drift_jax.config import ConfigError
from drift_jax.models import hf_config
from drift_jax.models.transformer import FULL, SLIDING, ModelConfig, parameter_shapes

# From the config.json of each checkpoint, for plans before anything is downloaded.
PUBLISHED = {
    "qwen3-0.6b": ModelConfig(151936, 1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": ModelConfig(151936, 2048, 6144, 28, 16, 8, 128),
    "qwen3-4b": ModelConfig(151936, 2560, 9728, 36, 32, 8, 128),
    "qwen3-8b": ModelConfig(151936, 4096, 12288, 36, 32, 8, 128, tie_embeddings=False),
    "olmo3-7b": ModelConfig(
        100278,
        4096,
        11008,
        32,
        32,
        32,
        128,
        rope_theta=5e5,
        tie_embeddings=False,
        qk_norm="projection",
        norm_after=True,
        layer_types=(SLIDING, SLIDING, SLIDING, FULL) * 8,
        sliding_window=4096,
    ),
    "smollm2-135m": ModelConfig(49152, 576, 1536, 30, 9, 3, 64, rope_theta=1e5, qk_norm="none"),
}


def of(config: Any, file: str | None = None) -> ModelConfig:
    """The sizes: of `file`, of the checkpoint folder, of the random preset, or published ones.

    Args:
      config: the configuration.
      file: a config.json, or a folder with one; None goes by the configuration.

    Raises:
      ConfigError: if nothing says them, with what is known.
    """
    if file is not None:
        return _read(pathlib.Path(file))
    if config.model.init == "random":
        vocabulary = len(assemble.open_tokenizer(config))
        return ModelConfig(vocab_size=vocabulary, **config.model.preset)
    folder = pathlib.Path(config.model.path)
    if config.model.path in assemble.PACKAGED_MODELS or folder.is_dir():
        return _read(assemble.model_folder(config))
    name = folder.name.lower()
    for known, sizes in PUBLISHED.items():
        if name.startswith(known):
            return sizes
    raise ConfigError(
        f"model.path {config.model.path!r} is not a folder and its sizes are not known; give"
        f" --model_config=FILE (a config.json), or name one of: {', '.join(PUBLISHED)}"
    )


def _read(path: pathlib.Path) -> ModelConfig:
    with assemble.boundary():
        if path.is_dir():
            return hf_config.read_config(path)
        if not path.is_file():
            raise ConfigError(f"--model_config {str(path)!r} does not exist; name a config.json")
        try:
            return hf_config.from_fields(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None


def parameters(model: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape, _ in leaves(model).values())


def multiplied(model: ModelConfig) -> int:
    """Parameters that a token is multiplied with; an untied embedding is looked up instead."""
    looked_up = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    return parameters(model) - looked_up


def leaves(model: ModelConfig) -> dict[str, tuple]:
    """(shape, logical axes) of every parameter, by its path."""
    found = jax.tree_util.tree_leaves_with_path(
        parameter_shapes(model), is_leaf=lambda node: isinstance(node, tuple)
    )
    return {"/".join(key.key for key in path): leaf for path, leaf in found}


def cache_bytes(model: ModelConfig, item: int) -> int:
    """Keys and values of one token, with so many bytes a number."""
    return model.num_layers * 2 * model.num_kv_heads * model.head_dim * item
