"""The vocabulary head in plain forms: what the chunked one with its own gradient must equal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from drift_jax.losses.divergence import entropy, log_softmax, token_divergence
from drift_jax.losses.vocab import LossStatistics, head_loss

D, VOCAB = 6, 11


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


@partial(jax.jit, static_argnames=("divergence", "chunk"))
def chunked(arrays, targets, weights, divergence, chunk):
    return head_loss(**arrays, targets=targets, **weights, divergence=divergence, chunk=chunk)


def distances(student_logits, teacher_logits, targets, divergence):
    """`token_divergence` as a `Divergence` says it. [..., vocab] -> [...]."""
    named = divergence._asdict()
    name = named.pop("name")
    return token_divergence(
        student_logits, teacher_logits, divergence=name, **named, targets=targets
    )


@partial(jax.jit, static_argnames="divergence")
def unchunked(arrays, targets, weights, divergence):
    """What `head_loss` means, in eight lines: all logits at once, the gradient left to jax."""
    student_logits = arrays["student_hidden"] @ arrays["student_head"]
    teacher_logits = jax.lax.stop_gradient(arrays["teacher_hidden"] @ arrays["teacher_head"])
    distance = distances(student_logits, teacher_logits, targets, divergence)
    log_pi = jnp.take_along_axis(log_softmax(student_logits), targets[..., None], -1)[..., 0]
    credit = weights["credit_weight"] - weights["policy_weight"]
    return jnp.sum(weights["distill_weight"] * distance + credit * log_pi)


def checkpointed_loss(arrays, targets, weights, divergence, chunk):
    """In chunks whose logits the backward pass computes again; tokens of a multiple of `chunk`.

    Returns the loss and LossStatistics, as `head_loss` does.
    """

    @jax.checkpoint
    def one_chunk(loss, tokens):
        student_hidden, teacher_hidden, targets, weights = tokens
        both = [
            jnp.matmul(hidden, head, preferred_element_type=loss.dtype)
            for hidden, head in (
                (student_hidden, arrays["student_head"]),
                (teacher_hidden, jax.lax.stop_gradient(arrays["teacher_head"])),
            )
        ]
        student, teacher = (
            (jnp.take_along_axis(log_softmax(z), targets[:, None], -1)[:, 0], entropy(z))
            for z in both
        )
        distance = distances(*both, targets, divergence)
        credit = weights["credit_weight"] - weights["policy_weight"]
        loss += jnp.sum(weights["distill_weight"] * distance + credit * student[0])
        return loss, jax.lax.stop_gradient(LossStatistics(*student, *teacher, distance))

    cut = lambda x: x.reshape(-1, chunk, *x.shape[targets.ndim :])  # noqa: E731
    tokens = (arrays["student_hidden"], arrays["teacher_hidden"], targets, weights)
    wide = "float64" if arrays["student_hidden"].dtype == jnp.float64 else "float32"
    loss, statistics = jax.lax.scan(one_chunk, jnp.zeros((), wide), jax.tree.map(cut, tokens))
    return loss, jax.tree.map(lambda x: x.reshape(targets.shape), statistics)
