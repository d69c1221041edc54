"""The vocabulary head, a chunk of tokens at a time.

Logits are by far the largest arrays of training: [batch, time, vocab] in float32 would take more
memory than the model. So the last matrix product and all that is read from the logits live here
together, and no more than `chunk` rows of logits exist at any moment.

`head_loss` forms its gradient in the same sweep. It can, because all that multiplies a
token's terms is known beforehand: the logits z of a chunk give its loss and, at once, its gradient

    dz = distill dD/dz + (policy - credit) (softmax(z) - onehot(y))

hence d hidden = dz W^T, kept, and its part of dW = sum h^T dz, added in float32. The backward pass
only multiplies both by the cotangent of the loss. That is four matrix products a chunk, where
recomputing the logits would take six. `head_statistics` cannot know its cotangents, and recomputes.

Where the head's columns lie on several devices, nothing of its size moves: the devices exchange the
largest logit and the sum of exponentials of each token and model, then the sums of its divergence
and entropies, and add up their parts of d hidden.

Hidden states are [..., d], the head is [d, vocab], both in the compute type; logits, statistics and
sums are float32 (float64 if an input is). Hidden states must be finite everywhere; where all
weights of a token are 0 they change neither the loss nor its gradient.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from drift_jax.losses.chunks import sweep
from drift_jax.losses.divergence import (
    Divergence,
    divergence_and_gradient,
    entropy_of,
    log_softmax,
)


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
    return _statistics(chunk, hidden, head, targets)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(
    chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> HeadStatistics:
    def one_chunk(total: None, tokens: Any) -> tuple[None, HeadStatistics]:
        hidden, targets = tokens
        return total, _read(log_softmax(_logits(hidden, head)), targets)

    return sweep(one_chunk, None, (hidden, targets), shape=targets.shape, chunk=chunk)[1]


def _statistics_forward(
    chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> tuple[HeadStatistics, tuple[jax.Array, ...]]:
    return _statistics(chunk, hidden, head, targets), (hidden, head, targets)


def _statistics_backward(
    chunk: int, inputs: tuple[jax.Array, ...], cotangents: HeadStatistics
) -> tuple[jax.Array, jax.Array, None]:
    """Each chunk of logits z once more; d entropy / dz_v = - p_v (log p_v + entropy)."""
    hidden, head, targets = inputs

    def one_chunk(head_gradient: jax.Array, tokens: Any) -> tuple[jax.Array, jax.Array]:
        hidden, targets, of_log_prob, of_entropy = tokens
        log_probs = log_softmax(_logits(hidden, head))
        surprise = log_probs + entropy_of(log_probs)[:, None]
        slopes = of_entropy[:, None] * jnp.exp(log_probs) * surprise
        slopes += _score(log_probs, targets, of_log_prob)
        return _pull_back(head_gradient, hidden, head, -slopes)

    head_gradient, hidden_gradient = sweep(
        one_chunk,
        jnp.zeros(head.shape, _logits_dtype(hidden, head)),
        (hidden, targets, *cotangents),
        shape=targets.shape,
        chunk=chunk,
    )
    return hidden_gradient, head_gradient.astype(head.dtype), None


_statistics.defvjp(_statistics_forward, _statistics_backward)


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
    teacher_hidden, teacher_head = jnp.asarray(teacher_hidden), jnp.asarray(teacher_head)
    targets = jnp.asarray(targets)
    _check_shapes("head_loss", student_hidden, student_head, targets, chunk)
    _check_shapes("head_loss", teacher_hidden, teacher_head, targets, chunk)
    weights = _Weights(
        distill=_token_weights("distill_weight", distill_weight, targets.shape),
        policy=_token_weights("policy_weight", policy_weight, targets.shape),
        credit=_token_weights("credit_weight", credit_weight, targets.shape),
    )
    constants = jax.lax.stop_gradient((teacher_hidden, teacher_head, targets, weights))
    return _loss(divergence, chunk, student_hidden, student_head, constants)


class _Weights(NamedTuple):
    """What multiplies the three terms of a token. [...] each."""

    distill: jax.Array
    policy: jax.Array
    credit: jax.Array


# teacher_hidden, teacher_head, targets, weights
_Constants = tuple[jax.Array, jax.Array, jax.Array, _Weights]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    divergence: Divergence,
    chunk: int,
    student_hidden: jax.Array,
    student_head: jax.Array,
    constants: _Constants,
) -> tuple[jax.Array, LossStatistics]:
    """The value alone: what runs where nobody asks for a gradient."""
    teacher_hidden, teacher_head, targets, weights = constants

    def one_chunk(loss: jax.Array, tokens: Any) -> tuple[jax.Array, LossStatistics]:
        student_hidden, teacher_hidden, targets, weights = tokens
        student = log_softmax(_logits(student_hidden, student_head))
        teacher = log_softmax(_logits(teacher_hidden, teacher_head))
        statistics, _ = _compare(student, teacher, targets, divergence)
        return loss + _weighted(statistics, weights), statistics

    return sweep(
        one_chunk,
        jnp.zeros((), _logits_dtype(student_hidden, student_head)),
        (student_hidden, teacher_hidden, targets, weights),
        shape=targets.shape,
        chunk=chunk,
    )


def _loss_forward(
    divergence: Divergence,
    chunk: int,
    student_hidden: jax.Array,
    student_head: jax.Array,
    constants: _Constants,
) -> tuple[tuple[jax.Array, LossStatistics], tuple[jax.Array, jax.Array]]:
    """The value and, in the same sweep, its gradient."""
    teacher_hidden, teacher_head, targets, weights = constants
    wide = _logits_dtype(student_hidden, student_head)

    def one_chunk(totals: Any, tokens: Any) -> tuple[Any, Any]:
        loss, head_gradient = totals
        student_hidden, teacher_hidden, targets, weights = tokens
        student = log_softmax(_logits(student_hidden, student_head))
        teacher = log_softmax(_logits(teacher_hidden, teacher_head))
        statistics, slopes = _compare(student, teacher, targets, divergence)
        distill, policy, credit = (weight.astype(wide) for weight in weights)
        logits_gradient = distill[:, None] * slopes + _score(student, targets, policy - credit)
        head_gradient, hidden_gradient = _pull_back(
            head_gradient, student_hidden, student_head, logits_gradient
        )
        return (loss + _weighted(statistics, weights), head_gradient), (statistics, hidden_gradient)

    (loss, head_gradient), (statistics, hidden_gradient) = sweep(
        one_chunk,
        (jnp.zeros((), wide), jnp.zeros(student_head.shape, wide)),
        (student_hidden, teacher_hidden, targets, weights),
        shape=targets.shape,
        chunk=chunk,
    )
    return (loss, statistics), (hidden_gradient, head_gradient.astype(student_head.dtype))


def _loss_backward(
    divergence: Divergence,
    chunk: int,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, LossStatistics],
) -> tuple[jax.Array, jax.Array, None]:
    """The statistics carry no gradient: their cotangents are left alone."""
    scale, _ = cotangents
    hidden_gradient, head_gradient = ((scale * x).astype(x.dtype) for x in gradients)
    return hidden_gradient, head_gradient, None


_loss.defvjp(_loss_forward, _loss_backward)


# ---- a chunk of tokens ---------------------------------------------------------------------------


def _logits_dtype(hidden: jax.Array, head: jax.Array) -> jnp.dtype:
    return jnp.dtype("float64" if jnp.float64 in (hidden.dtype, head.dtype) else "float32")


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """[tokens, d] -> [tokens, vocab]. The products may be bfloat16, their sums are not."""
    return jnp.matmul(hidden, head, preferred_element_type=_logits_dtype(hidden, head))


def _pull_back(
    head_gradient: jax.Array, hidden: jax.Array, head: jax.Array, logits_gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Back through `_logits`: d head with this chunk's part, [d, vocab], and d hidden, [tokens, d].

    The products are of the compute type, like those of `_logits`; their sums are not.
    """
    narrow = logits_gradient.astype(jnp.result_type(hidden, head))
    product = partial(jnp.matmul, preferred_element_type=head_gradient.dtype)
    return head_gradient + product(hidden.T, narrow), product(narrow, head.T).astype(hidden.dtype)


def _read(log_probs: jax.Array, targets: jax.Array) -> HeadStatistics:
    """Log-probability of the target and entropy. [tokens, vocab], [tokens] -> [tokens] each."""
    of_target = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    return HeadStatistics(of_target, entropy_of(log_probs))


def _compare(
    student: jax.Array, teacher: jax.Array, targets: jax.Array, divergence: Divergence
) -> tuple[LossStatistics, jax.Array]:
    """Statistics, [tokens] each, and dD/dz, [tokens, vocab], from both log-probs."""
    distance, slopes = divergence_and_gradient(student, teacher, targets, divergence)
    return LossStatistics(*_read(student, targets), *_read(teacher, targets), distance), slopes


def _score(log_probs: jax.Array, targets: jax.Array, scale: jax.Array) -> jax.Array:
    """scale (softmax(z) - onehot(y)), the gradient of -scale log pi(y). [tokens, vocab]"""
    is_target = jnp.arange(log_probs.shape[-1]) == targets[:, None]
    # A choice, not a product with 0 and 1: that would be one more array of the logits' size.
    return scale[:, None] * jnp.exp(log_probs) - jnp.where(is_target, scale[:, None], 0.0)


def _weighted(of: LossStatistics, weights: _Weights) -> jax.Array:
    """The three terms of the loss, added over the tokens of a chunk."""
    log_probs = of.student_log_probs
    loss = _weighted_sum(weights.distill, of.divergence) - _weighted_sum(weights.policy, log_probs)
    return loss + _weighted_sum(weights.credit, log_probs)


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(weights != 0, weights.astype(values.dtype) * values, 0.0))


# ---- arguments -----------------------------------------------------------------------------------


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
