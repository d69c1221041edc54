"""One training step of a model so small that every logit can be moved by hand.

Sixteen samples of eight problems. The plain loops of reference_methods.py give the slope of the
objective along each logit; `pull_back` carries it to the parameters, so that a whole update can be
compared with an objective that knows nothing of jax.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drift_jax import batching, update
from drift_jax.batching import Batch
from drift_jax.models import forward
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.types import Rollouts
from drift_jax.update import Compute, LossSettings, TrainState
from tests import tiny
from tests.steps import KEEP_GRADIENT

CONFIG = ModelConfig(
    vocab_size=13,
    hidden_size=8,
    intermediate_size=12,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rope_theta=1e4,
)
PROBLEMS, GROUP, TIME = 8, 2, 6
ROWS = PROBLEMS * GROUP
RATE = 0.5
COMPUTE = Compute(vocab_chunk=64)

_rng = np.random.default_rng(5)
LENGTHS = np.array([6, 5, 1, 4, 6, 2, 3, 6, 5, 6, 4, 1, 6, 3, 2, 6])
RESPONSES = [_rng.integers(1, CONFIG.vocab_size, n).astype(np.int32) for n in LENGTHS]
PROMPTS = [_rng.integers(1, CONFIG.vocab_size, 3).astype(np.int32) for _ in range(PROBLEMS)]
CONTEXTS = [_rng.integers(1, CONFIG.vocab_size, 5).astype(np.int32) for _ in range(ROWS)]
ADVANTAGES = np.round(_rng.normal(size=ROWS), 2)
SAMPLER = [-_rng.gamma(2.0, size=n) for n in LENGTHS]
TAUGHT = np.arange(ROWS) % 5 != 3
CORRECT = _rng.random(ROWS) < 0.5
FRESH = np.arange(ROWS) % 7 != 2


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """u, v, beta and what the normalisers count, of every row."""

    u: Any = 0.0
    v: Any = 0.0
    beta: Any = 0.0
    policy: Any = True
    distill: Any = True

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = np.broadcast_to(np.asarray(getattr(self, field.name)), ROWS)
            object.__setattr__(self, field.name, value)


ROUTED = (CORRECT | TAUGHT) & (np.arange(ROWS) != 4)
# Correct to the policy gradient, wrong with a teacher to the distillation, one row to nothing.
SRPO = Rows(
    u=1.0 * (CORRECT & ROUTED), v=1.0 * (~CORRECT & TAUGHT & ROUTED), policy=ROUTED, distill=ROUTED
)
SDPO = Rows(v=1.0 * TAUGHT, distill=TAUGHT)
GRPO = Rows(u=1.0)
GATED = Rows(u=1.0, beta=np.where(TAUGHT & CORRECT, 1.0, 0.0))
# Weights that float32 holds exactly, as the batch does.
SOFT = Rows(u=1.0, beta=np.where(TAUGHT, 0.25, 0.0))
BOTH = Rows(u=1.0, v=0.75 * TAUGHT)


def make_batch(rows: Rows, micro_batches: int = 1, **changes: Any) -> Batch:
    """The step as the update takes it."""
    mask = np.arange(TIME) < LENGTHS[:, None]
    tokens, sampler = np.zeros(mask.shape, np.int32), np.zeros(mask.shape, np.float32)
    tokens[mask], sampler[mask] = np.concatenate(RESPONSES), np.concatenate(SAMPLER)
    shape = (PROBLEMS, GROUP)
    batch = batching.make(
        PROMPTS,
        Rollouts(tokens, mask, sampler, np.zeros(mask.shape, np.float32), np.ones(ROWS, bool)),
        [c if taught else None for c, taught in zip(CONTEXTS, TAUGHT, strict=True)],
        advantages=ADVANTAGES.reshape(shape),
        policy_weight=rows.u.reshape(shape),
        distill_weight=rows.v.reshape(shape),
        gate=rows.beta.reshape(shape),
        policy_rows=rows.policy.reshape(shape),
        distill_rows=rows.distill.reshape(shape),
        fresh=FRESH.reshape(shape),
        prompt_buckets=(3,),
        teacher_buckets=(5,),
        response_buckets=(TIME,),
        micro_batch=ROWS // micro_batches,
    )
    return batch._replace(**changes)


def student_and_teacher(dtype: type = np.float64) -> tuple[Params, Params]:
    """Sharp enough for gates and clips to act, and different."""
    student, other = tiny.params(CONFIG), tiny.params(CONFIG, seed=7)
    teacher = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, student, other)
    for params in (student, teacher):
        params["norm"] = 3 * params["norm"]
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (student, teacher))


def make_state(
    optimizer: optax.GradientTransformation = KEEP_GRADIENT, dtype: type = np.float64, step: int = 0
) -> TrainState:
    """A fresh state in buffers of its own."""
    student, teacher = jax.tree.map(jnp.array, student_and_teacher(dtype))
    state = update.init_state(student, optimizer)
    return dataclasses.replace(state, teacher=teacher, step=jnp.int32(step))


@functools.cache
def make_update(
    settings: LossSettings,
    optimizer: optax.GradientTransformation = KEEP_GRADIENT,
    mini_batches: int = 1,
    rate: float = RATE,
) -> update.UpdateFunction:
    """An update of the small model; with the default optimizer its trace is the gradient."""
    return update.make_update(
        model=CONFIG,
        settings=settings,
        compute=COMPUTE,
        optimizer=optimizer,
        learning_rate=lambda step: jnp.asarray(rate),
        mini_batches=mini_batches,
    )


def run(update_function, batch, state=None, teacher_rate=0.0):
    """(state, metrics, details) after one update in float64, on the host."""
    with jax.enable_x64(True):
        state = make_state() if state is None else state
        return jax.device_get(update_function(state, batch, teacher_rate))


# ---- the same step for the plain loops ----------------------------------------------------------


def _logits(params: Params, contexts: list[np.ndarray]) -> jax.Array:
    """Logits that predict each response after its context, zeros after its end."""
    width = len(contexts[0])
    tokens = np.zeros((ROWS, width + TIME), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, (context, response) in enumerate(zip(contexts, RESPONSES, strict=True)):
        tokens[i, : width + len(response)] = np.concatenate([context, response])
        mask[i, : width + len(response)] = True
    return forward(params, CONFIG, tokens, mask=mask)[:, width - 1 : -1]


OWN = [PROMPTS[row // GROUP] for row in range(ROWS)]


@jax.jit
def _student(params):
    return _logits(params, OWN)


@jax.jit
def _guide(params):
    # A row without a teacher has its own prompt there, and nothing that reads it.
    return _logits(params, CONTEXTS)


@jax.jit
def _pull(params, slopes):
    return jax.vjp(lambda params: _logits(params, OWN), params)[1](slopes)[0]


def samples(student: Params, teacher: Params, rows: Rows, share: float = 0.0) -> list[dict]:
    """The step as reference_methods.py wants it; `share` is that of a trust region."""
    with jax.enable_x64(True):
        own, guide, current = map(np.asarray, (_student(student), _guide(teacher), _guide(student)))
    guide = (1 - share) * guide + share * current
    return [
        {
            "student": own[i, :length].tolist(),
            "teacher": guide[i, :length].tolist(),
            "tokens": RESPONSES[i].tolist(),
            "advantage": float(np.float32(ADVANTAGES[i])),
            "u": float(np.float32(rows.u[i])),
            "v": float(np.float32(rows.v[i])),
            "beta": float(np.float32(rows.beta[i])),
            "policy_row": bool(rows.policy[i]),
            "distill_row": bool(rows.distill[i]),
            "taught": bool(TAUGHT[i]),
            "fresh": bool(FRESH[i]),
            "sampler": SAMPLER[i].astype(np.float32).tolist(),
        }
        for i, length in enumerate(LENGTHS)
    ]


def pull_back(student: Params, slopes: list[np.ndarray], rows: slice = slice(None)) -> Params:
    """The gradient by the parameters from the slopes along the logits of some rows."""
    dense = np.zeros((ROWS, TIME, CONFIG.vocab_size))
    for i, slope in zip(range(ROWS)[rows], slopes, strict=True):
        dense[i, : len(slope)] = slope
    with jax.enable_x64(True):
        return jax.device_get(_pull(student, dense))


def method(settings: LossSettings) -> dict[str, Any]:
    """The constants by their names in the configuration."""
    named = dataclasses.asdict(settings)
    named |= settings.divergence._asdict()
    named["divergence"] = settings.divergence.name
    return named
