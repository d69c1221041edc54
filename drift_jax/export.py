"""Writes the model of a run as a Hugging Face folder, which `transformers` and vLLM load.

    python -m drift_jax.export --workdir=runs/quickstart --out=models/quickstart

The folder has safetensors files, configuration, tokenizer, and manifest.json: a hash of each file,
and for a few prompts the largest logits of the model as it was written. Whoever receives the folder
recomputes them:

    python -m drift_jax.export --verify=models/quickstart

Exit codes: 0 done; 1 the folder is not what its manifest says; 2 bad input, nothing was written.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import logging as absl_logging

import drift_jax
from drift_jax import assemble, command, models, sharding, update
from drift_jax import config as configs
from drift_jax.batching import left_pad
from drift_jax.checkpoint import Checkpoints
from drift_jax.config import ConfigError
from drift_jax.data import prompting
from drift_jax.models import hf_config, hf_weights, transformer
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.types import Problem

MANIFEST = "manifest.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
TOP = 5  # logits of a prompt in the manifest
# Of the largest logit: float32 sums in another order move a logit by about a tenth of this.
TOLERANCE = 1e-4
# Rendered by the chat template, so that a wrong tokenizer shows as well.
TEXTS = ("What is the capital of France?", "def f(x):\n    return 12 + 35 * x  # naïve, Ελληνικά")
RANDOM_LENGTHS = (7, 64)  # prompts of random tokens: they reach all of the vocabulary


def export(
    workdir: str, out: str, *, step: str = "last", teacher: bool = False, dtype: str | None = None
) -> None:
    """Writes `out` from a checkpoint of `workdir`, with the manifest; whole or not at all.

    Args:
      workdir: work directory of a run.
      out: the folder to make.
      step: a step, "best" or "last".
      teacher: the self-teacher's parameters instead of the student's.
      dtype: a name of `DTYPES`; None is that of the model which the run started from.

    Raises:
      ConfigError: one line; nothing is written then.
    """
    config = read_config(workdir)
    tokenizer = assemble.open_tokenizer(config)
    model, base = base_model(config, tokenizer)
    with assemble.boundary(), hf_weights.new_folder(pathlib.Path(out)) as folder:
        found, params = read_parameters(workdir, config, model, step, teacher)
        stored = DTYPES[dtype] if dtype else models.stored_dtypes(str(base)) if base else None
        hf_weights.write(
            folder,
            model,
            params,
            tokenizer=tokenizer,
            dtype=stored,
            generation=generation_fields(base),
        )
        del params  # the manifest is about what was written, read back from the files
        checks = logit_checks(folder, prompts(tokenizer, model))
        hf_weights.write_json(
            folder / MANIFEST,
            {
                "drift_jax": drift_jax.__version__,
                "source": {
                    "run": pathlib.Path(workdir).absolute().name,
                    "step": found,
                    "parameters": "teacher" if teacher else "student",
                    "base": config.model.path if base else "random",
                    "task": config.task,
                    "method": config.method,
                    "seed": config.seed,
                },
                "files": {file.name: _describe(file) for file in sorted(folder.iterdir())},
                "tolerance": TOLERANCE * _largest(checks),
                "checks": checks,
            },
        )
    print(f"saved step {found} of {workdir} in {out}; largest logit {_largest(checks):.4g}")


# ---- the run ------------------------------------------------------------------------------------


def read_config(workdir: str) -> Any:
    """The configuration of the run in a work directory."""
    file = pathlib.Path(workdir) / "config.json"
    if not file.is_file():
        raise ConfigError(f"no config.json in {workdir}; name the work directory of a run")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}); name the work directory of a run"
        ) from None
    return configs.from_json(json.dumps(record))


def base_model(config: Any, tokenizer: Any) -> tuple[ModelConfig, pathlib.Path | None]:
    """The settings of the run's model, and the checkpoint that it started from, if any."""
    if config.model.init != "checkpoint":
        return ModelConfig(vocab_size=len(tokenizer), **config.model.preset), None
    folder = assemble.model_folder(config)
    with assemble.boundary():
        return hf_config.read_config(folder), folder


def read_parameters(
    workdir: str, config: Any, model: ModelConfig, step: str, teacher: bool
) -> tuple[int, Params]:
    """The step of a checkpoint and its parameters, spread over all devices of this machine.

    Raises:
      ValueError: if there is no such checkpoint.
    """
    # Not the run's mesh: this machine may have fewer devices.
    mesh = sharding.make_mesh()
    with Checkpoints(workdir) as checkpoints:
        named = {"best": checkpoints.best_step(), "last": checkpoints.latest_step()}
        found = named[step] if step in named else int(step)
        if found is None:
            raise ConfigError(
                f"{workdir} has no {step} checkpoint; present: "
                f"{', '.join(map(str, checkpoints.steps())) or 'none'}"
            )
        restored = checkpoints.restore(assemble.state_template(config, mesh, model), found)
    assert restored is not None  # a named step is there or raises
    state, _ = restored
    return found, state.teacher if teacher else update.merge(state.trainable, state.frozen)


def generation_fields(base: pathlib.Path | None) -> dict[str, Any] | None:
    """What generation_config.json of the base model says: stop tokens, sampling defaults."""
    if base is None or not (base / "generation_config.json").is_file():
        return None
    fields = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in fields.items() if not name.startswith("_")}


# ---- the manifest -------------------------------------------------------------------------------


def prompts(tokenizer: Any, model: ModelConfig) -> dict[str, np.ndarray]:
    """What is checked: text, or the name of what stands for it, -> token ids."""
    rng = np.random.default_rng(0)
    count = min(len(tokenizer), model.vocab_size)
    drawn = {
        f"{length} random tokens": rng.integers(0, count, length).astype(np.int32)
        for length in RANDOM_LENGTHS
    }
    return {text: _render(tokenizer, text) for text in TEXTS} | drawn


def _render(tokenizer: Any, text: str) -> np.ndarray:
    message = {"role": "user", "content": text}
    return prompting.render(tokenizer, Problem(text, "export", (message,), answer=""))


def logit_checks(folder: pathlib.Path, asked: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each prompt its tokens, their hash, and the largest logits of the next token."""
    logits = next_logits(folder, list(asked.values()))
    checks = []
    for (text, prompt), row in zip(asked.items(), logits, strict=True):
        top = np.argsort(-row, kind="stable")[:TOP]
        checks.append(
            {
                "text": text if text in TEXTS else None,
                "tokens": prompt.tolist(),
                "sha256": _hash(prompt),
                "top_ids": top.tolist(),
                "top_logits": [float(value) for value in row[top]],
                "largest": float(np.abs(row).max()),
            }
        )
    return checks


def next_logits(folder: pathlib.Path, tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Logits after each prompt, of the files in a folder, in float32. [prompt, vocab]"""
    model, params = models.load(str(folder), mesh=sharding.make_mesh())
    width = max(map(len, tokens))
    padded, mask = left_pad(tokens, width)
    # GPUs round the factors of float32 products to fewer bits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        return np.asarray(_last_logits(params, jnp.asarray(padded), jnp.asarray(mask), model))


@functools.partial(jax.jit, static_argnums=3)
def _last_logits(
    params: Params, tokens: jax.Array, mask: jax.Array, model: ModelConfig
) -> jax.Array:
    hidden = transformer.hidden_states(params, model, tokens, mask=mask)
    return hidden[:, -1] @ transformer.output_head(params)


def _hash(tokens: np.ndarray) -> str:
    """SHA-256 of the ids as little-endian 32-bit integers."""
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest()


def _describe(file: pathlib.Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {
            "bytes": file.stat().st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _largest(checks: Sequence[Mapping[str, Any]]) -> float:
    return max(check["largest"] for check in checks)


def verify(folder: pathlib.Path) -> list[str]:
    """What in a folder differs from its manifest, one line each; empty where all is well.

    Raises:
      ConfigError: if there is no manifest, or none that can be read.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ConfigError(f"no {MANIFEST} in {folder}; name a folder that drift_jax.export wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        checks, tolerance = manifest["checks"], float(manifest["tolerance"])
        tokens = [np.array(check["tokens"], np.int32) for check in checks]
        faults = [
            f"{name} is missing or changed"
            for name, described in manifest["files"].items()
            if not (folder / name).is_file() or _describe(folder / name) != described
        ]
        faults += [
            f"prompt {i} is not the one that was hashed"
            for i, check in enumerate(checks)
            if _hash(tokens[i]) != check["sha256"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    if faults:
        return faults
    with assemble.boundary():
        tokenizer = prompting.load_tokenizer(folder)
        logits = next_logits(folder, tokens)
    for check in checks:
        if check["text"] is None:
            continue
        if _render(tokenizer, check["text"]).tolist() != check["tokens"]:
            faults.append(f"the tokenizer gives other tokens for {check['text']!r}")
    gap = 0.0
    for i, (row, check) in enumerate(zip(logits, checks, strict=True)):
        differs = float(np.abs(row[check["top_ids"]] - check["top_logits"]).max())
        others = np.delete(row, check["top_ids"])
        if differs > tolerance or others.max() > min(check["top_logits"]) + tolerance:
            faults.append(f"prompt {i}: logits differ by {differs:.2g}, allowed {tolerance:.2g}")
        gap = max(gap, differs)
    print(f"{len(checks)} prompts, largest logit difference {gap:.2g}, allowed {tolerance:.2g}")
    return faults


# ---- the command --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Refuses bad flags as the other commands do: in one line."""

    def error(self, message: str) -> NoReturn:
        raise command.refuse(ConfigError(message))


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, or verifies."""
    parser = _Parser(
        prog="python -m drift_jax.export",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m drift_jax.export --workdir=runs/quickstart --out=models/mine",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", metavar="DIR", help="the run")
    parser.add_argument("--out", metavar="HF_DIR", help="the folder to make; it must not exist")
    parser.add_argument(
        "--step", default="last", help="which checkpoint: a step, best or last (default)"
    )
    parser.add_argument(
        "--teacher", action="store_true", help="the self-teacher instead of the student"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="on disk; default that of the model the run started from"
    )
    parser.add_argument(
        "--verify", metavar="HF_DIR", help="recompute the logits of this folder's manifest instead"
    )
    options = parser.parse_args(arguments)
    command.tune_cpu()
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells of every file otherwise
    try:
        if options.verify is not None:
            faults = verify(pathlib.Path(options.verify))
            for fault in faults:
                print(f"error: {options.verify}: {fault}", file=sys.stderr)
            sys.exit(1 if faults else 0)
        if options.workdir is None or options.out is None:
            parser.error("--workdir and --out, or --verify, are needed; see --help for an example")
        if options.step not in ("best", "last") and not options.step.isdecimal():
            parser.error(f"--step is {options.step!r}; expected a step, best or last")
        export(
            options.workdir,
            options.out,
            step=options.step,
            teacher=options.teacher,
            dtype=options.dtype,
        )
    except ConfigError as error:
        raise command.refuse(error) from None


if __name__ == "__main__":
    main()
