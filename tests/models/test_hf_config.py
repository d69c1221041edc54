"""config.json of every family: both spellings, defaults, and what is refused by name."""

import dataclasses
import json

import pytest

from drift_jax.models import hf_config
from drift_jax.models.hf_config import from_fields, to_fields
from drift_jax.models.rotary import Llama3Scaling, YarnScaling, attention_factor
from drift_jax.models.transformer import FULL, SLIDING, ModelConfig
from tests import golden_models

# As the config.json of published checkpoints spells it, each written by its own version.
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
OLMO3_7B = {
    "architectures": ["Olmo3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ([SLIDING] * 3 + [FULL]) * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "transformers_version": "4.57.0",
    "use_cache": False,
    "vocab_size": 100278,
}


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def test_qwen3_is_read():
    assert from_fields(QWEN3_8B) == ModelConfig(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_embeddings=False,
        max_position_embeddings=40960,
    )


def test_qwen25_has_biases_and_no_norm_of_queries_and_keys():
    config = from_fields(QWEN25_7B)
    assert (config.attention_bias, config.qk_norm, config.head_dim) == (True, "none", 128)
    assert config.sliding_window is None  # written in the file, switched off there


def test_llama3_scaling_is_read():
    config = from_fields(LLAMA32_1B)
    assert config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert (config.rope_theta, config.qk_norm, config.tie_embeddings) == (5e5, "none", True)


def test_smollm2_is_a_llama_without_scaling_whose_head_size_follows_from_the_width():
    config = from_fields(SMOLLM2_135M)
    assert (config.head_dim, config.rope_theta, config.rope_scaling) == (64, 1e5, None)


def test_olmo3_norms_after_and_scales_full_layers_only():
    config = from_fields(OLMO3_7B)
    assert (config.norm_after, config.qk_norm) == (True, "projection")
    assert config.pattern == (SLIDING, SLIDING, SLIDING, FULL)
    assert config.sliding_window == 4096
    assert config.rope_scaling == YarnScaling(8.0, 8192, 32.0, 1.0, 1.2079441541679836)


def test_the_default_attention_factor_of_yarn_is_the_published_one():
    scaling = YarnScaling(factor=8.0, original_max_position_embeddings=8192)
    assert attention_factor(scaling) == pytest.approx(1.2079441541679836, abs=1e-15)


def test_both_spellings_of_the_rotary_settings_mean_the_same():
    for old in (QWEN3_8B, QWEN25_7B, LLAMA32_1B, SMOLLM2_135M):
        new = without(old, "rope_theta", "rope_scaling")
        scaling = old.get("rope_scaling") or {"rope_type": "default"}
        new["rope_parameters"] = {"rope_theta": old["rope_theta"], **scaling}
        assert from_fields(new) == from_fields(old)
    new = without(OLMO3_7B, "rope_theta", "rope_scaling")
    new["rope_parameters"] = {
        FULL: {"rope_theta": 500000, **OLMO3_7B["rope_scaling"]},
        SLIDING: {"rope_theta": 500000, "rope_type": "default"},
    }
    assert from_fields(new) == from_fields(OLMO3_7B)


def test_the_oldest_spelling_of_the_scaling_is_read():
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = from_fields(QWEN25_7B | {"rope_scaling": scaling})
    assert config.rope_scaling == YarnScaling(4.0, 32768)


def test_absent_layer_types_are_those_of_the_family():
    assert from_fields(without(OLMO3_7B, "layer_types")) == from_fields(OLMO3_7B)
    switched = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    config = from_fields(QWEN25_7B | switched)
    assert config.layer_types == (FULL,) * 20 + (SLIDING,) * 8
    assert config.sliding_window == 4096


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_what_is_written_is_read_back(name):
    config = golden_models.load(name).config
    family = hf_config.family_of(config)
    assert name.startswith(family) or (name, family) == ("smollm2", "llama")
    # As JSON, which has no tuples.
    assert from_fields(json.loads(json.dumps(to_fields(config, family)))) == config


def test_settings_that_no_model_type_has_are_not_written():
    config = golden_models.load("olmo3").config
    with pytest.raises(ValueError, match="no model type of qwen3, qwen2, llama, olmo3"):
        hf_config.family_of(dataclasses.replace(config, qk_norm="none"))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "base, changes, named",
    [
        (QWEN3_8B, {"model_type": "gemma3"}, "model_type = 'gemma3' is not implemented"),
        (QWEN3_8B, {"model_type": ["qwen3"]}, "model_type = ['qwen3']"),
        (QWEN3_8B, {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented"),
        (QWEN3_8B, {"attention_bias": True}, "attention_bias = True is not implemented"),
        (QWEN3_8B, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (QWEN3_8B, {"new_trick": 1}, "fields ['new_trick'] are not known"),
        (QWEN3_8B, {"auto_map": {"AutoModel": "code.py"}}, "fields ['auto_map'] are not known"),
        (QWEN3_8B, {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        (QWEN3_8B, {"hidden_size": None}, "hidden_size is None"),
        (QWEN3_8B, {"vocab_size": "many"}, "vocab_size is 'many'"),
        (QWEN3_8B, {"num_attention_heads": 33}, "num_heads 33 is not a multiple"),
        (QWEN3_8B, {"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        (QWEN3_8B, {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        (QWEN3_8B, {"layer_types": [SLIDING] * 36}, "without use_sliding_window"),
        (QWEN3_8B, {"layer_types": [FULL] * 35 + ["linear_attention"]}, "layer_types = "),
        (
            QWEN3_8B,
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": [SLIDING] * 35},
            "layer_types names 35 layers, num_layers is 36",
        ),
        (
            QWEN3_8B,
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": [SLIDING] * 36,
                "rope_scaling": YARN,
            },
            "rope scaling of sliding layers is not implemented",
        ),
        (QWEN3_8B, {"use_sliding_window": "on"}, "use_sliding_window = 'on'"),
        (QWEN3_8B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (QWEN3_8B, {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type = ['yarn']"),
        (QWEN3_8B, {"rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
        (QWEN3_8B, {"rope_scaling": YARN | {"mscale": 1.0}}, "fields ['mscale']"),
        (QWEN3_8B, {"rope_scaling": YARN | {"truncate": False}}, "truncate = False"),
        (QWEN3_8B, {"rope_scaling": YARN | {"beta_fast": 0.5}}, "rising range"),
        (QWEN3_8B, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position"),
        (QWEN3_8B, {"rope_theta": None}, "rope_theta is missing"),
        (QWEN3_8B, {"rope_theta": -1}, "rope_theta is -1"),
        (QWEN3_8B, {"rope_parameters": {"rope_theta": 1e4}}, "disagree"),
        (QWEN3_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (LLAMA32_1B, {"mlp_bias": True}, "mlp_bias = True"),
        (LLAMA32_1B, {"rope_interleaved": True}, "rope_interleaved = True"),
        (LLAMA32_1B, {"sliding_window": 4096}, "sliding_window = 4096 is not implemented"),
        (SMOLLM2_135M, {"hidden_size": 577}, "hidden_size 577 is not a multiple"),
        (OLMO3_7B, {"sliding_window": None}, "sliding_window is None"),
        (OLMO3_7B, {"rope_parameters": {"rope_theta": 5e5}}, "one object a layer type"),
        (
            OLMO3_7B,
            {"rope_parameters": {FULL: {}, SLIDING: {"rope_theta": 1e4}}, "rope_scaling": None},
            "rope_parameters.sliding_attention {'rope_theta': 10000.0} is not implemented",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(base, changes, named):
    with pytest.raises(ValueError) as error:
        from_fields(base | changes)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["vocab_size", "head_dim", "rms_norm_eps", "rope_theta"])
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=field):
        from_fields(without(QWEN3_8B, field))


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", "3", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        hf_config.read_config(tmp_path)
