"""GGUF files become checkpoint folders: the same numbers, the same tokens, and no surprises."""

import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from drift_jax.data.prompting import load_tokenizer, render, stop_tokens
from drift_jax.prepare import checkpoints
from drift_jax.prepare.__main__ import main
from drift_jax.prepare.gguf_file import GGUFFile
from drift_jax.types import Problem

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install -e .[gguf]")

HEADS, KV_HEADS, HEAD, WIDTH, INNER, LAYERS = 4, 2, 16, 64, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("Ġ", "12")]
VOCABULARY = [*SPECIAL, "<tool>", *LETTERS, *("".join(pair) for pair in MERGES)]
KINDS = [3] * 3 + [4] + [1] * (len(VOCABULARY) - 4)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MATRICES = {  # name in the file, name at Hugging Face, [out, in]
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD, WIDTH)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD, WIDTH)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD, WIDTH)),
    "attn_output": ("self_attn.o_proj", (WIDTH, HEADS * HEAD)),
    "ffn_gate": ("mlp.gate_proj", (INNER, WIDTH)),
    "ffn_up": ("mlp.up_proj", (INNER, WIDTH)),
    "ffn_down": ("mlp.down_proj", (WIDTH, INNER)),
}


def interleave(matrix, heads):
    """The rows as GGUF has them, one at a time: row 2i + half of a head is row half d/2 + i."""
    stored = np.empty_like(matrix)
    size = len(matrix) // heads
    for head in range(heads):
        for half in range(2):
            for i in range(size // 2):
                stored[head * size + 2 * i + half] = matrix[head * size + half * size // 2 + i]
    return stored


def make_tensors(*, tied=True):
    """Name in the file, Hugging Face's name, and Hugging Face's values, of each tensor."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    tensors = [
        ("token_embd.weight", "model.embed_tokens.weight", draw(len(VOCABULARY), WIDTH)),
        ("output_norm.weight", "model.norm.weight", draw(WIDTH)),
    ]
    if not tied:
        tensors.append(("output.weight", "lm_head.weight", draw(len(VOCABULARY), WIDTH)))
    for layer in range(LAYERS):
        ours, theirs = f"blk.{layer}.", f"model.layers.{layer}."
        tensors += [
            (f"{ours}attn_norm.weight", f"{theirs}input_layernorm.weight", draw(WIDTH)),
            (f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight", draw(WIDTH)),
        ]
        tensors += [
            (f"{ours}{name}.weight", f"{theirs}{hf_name}.weight", draw(*shape))
            for name, (hf_name, shape) in MATRICES.items()
        ]
    return tensors


def write(path, *, tied=True, quantised=(), leave_out=(), settings=None, extra=()):
    """Writes a tiny GGUF file. Returns what its tensors are at Hugging Face, by name.

    `quantised` are tensors stored as Q8_0, `settings` replace those of the header (None leaves one
    out), `leave_out` and `extra` are tensors.
    """
    given = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
        **(settings or {}),
    }
    writer = gguf.GGUFWriter(path, given.pop("general.architecture"))
    adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in given.items():
        if value is not None:
            adders.get(type(value), writer.add_array)(key, value)
    expected = {}
    for name, hf_name, values in make_tensors(tied=tied):
        if name in leave_out:
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        stored = interleave(values, heads) if heads else values
        if name in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            blocks = gguf.quantize(stored, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            # Rows are quantised one by one, so the order of rows does not matter.
            values = gguf.dequantize(gguf.quantize(values, kind), kind)
        else:
            writer.add_tensor(name, stored)
        expected[hf_name] = values
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def convert(source, out, *arguments):
    main(["--model=smollm2-135m", f"--out={out}", f"--source={source}", *arguments])


def refusal(capsys, source, out, *arguments):
    """The one line with which the file is refused; the folder is not made."""
    with pytest.raises(SystemExit) as refused:
        convert(source, out, *arguments)
    output = capsys.readouterr()
    assert refused.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not list(Path(out).parent.glob("*.partial"))
    return output.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted folder."""
    base = tmp_path_factory.mktemp("gguf")
    write(base / "tiny.gguf")
    convert(base / "tiny.gguf", base / "out")
    return base / "out"


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path)
    return path.read_bytes()


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_has_its_exact_values_in_hugging_faces_order(tmp_path, tied):
    quantised = ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_k.weight"]
    quantised += ["blk.0.ffn_down.weight", "blk.1.attn_v.weight"]
    expected = write(tmp_path / "tiny.gguf", tied=tied, quantised=quantised)
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert len(found) == 2 + (not tied) + 9 * LAYERS
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_stored_order_of_queries_is_another_one(tmp_path):
    expected = write(tmp_path / "tiny.gguf")
    stored = GGUFFile(tmp_path / "tiny.gguf").read("blk.0.attn_q.weight")
    restored = expected["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(stored[:4], restored[[0, HEAD // 2, 1, HEAD // 2 + 1]])
    assert not np.array_equal(stored, restored)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)]
)
def test_weights_may_be_stored_in_half_the_bytes(tmp_path, name, dtype):
    expected = write(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out", f"--dtype={name}")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values.astype(dtype), err_msg=key)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == name


def test_the_config_is_that_of_the_header(folder):
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected


def test_transformers_reads_the_config(folder):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "LlamaConfig"
    assert config.rope_parameters["rope_theta"] == 100000.0


# ---- tokenizer ---------------------------------------------------------------------------------


def test_text_is_merged_as_the_file_says(folder):
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer.encode("the the t", add_special_tokens=False)
    )
    assert tokens == ["the", "Ġthe", "Ġ", "t"]


def test_digits_stand_alone_whatever_the_merges_say(folder, tmp_path):
    assert load_tokenizer(folder).tokenize(" 12 the") == ["Ġ", "1", "2", "Ġthe"]
    write(tmp_path / "tiny.gguf", settings={"tokenizer.ggml.pre": "gpt-2"})
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").tokenize(" 12 the") == ["Ġ12", "Ġthe"]


@pytest.mark.parametrize(
    "text",
    ["the other", "  naïve\n\n☃ 漢字", "<|im_start|>user\nthe<|im_end|><tool>", "it's\t", ""],
)
def test_transformers_own_reading_of_the_file_gives_the_same_tokens(folder, text):
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch: extra parity")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder.parent, gguf_file="tiny.gguf")
    ours = load_tokenizer(folder)
    assert ours.encode(text) == theirs.encode(text)
    messages = [{"role": "user", "content": text}]
    assert ours.apply_chat_template(messages, return_dict=False) == theirs.apply_chat_template(
        messages, return_dict=False
    )


@given(st.text(max_size=40))
def test_text_survives_the_tokenizer(folder, text):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_control_tokens_are_special_and_users_own_are_not(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<|im_end|><tool>", add_special_tokens=False) == [2, 3]
    assert tokenizer.decode([2, 3], skip_special_tokens=True) == "<tool>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.bos_token_id == 1
    assert stop_tokens(tokenizer) == (2,)


def test_a_prompt_is_rendered_with_the_files_template(folder):
    tokenizer = load_tokenizer(folder)
    problem = Problem("t/train/0", "t", ({"role": "user", "content": "the"},), "A")
    text = tokenizer.decode(render(tokenizer, problem).tolist())
    assert text == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"


# ---- the folder --------------------------------------------------------------------------------


def test_the_folder_says_where_it_came_from_and_running_twice_is_fine(folder, capsys):
    record = json.loads((folder / "prepared.json").read_text())
    assert record["origin"]["model"] == "smollm2-135m"
    assert record["sha256"].keys() == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    before = (folder / "model.safetensors").stat().st_mtime_ns
    convert(folder.parent / "tiny.gguf", folder)
    assert "was there already" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(tmp_path, folder, capsys):
    source, out = folder.parent / "tiny.gguf", tmp_path / "out"
    out.mkdir()
    convert(source, out)  # an empty folder may be filled
    capsys.readouterr()
    assert "holds something else" in refusal(capsys, source, out, "--dtype=float16")
    (out / "config.json").write_text("{}")
    assert "holds a damaged copy" in refusal(capsys, source, out)
    (out / "prepared.json").unlink()
    assert "holds something else" in refusal(capsys, source, out)
    assert (out / "config.json").read_text() == "{}"


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"GGU", "is not a GGUF file"),
        (b"PK\x03\x04" + b"x" * 100, "is not a GGUF file"),
        (b"GGUF", "ends at byte 4, inside its header"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "a count of 1152921504606846976"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "a count of 1152921504606846976"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "inside its header"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 0, 1 << 40),
            "a count of 1099511627776",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "damaged GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "holds the architecture None"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 64, 77, 0), "number format 77"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 5), "a count of 5"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 1 << 63, 0, 0), "ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 0, 0, 0), "the shape (0,)"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 33, 8, 0), "not whole blocks"),
    ],
)
def test_a_file_that_is_no_sound_gguf_file_is_refused(tmp_path, capsys, content, said):
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    error = refusal(capsys, file, tmp_path / "out")
    assert said in error and str(file) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"general.architecture": "qwen2"}}, "architecture 'qwen2'; only 'llama'"),
        ({"settings": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type is set"),
        ({"settings": {"llama.expert_count": 8}}, "llama.expert_count is set"),
        ({"settings": {"llama.block_count": None}}, "llama.block_count is None"),
        ({"settings": {"llama.attention.head_count": 0}}, "head_count is 0"),
        ({"settings": {"llama.rope.freq_base": float("nan")}}, "freq_base is nan"),
        ({"settings": {"llama.block_count": 3}}, "missing ['blk.2.attn_k.weight'"),
        ({"settings": {"llama.feed_forward_length": 32}}, "misshapen ['blk.0.ffn_gate.weight"),
        ({"leave_out": ["token_embd.weight"]}, "lacks the matrix token_embd.weight"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, "missing ['blk.1.ffn_up.weight']"),
        ({"extra": [("rope_freqs.weight", np.ones(8, np.float32))]}, "unknown ['rope_freqs"),
        ({"settings": {"tokenizer.ggml.model": "llama"}}, "tokenizer 'llama'"),
        ({"settings": {"tokenizer.ggml.pre": "qwen2"}}, "splitter 'qwen2'"),
        ({"settings": {"tokenizer.ggml.merges": ["t q"]}}, "do not fit together"),
        ({"settings": {"tokenizer.ggml.merges": ["t"]}}, "do not fit together"),
        ({"settings": {"tokenizer.ggml.tokens": ["a", "a"]}}, "the tokenizer's"),
        ({"settings": {"tokenizer.ggml.token_type": [1, 1]}}, "token_type does not fit"),
        ({"settings": {"tokenizer.ggml.tokens": 3}}, "tokens is damaged"),
        ({"settings": {"tokenizer.ggml.eos_token_id": None}}, "has no end token"),
        ({"settings": {"tokenizer.ggml.eos_token_id": 9999}}, "eos token is 9999"),
        ({"settings": {"tokenizer.chat_template": None}}, "has no chat template"),
    ],
)
def test_a_model_that_is_not_converted_is_refused_by_name(tmp_path, capsys, changes, said):
    write(tmp_path / "other.gguf", **changes)
    error = refusal(capsys, tmp_path / "other.gguf", tmp_path / "out")
    assert said in error
    assert not (tmp_path / "out").exists()


@given(st.data())
def test_a_damaged_header_is_an_error_of_one_kind(tmp_path_factory, file_bytes, data):
    header = file_bytes.find(b"blk.1.ffn_down") + 60
    content = bytearray(file_bytes)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, header))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path_factory.mktemp("gguf") / "bad.gguf"
    path.write_bytes(content[:length])
    out = path.parent / "out"
    try:
        checkpoints.prepare_model("smollm2-135m", out, path, dtype="float32", revision=None)
    except ValueError as error:
        assert str(path) in str(error)
        assert not out.exists()


def test_without_the_gguf_package_the_message_says_what_to_install(
    tmp_path, capsys, monkeypatch, file_bytes
):
    (tmp_path / "tiny.gguf").write_bytes(file_bytes)
    monkeypatch.setitem(sys.modules, "gguf", None)
    error = refusal(capsys, tmp_path / "tiny.gguf", tmp_path / "out")
    assert "pip install gguf" in error
