"""Does showing a solution help? Log-probs of gold solutions, bare and with a sibling in the prompt.

    python -m benchmarks.gold_log_probs --config=configs/smollm2_135m.py:task=tooluse --out=FILE

  --config=FILE[:ARGS]            experiment file; `evaluation` says which problems
  --config.section.field=VALUE    overrides any field
  --out=FILE                      one JSON line a problem: id, tokens, nats a token; no text

The scored response is `data.demonstrations.solution`. The sibling gives the same answer after
another thought, so that copying its first line does not help. "Answer" are the tokens after the
thought or stub: the calls of a tool-use response, the letter and its tags of a multiple-choice one.
No gradient, no sampling: this is what the self-teacher knows before any training.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from drift_jax import assemble, batching, command, examination, passes
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data import demonstrations, prompting
from drift_jax.losses import vocab
from drift_jax.models import transformer
from drift_jax.types import Problem

_OUT = flags.DEFINE_string("out", None, "File for one JSON line a problem.")

ANSWER_STARTS = ("Action:", "<answer>")  # after the thought, and after the stub


def measure(config: Any) -> list[dict[str, Any]]:
    """Mean log-prob a token of each problem's gold solution, bare and with a sibling, in nats.

    Problems whose solution has more than rollout.max_new_tokens tokens, or is refused by the
    task's grader, are left out.
    """
    tokenizer = assemble.open_tokenizer(config)
    mesh = assemble.make_mesh(config)
    model, params = assemble.open_model(config, tokenizer, mesh)
    exam = examination.examination(config, model, tokenizer, mesh)
    score = scorer(config, model, params)
    rows = []
    for problem in filter(demonstrations.is_solvable, exam.problems):
        tokens, answer_from = encode_solution(tokenizer, problem)
        if len(tokens) > config.rollout.max_new_tokens:
            continue
        sibling = demonstrations.solution(problem, other_words=True)
        contexts = {
            "bare": (prompting.render(tokenizer, problem), config.rollout.prompt_buckets),
            "taught": (
                prompting.render_teacher(
                    tokenizer, problem, sibling, max_tokens=config.teacher.max_prompt_tokens
                ),
                config.teacher.prompt_buckets,
            ),
        }
        row: dict[str, Any] = {"id": problem.id, "tokens": len(tokens)}
        for name, (prompt, buckets) in contexts.items():
            log_probs = score(prompt, tokens, buckets)
            row[name] = float(log_probs.mean())
            row[f"{name}_answer"] = float(log_probs[answer_from:].mean())
        rows.append(row)
    return rows


def scorer(
    config: Any, model: transformer.ModelConfig, params: transformer.Params
) -> Callable[[np.ndarray, np.ndarray, tuple[int, ...]], np.ndarray]:
    """A function (prompt, response, prompt buckets) -> log-prob of each response token, in nats."""
    compute = assemble.compute(config)

    @jax.jit
    def read(params: Any, tokens: Any, mask: Any, response: Any) -> jax.Array:
        cast = transformer.cast(params, compute.dtype)
        hidden = passes.response_hidden(cast, model, compute, tokens, mask, response.shape[1])
        head = transformer.output_head(cast)
        return vocab.head_statistics(hidden, head, response, chunk=compute.vocab_chunk).log_probs

    def score(prompt: np.ndarray, response: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
        width = batching.bucket(len(prompt), buckets, "a prompt")
        time = batching.bucket(len(response), config.rollout.response_buckets, "a response")
        padded = np.zeros((1, time), np.int32)
        padded[0, : len(response)] = response
        real = (np.arange(time) < len(response))[None]
        tokens, mask = batching.join([prompt], padded, real, width)
        return np.asarray(read(params, tokens, mask, padded))[0, : len(response)]

    return score


def encode_solution(tokenizer: Any, problem: Problem) -> tuple[np.ndarray, int]:
    """Tokens of the gold solution with the end token, and the first one of its answer."""
    text = demonstrations.solution(problem)
    begin = next(text.index(start) for start in ANSWER_STARTS if start in text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    answer_from = sum(end <= begin for end in ends)
    stop = prompting.stop_tokens(tokenizer)[:1]
    return np.array([*encoded["input_ids"], *stop], np.int32), answer_from


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over problems, a line each."""
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0] if name != "id"}
    helped = sum(row["taught"] > row["bare"] for row in rows)
    return (
        f"{len(rows)} problems, {mean['tokens']:.1f} tokens each, log-prob in nats a token\n"
        f"  whole response: bare {mean['bare']:.3f}, with a sibling {mean['taught']:.3f} "
        f"(higher in {helped} of {len(rows)})\n"
        f"  answer alone:   bare {mean['bare_answer']:.3f}, "
        f"with a sibling {mean['taught_answer']:.3f}"
    )


def main(config: Any) -> None:
    """Checks the flags, measures, writes and prints."""
    configs.validate(config, device_count=jax.device_count())
    if _OUT.value is None:
        raise ConfigError("--out is missing; name a file for one JSON line a problem")
    rows = measure(config)
    if not rows:
        raise ConfigError("no problem is left; raise rollout.max_new_tokens")
    lines = (json.dumps(row) + "\n" for row in rows)
    pathlib.Path(_OUT.value).write_text("".join(lines), encoding="utf-8")
    print(summary(rows))


if __name__ == "__main__":
    command.run(main, __doc__ or "")
