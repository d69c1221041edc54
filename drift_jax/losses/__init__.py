"""The paper's equations as functions of arrays: jax in, jax out, no configuration and no state.

divergence       Eqs. 2-3     how far the student is from its teacher at a token
policy_gradient  Eq. 1        group advantages and the clipped surrogate
rhythm           Eqs. 9-16    which tokens deserve a larger push
objective        Eqs. 4-6     both branches, weighted and normalised
vocab                         the vocabulary head that forms the loss a chunk of tokens at a time
"""

from drift_jax.losses.credit import future_credit
from drift_jax.losses.divergence import Divergence, entropy, jensen_shannon, top_k_log_probs
from drift_jax.losses.objective import mixed_objective
from drift_jax.losses.policy_gradient import clipped_surrogate, group_advantages
from drift_jax.losses.rhythm import entropy_drop, rebellious_bonus, rhythm_gate, token_weights
from drift_jax.losses.vocab import head_loss, head_statistics
from drift_jax.losses.weights import entropy_weights, evidence_weights

__all__ = [
    "Divergence",
    "clipped_surrogate",
    "entropy",
    "entropy_drop",
    "entropy_weights",
    "evidence_weights",
    "future_credit",
    "group_advantages",
    "head_loss",
    "head_statistics",
    "jensen_shannon",
    "mixed_objective",
    "rebellious_bonus",
    "rhythm_gate",
    "token_weights",
    "top_k_log_probs",
]
