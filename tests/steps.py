"""One training step made by hand, in stage 1 and in stage 2, and Eq. 4 written out for it.

Four problems with two rollouts each: all correct, mixed, all wrong, all correct. Rows differ in
length and most end with the stop token. `literal` is the objective as a reader of the paper would
write it: one row at a time, without padding in the row, from all logits at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drift_jax import batching, update
from drift_jax.batching import Batch
from drift_jax.models import forward
from drift_jax.models.transformer import Params
from drift_jax.types import Rollouts
from drift_jax.update import Compute, LossSettings, TrainState
from tests import reference, tiny

STOP, TIME, GROUP = 2, 12, 2
LENGTHS = (11, 12, 1, 9, 5, 7, 8, 12)
ROWS = len(LENGTHS)
CORRECT = np.array([1, 1, 1, 0, 0, 0, 1, 1], bool)
HAS_TEACHER = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
GAMMA = np.array([1, 1, 0.5, 0.5, 0, 0, 1, 1])
# Row 1 is correct with A < 0 (dense rewards), so it is not gated; rows 0, 6, 7 are.
ADVANTAGES = np.array([0.375, -0.25, 0.5, -0.5, 0.0, 0.0, 0.75, 0.25])
GATE = np.array([1, 0, 0, 0, 0, 0, 1, 1], bool)


@dataclasses.dataclass(frozen=True)
class Weights:
    """u, v and beta of every row."""

    policy: np.ndarray
    distill: np.ndarray
    gate: np.ndarray


MIXED = Weights(CORRECT * GAMMA, 1.0 * (~CORRECT & HAS_TEACHER), GATE)
WARMUP = Weights(np.zeros(ROWS), 1.0 * HAS_TEACHER, np.zeros(ROWS, bool))
NOTHING = Weights(np.zeros(ROWS), np.zeros(ROWS), np.zeros(ROWS, bool))

PROMPTS = tiny.prompts(ROWS // GROUP)
# A row without teacher has its own prompt there.
CONTEXTS = [
    context if taught else PROMPTS[row // GROUP]
    for row, (context, taught) in enumerate(
        zip(tiny.prompts(ROWS, seed=3, longest=24), HAS_TEACHER, strict=True)
    )
]


def _responses() -> list[np.ndarray]:
    rng = np.random.default_rng(188)  # of few seeds with an open gate in every gated row
    drawn = [rng.integers(5, tiny.CONFIG.vocab_size, length) for length in LENGTHS]
    for row, response in enumerate(drawn):
        if row != 1:  # cut at the limit
            response[-1] = STOP
    return [response.astype(np.int32) for response in drawn]


RESPONSES = _responses()


def rollouts() -> Rollouts:
    """The responses as a sampler would hand them over, with no log-probs worth mentioning."""
    mask = np.arange(TIME) < np.array(LENGTHS)[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(RESPONSES)
    zeros = np.zeros(mask.shape, np.float32)
    return Rollouts(tokens, mask, zeros, zeros, np.arange(ROWS) != 1)


def make_batch(
    weights: Weights = MIXED,
    *,
    micro_batches: int = 1,
    prompt_bucket: int = 16,
    teacher_bucket: int = 32,
    response_bucket: int = TIME,
) -> Batch:
    """The step as the update takes it."""
    shape = (ROWS // GROUP, GROUP)
    return batching.make(
        PROMPTS,
        rollouts(),
        [c if taught else None for c, taught in zip(CONTEXTS, HAS_TEACHER, strict=True)],
        advantages=ADVANTAGES.reshape(shape),
        policy_weight=weights.policy.reshape(shape),
        distill_weight=weights.distill.reshape(shape),
        gate=weights.gate.reshape(shape),
        prompt_buckets=(prompt_bucket,),
        teacher_buckets=(teacher_bucket,),
        response_buckets=(response_bucket,),
        micro_batch=ROWS // micro_batches,
    )


def student_and_teacher(dtype: type = np.float32) -> tuple[Params, Params]:
    """Parameters of a student in training and of the teacher behind it, which differ."""
    student, other = tiny.params(), tiny.params(seed=7)
    teacher = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, student, other)
    for params in (student, teacher):
        params["norm"] = 2 * params["norm"]  # sharper than a random model
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (student, teacher))


def make_state(
    optimizer: optax.GradientTransformation, dtype: type = np.float32, **changes
) -> TrainState:
    """A fresh state; every call has its own buffers, since an update takes them over."""
    student, teacher = jax.tree.map(jnp.array, student_and_teacher(dtype))
    return dataclasses.replace(update.init_state(student, optimizer), teacher=teacher, **changes)


DEFAULT, PLAIN = LossSettings(), Compute()
# Its state after an update is that update's gradient, to the last bit.
KEEP_GRADIENT = optax.trace(decay=0.0)


@functools.cache
def gradient_update(
    settings: LossSettings = DEFAULT, compute: Compute = PLAIN
) -> update.UpdateFunction:
    """params - 0.5 gradient, with a teacher that never changes."""
    return update.make_update(
        model=tiny.CONFIG,
        settings=settings,
        compute=compute,
        optimizer=KEEP_GRADIENT,
        learning_rate=lambda step: jnp.float32(0.5),
    )


# ---- Eq. 4 as a reader would write it ------------------------------------------------------------


def predictions(params: Params, contexts: list[np.ndarray]) -> list[jax.Array]:
    """Logits that predict each response after its context. [time, vocab] a row"""
    rows = [np.concatenate(pair) for pair in zip(contexts, RESPONSES, strict=True)]
    tokens = np.zeros((ROWS, max(map(len, rows))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    logits = forward(params, tiny.CONFIG, tokens, mask=mask)
    return [logits[i, len(c) - 1 : len(rows[i]) - 1] for i, c in enumerate(contexts)]


@jax.jit
def both_predictions(params: Params, teacher: Params) -> tuple[list[jax.Array], list[jax.Array]]:
    """Logits of the student after its prompts, of the teacher after its contexts."""
    each_prompt = [PROMPTS[row // GROUP] for row in range(ROWS)]
    return predictions(params, each_prompt), predictions(teacher, CONTEXTS)


def sampled_log_probs(logits: list[jax.Array]) -> list[jax.Array]:
    """log pi of the sampled tokens. [time] a row"""
    return [
        jax.nn.log_softmax(row)[np.arange(len(response)), response]
        for row, response in zip(logits, RESPONSES, strict=True)
    ]


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def _eq4(params: Params, teacher: Params, policy: list, distill: list, alpha: float):
    """sum over rows and tokens of -policy min(rho A, clip(rho) A) + distill JSD, and both parts."""
    student, guide = both_predictions(params, teacher)
    policy_loss = distill_loss = 0.0
    for row, log_pi in enumerate(sampled_log_probs(student)):
        a, rho = ADVANTAGES[row], jnp.exp(log_pi - jax.lax.stop_gradient(log_pi))
        surrogate = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.28) * a)
        policy_loss -= jnp.sum(policy[row] * surrogate)
        p, q = jax.nn.softmax(student[row]), jax.nn.softmax(guide[row])
        m = (1 - alpha) * p + alpha * q
        jsd = (1 - alpha) * p * jnp.log(p / m) + alpha * q * jnp.log(q / m)
        distill_loss += jnp.sum(distill[row] * jsd.sum(axis=-1))
    return policy_loss + distill_loss, (policy_loss, distill_loss)


def token_weights(
    params: Params, teacher: Params, weights: Weights, settings: LossSettings = DEFAULT
) -> list[np.ndarray]:
    """M of Eq. 16 by the plain loops. [time] a row"""
    student, guide = both_predictions(params, teacher)
    out = []
    for row, response in enumerate(RESPONSES):
        own = [reference.softmax(z) for z in np.asarray(student[row], np.float64)]
        other = [reference.softmax(z) for z in np.asarray(guide[row], np.float64)]
        gate = reference.rhythm_gate(
            [reference.entropy(p) for p in own],
            [reference.entropy(p) for p in other],
            window=settings.window,
            gate_sharpness=settings.gate_sharpness,
            structure_scale=settings.structure_scale,
            min_multiplier=settings.min_multiplier,
            max_multiplier=settings.max_multiplier,
        )
        bonus = [
            reference.rebellious_bonus(
                np.log(p[token]),
                np.log(q[token]),
                margin=settings.margin,
                bonus_temperature=settings.bonus_temperature,
                max_bonus=settings.max_bonus,
            )
            for p, q, token in zip(own, other, response, strict=True)
        ]
        out.append(np.array(reference.token_weights(gate, bonus, weights.gate[row])))
    return out


def literal(
    params: Params, teacher: Params, weights: Weights, settings: LossSettings = DEFAULT
) -> tuple:
    """((loss, (policy part, distillation part)), gradient) of Eq. 4, by full logits."""
    divisors = {
        "sequence_mean": [ROWS * length for length in LENGTHS],
        "token_mean": [sum(LENGTHS)] * ROWS,
        "token_sum": [ROWS] * ROWS,
    }[settings.aggregation]
    m = token_weights(params, teacher, weights, settings)
    policy = [
        settings.policy_scale * u / n * m_row
        for u, n, m_row in zip(weights.policy, divisors, m, strict=True)
    ]
    distill = [
        settings.distill_scale * v / n * np.ones(length)
        for v, n, length in zip(weights.distill, divisors, LENGTHS, strict=True)
    ]
    return _eq4(params, teacher, policy, distill, settings.divergence.alpha)
