"""The sampler's speed on synthetic models: tokens a CPU-second, against other trees and libraries.

    python benchmarks/sampler.py                                    this tree alone
    python benchmarks/sampler.py --tree=OLD=DIR                     against another checkout
    python benchmarks/sampler.py --peer=HF=VENV/bin/python:benchmarks/peers/hf_generate.py

Every contestant is a process of its own that keeps its model and its compiled functions; the
contestants take turns, A B C A B C, on one thread each. Weights are random, made here and read by
all. Only tokens of responses count, never padding. What is printed: medians of the CPU-seconds
and of the wall seconds of a call, and ratios of the medians within this run.

Cases (prompt 32; the models are of Qwen3's kind, float32):
    tiny      0.2 M parameters (2 layers, width 64, vocabulary 512), 1 x 8 rows, 96 tokens each
    small     5.2 M parameters (4 layers, width 256, vocabulary 4,096), 8 x 8 rows, 96 tokens each
    variable  the same as small, lengths up to 384 with mean 96 (a stop token of probability 1/96)
    queue     the same, 16 x 16 samples for 64 rows: an evaluation
    quick     the quickstart's model and rollouts: 16 x 8 rows, 28 tokens at most, vocabulary 150
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
PROMPT, STOP = 32, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what is sampled from it."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    problems: int
    group: int
    limit: int
    rows: int
    mean_length: float | None  # of a response; None: all reach the limit
    cache_buckets: tuple[int, ...]
    segment_steps: int


_SMALL = Case(4, 256, 4, 2, 64, 1024, 4096, 8, 8, 96, 64, None, (64, 96), 32)
CASES = {
    "tiny": Case(2, 64, 2, 1, 32, 192, 512, 1, 8, 96, 8, None, (64, 96), 32),
    "small": _SMALL,
    "variable": dataclasses.replace(
        _SMALL, limit=384, mean_length=96.0, cache_buckets=(64, 128, 256)
    ),
    "queue": dataclasses.replace(
        _SMALL, problems=16, group=16, limit=384, mean_length=96.0, cache_buckets=(64, 128, 256)
    ),
    "quick": Case(3, 64, 2, 1, 32, 192, 150, 16, 8, 28, 128, 14.0, (), 28),
}


def weights(case: Case) -> dict[str, np.ndarray]:
    """Random weights in the layout of `drift_jax.models.transformer`, flat names.

    The first channel of the residual stream is the same for every token, so that the stop token's
    logit, and with it the mean length, can be set.
    """
    rng = np.random.default_rng(0)
    d, f, q, k = case.width, case.mlp, case.heads * case.head_dim, case.kv_heads * case.head_dim
    shapes = {"q_proj": (d, q), "k_proj": (d, k), "v_proj": (d, k), "o_proj": (q, d)}
    shapes |= {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}
    tree = {
        f"layers.{name}": rng.normal(0, shape[0] ** -0.5, (case.layers, *shape))
        for name, shape in shapes.items()
    }
    for name in ("o_proj", "down_proj"):
        tree[f"layers.{name}"][:, :, 0] = 0
    for name, size in (
        ("input_layernorm", d),
        ("post_attention_layernorm", d),
        ("q_norm", case.head_dim),
        ("k_norm", case.head_dim),
    ):
        tree[f"layers.{name}"] = np.ones((case.layers, size))
    embedding = rng.normal(0, 1 / 16, (case.vocab, d))
    embedding[:, 0] = 1.0
    # The last norm keeps the constant channel of order 1 and leaves logits of about unit spread.
    embedding[STOP] = 0
    embedding[STOP, 0] = 1.0 + (-12.0 if case.mean_length is None else STOP_SHIFT[case.vocab])
    tree["embed_tokens"] = embedding
    norm = np.full(d, 16 * d**-0.5)
    norm[0] = 1.0
    tree["norm"] = norm
    return {name: leaf.astype(np.float32) for name, leaf in tree.items()}


# Found by trial: mean lengths of about Case.mean_length.
STOP_SHIFT = {4096: 8.3, 150: 5.0}


def prompts(case: Case) -> list[np.ndarray]:
    """Random prompts of full length."""
    rng = np.random.default_rng(1)
    return [rng.integers(5, case.vocab, PROMPT).astype(np.int32) for _ in range(case.problems)]


# ---- our worker ---------------------------------------------------------------------------------


def work(name: str, folder: pathlib.Path) -> None:
    """Answers each line on standard input by one call's JSON."""
    import jax
    import jax.numpy as jnp

    from drift_jax.models.transformer import ModelConfig
    from drift_jax.sampling import Sampler, random_streams

    case = CASES[name]
    flat = np.load(folder / f"{name}.npz")
    layers = {k[7:]: jnp.asarray(flat[k]) for k in flat if k.startswith("layers.")}
    params = {"embed_tokens": jnp.asarray(flat["embed_tokens"]), "norm": jnp.asarray(flat["norm"])}
    params["layers"] = layers
    model = ModelConfig(
        case.vocab, case.width, case.mlp, case.layers, case.heads, case.kv_heads, case.head_dim
    )
    known = {field.name for field in dataclasses.fields(Sampler)}
    settings = {
        "row_buckets": (16, 32),
        "cache_buckets": case.cache_buckets,
        "max_rows": case.rows,
        "segment_steps": case.segment_steps,
    }
    if "row_buckets" not in known:  # a tree from before them
        settings["segment_steps"] = 128
    sampler = Sampler(
        model,
        prompt_buckets=(PROMPT,),
        **{key: value for key, value in settings.items() if key in known},
    )
    compiling = time.process_time()
    if hasattr(sampler, "precompile"):  # else a call that meets a new shape would pay for it
        sampler.precompile(
            params, problems=[case.problems], group_size=case.group, max_new_tokens=case.limit
        )
    compiling = time.process_time() - compiling
    asked = prompts(case)
    ids = [str(i) for i in range(case.problems)]
    for step, _ in enumerate(sys.stdin):
        cpu, wall = time.process_time(), time.perf_counter()
        rollouts = sampler.generate(
            params,
            asked,
            group_size=case.group,
            max_new_tokens=case.limit,
            stop_tokens=(STOP,),
            stream=random_streams(0, step, ids),
        )
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        lengths = rollouts.lengths
        took |= {"tokens": int(lengths.sum()), "longest": int(lengths.max())}
        took["compiling"] = compiling
        print(json.dumps(took), flush=True)
    print(jax.__version__, file=sys.stderr)


# ---- the driver ---------------------------------------------------------------------------------


class Contestant:
    """A worker process and what it measured."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.calls: list[dict] = []

    def call(self) -> dict:
        """One call, waited for."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        self.calls.append(json.loads(line))
        return self.calls[-1]

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, commands: dict[str, tuple[list[str], dict[str, str]]], calls: int) -> None:
    """Runs one case on all contestants in turns and prints a line for each."""
    contestants = {label: Contestant(*command) for label, command in commands.items()}
    first = {label: one.call() for label, one in contestants.items()}  # compiles
    for one in contestants.values():
        one.call()
        one.calls.clear()
    for _ in range(calls):
        for one in contestants.values():
            one.call()
    ours = None
    for label, one in contestants.items():
        one.close()
        # CPU time a token: calls of a random model may differ in length.
        rates = sorted(1e6 * call["cpu"] / call["tokens"] for call in one.calls)
        rate = statistics.median(rates)
        ours = ours or rate
        tokens = statistics.mean(call["tokens"] for call in one.calls)
        print(
            f"{name:9s} {label:12s} CPU {statistics.median(c['cpu'] for c in one.calls):7.3f} s  "
            f"wall {statistics.median(c['wall'] for c in one.calls):7.3f} s  "
            f"{tokens:7.0f} tokens  {rate:7.1f} us/token ({rates[0]:.1f} to {rates[-1]:.1f})  "
            f"{rate / ours:5.2f}x  first call and compiling "
            f"{first[label]['cpu'] + first[label].get('compiling', 0):6.1f} CPU-s",
            flush=True,
        )


def main() -> None:
    """Makes the weights, starts the contestants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--tree", action="append", default=[], help="LABEL=DIR of a checkout")
    parser.add_argument("--peer", action="append", default=[], help="LABEL=PYTHON:SCRIPT")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "FOLDER"))
    given = parser.parse_args()
    if given.worker:
        return work(given.worker[0], pathlib.Path(given.worker[1]))
    here = pathlib.Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for case in given.cases.split(","):
            np.savez(folder / f"{case}.npz", **weights(CASES[case]))
            shape = dataclasses.asdict(CASES[case]) | {"prompt": PROMPT, "stop": STOP}
            (folder / f"{case}.json").write_text(json.dumps(shape))
            np.save(folder / f"{case}_prompts.npy", np.stack(prompts(CASES[case])))
            jax_settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_THREAD}
            commands = {}
            for tree in [f"ours={here.parent.parent}", *given.tree]:
                label, path = tree.split("=", 1)
                command = [sys.executable, str(here), "--worker", case, name]
                commands[label] = (command, jax_settings | {"PYTHONPATH": path})
            for peer in given.peer:
                label, rest = peer.split("=", 1)
                python, script = rest.split(":", 1)
                torch_settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
                command = [python, script, case, name]
                commands[label] = (command, jax_settings | torch_settings)
            compare(case, commands, given.calls)


if __name__ == "__main__":
    main()
