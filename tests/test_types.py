"""The records of a step: what they count, padding left out."""

import numpy as np

from drift_jax.types import Rollouts


def rollouts() -> Rollouts:
    """Three responses of 3, 1 and 0 tokens; what stands in the padding must not matter."""
    mask = np.array([[True, True, True], [True, False, False], [False, False, False]])
    entropies = np.array([[0.5, 0.25, 0.0], [2.0, np.nan, np.inf], [7.0, 7.0, 7.0]], np.float32)
    return Rollouts(
        tokens=np.zeros((3, 3), np.int32),
        mask=mask,
        log_probs=np.zeros((3, 3), np.float32),
        entropies=entropies,
        finished=np.array([True, True, False]),
    )


def test_lengths_count_the_response_tokens():
    np.testing.assert_array_equal(rollouts().lengths, [3, 1, 0])


def test_mean_entropy_is_a_mean_over_response_tokens_and_zero_without_any():
    np.testing.assert_array_equal(rollouts().mean_entropy, [0.25, 2.0, 0.0])
