"""Where two methods must be one: the host's half of the limit identities.

Two methods whose decisions, advantages and counted rows agree hand the same batch to the same
update. The numbers are those of the identities in the comments of tests/test_method_updates.py,
where the device's half is.
"""

import numpy as np
import pytest

from drift_jax import config as configs
from drift_jax import methods
from tests.groups import GROUP, decided

ALL_RIGHT = {"p": [1, 1, 1, 1], "q": [1, 1, 1, 1]}
ALL_WRONG = {"known": [0, 0, 0, 0]}  # taught from the buffer
MIXED = {"p": [1, 0, 0, 0], "q": [1, 1, 0, 0], "r": [1, 1, 1, 0]}
FIELDS = ("advantages", "policy_weight", "distill_weight", "gate", "policy_rows", "distill_rows")
STAGES = ("warmup", "mixed")


def assert_same(one, other, *, fields=FIELDS):
    """Two decisions hand the same rows to the update, and the same contexts to the teacher."""
    for field in fields:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
    for row, column in np.argwhere(one.needs_teacher):
        assert one.choice.text[row][column] == other.choice.text[row][column]


def differing(one: str, other: str) -> set[str]:
    """Fields in which two methods differ, but for the name and the learning rate."""
    first, second = (
        configs.flatten(methods.apply(configs.default(), name)) for name in (one, other)
    )
    return {name for name in first if first[name] != second[name]} - {
        "method",
        "optimizer.learning_rate_factor",
    }


@pytest.mark.parametrize("stage", STAGES)
def test_1_srpo_of_correct_samples_alone_is_grpo(stage):
    assert_same(*(decided(name, stage, rewards=ALL_RIGHT) for name in ("srpo", "grpo")))
    # In a mixed group the correct samples still are.
    one, other = (decided(name, stage, rewards=MIXED) for name in ("srpo", "grpo"))
    right = one.routes.is_correct
    for field in ("advantages", "policy_weight", "distill_weight"):
        np.testing.assert_array_equal(getattr(one, field)[right], getattr(other, field)[right])


@pytest.mark.parametrize("stage", STAGES)
def test_3_srpo_of_wrong_samples_with_a_teacher_is_sdpo(stage):
    one, other = (decided(name, stage, rewards=ALL_WRONG) for name in ("srpo", "sdpo"))
    assert one.distill_weight.all() and not one.policy_weight.any()
    assert_same(one, other)


@pytest.mark.parametrize("stage", STAGES)
def test_4_sc_sdpo_without_exponent_is_sdpo_on_mixed_groups(stage):
    one = decided("sc_sdpo", stage, rewards=MIXED, difficulty__question_exponent=0.0)
    assert_same(one, decided("sdpo", stage, rewards=MIXED))
    # And on others it is off, though a correct sample of a solved group has teachers.
    assert not decided("sc_sdpo", stage, rewards=ALL_RIGHT).distill_weight.any()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_4_sc_sdpo_weighs_p_and_1_minus_p_alike(exponent):
    flipped = {name: [1 - reward for reward in group] for name, group in MIXED.items()}
    weights = [
        decided("sc_sdpo", rewards=rewards, difficulty__question_exponent=exponent).distill_weight
        for rewards in (MIXED, flipped)
    ]
    np.testing.assert_allclose(*(weight.max(axis=1) for weight in weights), rtol=1e-6)
    assert len(set(weights[0].max(axis=1).tolist())) == 2  # p = 1/4 and 3/4 against 1/2


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_5_sc_sdpo_with_one_pass_rate_everywhere_is_sdpo(exponent):
    alike = {"p": [1, 0, 0, 0], "q": [0, 0, 1, 0], "r": [0, 1, 0, 0]}
    one = decided("sc_sdpo", rewards=alike, difficulty__question_exponent=exponent)
    assert_same(one, decided("sdpo", rewards=alike))


PLAIN_DRIFT = {
    "difficulty__easy_weight": 1.0,
    "difficulty__hard_weight": 1.0,
    "mixed__use_rhythm": False,
    "mixed__sibling": "first",
    "buffer__capacity": 0,
}


def test_6_drift_without_its_parts_is_srpo():
    for rewards in (MIXED, ALL_RIGHT):
        assert_same(
            decided("drift", rewards=rewards, **PLAIN_DRIFT), decided("srpo", rewards=rewards)
        )


def test_6_the_exception_is_a_group_without_any_teacher():
    # Nothing is learnt from it in either, but SRPO's mean counts its tokens.
    unknown = {**MIXED, "unknown": [0, 0, 0, 0]}
    drift = decided("drift", rewards=unknown, objective__normaliser_rows="routed", **PLAIN_DRIFT)
    srpo = decided("srpo", rewards=unknown)
    assert not drift.advantages[-1].any() and not drift.distill_weight[-1].any()
    assert srpo.policy_rows[-1].all() and not drift.policy_rows[-1].any()
    for field in ("distill_weight", "advantages"):
        np.testing.assert_array_equal(getattr(drift, field), getattr(srpo, field))
    np.testing.assert_array_equal(drift.policy_weight[:-1], srpo.policy_weight[:-1])


def test_6_what_remains_is_how_the_loss_is_summed_and_the_weights_of_srpo():
    config = methods.apply(configs.default(), "drift")
    configs.assign(config, {name.replace("__", "."): value for name, value in PLAIN_DRIFT.items()})
    srpo = configs.flatten(methods.apply(configs.default(), "srpo"))
    rest = {name for name, value in configs.flatten(config).items() if srpo[name] != value}
    assert {name for name in rest if name.startswith("objective.")} == {
        "objective.top_k", "objective.aggregation", "objective.normaliser_rows",
        "objective.distill_token_weight",
    }  # fmt: skip
    assert not {name for name in rest if name.startswith(("teacher.", "optimizer.", "buffer."))}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["rlsd", "rlrt"])
def test_12_methods_that_reshape_advantages_start_from_grpo(method, stage):
    # With lambda 0 their token weights are 1 (tests/test_method_updates.py); the rest is GRPO's.
    one, other = decided(method, stage), decided("grpo", stage)
    assert_same(one, other, fields=[field for field in FIELDS if field != "gate"])
    assert one.gate.any() and not other.gate.any()


@pytest.mark.parametrize("stage", STAGES)
def test_12_lead_without_its_weights_is_grpo_with_standard_deviation(stage):
    assert_same(
        decided("grpo_lead", stage, objective__advantage_weight="none"), decided("grpo_std", stage)
    )
    assert differing("grpo_lead", "grpo_std") == {"objective.advantage_weight"}


@pytest.mark.parametrize("stage", STAGES)
def test_13_rlep_without_replayed_members_is_grpo_with_standard_deviation(stage):
    one = decided("rlep", stage, buffer__group_members=0)
    assert_same(one, decided("grpo_std", stage))
    assert one.advantages.shape[1] == GROUP
    assert differing("rlep", "grpo_std") == {
        "buffer.capacity", "buffer.on_tie", "buffer.teaches", "buffer.group_members",
        "objective.aggregation", "optimizer.mini_batches",
    }  # fmt: skip


def test_a_bonus_of_nothing_hands_over_the_rows_of_drift_and_differs_in_one_number():
    # M = 1 + beta g b with b = 0: the update of drift_without_rhythm, from the rows of drift.
    assert_same(decided("drift_without_bonus"), decided("drift"))
    assert differing("drift_without_bonus", "drift") == {"rhythm.max_bonus"}


@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("grpo_offpolicy", "grpo"),
        ("pgpo", "sdpo"),
        ("distil", "sdpo"),
        ("drift_sdpo_stack", "drift"),
    ],
)
def test_methods_that_differ_on_the_device_alone_decide_alike(method, base):
    for stage in STAGES:
        assert_same(decided(method, stage), decided(base, stage))
