"""The loss of a micro-batch of rows, and what must be known of the whole batch before it.

    teacher pass (no gradient)  ->  hidden states with the sibling in context
    student pass                ->  hidden states
    head, first sweep           ->  log-probs and entropies of both, hence the token weights
    head, second sweep          ->  the loss and its gradient (DRIFT Eq. 4)

A method may need a mean over the whole batch (SRPO's weights), or the policy as it was before the
step's first mini-batch (pi_old, DistIL's credit). When the batch comes in more than one piece,
`fix` computes that in a pass of its own; one piece has it all in its first sweep. A method that
needs none gets no pass.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from drift_jax import loss_terms
from drift_jax.batching import Batch
from drift_jax.loss_terms import LossSettings
from drift_jax.losses import objective as objectives
from drift_jax.losses import vocab
from drift_jax.losses.policy_gradient import clipped_surrogate, importance_ratio, truncated_ratio
from drift_jax.losses.vocab import HeadStatistics
from drift_jax.passes import Models, Run, View, compare, statistics, student_view, teacher_view

Details = dict[str, Any]  # per-token values, [row, time] each, and the value of the loss


class Normalisers(NamedTuple):
    """1 / N_i of both terms, of the whole (mini-)batch. [micro, row, 1], or [row, 1] of a piece."""

    policy: jax.Array
    distill: jax.Array


class Fixed(NamedTuple):
    """What holds during a whole step, per token: [micro, row, time], or [row, time] of a piece.

    None where the first sweep of a piece says it, because the piece is the whole batch or because
    the settings do not need it.
    """

    old_log_probs: jax.Array | None = None  # pi_old of the sampled tokens; None: the present policy
    entropy_factor: jax.Array | None = None  # w of the divergence
    credit: jax.Array | None = None  # C, in nats


def normalisers(batch: Batch, aggregation: str) -> Normalisers:
    """Of all pieces together, so that the sum over pieces does not depend on the split."""
    shape = batch.response_mask.shape
    mask = batch.response_mask.reshape(-1, shape[-1])

    def counting(rows: jax.Array) -> jax.Array:
        each = objectives.batch_normaliser(mask, rows.reshape(-1), aggregation=aggregation)
        return each.reshape(*shape[:2], 1)

    return Normalisers(counting(batch.policy_rows), counting(batch.distill_rows))


def fix(models: Models, batch: Batch, run: Run, mini_batches: int) -> Fixed:
    """What the settings need of the whole batch, or of the policy before the first mini-batch.

    Costs, when there is more than one piece: a forward pass of the student for mini-batches; one of
    the teacher for `distill_token_weight`, and for the credit of mini-batches. Otherwise nothing.

    Args:
      models: parameters at the start of the step.
      batch: all rows. [micro, row, ...]
      run: sizes and constants.
      mini_batches: optimizer steps of the batch, consecutive slices of `micro`.
    """
    settings, pieces = run.settings, len(batch.response)
    moves = mini_batches > 1
    weighs = pieces > 1 and settings.distill_token_weight != "none"
    credited = moves and settings.credit != "none"
    if not (moves or weighs):
        return Fixed()

    def read(rows: Batch) -> Fixed:
        """As `Fixed`, but with the teacher's entropies in the place of their weights."""
        own_log_probs = entropy = credit = None
        if moves:
            own = student_view(models, rows, run)
            own_log_probs = statistics(own, rows, run).log_probs
        if weighs or credited:
            guide = teacher_view(models, rows, run)
            entropy = statistics(guide, rows, run).entropy if weighs else None
            if credited:
                divergence = compare(own, guide, rows, run).divergence
                credit = loss_terms.credit(divergence, rows, settings)
        return Fixed(own_log_probs, entropy, credit)

    log_probs, teacher_entropy, credit = jax.lax.map(read, batch)
    factor = None
    if weighs:
        # Each mini-batch has a mean of its own, as it has normalisers of its own.
        shape = (mini_batches, -1, *teacher_entropy.shape[1:])
        of_each = jax.vmap(partial(loss_terms.entropy_factor, settings=settings))
        counted = loss_terms.distilled(batch)
        factor = of_each(teacher_entropy.reshape(shape), counted.reshape(shape))
        factor = factor.reshape(teacher_entropy.shape)
    return Fixed(log_probs, factor, credit)


def loss(
    trainable: Any,
    models: Models,
    rows: Batch,
    normaliser: Normalisers,
    fixed: Fixed,
    step: jax.Array,
    run: Run,
) -> tuple[jax.Array, Details]:
    """A scalar whose gradient is that of the objective on one micro-batch, and what to report.

    Args:
      trainable: the part of the student that gets the gradient; takes the place of `models`' own.
      models: parameters.
      rows: the micro-batch.
      normaliser: of both terms, at these rows.
      fixed: what was computed before, at these rows.
      step: training steps done before this one.
      run: sizes and constants.
    """
    settings, mask, clip = run.settings, rows.response_mask, run.settings.clip
    models = models._replace(trainable=trainable)
    student = student_view(models, rows, run)
    guide = jax.lax.stop_gradient(student)
    if rows.teacher_tokens is not None:
        guide = teacher_view(models, rows, run)

    # First sweep of the head, without gradient: the gate needs the entropies of whole sequences.
    own, taught, credit = _first_sweep(student, guide, rows, fixed, run)
    gate, bonus, token_weights = loss_terms.token_weights(own, taught, rows, step, settings)

    # With one update a batch the old policy is the present one: the ratio is exactly 1 and only its
    # gradient counts. The sampler's log-probs are compared (`sampler/log_prob_gap_max`), and used
    # only by the correction.
    old = own.log_probs if fixed.old_log_probs is None else fixed.old_log_probs
    ratio = importance_ratio(own.log_probs, old)
    correction = loss_terms.sampler_correction(old, rows, settings)
    distill_weights = _distill_weights(own, taught, rows, fixed, settings)
    policy_row = settings.policy_scale * rows.policy_weight
    distill_row = settings.distill_scale * rows.distill_weight
    advantages = rows.advantages[:, None]

    def policy_gradient(row_weight: Any, by: jax.Array, weights: Any, gain: jax.Array) -> jax.Array:
        coefficients = objectives.token_coefficients(row_weight, by, weights, mask)
        return objectives.clipped_policy_weight(own.log_probs, old, gain, coefficients, **clip)

    credit_weight: jax.Array | float = 0.0
    credit_value: jax.Array | float = 0.0
    if credit is not None:  # a policy-gradient term with the advantage -C
        credit_weight = -policy_gradient(distill_row, normaliser.distill, correction, -credit)
        credit_value = -correction * clipped_surrogate(ratio, -credit, **clip)
    scalar, both = vocab.head_loss(
        student.hidden,
        guide.hidden,
        student.head,
        guide.head,
        rows.response,
        distill_weight=objectives.token_coefficients(
            distill_row, normaliser.distill, distill_weights * correction, mask
        ),
        policy_weight=policy_gradient(
            policy_row, normaliser.policy, token_weights * correction, advantages
        ),
        credit_weight=credit_weight,
        divergence=settings.divergence,
        chunk=run.compute.vocab_chunk,
    )
    value = objectives.mixed_objective(
        clipped_surrogate(ratio, advantages, **clip),
        both.divergence,
        mask,
        policy_weight=policy_row,
        distill_weight=distill_row,
        policy_normaliser=normaliser.policy,
        distill_normaliser=normaliser.distill,
        token_weights=token_weights * correction,
        distill_token_weights=distill_weights * correction,
        credit=credit_value,
    )
    details: Details = both._asdict()
    details |= {"rhythm_gate": gate, "rebellious_bonus": bonus, "token_weights": token_weights}
    details |= {
        "old_log_probs": both.student_log_probs if fixed.old_log_probs is None else old,
        "distill_token_weights": jnp.broadcast_to(distill_weights, mask.shape),
        "credit": jnp.zeros(mask.shape) if credit is None else credit,
    }
    return scalar, {**details, "loss": value}


def _first_sweep(
    student: View, guide: View, rows: Batch, fixed: Fixed, run: Run
) -> tuple[HeadStatistics, HeadStatistics, jax.Array | None]:
    """What student and teacher say of the tokens, and the credit, without gradient."""
    if run.settings.credit == "none" or fixed.credit is not None:
        return statistics(student, rows, run), statistics(guide, rows, run), fixed.credit
    both = compare(student, guide, rows, run)
    return (
        HeadStatistics(both.student_log_probs, both.student_entropy),
        HeadStatistics(both.teacher_log_probs, both.teacher_entropy),
        loss_terms.credit(both.divergence, rows, run.settings),
    )


def _distill_weights(
    own: HeadStatistics, taught: HeadStatistics, rows: Batch, fixed: Fixed, settings: LossSettings
) -> jax.Array | float:
    """w of the divergence: trust in the teacher, times the ratio to the policy that sampled."""
    weights: jax.Array | float | None = fixed.entropy_factor
    if weights is None:
        weights = loss_terms.entropy_factor(taught.entropy, loss_terms.distilled(rows), settings)
    if fixed.old_log_probs is not None and settings.distill_ratio_cap:
        cap = settings.distill_ratio_cap
        weights = weights * truncated_ratio(own.log_probs, fixed.old_log_probs, cap=cap)
    return weights
