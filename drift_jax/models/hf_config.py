"""`config.json` of a Hugging Face checkpoint, read into a `ModelConfig` and written from one.

Each family has its table: what it is by nature, which fields have one implemented value, which do
not enter the computation. A field that stands in no table may change the model's numbers, so it is
refused by name and never ignored.
"""

import dataclasses
import json
import pathlib

from drift_jax.models import hf_rope
from drift_jax.models.json_fields import Fields, not_implemented, positive, whole
from drift_jax.models.transformer import FULL, SLIDING, ModelConfig

# Fields of config.json that are settings of ModelConfig.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}
_OPTIONAL = ("head_dim", "max_position_embeddings")  # these may be absent
_NULLABLE = (*_OPTIONAL, "num_key_value_heads")  # these may be null
_DEFAULT_WINDOW = 4096  # of `transformers`, where sliding_window is absent
# Fields that need a function of their own.
_READ = frozenset(
    [
        *_SIZES,
        "layer_types",
        "max_window_layers",
        "model_type",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "use_sliding_window",
    ]
)
# Fields that do not enter the computation.
_IRRELEVANT = frozenset(
    [
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "is_llama_config",
        "pad_token_id",
        "pretraining_tp",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    ]
)
# Fields that must have one of these values, since nothing else is implemented.
_FIXED: dict[str, tuple] = {
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What makes a family, apart from its sizes.

    Attributes:
      architecture: the class that `transformers` loads.
      attention_bias, qk_norm, norm_after: as in `ModelConfig`.
      head_dim: whether head_dim must be written; else it is hidden_size / heads where absent.
      sliding: where its sliding layers come from: "" it has none, "switch" those from
        max_window_layers on under use_sliding_window, "pattern" all but every fourth.
    """

    architecture: str
    attention_bias: bool
    qk_norm: str
    norm_after: bool
    head_dim: bool
    sliding: str


FAMILIES = {
    "qwen3": Family(
        "Qwen3ForCausalLM",
        attention_bias=False,
        qk_norm="head",
        norm_after=False,
        head_dim=True,
        sliding="switch",
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        attention_bias=True,
        qk_norm="none",
        norm_after=False,
        head_dim=False,
        sliding="switch",
    ),
    "llama": Family(
        "LlamaForCausalLM",
        attention_bias=False,
        qk_norm="none",
        norm_after=False,
        head_dim=False,
        sliding="",
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        attention_bias=False,
        qk_norm="projection",
        norm_after=True,
        head_dim=False,
        sliding="pattern",
    ),
}


def read_config(path: pathlib.Path) -> ModelConfig:
    """The settings in `path/config.json`.

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
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is not valid JSON ({error}); download the checkpoint again"
        ) from None
    try:
        return from_fields(fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def from_fields(fields: Fields) -> ModelConfig:
    """The settings in the fields of a config.json.

    Raises:
      ValueError: naming the field that is missing, unknown or not implemented.
    """
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise not_implemented("model_type", model_type, *FAMILIES)
    family = FAMILIES[model_type]
    for name, allowed in _FIXED.items():
        if name == "attention_bias" and family.attention_bias:
            allowed = (True,)
        if name in fields and fields[name] not in allowed:
            raise not_implemented(name, fields[name], allowed[0])
    if unknown := sorted(fields.keys() - _READ - _IRRELEVANT - _FIXED.keys()):
        raise ValueError(f"fields {unknown} are not known; they may change the model's numbers")
    required = _SIZES.keys() - set(_OPTIONAL) | {"rms_norm_eps"}
    if family.head_dim:
        required |= {"head_dim"}
    if missing := sorted(required - fields.keys()):
        raise ValueError(f"fields {missing} are missing")

    sizes = _sizes(fields)
    layer_types, window = _attention_pattern(fields, family, sizes["num_layers"])
    theta, scaling = hf_rope.read(
        fields, by_type=family.sliding == "pattern", sliding=SLIDING in layer_types
    )
    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(f"tie_word_embeddings is {tied!r}; expected true or false")
    return ModelConfig(
        **sizes,
        rms_norm_eps=positive(fields, "rms_norm_eps"),
        tie_embeddings=tied,
        attention_bias=family.attention_bias,
        qk_norm=family.qk_norm,
        norm_after=family.norm_after,
        rope_theta=theta,
        rope_scaling=scaling,
        layer_types=layer_types,
        sliding_window=window,
    )


def _sizes(fields: Fields) -> dict[str, int]:
    given = {
        name: whole(fields, name, most=10_000 if name == "num_hidden_layers" else 2**31)
        for name in _SIZES
        if name not in _NULLABLE or fields.get(name) is not None
    }
    heads = given["num_attention_heads"]
    given.setdefault("num_key_value_heads", heads)  # null: no grouping
    if "head_dim" not in given:
        if given["hidden_size"] % heads:
            raise ValueError(
                f"hidden_size {given['hidden_size']} is not a multiple of num_attention_heads "
                f"{heads}, and there is no head_dim"
            )
        given["head_dim"] = given["hidden_size"] // heads
    return {_SIZES[name]: value for name, value in given.items()}


def _attention_pattern(
    fields: Fields, family: Family, layers: int
) -> tuple[tuple[str, ...], int | None]:
    """`layer_types` and `sliding_window` of ModelConfig; () and None where all layers are full."""
    switch = fields.get("use_sliding_window", False)
    if switch not in (True, False) or (switch and family.sliding != "switch"):
        raise not_implemented("use_sliding_window", switch, False)
    if not family.sliding and fields.get("sliding_window") is not None:
        raise not_implemented("sliding_window", fields["sliding_window"], None)
    types = fields.get("layer_types")
    if types is None:
        types = _default_pattern(fields, family, layers)
    if not isinstance(types, list) or any(kind not in (FULL, SLIDING) for kind in types):
        raise not_implemented("layer_types", types, [FULL, SLIDING])
    if SLIDING not in types:
        # The Qwen families always write a sliding_window; it acts on sliding layers only.
        return (), None
    if not family.sliding or (family.sliding == "switch" and not switch):
        raise ValueError(
            f"layer_types has {SLIDING!r} without use_sliding_window; expected {FULL!r}"
        )
    return tuple(types), whole({"sliding_window": _DEFAULT_WINDOW} | fields, "sliding_window")


def _default_pattern(fields: Fields, family: Family, layers: int) -> list[str]:
    """What `transformers` makes of a file without layer_types."""
    if family.sliding == "pattern":
        return [SLIDING if (layer + 1) % 4 else FULL for layer in range(layers)]
    if fields.get("use_sliding_window", False):
        first = whole({"max_window_layers": 28} | fields, "max_window_layers")
        return [SLIDING if layer >= first else FULL for layer in range(layers)]
    return [FULL] * layers


# ---- writing ------------------------------------------------------------------------------------


def family_of(config: ModelConfig) -> str:
    """The model_type under which `transformers` computes what this configuration says.

    Raises:
      ValueError: if there is none.
    """
    for model_type in FAMILIES:
        try:
            if from_fields(to_fields(config, model_type)) == config:
                return model_type
        except ValueError:
            continue
    raise ValueError(
        f"no model type of {', '.join(FAMILIES)} has the settings {config}; it cannot be saved as "
        "a Hugging Face checkpoint"
    )


def to_fields(config: ModelConfig, model_type: str) -> Fields:
    """The fields of config.json, apart from dtype and special tokens."""
    family = FAMILIES[model_type]
    fields: Fields = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
    if not family.attention_bias:
        fields["attention_bias"] = False
    fields |= {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
    fields |= hf_rope.write(config, by_type=family.sliding == "pattern")
    if family.sliding:
        fields["layer_types"] = [config.layer_type(layer) for layer in range(config.num_layers)]
        fields["sliding_window"] = config.sliding_window
    if family.sliding == "switch":
        fields["use_sliding_window"] = config.sliding_window is not None
    return fields
