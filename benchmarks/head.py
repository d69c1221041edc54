"""The vocabulary head against the same loss with all logits at once: CPU-seconds and memory.

    python -m benchmarks.head
    python -m benchmarks.head --torch path/to/python    # one that has torch and numpy

Loss, statistics and both gradients of one batch, on one thread, in float32. The forms take turns,
so that they share whatever else the machine does; the numbers are medians of the process's CPU
time. Every form's loss and gradients are first compared with the float32 of "all logits". The last
row, four matrix products and nothing else, is what no form of this kind can go below.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from drift_jax.losses.divergence import Divergence, entropy, log_softmax
from drift_jax.losses.vocab import head_loss
from tests.plain_head import checkpointed_loss, distances

# tokens, vocabulary, width, chunk: a real tokenizer's head, and the quickstart's.
SHAPES = [(2048, 32_000, 256, 64), (1024, 32_000, 256, 256), (1024, 128, 64, 1024)]
TORCH_TOKENS = 1024  # torch is left out of larger shapes: its logits would need several GB
DIVERGENCE = Divergence()


def draw(tokens, vocab, width):
    """Arrays, targets and weights of `head_loss`, with logits of realistic spread."""
    rng = np.random.default_rng(0)
    normal = lambda *size: rng.normal(size=size).astype(np.float32)  # noqa: E731
    arrays = {
        "student_hidden": normal(tokens, width),
        "teacher_hidden": normal(tokens, width),
        "student_head": 2 * normal(width, vocab) / np.float32(width**0.5),
        "teacher_head": 2 * normal(width, vocab) / np.float32(width**0.5),
    }
    weights = {
        "distill_weight": np.abs(normal(tokens)) / tokens,
        "policy_weight": normal(tokens) / tokens,
        "credit_weight": np.zeros(tokens, np.float32),
    }
    return arrays, rng.integers(0, vocab, tokens), weights


def all_logits(arrays, targets, weights):
    """The loss and the same statistics from [tokens, vocab] at once."""
    student = arrays["student_hidden"] @ arrays["student_head"]
    teacher = jax.lax.stop_gradient(arrays["teacher_hidden"] @ arrays["teacher_head"])
    distance = distances(student, teacher, targets, DIVERGENCE)
    read = [
        (jnp.take_along_axis(log_softmax(z), targets[:, None], -1)[:, 0], entropy(z))
        for z in (student, teacher)
    ]
    credit = weights["credit_weight"] - weights["policy_weight"]
    loss = jnp.sum(weights["distill_weight"] * distance + credit * read[0][0])
    return loss, (read, distance)


def head(arrays, targets, weights, chunk):
    """The library's."""
    return head_loss(**arrays, targets=targets, **weights, divergence=DIVERGENCE, chunk=chunk)


def matrix_products(arrays, targets, weights, chunk):
    """Four of a chunk, as in `head`, with the sum of both logits in the place of a gradient."""
    width, vocab = arrays["student_head"].shape

    def one_chunk(total, tokens):
        student, teacher = tokens
        z = student @ arrays["student_head"] + teacher @ arrays["teacher_head"]
        return total + student.T @ z, z @ arrays["student_head"].T

    cut = [arrays[n].reshape(-1, chunk, width) for n in ("student_hidden", "teacher_hidden")]
    return jax.lax.scan(one_chunk, jnp.zeros((width, vocab)), cut)


def forms(chunk):
    """Name and function of (arrays, targets, weights) of each; all but the last have a gradient."""

    def with_gradient(loss):
        def run(arrays, targets, weights):
            of = ("student_hidden", "student_head")
            trained = {name: arrays[name] for name in of}
            return jax.value_and_grad(
                lambda trained: loss(arrays | trained, targets, weights), has_aux=True
            )(trained)

        return run

    return {
        "all logits": with_gradient(all_logits),
        "chunks, logits computed twice": with_gradient(
            partial(checkpointed_loss, divergence=DIVERGENCE, chunk=chunk)
        ),
        "head_loss": with_gradient(partial(head, chunk=chunk)),
        "matrix products alone": partial(matrix_products, chunk=chunk),
    }


def compile_forms(inputs, chunk):
    """A function of nothing for each form, and its temporary memory in MB."""
    compiled = {name: jax.jit(form).lower(*inputs).compile() for name, form in forms(chunk).items()}
    runs = {
        name: (lambda form=form: jax.block_until_ready(form(*inputs)))
        for name, form in compiled.items()
    }
    memory = {name: f.memory_analysis().temp_size_in_bytes / 1e6 for name, f in compiled.items()}
    return runs, memory


def check(runs):
    """Stops if a form's loss or gradients differ from those of all logits; returns the loss."""
    (loss, _), gradients = runs["all logits"]()
    for name in ("chunks, logits computed twice", "head_loss"):
        (other, _), others = runs[name]()
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        for key, want in gradients.items():
            np.testing.assert_allclose(
                others[key], want, atol=2e-6 * np.abs(want).max(), err_msg=f"{name}: {key}"
            )
    return float(loss)


class Torch:
    """`head_torch.py` in a process of its own, which runs once for each line it gets."""

    name = "torch, all logits"

    def __init__(self, python, inputs, folder):
        arrays, targets, weights = inputs
        np.savez(folder / "inputs.npz", targets=targets, **arrays, **weights)
        script = Path(__file__).with_name("head_torch.py")
        self.process = subprocess.Popen(
            [python, script, folder / "inputs.npz"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self):
        """One run: loss, CPU-seconds, and the peak memory of all runs so far in MB."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def cpu_seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(tokens, vocab, width, chunk, rounds, torch_python):
    inputs = draw(tokens, vocab, width)
    runs, memory = compile_forms(jax.device_put(inputs), chunk)
    loss = check(runs)
    seconds = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        torch = (
            Torch(torch_python, inputs, Path(folder))
            if torch_python and tokens <= TORCH_TOKENS
            else None
        )
        if torch:
            np.testing.assert_allclose(torch.run()["loss"], loss, rtol=1e-4)
            seconds[Torch.name] = []
        for _ in range(rounds):
            for name, run in runs.items():
                seconds[name].append(cpu_seconds(run))
            if torch:
                told = torch.run()
                seconds[Torch.name].append(told["seconds"])
                memory[Torch.name] = told["peak_mb"]
        if torch:
            torch.close()
    report(f"{tokens} tokens, vocabulary {vocab}, width {width}, chunk {chunk}", seconds, memory)


def report(title, seconds, memory):
    """A table with the times and memory of all forms as multiples of head_loss's."""
    ours = statistics.median(seconds["head_loss"])
    print(f"\n{title}, {len(seconds['head_loss'])} rounds\n")
    print(
        "| form | CPU ms, median | fastest - slowest | x head_loss | temporary MB | x head_loss |"
    )
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        middle, least, most = statistics.median(values), min(values), max(values)
        growth = memory[name] / memory["head_loss"]
        print(
            f"| {name} | {1e3 * middle:.4g} | {1e3 * least:.4g} - {1e3 * most:.4g}"
            f" | {middle / ours:.2f} | {memory[name]:.1f} | {growth:.1f} |"
        )
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each form")
    parser.add_argument("--torch", help="a python that has torch and numpy, to compare with it")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, numpy {np.__version__}, one thread")
    for shape in SHAPES:
        compare(*shape, arguments.rounds, arguments.torch)


if __name__ == "__main__":
    main()
