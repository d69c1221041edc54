"""The vocabulary head, a chunk of tokens at a time.

Logits are by far the largest arrays of training: [batch, time, vocab] in float32 would take more
memory than the model. So the last matrix product and all that is read from the logits live here
together, and no more than `chunk` rows of logits exist at any moment. The backward pass recomputes
the logits of a chunk instead of keeping them.

This is the plain form, differentiated by jax; it says what a fused form must compute.
Hidden states are [..., d], the head is [d, vocab], both in the compute type; logits, statistics and
sums are float32 (float64 if an input is). Hidden states must be finite everywhere; where all
weights of a token are 0 they change neither the loss nor its gradient.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from drift_jax.losses.divergence import Divergence, entropy, log_softmax, token_divergence


class HeadStatistics(NamedTuple):
    """What one model says about the sampled tokens. In nats, of the full distribution, [...]."""

    log_probs: jax.Array
    entropy: jax.Array


class LossStatistics(NamedTuple):
    """What both models say about the sampled tokens, in nats, without gradient. [...] each."""

    student_log_probs: jax.Array
    student_entropy: jax.Array
    teacher_log_probs: jax.Array
    teacher_entropy: jax.Array
    divergence: jax.Array


def head_statistics(
    hidden: ArrayLike, head: ArrayLike, targets: ArrayLike, *, chunk: int
) -> HeadStatistics:
    """Log-probability of each target and entropy of the distribution that predicts it.

    Args:
      hidden: final hidden states at the positions that predict the targets. [..., d].
      head: output matrix. [d, vocab].
      targets: token ids, from 0 to vocab - 1. [...].
      chunk: most tokens whose logits exist at a time.

    Returns:
      HeadStatistics, float32, [...] each. Differentiable; under `jax.grad` each chunk of logits is
      computed twice and never kept.
    """
    hidden, head, targets = map(jnp.asarray, (hidden, head, targets))
    _check_shapes("head_statistics", hidden, head, targets, chunk)
    layout = _Layout(targets.shape, chunk)

    @partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(tokens: tuple[jax.Array, jax.Array]) -> HeadStatistics:
        hidden, targets = tokens
        return _read(_logits(hidden, head), targets)

    statistics = jax.lax.map(one_chunk, (layout.split(hidden), layout.split(targets)))
    return HeadStatistics(*map(layout.join, statistics))


def head_loss(
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_head: ArrayLike,
    targets: ArrayLike,
    *,
    distill_weight: ArrayLike,
    policy_weight: ArrayLike,
    credit_weight: ArrayLike,
    divergence: Divergence,
    chunk: int,
) -> tuple[jax.Array, LossStatistics]:
    """The loss from hidden states on (the gradient of DRIFT Eqs. 4-6).

    sum_t  distill_weight_t D_t - policy_weight_t log pi(y_t) + credit_weight_t log pi(y_t)

    The weights hold everything that carries no gradient: routing, token weights, advantages,
    clipping and normalisers (`objective.token_coefficients`, `objective.clipped_policy_weight`).
    The policy and credit terms have the right gradient, not the surrogate's value.

    Args:
      student_hidden: final hidden states of the student. [..., d].
      teacher_hidden: those of the teacher at the same response positions, without gradient; any
        finite values where `distill_weight` is 0. [..., d].
      student_head: output matrix of the student. [d, vocab].
      teacher_head: output matrix of the teacher, without gradient. [d, vocab].
      targets: the sampled tokens, ids from 0 to vocab - 1. [...].
      distill_weight: coefficient of the divergence. [...] or a number, like the two others.
      policy_weight: coefficient of -log pi.
      credit_weight: coefficient of log pi: future credit, for methods that have it.
      divergence: which one, over which support. Static.
      chunk: most tokens whose logits exist at a time. Static.

    Returns:
      The loss, a scalar, with gradients for `student_hidden` and `student_head` only; and
      LossStatistics of every token, [...] each, without gradient.
    """
    student_hidden, student_head = jnp.asarray(student_hidden), jnp.asarray(student_head)
    teacher_hidden = jax.lax.stop_gradient(jnp.asarray(teacher_hidden))
    teacher_head = jax.lax.stop_gradient(jnp.asarray(teacher_head))
    targets = jnp.asarray(targets)
    _check_shapes("head_loss", student_hidden, student_head, targets, chunk)
    _check_shapes("head_loss", teacher_hidden, teacher_head, targets, chunk)
    layout = _Layout(targets.shape, chunk)

    @partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(loss, tokens):
        student_hidden, teacher_hidden, targets, distill, policy, credit = tokens
        student_logits = _logits(student_hidden, student_head)
        teacher_logits = _logits(teacher_hidden, teacher_head)
        student, teacher = _read(student_logits, targets), _read(teacher_logits, targets)
        distance = token_divergence(
            student_logits,
            teacher_logits,
            divergence=divergence.name,
            alpha=divergence.alpha,
            top_k=divergence.top_k,
            rest=divergence.rest,
            support=divergence.support,
            pointwise_cap=divergence.pointwise_cap,
            targets=targets,
        )
        loss += _weighted_sum(distill, distance) - _weighted_sum(policy, student.log_probs)
        loss += _weighted_sum(credit, student.log_probs)
        return loss, jax.lax.stop_gradient(LossStatistics(*student, *teacher, distance))

    weights = [
        _token_weights(name, weight, targets.shape)
        for name, weight in (
            ("distill_weight", distill_weight),
            ("policy_weight", policy_weight),
            ("credit_weight", credit_weight),
        )
    ]
    tokens = tuple(map(layout.split, (student_hidden, teacher_hidden, targets, *weights)))
    zero = jnp.zeros((), _logits_dtype(student_hidden, student_head))
    loss, statistics = jax.lax.scan(one_chunk, zero, tokens)
    return loss, LossStatistics(*map(layout.join, statistics))


class _Layout:
    """How tokens [...] are cut into chunks of one size, at most `chunk`, and put together again.

    Chunk c takes tokens c, c + chunks, c + 2 chunks, ...: if the number of chunks divides the
    length of a row, every chunk has as many tokens of each row, and a batch whose rows lie on
    several devices gives all of them the same share of every chunk, without moving anything. Such a
    number is preferred as long as it is less than twice the fewest.
    """

    def __init__(self, shape: tuple[int, ...], chunk: int):
        self.shape, self.tokens = shape, math.prod(shape)
        row_length = math.prod(shape[1:])
        fewest = max(-(-self.tokens // chunk), 1)
        even = (n for n in range(fewest, 2 * fewest) if row_length % n == 0)
        self.chunks = next(even, fewest)
        self.size = -(-self.tokens // self.chunks)

    def split(self, x: jax.Array) -> jax.Array:
        """[..., *rest] -> [chunks, size, *rest], with zeros after the last token."""
        x = x.reshape(self.tokens, *x.shape[len(self.shape) :])
        missing = self.chunks * self.size - self.tokens
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(self.size, self.chunks, *x.shape[1:]).swapaxes(0, 1)

    def join(self, x: jax.Array) -> jax.Array:
        """[chunks, size] -> [...]."""
        return x.swapaxes(0, 1).reshape(-1)[: self.tokens].reshape(self.shape)


def _logits_dtype(hidden: jax.Array, head: jax.Array) -> jnp.dtype:
    return jnp.dtype("float64" if jnp.float64 in (hidden.dtype, head.dtype) else "float32")


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """[tokens, d] -> [tokens, vocab]. The products may be bfloat16, their sums are not."""
    return jnp.matmul(hidden, head, preferred_element_type=_logits_dtype(hidden, head))


def _read(logits: jax.Array, targets: jax.Array) -> HeadStatistics:
    """Log-probability of the target and entropy. [tokens, vocab], [tokens] -> [tokens] each."""
    log_probs = jnp.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)[:, 0]
    return HeadStatistics(log_probs, entropy(logits))


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(weights != 0, weights.astype(values.dtype) * values, 0.0))


def _token_weights(name: str, weight: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """One constant per token; a plain number counts for all."""
    weight = jax.lax.stop_gradient(jnp.asarray(weight))
    if weight.shape not in ((), shape):
        raise ValueError(
            f"head_loss got {name} {list(weight.shape)} for targets {list(shape)};"
            " give one weight per target, or a number"
        )
    return jnp.broadcast_to(weight, shape)


def _check_shapes(
    function: str, hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int
) -> None:
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1:] != head.shape[:1] or head.ndim != 2:
        raise ValueError(
            f"{function} got hidden {list(hidden.shape)}, head {list(head.shape)} and targets"
            f" {list(targets.shape)}; give [..., d], [d, vocab] and [...]"
        )
    if chunk < 1:
        raise ValueError(f"{function} got chunk={chunk}; give at least 1 token")
