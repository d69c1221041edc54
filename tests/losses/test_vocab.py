"""The chunked vocabulary head equals the head without chunks, in value and in gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.losses.divergence import Divergence, entropy
from drift_jax.losses.vocab import head_loss, head_statistics
from tests import reference
from tests.plain_head import VOCAB, D, checkpointed_loss, chunked, inputs, unchunked

DIVERGENCES = [
    Divergence(),
    Divergence("jsd", alpha=0.25),
    Divergence("jsd", alpha=0.25, top_k=4),
    Divergence("forward_kl"),
    Divergence("forward_kl", top_k=4, rest="renormalise"),
    Divergence("reverse_kl"),
    Divergence("forward_ce"),
    Divergence("forward_ce", top_k=4, support="teacher", rest="drop"),
    Divergence("forward_kl", pointwise_cap=0.1),
    Divergence("sampled_reverse_kl"),
]


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
    [(21, Divergence()), *((4, divergence) for divergence in DIVERGENCES)],
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


def test_the_head_gradient_of_many_chunks_is_added_in_float32():
    """In bfloat16, 256 equal parts + 1 more would still be 256."""
    tokens = 1024
    arrays, _, _ = inputs(8, shape=(1,), dtype=jnp.bfloat16)
    for name in ("student_hidden", "teacher_hidden"):
        arrays[name] = jnp.broadcast_to(arrays[name], (tokens, D))
    targets = jnp.zeros(tokens, jnp.int32)
    numbers = {"distill_weight": 1.0, "policy_weight": 1.0, "credit_weight": 0.0}
    loss = lambda a, t: chunked(a, t, numbers, Divergence(), 1)[0]  # noqa: E731
    many = jax.grad(loss)(arrays, targets)["student_head"]
    first = {n: x if n.endswith("head") else x[:1] for n, x in arrays.items()}
    one = jax.grad(loss)(first, targets[:1])["student_head"]
    np.testing.assert_array_equal(many, tokens * one)


def test_a_loss_that_is_scaled_afterwards_has_a_scaled_gradient():
    with jax.enable_x64(True):
        arrays, targets, weights = inputs(15)
        loss = lambda a: chunked(a, targets, weights, Divergence(), 4)[0]  # noqa: E731
        other = lambda a: unchunked(a, targets, weights, Divergence())  # noqa: E731
        got = jax.grad(lambda a: 0.3 * loss(a) ** 2)(arrays)
        want = jax.grad(lambda a: 0.3 * other(a) ** 2)(arrays)
        for name in arrays:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-10)


def test_gradients_of_pieces_add_up_to_that_of_the_batch():
    with jax.enable_x64(True):
        arrays, targets, weights = inputs(16, shape=(4, 6))
        heads = {name: arrays.pop(name) for name in ("student_head", "teacher_head")}
        gradient = jax.grad(
            lambda heads, hidden, *rest: chunked(heads | hidden, *rest, Divergence(), 5)[0]
        )
        whole = gradient(heads, arrays, targets, weights)["student_head"]

        def add(total, piece):
            return total + gradient(heads, *piece)["student_head"], None

        pieces = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (arrays, targets, weights))
        total, _ = jax.jit(lambda p: jax.lax.scan(add, jnp.zeros_like(whole), p))(pieces)
        np.testing.assert_allclose(total, whole, rtol=1e-10, atol=1e-12)


def test_the_value_alone_is_that_of_the_sweep_with_gradient():
    arrays, targets, weights = inputs(17, dtype=np.float32)
    for divergence in DIVERGENCES[:3]:
        both = chunked(arrays, targets, weights, divergence, 4)
        with_gradient, _ = jax.value_and_grad(chunked, has_aux=True)(
            arrays, targets, weights, divergence, 4
        )
        for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(with_gradient), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_the_checkpointed_form_has_the_same_loss_gradient_and_statistics():
    with jax.enable_x64(True):
        arrays, targets, weights = inputs(18)
        run = lambda f: jax.value_and_grad(f, has_aux=True)(  # noqa: E731
            arrays, targets, weights, Divergence(), 7
        )
        ours, plain = run(chunked), run(checkpointed_loss)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def test_a_teacher_may_have_wider_hidden_states_than_its_student():
    """In a trust region it is two models side by side: 2 d wide, over a head of 2 d rows."""
    with jax.enable_x64(True):
        arrays, targets, weights = inputs(19)
        pair = {"teacher_hidden": -1, "teacher_head": 0}
        for name, axis in pair.items():
            arrays[name] = jnp.concatenate([arrays[name], 0.5 * arrays[name]], axis)
        loss = lambda f: jax.grad(lambda a: f(a, targets, weights, Divergence()))(arrays)  # noqa: E731
        ours = loss(lambda *args: chunked(*args, 4)[0])
        for name, want in loss(unchunked).items():
            np.testing.assert_allclose(ours[name], want, rtol=1e-10, atol=1e-10)


def test_the_statistics_have_a_gradient_of_their_own():
    """A supervised loss reads log-probs from `head_statistics` and differentiates them."""
    with jax.enable_x64(True):
        arrays, targets, _ = inputs(9)
        hidden, head = arrays["student_hidden"], arrays["student_head"]

        def ours(hidden, head):
            read = head_statistics(hidden, head, targets, chunk=4)
            return jnp.sum(read.log_probs**2) + jnp.sum(read.entropy**3)

        def plain(hidden, head):
            logits = hidden @ head
            log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
            return jnp.sum(log_probs**2) + jnp.sum(entropy(logits) ** 3)

        expected = jax.grad(plain, argnums=(0, 1))(hidden, head)
        for gradient, want in zip(
            jax.grad(ours, argnums=(0, 1))(hidden, head), expected, strict=True
        ):
            np.testing.assert_allclose(gradient, want, rtol=1e-10, atol=1e-10)


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
