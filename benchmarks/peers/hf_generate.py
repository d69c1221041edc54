"""Hugging Face `generate` on CPU, as a contestant of benchmarks/sampler.py.

    VENV: python -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers
    python benchmarks/sampler.py --peer=HF=VENV/bin/python:benchmarks/peers/hf_generate.py

Reads the case and the weights that benchmarks/sampler.py made, builds a Qwen3 of the same numbers,
and answers each line on standard input by one call's JSON. Settings: float32, temperature 1, no
truncation, everything else as `generate` comes. It returns tokens only, neither log-probs nor
entropies.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
import transformers


def model_of(case: dict, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """A Qwen3 with the given weights."""
    config = transformers.Qwen3Config(
        vocab_size=case["vocab"],
        hidden_size=case["width"],
        intermediate_size=case["mlp"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"],
        head_dim=case["head_dim"],
        rope_theta=1e6,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=case["stop"],
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    state = {
        "model.embed_tokens.weight": weights["embed_tokens"],
        "model.norm.weight": weights["norm"],
    }
    for name, stack in weights.items():
        if name.startswith("layers."):
            key = name.removeprefix("layers.")
            part = "mlp." if key[:-5] in ("gate", "up", "down") else "self_attn."
            part = "" if "layernorm" in key else part
            for layer, leaf in enumerate(stack):
                matrix = leaf.T if leaf.ndim == 2 else leaf
                state[f"model.layers.{layer}.{part}{key}.weight"] = matrix
    tensors = {name: torch.tensor(np.ascontiguousarray(leaf)) for name, leaf in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def main() -> None:
    """A call for each line of standard input."""
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    case = json.loads((folder / f"{name}.json").read_text())
    model = model_of(case, dict(np.load(folder / f"{name}.npz")))
    prompts = torch.tensor(np.load(folder / f"{name}_prompts.npy"), dtype=torch.long)
    at_once = max(1, case["rows"] // case["group"])
    for step, _ in enumerate(sys.stdin):
        torch.manual_seed(step)
        cpu, wall = time.process_time(), time.perf_counter()
        lengths: list[int] = []
        for part in prompts.split(at_once):
            with torch.no_grad():
                output = model.generate(
                    part,
                    attention_mask=torch.ones_like(part),
                    do_sample=True,
                    temperature=1.0,
                    top_p=1.0,
                    top_k=0,
                    max_new_tokens=case["limit"],
                    num_return_sequences=case["group"],
                )
            new = output[:, part.shape[1] :]
            stopped = (new == case["stop"]).int()
            first = torch.where(stopped.any(1), stopped.argmax(1) + 1, new.shape[1])
            lengths += first.tolist()
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(took | {"tokens": sum(lengths), "longest": max(lengths)}), flush=True)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
