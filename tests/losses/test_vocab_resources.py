"""What the vocabulary head takes: memory, whatever the number of tokens, and traffic on devices."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drift_jax.losses.divergence import Divergence
from drift_jax.losses.vocab import head_loss, head_statistics
from drift_jax.sharding import make_mesh, named, replicated
from tests.plain_head import VOCAB, D, chunked, inputs, unchunked


def widest_logits(jaxpr):
    """The most rows of any array with a vocabulary axis, in a jaxpr and all within it."""
    rows = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            shape = variable.aval.shape
            if shape and shape[-1] == VOCAB and shape[:-1] != (D,):
                rows = max(rows, int(np.prod(shape[:-1])))
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                rows = max(rows, widest_logits(inner))
    return rows


def test_no_more_than_a_chunk_of_logits_ever_exists():
    arrays, targets, weights = inputs(10, shape=(8, 16), dtype=np.float32)
    for chunk in (10, 32):
        gradient = jax.value_and_grad(
            partial(chunked, divergence=Divergence(), chunk=chunk), has_aux=True
        )
        traced = jax.make_jaxpr(gradient)(arrays, targets, weights)
        assert 1 < widest_logits(traced.jaxpr) <= chunk
    plain = jax.make_jaxpr(jax.value_and_grad(partial(unchunked, divergence=Divergence())))
    assert widest_logits(plain(arrays, targets, weights).jaxpr) == 128


@pytest.mark.parametrize("what", ["loss and gradient", "loss", "statistics"])
def test_temporary_memory_does_not_grow_with_the_number_of_tokens(what):
    """But for the gradient of the hidden states, which is the size of its result."""
    d, vocab, chunk = 16, 512, 32

    def loss(hidden, head, targets, weight):
        return head_loss(
            hidden, hidden, head, head, targets,
            distill_weight=weight, policy_weight=weight, credit_weight=0.0,
            divergence=Divergence(), chunk=chunk,
        )  # fmt: skip

    run = {
        "loss and gradient": jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        "loss": loss,
        "statistics": lambda hidden, head, targets, _: head_statistics(
            hidden, head, targets, chunk=chunk
        ),
    }[what]

    def temporary(rows):
        array = jax.ShapeDtypeStruct
        per_token = (rows, 64)
        compiled = jax.jit(run).lower(
            array((*per_token, d), jnp.float32),
            array((d, vocab), jnp.float32),
            array(per_token, jnp.int32),
            array(per_token, jnp.float32),
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(32)
    logits = 4 * chunk * vocab
    hidden_gradient = 4 * (32 - 4) * 64 * d if what == "loss and gradient" else 0
    assert few > logits
    assert many - few <= hidden_gradient + 4096


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("chunk", [16, 20])
def test_rows_on_four_devices_share_the_work_and_give_the_loss_of_one(chunk):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    arrays, targets, weights = inputs(13, shape=(8, 12), dtype=np.float32)
    gradient = jax.value_and_grad(
        partial(chunked, divergence=Divergence(), chunk=chunk), has_aux=True
    )
    by_row = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))  # noqa: E731
    everywhere = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec()))  # noqa: E731
    spread = {n: (everywhere if n.endswith("head") else by_row)(x) for n, x in arrays.items()}
    arguments = (spread, by_row(targets), jax.tree.map(by_row, weights))
    compiled = jax.jit(gradient).lower(*arguments).compile()
    for traffic in ("all-gather", "all-to-all", "collective-permute"):
        assert traffic not in compiled.as_text()
    (loss, _), gradients = compiled(*arguments)
    (one_loss, _), one_gradients = gradient(arrays, targets, weights)
    np.testing.assert_allclose(loss, one_loss, rtol=1e-5)
    for name, ours in gradients.items():
        np.testing.assert_allclose(ours, one_gradients[name], atol=1e-5)


def collectives(text):
    """Of a compiled program: each kind of communication and how many numbers it carries."""
    found = []
    for line in text.splitlines():
        match = re.search(
            r" = (.*) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
            r"(?:-start)?\(",
            line,
        )
        if match:
            shapes = re.findall(r"\w\d+\[([\d,]*)\]", match[1])
            found += [(match[2], math.prod(map(int, s.split(",")))) for s in shapes]
    return found


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_columns_on_eight_devices_exchange_a_few_numbers_a_token_and_give_the_loss_of_one():
    """Of each token and model: largest logit, sum of exponentials, target, entropy and divergence.

    The columns' own gradient stays where it is; the parts of the hidden states' are added.
    """
    d, vocab, shape, chunk = 6, 128, (4, 12), 16
    mesh = make_mesh(data=1, fsdp=1, tensor=8)
    rng = np.random.default_rng(20)
    draw = lambda *size: jnp.asarray(rng.normal(size=size), jnp.float32)  # noqa: E731
    arrays = {name: draw(*shape, d) for name in ("student_hidden", "teacher_hidden")}
    arrays |= {name: draw(d, vocab) for name in ("student_head", "teacher_head")}
    targets = jnp.asarray(rng.integers(0, vocab, shape))
    names = ("distill_weight", "policy_weight", "credit_weight")
    weights = {name: draw(*shape) for name in names}
    spread = {
        name: jax.device_put(
            x,
            named(mesh, x.shape, ("embed", "vocab")) if name.endswith("head") else replicated(mesh),
        )
        for name, x in arrays.items()
    }
    arguments = (spread, *jax.device_put((targets, weights), replicated(mesh)))
    loss = partial(chunked, divergence=Divergence(), chunk=chunk)
    value_only = jax.jit(loss).lower(*arguments).compile().as_text()
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()

    few = [("all-reduce", chunk)] * 10
    assert collectives(value_only) == few
    assert sorted(collectives(compiled.as_text())) == sorted([*few, ("all-reduce", chunk * d)])
    (got, statistics), gradients = compiled(*arguments)
    (want, one_statistics), one_gradients = jax.value_and_grad(loss, has_aux=True)(
        arrays, targets, weights
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for x, y in zip(statistics, one_statistics, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, one_gradients[name], atol=1e-5)
    assert gradients["student_head"].sharding.is_equivalent_to(spread["student_head"].sharding, 2)
