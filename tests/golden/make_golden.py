"""Makes the golden checkpoints: tiny random models of every family, and what transformers says.

    python tests/golden/make_golden.py --out=tests/golden/checkpoints

Needs torch (the extra `parity`), which the tests that read the result do not. Each folder has a
checkpoint as `save_pretrained` writes it, and `golden.npz`:

    prompt_mask [row, prompt]      the second prompt is shorter and stands to the right
    tokens      [row, time]        prompts, then what greedy decoding with a cache gives
    logits      [row, time, vocab] of one pass without a cache over the whole sequence, float32

Weights come from numpy, so that another version of torch makes the same ones. They are larger than
those of a fresh model, so that logits are some units wide and greedy choices are clear; a seed is
passed over when a choice hangs on less than MARGIN.
"""

import argparse
import pathlib
import zlib

import numpy as np
import torch
import transformers

PROMPT, PADDING, NEW_TOKENS = 16, 5, 64
MARGIN = 5e-3  # between the two largest logits of every greedy choice
VOCAB = 96

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 1.5,  # with these the ramp begins at the second of four pairs and ends at the last
    "beta_slow": 0.5,
}
# Constants unlike any default, so that one that is not read shows.
MODELS = {
    "qwen3_tied": transformers.Qwen3Config(
        **SIZES,
        head_dim=16,
        rms_norm_eps=1e-3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
    ),
    "qwen3_yarn": transformers.Qwen3Config(
        **SIZES, head_dim=8, tie_word_embeddings=False, rope_parameters=YARN
    ),
    "qwen2": transformers.Qwen2Config(
        **SIZES,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 2000.0},
    ),
    "qwen2_sliding": transformers.Qwen2Config(
        **SIZES,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 2000.0},
    ),
    "llama3": transformers.LlamaConfig(
        **SIZES,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 40,
        },
    ),
    "smollm2": transformers.LlamaConfig(
        **{**SIZES, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 24},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    ),
    "olmo3": transformers.Olmo3Config(
        **{**SIZES, "num_hidden_layers": 8},
        rms_norm_eps=1e-4,
        tie_word_embeddings=False,
        sliding_window=6,
        rope_parameters={
            "full_attention": {**YARN, "attention_factor": 1.2},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
}
SHARDED = ("olmo3",)  # saved as several files, by transformers


def fill(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Random weights that a bfloat16 holds exactly, so that half the bytes keep the numbers."""
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            drawn = rng.standard_normal(tuple(tensor.shape), np.float32)
            if name.endswith("norm.weight"):
                values = 1 + 0.3 * drawn
            elif name.endswith("bias"):
                values = 0.5 * drawn
            else:
                values = drawn * (2.0 if "embed" in name else 1.2) * tensor.shape[-1] ** -0.5
            tensor.copy_(torch.from_numpy(values).to(torch.bfloat16).to(torch.float32))


def run(model: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Greedy tokens with a cache, and the logits of one pass over prompt and tokens."""
    mask = np.ones((2, PROMPT), bool)
    mask[1, :PADDING] = False
    prompt = np.where(mask, rng.integers(3, VOCAB, mask.shape), 0)
    with torch.no_grad():
        tokens = model.generate(
            input_ids=torch.from_numpy(prompt),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            eos_token_id=VOCAB,  # never produced
        )
        whole = torch.ones(tokens.shape, dtype=torch.int64)
        whole[:, :PROMPT] = torch.from_numpy(mask.astype(np.int64))
        positions = (whole.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=tokens, attention_mask=whole, position_ids=positions, use_cache=False
        ).logits
    return {
        "prompt_mask": mask,
        "tokens": tokens.numpy().astype(np.int32),
        "logits": logits.numpy().astype(np.float32),
    }


def clear(golden: dict[str, np.ndarray]) -> bool:
    """Whether every greedy choice is the largest logit by MARGIN, and is not always the same."""
    best = np.sort(golden["logits"][:, PROMPT - 1 : -1], axis=-1)
    chosen = golden["tokens"][:, PROMPT:]
    agree = golden["logits"][:, PROMPT - 1 : -1].argmax(-1) == chosen
    varied = min(len(np.unique(row)) for row in chosen) >= 8
    return bool(agree.all() and (best[..., -1] - best[..., -2]).min() > MARGIN and varied)


def make(name: str, folder: pathlib.Path) -> None:
    """One checkpoint with its golden numbers."""
    # The reference formulas, not the fused kernels; float32 throughout.
    model = transformers.AutoModelForCausalLM.from_config(
        MODELS[name], attn_implementation="eager", dtype=torch.float32
    ).eval()
    for seed in range(100):
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        fill(model, rng)
        golden = run(model, rng)
        if clear(golden):
            break
    else:
        raise RuntimeError(f"{name}: no seed gives clear choices")
    model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40KB" if name in SHARDED else "1GB")
    np.savez_compressed(folder / "golden.npz", **golden)
    print(f"{name}: seed {seed}, logits to {np.abs(golden['logits']).max():.1f}")


def main() -> None:
    """Makes the checkpoints that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the folders")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; all if none")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # these sizes need no more
    for name in options.names or MODELS:
        make(name, options.out / name)


if __name__ == "__main__":
    main()
