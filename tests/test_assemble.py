"""A configuration's sections become the arguments of the parts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drift_jax import assemble
from drift_jax import config as configs
from drift_jax.losses.divergence import Divergence
from drift_jax.update import LossSettings

# A value that is not the default for every constant of the loss: field -> (name, value).
CONSTANTS = {
    "clip_low": ("objective.clip_low", 0.1),
    "clip_high": ("objective.clip_high", 0.1),
    "dual_clip": ("objective.dual_clip", 5.0),
    "aggregation": ("objective.aggregation", "token_sum"),
    "policy_scale": ("objective.policy_scale", 2.0),
    "distill_scale": ("objective.distill_scale", 3.0),
    "token_weight": ("objective.token_weight", "rlsd"),
    "reshape_scale": ("objective.reshape_scale", 0.25),
    "reshape_decay_steps": ("objective.reshape_decay_steps", 7),
    "reshape_clip": ("objective.reshape_clip", 0.3),
    "distill_token_weight": ("objective.distill_token_weight", "teacher_entropy"),
    "entropy_beta": ("objective.entropy_beta", 2.0),
    "credit": ("objective.credit", "future_sum"),
    "distill_ratio_cap": ("objective.distill_ratio_cap", 4.0),
    "sampler_correction_cap": ("objective.sampler_correction_cap", 2.5),
    "gate": ("rhythm.gate", "open"),
    "bonus": ("rhythm.bonus", "step"),
    "window": ("rhythm.window", 3),
    "gate_sharpness": ("rhythm.gate_sharpness", 2.0),
    "structure_scale": ("rhythm.structure_scale", 0.5),
    "min_multiplier": ("rhythm.min_multiplier", 0.25),
    "max_multiplier": ("rhythm.max_multiplier", 3.0),
    "margin": ("rhythm.margin", 0.3),
    "bonus_temperature": ("rhythm.bonus_temperature", 0.5),
    "max_bonus": ("rhythm.max_bonus", 1.5),
}


def config_with(**values):
    named = {name.replace("__", "."): value for name, value in values.items()}
    return configs.assign(configs.default(), named)


def test_the_defaults_of_the_loss_are_those_of_the_configuration():
    assert assemble.loss_settings(configs.default()) == LossSettings()


def test_every_constant_of_the_loss_comes_from_its_field():
    named = {field.name for field in dataclasses.fields(LossSettings)}
    assert named == {*CONSTANTS, "divergence", "trust_region"}
    config = configs.assign(configs.default(), dict(CONSTANTS.values()))
    settings = assemble.loss_settings(config)
    for field, (_, value) in CONSTANTS.items():
        assert getattr(settings, field) == value != getattr(LossSettings(), field)


def test_the_divergence_and_its_support_come_from_the_objective():
    config = config_with(
        objective__divergence="forward_ce",
        objective__alpha=0.25,
        objective__top_k=20,
        objective__rest="drop",
        objective__support="teacher",
        objective__pointwise_cap=0.5,
    )
    expected = Divergence("forward_ce", 0.25, 20, "drop", "teacher", 0.5)
    assert assemble.loss_settings(config).divergence == expected


def test_in_a_trust_region_the_rate_mixes_logits_and_the_teachers_weights_stay():
    config = config_with(teacher__update_rule="trust_region", teacher__rate=0.3)
    assert assemble.loss_settings(config).trust_region == 0.3
    ones = np.ones((2, 2))
    assert assemble.make_memory(config).schedule.next_rate(1, ones, ones) == 0
    for rule in ("ema", "frozen"):
        config = config_with(teacher__update_rule=rule, teacher__rate=0.3)
        assert assemble.loss_settings(config).trust_region == 0


@pytest.mark.parametrize(
    "mini_batches, micro_batch, rows", [(1, 0, 64), (1, 16, 16), (4, 0, 16), (4, 8, 8), (4, 32, 16)]
)
def test_a_micro_batch_ends_where_its_mini_batch_does(mini_batches, micro_batch, rows):
    config = config_with(optimizer__mini_batches=mini_batches, compute__micro_batch=micro_batch)
    assert assemble.rows_at_once(config, 64) == rows


def test_the_update_scale_is_part_of_the_optimizer_only_when_it_acts():
    params = {"w": jnp.zeros(2)}
    plain = assemble.make_optimizer(configs.default()).init(params)
    assert optax.tree.get(plain, "update_scale") is None
    config = config_with(optimizer__information_scale=1.0)
    assert optax.tree.get(assemble.make_optimizer(config).init(params), "update_scale") == 1
