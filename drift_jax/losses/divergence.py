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
    rest: str = "tail"  # the tokens outside: a key of RESTS
    support: str = "student"  # whose likeliest tokens `top_k` takes: a key of SUPPORTS
    pointwise_cap: float = 0.0  # largest part of one vocabulary entry, in nats; 0 is no cap


def log_softmax(logits: ArrayLike) -> jax.Array:
    """Log-probabilities in nats, in float32 at least and never below -1e30. [..., vocab]."""
    logits = jnp.asarray(logits)
    if logits.dtype not in (jnp.float32, jnp.float64):
        logits = logits.astype(jnp.float32)
    return jnp.maximum(jax.nn.log_softmax(logits, axis=-1), LOWEST_LOG_PROB)


def entropy(logits: ArrayLike) -> jax.Array:
    """Entropy of a next-token distribution in nats, at most log(vocab). [..., vocab] -> [...]."""
    return entropy_of(log_softmax(logits))


def entropy_of(log_probs: jax.Array) -> jax.Array:
    """`entropy`, from log-probabilities that are at hand. [..., vocab] -> [...]."""
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
    student, teacher = _both_log_probs("jensen_shannon", student_logits, teacher_logits)
    return jnp.sum(_jensen_shannon_terms(student, teacher, alpha), axis=-1)


def forward_kl(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """KL(teacher || student) in nats: the student must cover the teacher. [..., vocab] -> [...]."""
    student, teacher = _both_log_probs("forward_kl", student_logits, teacher_logits)
    return jnp.sum(_forward_kl_terms(student, teacher), axis=-1)


def reverse_kl(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """KL(student || teacher) in nats: the student may pick one mode. [..., vocab] -> [...]."""
    student, teacher = _both_log_probs("reverse_kl", student_logits, teacher_logits)
    return jnp.sum(_reverse_kl_terms(student, teacher), axis=-1)


def forward_cross_entropy(student_logits: ArrayLike, teacher_logits: ArrayLike) -> jax.Array:
    """- sum_v T_v log S_v in nats: `forward_kl` plus the teacher's entropy. [..., vocab] -> [...].

    Its gradient is that of `forward_kl`.
    """
    student, teacher = _both_log_probs("forward_cross_entropy", student_logits, teacher_logits)
    return jnp.sum(_forward_ce_terms(student, teacher), axis=-1)


def sampled_reverse_kl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, targets: ArrayLike
) -> jax.Array:
    """log S(y) - log T(y) at the sampled token y: `reverse_kl` estimated from one sample, in nats.

    Its gradient is sg(log S(y) - log T(y)) grad log S(y), whose expectation over y ~ S is that of
    `reverse_kl` (SDPO, arXiv 2601.20802, token-level form). Negative where the teacher finds y
    likelier.

    Args:
      student_logits: [..., vocab].
      teacher_logits: [..., vocab], without gradient.
      targets: the sampled tokens. [...].

    Returns:
      Nats per position, [...].
    """
    both = _both_log_probs("sampled_reverse_kl", student_logits, teacher_logits)
    at = jnp.asarray(targets)[..., None]
    student, teacher = (jnp.take_along_axis(x, at, axis=-1)[..., 0] for x in both)
    held = jax.lax.stop_gradient(student)
    return (held - teacher) * (1.0 + student - held)


def top_k_log_probs(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    k: int,
    rest: str = "tail",
    support: str = "student",
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of student and teacher on the k likeliest tokens of one of them.

    Args:
      student_logits: [..., vocab].
      teacher_logits: [..., vocab], without gradient.
      k: number of tokens, from 1 to vocab. Static.
      rest: what becomes of the other tokens. "tail" appends one entry with all their probability
        (at least 1e-7); merging tokens never increases a divergence. "renormalise" leaves them out
        and scales the k probabilities to sum to 1; "drop" leaves them out as they are, so that the
        k probabilities sum to less than 1.
      support: who chooses the tokens, "student" or "teacher". Both are read at the same ones.

    Returns:
      Student and teacher log-probabilities in nats, each [..., k + 1] or [..., k].
    """
    student, teacher = _both_log_probs("top_k_log_probs", student_logits, teacher_logits)
    if not 1 <= k <= student.shape[-1]:
        raise ValueError(
            f"top_k_log_probs got k={k} for a vocabulary of {student.shape[-1]};"
            f" give k from 1 to {student.shape[-1]}"
        )
    for name, value, known in (("rest", rest, RESTS), ("support", support, SUPPORTS)):
        if value not in known:
            raise ValueError(
                f"top_k_log_probs got {name}={value!r}; give one of {', '.join(known)}"
            )
    _, tokens = jax.lax.top_k(jax.lax.stop_gradient(SUPPORTS[support](student, teacher)), k)
    complete = RESTS[rest]
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
    support: str = "student",
    pointwise_cap: float = 0.0,
    targets: ArrayLike | None = None,
) -> jax.Array:
    """The divergence that a configuration names, over the support that it names (DRIFT Eq. 2).

    Args:
      student_logits: [..., vocab].
      teacher_logits: [..., vocab], without gradient.
      divergence: a key of `DIVERGENCES`, or "sampled_reverse_kl".
      alpha: weight of the teacher in the mixture; read by "jsd" only.
      top_k: 0 for the whole vocabulary, else the support of `top_k_log_probs`.
      rest: "tail", "renormalise" or "drop", with `top_k` only.
      support: "student" or "teacher", with `top_k` only.
      pointwise_cap: largest part of the sum that one vocabulary entry may have, in nats (OPSD,
        arXiv 2601.18734); an entry above it has no gradient. 0 is no cap.
      targets: the sampled tokens, which "sampled_reverse_kl" reads and the others do not. [...].

    Returns:
      Nats per position, [...].
    """
    if divergence not in (*DIVERGENCES, SAMPLED):
        known = ", ".join((*DIVERGENCES, SAMPLED))
        raise ValueError(f"token_divergence got divergence={divergence!r}; give one of {known}")
    if divergence == SAMPLED:
        if targets is None:
            raise ValueError(f"token_divergence got {SAMPLED} without targets; give the tokens")
        return sampled_reverse_kl(student_logits, teacher_logits, targets)
    if top_k:
        student_logits, teacher_logits = top_k_log_probs(
            student_logits, teacher_logits, k=top_k, rest=rest, support=support
        )
    if top_k and rest == "drop":  # their sum is not 1, and a log-softmax would make it 1
        student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    else:
        student, teacher = _both_log_probs("token_divergence", student_logits, teacher_logits)
    terms = DIVERGENCES[divergence](student, teacher, alpha)
    if pointwise_cap:
        terms = jnp.minimum(terms, pointwise_cap)
    return jnp.sum(terms, axis=-1)


def divergence_and_gradient(
    student: jax.Array, teacher: jax.Array, targets: jax.Array, of: Divergence
) -> tuple[jax.Array, jax.Array]:
    """`token_divergence` D and dD/dz of the student's logits z, for a loss that forms its gradient.

    Over the whole vocabulary both are written out; supports and caps choose entries by their
    values, and are left to jax.

    Args:
      student: log-probabilities in nats, as `log_softmax` gives them. [..., vocab].
      teacher: those of the teacher. [..., vocab].
      targets: the sampled tokens, for "sampled_reverse_kl". [...].
      of: which divergence, over which support.

    Returns:
      Nats per position, [...], and their gradients, [..., vocab].
    """
    if of.name in WITH_GRADIENT and not of.top_k and not of.pointwise_cap:
        return WITH_GRADIENT[of.name](student, teacher, of.alpha)
    options = of._asdict()
    name = options.pop("name")
    value, pull = jax.vjp(
        lambda z: token_divergence(z, teacher, divergence=name, targets=targets, **options), student
    )
    return value, pull(jnp.ones_like(value))[0]


# ---- one vocabulary entry's part of each divergence; log-probabilities, [..., vocab] -------------


def _jensen_shannon_terms(student: jax.Array, teacher: jax.Array, alpha: float) -> jax.Array:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"jensen_shannon got alpha={alpha}; give a number from 0 to 1")
    if alpha == 0.0:
        return _forward_kl_terms(student, teacher)
    if alpha == 1.0:
        return _reverse_kl_terms(student, teacher)

    over_mixture = _over_mixture(student, teacher, alpha)
    terms = (1.0 - alpha) * jnp.exp(student) * over_mixture[0]
    return terms + alpha * jnp.exp(teacher) * over_mixture[1]


def _over_mixture(
    student: jax.Array, teacher: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """log S/M and log T/M for M = (1 - alpha) S + alpha T, from the logarithms of S and T."""
    # M is never formed. With d = log T - log S, log S/M = -log1p(alpha expm1(d)) and
    # log T/M = log S/M + d. For d > 0 the same is written with the roles exchanged, so the
    # exponential never exceeds 1, small differences keep their precision, and equals give 0.
    log_ratio = teacher - student
    student_leads = log_ratio <= 0
    share = jnp.where(student_leads, alpha, 1.0 - alpha).astype(log_ratio.dtype)
    common = -jnp.log1p(share * jnp.expm1(jnp.where(student_leads, log_ratio, -log_ratio)))
    student_over_mixture = jnp.where(student_leads, common, common - log_ratio)
    teacher_over_mixture = jnp.where(student_leads, common + log_ratio, common)
    return student_over_mixture, teacher_over_mixture


def _forward_kl_terms(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return jnp.exp(teacher) * (teacher - student)


def _reverse_kl_terms(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return jnp.exp(student) * (student - teacher)


def _forward_ce_terms(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return -jnp.exp(teacher) * student


# ---- a whole divergence D with its gradient dD/dz; log-probabilities, [..., vocab] ---------------


def _jensen_shannon_with_gradient(
    student: jax.Array, teacher: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """K_S = sum S log S/M and K_T = sum T log T/M give D; dD/dz = (1 - alpha) S (log S/M - K_S)."""
    # What M adds to dD/dS is (1 - alpha) - ((1 - alpha) S + alpha T) (1 - alpha) / M = 0.
    if alpha in (0.0, 1.0):
        ends = {0.0: _forward_kl_with_gradient, 1.0: _reverse_kl_with_gradient}
        return ends[alpha](student, teacher)
    p, q = jnp.exp(student), jnp.exp(teacher)
    student_over_mixture, teacher_over_mixture = _over_mixture(student, teacher, alpha)
    student_part = jnp.sum(p * student_over_mixture, axis=-1)
    teacher_part = jnp.sum(q * teacher_over_mixture, axis=-1)
    gradient = (1.0 - alpha) * p * (student_over_mixture - student_part[..., None])
    return (1.0 - alpha) * student_part + alpha * teacher_part, gradient


def _forward_kl_with_gradient(
    student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
    value = jnp.sum(_forward_kl_terms(student, teacher), axis=-1)
    return value, jnp.exp(student) - jnp.exp(teacher)


def _reverse_kl_with_gradient(
    student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
    value = jnp.sum(_reverse_kl_terms(student, teacher), axis=-1)
    return value, jnp.exp(student) * (student - teacher - value[..., None])


def _forward_ce_with_gradient(
    student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
    value = jnp.sum(_forward_ce_terms(student, teacher), axis=-1)
    return value, jnp.exp(student) - jnp.exp(teacher)


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


# The configuration's `rest`. [..., k] -> [..., k] or [..., k + 1].
RESTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tail": _append_tail,
    "renormalise": log_softmax,
    "drop": lambda log_probs: log_probs,
}

# The configuration's `support`: whose likeliest tokens.
SUPPORTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "student": lambda student, teacher: student,
    "teacher": lambda student, teacher: teacher,
}

# The configuration's `divergence`, as parts to be summed over the support. All take
# (student_log_probs, teacher_log_probs, alpha).
DIVERGENCES: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "jsd": _jensen_shannon_terms,
    "forward_kl": lambda student, teacher, alpha: _forward_kl_terms(student, teacher),
    "reverse_kl": lambda student, teacher, alpha: _reverse_kl_terms(student, teacher),
    "forward_ce": lambda student, teacher, alpha: _forward_ce_terms(student, teacher),
}
# The same with gradients, summed over the whole vocabulary. Same arguments.
WITH_GRADIENT: dict[str, Callable[[jax.Array, jax.Array, float], tuple[jax.Array, jax.Array]]] = {
    "jsd": _jensen_shannon_with_gradient,
    "forward_kl": lambda student, teacher, alpha: _forward_kl_with_gradient(student, teacher),
    "reverse_kl": lambda student, teacher, alpha: _reverse_kl_with_gradient(student, teacher),
    "forward_ce": lambda student, teacher, alpha: _forward_ce_with_gradient(student, teacher),
}
# Reads the sampled token alone, so it has no support.
SAMPLED = "sampled_reverse_kl"
