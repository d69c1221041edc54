"""How far the student is from its teacher at one token (DRIFT Eqs. 2-3, and their relatives).

Student and teacher are the same model reading different contexts. Every function takes the logits
of both at the same response position, [..., vocab], and returns one number in nats per position,
[...]. Log-probabilities are logits too (a log-softmax leaves them as they are), so a divergence
over a smaller support is a composition:

    jensen_shannon(*top_k_log_probs(student_logits, teacher_logits, k=100))

All arithmetic is in log-space and in float32 at least: bfloat16 is promoted, float64 stays. The
teacher carries no gradient. Values and gradients are finite for every finite logit, and for -inf
on some entries of either side (not on all of them).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# A log-probability never goes below this. Its exponential is exactly 0, and 0 times it is 0, where
# 0 times -inf would be nan.
LOWEST_LOG_PROB = -1e30
# With nothing left outside the top k, the rest still gets this much probability, or its logarithm
# would be -inf.
SMALLEST_TAIL = 1e-7


class Divergence(NamedTuple):
    """Which divergence, and over which support: hashable, so that it can be a static argument."""

    name: str = "jsd"  # a key of DIVERGENCES
    alpha: float = 0.5  # weight of the teacher in the mixture of "jsd"
    top_k: int = 0  # support: the student's k likeliest tokens; 0 is the whole vocabulary
    rest: str = "tail"  # the tokens outside: one more entry ("tail") or dropped ("renormalise")


def log_softmax(logits: ArrayLike) -> jax.Array:
    """Log-probabilities in nats, in float32 at least and never below -1e30. [..., vocab]."""
    logits = jnp.asarray(logits)
    if logits.dtype not in (jnp.float32, jnp.float64):
        logits = logits.astype(jnp.float32)
    return jnp.maximum(jax.nn.log_softmax(logits, axis=-1), LOWEST_LOG_PROB)


def entropy(logits: ArrayLike) -> jax.Array:
    """Entropy of a next-token distribution in nats, at most log(vocab). [..., vocab] -> [...]."""
    log_probs = log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def jensen_shannon(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, alpha: float = 0.5
) -> jax.Array:
    """Jensen-Shannon divergence of student S and teacher T (DRIFT Eq. 3).

    M = (1 - alpha) S + alpha T;  JSD = (1 - alpha) KL(S || M) + alpha KL(T || M).

    Symmetric and at most ln 2 for alpha 1/2, the paper's case; 0 only for equal distributions.

    Args:
      student_logits: [..., vocab].
      teacher_logits: [..., vocab], without gradient.
      alpha: weight of the teacher in the mixture, a static number in [0, 1]. The ends are special
        cases, not limits (the formula tends to 0 there): 0 is `forward_kl`, 1 is `reverse_kl`.

    Returns:
      Nats per position, [...].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"jensen_shannon got alpha={alpha}; give a number from 0 to 1")
    if alpha == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if alpha == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    student, teacher = _both_log_probs("jensen_shannon", student_logits, teacher_logits)

    # M is never formed. With d = log T - log S, log S/M = -log1p(alpha expm1(d)) and
    # log T/M = log S/M + d. For d > 0 the same is written with the roles exchanged, so the
    # exponential never exceeds 1, small differences keep their precision, and equals give 0.
    log_ratio = teacher - student
    student_leads = log_ratio <= 0
    share = jnp.where(student_leads, alpha, 1.0 - alpha).astype(log_ratio.dtype)
    common = -jnp.log1p(share * jnp.expm1(jnp.where(student_leads, log_ratio, -log_ratio)))
    student_over_mixture = jnp.where(student_leads, common, common - log_ratio)
    teacher_over_mixture = jnp.where(student_leads, common + log_ratio, common)

    terms = (1.0 - alpha) * jnp.exp(student) * student_over_mixture
    terms += alpha * jnp.exp(teacher) * teacher_over_mixture
    return jnp.sum(terms, axis=-1)


def forward_kl(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """KL(teacher || student) in nats: the student must cover the teacher. [..., vocab] -> [...]."""
    student, teacher = _both_log_probs("forward_kl", student_logits, teacher_logits)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def reverse_kl(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """KL(student || teacher) in nats: the student may pick one mode. [..., vocab] -> [...]."""
    student, teacher = _both_log_probs("reverse_kl", student_logits, teacher_logits)
    return jnp.sum(jnp.exp(student) * (student - teacher), axis=-1)


def forward_cross_entropy(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """- sum_v T_v log S_v in nats: `forward_kl` plus the teacher's entropy. [..., vocab] -> [...].

    Its gradient is that of `forward_kl`.
    """
    student, teacher = _both_log_probs("forward_cross_entropy", student_logits, teacher_logits)
    return -jnp.sum(jnp.exp(teacher) * student, axis=-1)


def top_k_log_probs(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, k: int, rest: str = "tail"
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of student and teacher on the student's k likeliest tokens.

    Args:
      student_logits: [..., vocab]; chooses the tokens.
      teacher_logits: [..., vocab]; read at the same tokens, without gradient.
      k: number of tokens, from 1 to vocab. Static.
      rest: what becomes of the other tokens. "tail" appends one entry with all their probability
        (at least 1e-7); merging tokens never increases a divergence. "renormalise" drops them and
        scales the k probabilities to sum to 1.

    Returns:
      Student and teacher log-probabilities in nats, each [..., k + 1] or [..., k].
    """
    student, teacher = _both_log_probs("top_k_log_probs", student_logits, teacher_logits)
    if not 1 <= k <= student.shape[-1]:
        raise ValueError(
            f"top_k_log_probs got k={k} for a vocabulary of {student.shape[-1]};"
            f" give k from 1 to {student.shape[-1]}"
        )
    if rest not in _RESTS:
        raise ValueError(f"top_k_log_probs got rest={rest!r}; give one of {', '.join(_RESTS)}")
    _, tokens = jax.lax.top_k(jax.lax.stop_gradient(student), k)
    complete = _RESTS[rest]
    return (
        complete(jnp.take_along_axis(student, tokens, axis=-1)),
        complete(jnp.take_along_axis(teacher, tokens, axis=-1)),
    )


def token_divergence(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    divergence: str = "jsd",
    alpha: float = 0.5,
    top_k: int = 0,
    rest: str = "tail",
) -> jax.Array:
    """The divergence that a configuration names, over the support that it names (DRIFT Eq. 2).

    Args:
      student_logits: [..., vocab].
      teacher_logits: [..., vocab], without gradient.
      divergence: a key of `DIVERGENCES`.
      alpha: weight of the teacher in the mixture; read by "jsd" only.
      top_k: 0 for the whole vocabulary, else the support of `top_k_log_probs`.
      rest: "tail" or "renormalise", with `top_k` only.

    Returns:
      Nats per position, [...].
    """
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"token_divergence got divergence={divergence!r}; give one of {', '.join(DIVERGENCES)}"
        )
    if top_k:
        student_logits, teacher_logits = top_k_log_probs(
            student_logits, teacher_logits, k=top_k, rest=rest
        )
    return DIVERGENCES[divergence](student_logits, teacher_logits, alpha)


def _both_log_probs(
    function: str, student_logits: ArrayLike, teacher_logits: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of both; the teacher's is the one place that cuts its gradient."""
    student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function} got student_logits {list(student.shape)} and teacher_logits"
            f" {list(teacher.shape)}; give both the same shape, [..., vocab]"
        )
    return log_softmax(student), jax.lax.stop_gradient(log_softmax(teacher))


def _append_tail(log_probs: jax.Array) -> jax.Array:
    """One more entry with the probability that the others leave. [..., k] -> [..., k + 1]."""
    covered = jax.nn.logsumexp(log_probs, axis=-1, keepdims=True)
    tail = jnp.log(-jnp.expm1(jnp.minimum(covered, -SMALLEST_TAIL)))
    return jnp.concatenate([log_probs, tail], axis=-1)


_RESTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tail": _append_tail,
    "renormalise": log_softmax,
}

# The configuration's `divergence`. All take (student_logits, teacher_logits, alpha).
DIVERGENCES: dict[str, Callable[[ArrayLike, ArrayLike, float], jax.Array]] = {
    "jsd": lambda student, teacher, alpha: jensen_shannon(student, teacher, alpha=alpha),
    "forward_kl": lambda student, teacher, alpha: forward_kl(student, teacher),
    "reverse_kl": lambda student, teacher, alpha: reverse_kl(student, teacher),
    "forward_ce": lambda student, teacher, alpha: forward_cross_entropy(student, teacher),
}
