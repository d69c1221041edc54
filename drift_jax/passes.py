"""The forward passes of a step: student after its prompts, teacher with the sibling in context.

Both stop before the vocabulary head, whose logits are too large to keep; `statistics` and `compare`
are its first sweep, without gradient.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from drift_jax.batching import Batch
from drift_jax.loss_terms import LossSettings
from drift_jax.losses import vocab
from drift_jax.losses.vocab import HeadStatistics
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig, Params


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the numbers are computed, without changing what they mean."""

    dtype: jnp.dtype | None = None
    remat: bool = False
    vocab_chunk: int = 1024


class Run(NamedTuple):
    """What stays the same for all rows of a run: sizes, constants, way of computing."""

    model: ModelConfig
    settings: LossSettings
    compute: Compute


class Models(NamedTuple):
    """The parameters that a step reads."""

    trainable: Params
    frozen: Params
    teacher: Params


def merge(trainable: Params, frozen: Params) -> Params:
    """The model's parameters from the part that is trained and the part that is not."""
    return {**frozen, **trainable}


class View(NamedTuple):
    """What a model makes of the responses, before the vocabulary head."""

    hidden: jax.Array  # [row, time, embed]
    head: jax.Array  # [embed, vocab]


def response_hidden(
    params: Params,
    model: ModelConfig,
    compute: Compute,
    tokens: jax.Array,
    mask: jax.Array,
    time: int,
) -> jax.Array:
    """Hidden states that predict the last `time` tokens. [row, time, embed]"""
    hidden = transformer.hidden_states(params, model, tokens, mask=mask, remat=compute.remat)
    return hidden[:, -time - 1 : -1]


def student_view(models: Models, rows: Batch, run: Run) -> View:
    """The student after its prompts."""
    student = transformer.cast(merge(models.trainable, models.frozen), run.compute.dtype)
    return _view(student, rows.student_tokens, rows.student_mask, rows, run)


def teacher_view(models: Models, rows: Batch, run: Run) -> View:
    """The teacher after its prompts, without gradient.

    In a trust region the teacher's logits are (1 - share) of its own + share of the student's in
    the same context: both hidden states side by side, over both heads.
    """
    models = jax.lax.stop_gradient(models)
    teacher = transformer.cast(models.teacher, run.compute.dtype)
    view = _view(teacher, rows.teacher_tokens, rows.teacher_mask, rows, run)
    share = run.settings.trust_region
    if not share:
        return view
    student = transformer.cast(merge(models.trainable, models.frozen), run.compute.dtype)
    current = _view(student, rows.teacher_tokens, rows.teacher_mask, rows, run)
    return View(
        jnp.concatenate([(1 - share) * view.hidden, share * current.hidden], axis=-1),
        jnp.concatenate([view.head, current.head], axis=0),
    )


def _view(params: Params, tokens: Any, mask: Any, rows: Batch, run: Run) -> View:
    time = rows.response.shape[-1]
    hidden = response_hidden(params, run.model, run.compute, tokens, mask, time)
    return View(hidden, transformer.output_head(params))


def statistics(view: View, rows: Batch, run: Run) -> HeadStatistics:
    """The first sweep of the head, without gradient."""
    hidden, head = jax.lax.stop_gradient(view)
    return vocab.head_statistics(hidden, head, rows.response, chunk=run.compute.vocab_chunk)


def compare(own: View, guide: View, rows: Batch, run: Run) -> vocab.LossStatistics:
    """The first sweep for methods that need the divergence before the loss, without gradient."""
    own, guide = jax.lax.stop_gradient((own, guide))
    _, both = vocab.head_loss(
        own.hidden,
        guide.hidden,
        own.head,
        guide.head,
        rows.response,
        distill_weight=0.0,
        policy_weight=0.0,
        credit_weight=0.0,
        divergence=run.settings.divergence,
        chunk=run.compute.vocab_chunk,
    )
    return both
