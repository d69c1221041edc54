"""The chunked vocabulary head equals the head without chunks, in value and in gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drift_jax.losses.divergence import Divergence, entropy, token_divergence
from drift_jax.losses.vocab import head_loss, head_statistics
from tests import reference

D, VOCAB = 6, 11
DIVERGENCES = [
    Divergence(),
    Divergence("jsd", alpha=0.25, top_k=4),
    Divergence("forward_kl", top_k=4, rest="renormalise"),
    Divergence("reverse_kl"),
    Divergence("forward_ce", top_k=4, support="teacher", rest="drop"),
    Divergence("forward_kl", pointwise_cap=0.1),
    Divergence("sampled_reverse_kl"),
]


def inputs(seed=0, shape=(3, 7), dtype=np.float64, scale=1.0):
    rng = np.random.default_rng(seed)
    arrays = {
        "student_hidden": scale * rng.normal(size=(*shape, D)),
        "teacher_hidden": scale * rng.normal(size=(*shape, D)),
        "student_head": rng.normal(size=(D, VOCAB)),
        "teacher_head": rng.normal(size=(D, VOCAB)),
    }
    weights = {
        "distill_weight": rng.random(shape),
        "policy_weight": rng.normal(size=shape),
        "credit_weight": rng.normal(size=shape) * (rng.random(shape) < 0.5),
    }
    cast = lambda tree: {name: jnp.asarray(x, dtype) for name, x in tree.items()}  # noqa: E731
    return cast(arrays), jnp.asarray(rng.integers(0, VOCAB, shape)), cast(weights)


@partial(jax.jit, static_argnames="divergence")
def unchunked(arrays, targets, weights, divergence):
    """What `head_loss` means, in eight lines."""
    student_logits = arrays["student_hidden"] @ arrays["student_head"]
    teacher_logits = jax.lax.stop_gradient(arrays["teacher_hidden"] @ arrays["teacher_head"])
    named = divergence._asdict()
    distance = token_divergence(
        student_logits, teacher_logits, divergence=named.pop("name"), **named, targets=targets
    )
    log_pi = jnp.take_along_axis(jax.nn.log_softmax(student_logits), targets[..., None], -1)[..., 0]
    credit = weights["credit_weight"] - weights["policy_weight"]
    return jnp.sum(weights["distill_weight"] * distance + credit * log_pi)


@partial(jax.jit, static_argnames=("divergence", "chunk"))
def chunked(arrays, targets, weights, divergence, chunk):
    return head_loss(**arrays, targets=targets, **weights, divergence=divergence, chunk=chunk)


@pytest.mark.parametrize(
    "chunk, divergence",
    [(4, divergence) for divergence in DIVERGENCES]
    + [(chunk, Divergence()) for chunk in (1, 7, 21)],
    ids=str,
)
def test_the_chunked_loss_equals_the_plain_one_in_float64(chunk, divergence):
    with jax.enable_x64(True):
        arrays, targets, weights = inputs()
        (loss, _), gradients = jax.jit(
            jax.value_and_grad(partial(chunked, divergence=divergence, chunk=chunk), has_aux=True)
        )(arrays, targets, weights)
        plain_loss, plain_gradients = jax.jit(
            jax.value_and_grad(partial(unchunked, divergence=divergence))
        )(arrays, targets, weights)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, plain_loss, rtol=1e-10, atol=1e-10)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(
                gradient, plain_gradients[name], rtol=1e-10, atol=1e-10, err_msg=name
            )


@pytest.mark.parametrize(
    "chunk, divergence",
    [(4, Divergence()), (21, Divergence()), *((4, divergence) for divergence in DIVERGENCES[-3:])],
    ids=str,
)
def test_the_chunked_loss_equals_the_plain_one_in_float32(chunk, divergence):
    arrays, targets, weights = inputs(1, dtype=np.float32)
    (loss, _), gradients = jax.value_and_grad(chunked, has_aux=True)(
        arrays, targets, weights, divergence, chunk
    )
    plain_loss, plain_gradients = jax.value_and_grad(unchunked)(
        arrays, targets, weights, divergence
    )
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    for name, gradient in gradients.items():
        largest = np.abs(np.asarray(plain_gradients[name])).max()
        np.testing.assert_allclose(gradient, plain_gradients[name], atol=1e-6 * largest)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (0,), (2, 0)])
def test_any_leading_shape_and_any_number_of_tokens(shape):
    with jax.enable_x64(True):
        arrays, targets, weights = inputs(2, shape)
        loss, statistics = chunked(arrays, targets, weights, Divergence(), 4)
        assert loss.shape == () and all(x.shape == shape for x in statistics)
        plain = unchunked(arrays, targets, weights, Divergence())
        np.testing.assert_allclose(loss, plain, rtol=1e-10, atol=1e-12)
        read = head_statistics(arrays["student_hidden"], arrays["student_head"], targets, chunk=4)
        assert all(x.shape == shape for x in read)


@pytest.mark.parametrize("chunk", [1, 4, 21, 1000])
def test_statistics_equal_the_literal_ones_token_by_token(chunk):
    arrays, targets, weights = inputs(3, dtype=np.float32)
    _, both = chunked(arrays, targets, weights, Divergence(), chunk)
    student_logits = np.asarray(arrays["student_hidden"] @ arrays["student_head"])
    teacher_logits = np.asarray(arrays["teacher_hidden"] @ arrays["teacher_head"])
    for at in np.ndindex(targets.shape):
        p, q = reference.softmax(student_logits[at]), reference.softmax(teacher_logits[at])
        literal = (
            np.log(p[targets[at]]),
            reference.entropy(p),
            np.log(q[targets[at]]),
            reference.entropy(q),
            reference.jensen_shannon(p, q),
        )
        np.testing.assert_allclose([x[at] for x in both], literal, rtol=1e-5, atol=1e-6)
    alone = head_statistics(arrays["student_hidden"], arrays["student_head"], targets, chunk=chunk)
    np.testing.assert_allclose(alone.log_probs, both.student_log_probs, rtol=1e-6)
    np.testing.assert_allclose(alone.entropy, both.student_entropy, rtol=1e-6)


def test_nothing_reaches_the_teacher_or_leaves_the_statistics():
    arrays, targets, weights = inputs(4, dtype=np.float32)

    def loss(arrays):
        return chunked(arrays, targets, weights, Divergence(), 4)[0]

    gradients = jax.grad(loss)(arrays)
    assert np.all(np.asarray(gradients["teacher_hidden"]) == 0.0)
    assert np.all(np.asarray(gradients["teacher_head"]) == 0.0)
    assert np.any(np.asarray(gradients["student_hidden"]) != 0.0)
    assert np.any(np.asarray(gradients["student_head"]) != 0.0)

    def statistics(arrays):
        return sum(x.sum() for x in chunked(arrays, targets, weights, Divergence(), 4)[1])

    for gradient in jax.tree.leaves(jax.grad(statistics)(arrays)):
        assert np.all(np.asarray(gradient) == 0.0)


def test_tokens_without_weight_change_neither_loss_nor_gradient():
    arrays, targets, weights = inputs(5, dtype=np.float32)
    mask = np.arange(7) < np.array([[7], [3], [0]])
    weights = {name: jnp.where(mask, w, 0.0) for name, w in weights.items()}
    run = jax.value_and_grad(lambda a, t: chunked(a, t, weights, Divergence(), 5)[0])
    loss, gradients = run(arrays, targets)
    padded = dict(arrays)
    for name in ("student_hidden", "teacher_hidden"):
        padded[name] = jnp.where(mask[..., None], arrays[name], 1e3)
    other_loss, other_gradients = run(padded, jnp.where(mask, targets, VOCAB - 1))
    assert loss == other_loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, other_gradients[name])
    assert np.all(np.asarray(gradients["student_hidden"])[~mask] == 0.0)


def test_a_token_on_the_policy_branch_needs_no_teacher():
    arrays, targets, weights = inputs(6, dtype=np.float32)
    weights["distill_weight"] = jnp.zeros(targets.shape)
    loss = lambda a: chunked(a, targets, weights, Divergence(), 5)[0]  # noqa: E731
    without = arrays | {"teacher_hidden": jnp.zeros_like(arrays["teacher_hidden"])}
    np.testing.assert_array_equal(loss(arrays), loss(without))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_saturated_logits_have_finite_loss_and_gradients(divergence):
    arrays, targets, weights = inputs(7, dtype=np.float32, scale=1e4)
    (loss, statistics), gradients = jax.value_and_grad(chunked, has_aux=True)(
        arrays, targets, weights, divergence, 4
    )
    for x in jax.tree.leaves((loss, statistics, gradients)):
        assert np.all(np.isfinite(np.asarray(x)))


def test_bfloat16_inputs_have_float32_statistics_and_bfloat16_gradients():
    arrays, targets, weights = inputs(8, dtype=jnp.bfloat16)
    (loss, statistics), gradients = jax.value_and_grad(chunked, has_aux=True)(
        arrays, targets, weights, Divergence(), 4
    )
    assert all(x.dtype == jnp.float32 for x in (loss, *statistics))
    assert all(g.dtype == jnp.bfloat16 for g in gradients.values())
    exact = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    wide = {name: w.astype(jnp.float32) for name, w in weights.items()}
    np.testing.assert_allclose(
        loss, unchunked(exact, targets, wide, Divergence()), rtol=1e-5, atol=1e-5
    )


def test_the_statistics_have_a_gradient_of_their_own():
    """A supervised loss reads log-probs from `head_statistics` and differentiates them."""
    with jax.enable_x64(True):
        arrays, targets, _ = inputs(9)
        hidden, head = arrays["student_hidden"], arrays["student_head"]

        def ours(hidden, head):
            read = head_statistics(hidden, head, targets, chunk=4)
            return jnp.sum(read.log_probs) + jnp.sum(read.entropy)

        def plain(hidden, head):
            logits = hidden @ head
            log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
            return jnp.sum(log_probs) + jnp.sum(entropy(logits))

        expected = jax.grad(plain, argnums=(0, 1))(hidden, head)
        for gradient, want in zip(
            jax.grad(ours, argnums=(0, 1))(hidden, head), expected, strict=True
        ):
            np.testing.assert_allclose(gradient, want, rtol=1e-10, atol=1e-10)


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


def test_other_values_do_not_recompile():
    traces = []

    @jax.jit
    def loss(arrays, targets, weights):
        traces.append(1)
        return chunked(arrays, targets, weights, Divergence(), 4)[0]

    for seed in range(3):
        loss(*inputs(seed, dtype=np.float32))
    assert len(traces) == 1


def test_numpy_arrays_are_as_good_as_jax_arrays():
    arrays, targets, weights = inputs(14, dtype=np.float32)
    plain = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    loss, _ = head_loss(
        **plain, targets=np.asarray(targets), **weights, divergence=Divergence(), chunk=4
    )
    np.testing.assert_allclose(
        loss, chunked(arrays, targets, weights, Divergence(), 4)[0], rtol=1e-6
    )


def test_a_plain_number_is_the_weight_of_every_token():
    arrays, targets, _ = inputs(11, dtype=np.float32)
    ones = {
        name: jnp.ones(targets.shape)
        for name in ("distill_weight", "policy_weight", "credit_weight")
    }
    numbers = {"distill_weight": 1.0, "policy_weight": 1, "credit_weight": 1.0}
    np.testing.assert_allclose(
        chunked(arrays, targets, numbers, Divergence(), 4)[0],
        chunked(arrays, targets, ones, Divergence(), 4)[0],
    )


def test_bad_arguments_are_answered_with_what_to_give():
    arrays, targets, weights = inputs(12, dtype=np.float32)
    with pytest.raises(ValueError, match=r"chunk=0; give at least 1 token"):
        chunked(arrays, targets, weights, Divergence(), 0)
    with pytest.raises(ValueError, match=r"targets \[3, 6\]; give \[..., d\], \[d, vocab\]"):
        chunked(arrays, targets[:, :6], weights, Divergence(), 4)
    with pytest.raises(ValueError, match=r"distill_weight \[3, 1\] for targets \[3, 7\]"):
        chunked(
            arrays,
            targets,
            weights | {"distill_weight": weights["distill_weight"][:, :1]},
            Divergence(),
            4,
        )
