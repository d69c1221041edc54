"""Rotary frequencies against the formulas of their papers, pair by pair."""

import math

import numpy as np
import pytest

from drift_jax.models import rotary
from drift_jax.models.rotary import Llama3Scaling, YarnScaling

HEAD, THETA = 16, 500.0


def plain(pair):
    return THETA ** (-2 * pair / HEAD)


def test_without_scaling_frequencies_fall_geometrically():
    expected = [plain(pair) for pair in range(HEAD // 2)]
    np.testing.assert_allclose(rotary.frequencies(HEAD, THETA), expected, rtol=1e-6)


def test_llama3_slows_pairs_by_their_wavelength():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)
    expected = []
    for pair in range(HEAD // 2):
        wavelength = 2 * math.pi / plain(pair)
        if wavelength < 64 / 4.0:
            expected.append(plain(pair))
        elif wavelength > 64 / 1.0:
            expected.append(plain(pair) / 8)
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * plain(pair) / 8 + smooth * plain(pair))
    ratios = np.array(expected) / [plain(pair) for pair in range(HEAD // 2)]
    assert ratios[0] == 1 and ratios[-1] == 1 / 8 and any((ratios > 1 / 8) & (ratios < 1))
    np.testing.assert_allclose(rotary.frequencies(HEAD, THETA, scaling), expected, rtol=1e-6)


def test_yarn_slows_pairs_along_a_ramp():
    scaling = YarnScaling(4.0, 64, beta_fast=4.0, beta_slow=0.5)

    def pair_that_turns(times):
        return HEAD * math.log(64 / (times * 2 * math.pi)) / (2 * math.log(THETA))

    first, last = math.floor(pair_that_turns(4.0)), math.ceil(pair_that_turns(0.5))
    assert (first, last) == (1, 4)
    expected = []
    for pair in range(HEAD // 2):
        ramp = min(max((pair - first) / (last - first), 0), 1)
        expected.append(plain(pair) / 4 * ramp + plain(pair) * (1 - ramp))
    np.testing.assert_allclose(rotary.frequencies(HEAD, THETA, scaling), expected, rtol=1e-6)


@pytest.mark.parametrize("scaling", [None, YarnScaling(4.0, 64, attention_factor=1.5)])
def test_the_attention_factor_stretches_every_turned_vector(scaling):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 2, HEAD)).astype(np.float32)
    turned = rotary.rotate(vectors, rotary.angles(np.arange(5), HEAD, THETA, scaling))
    lengths = np.linalg.norm(turned, axis=-1) / np.linalg.norm(vectors, axis=-1)
    np.testing.assert_allclose(lengths, 1.0 if scaling is None else 1.5, rtol=1e-5)


def test_scores_depend_on_the_distance_of_tokens_alone():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, HEAD)).astype(np.float32)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)

    def score(at, other):
        turns = [rotary.angles(np.array([place]), HEAD, THETA, scaling) for place in (at, other)]
        return float((rotary.rotate(query, turns[0]) * rotary.rotate(key, turns[1])).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(10, 4)) > 1e-2
