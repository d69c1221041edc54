"""What each sample learns from, on groups made by hand: stages, methods, bins, teachers."""

import json

import numpy as np
import pytest

from drift_jax.buffer import SuccessBuffer
from drift_jax.losses.policy_gradient import group_advantages
from tests.groups import GROUP, PROBLEMS, REWARDS, decided, remembered, table

NOTHING = {problem: [0, 0, 0, 0] for problem in PROBLEMS}
# Every sample that has a teacher: another success of its group, or the buffer.
WITH_TEACHER = {
    "easy": [1, 1, 1, 1],
    "medium": [1, 1, 1, 1],
    "single": [1, 0, 1, 1],
    "hard": [1, 1, 1, 1],
    "known": [1, 1, 1, 1],
    "unknown": [0, 0, 0, 0],
}
WRONG_WITH_TEACHER = {
    "easy": [0, 0, 0, 0],
    "medium": [0, 1, 0, 1],
    "single": [1, 0, 1, 1],
    "hard": [1, 1, 0, 0],
    "known": [1, 1, 1, 1],
    "unknown": [0, 0, 0, 0],
}


# ---- DRIFT --------------------------------------------------------------------------------------


def test_the_bins_are_those_of_the_smoothed_pass_rate():
    routes = decided().routes
    assert routes.routing_weight.tolist() == [0.5, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert routes.is_medium.tolist() == [False, True, True, False, False, False]


def test_the_warm_up_distils_every_sample_that_has_a_teacher_right_or_wrong():
    decision = decided(stage="warmup")
    assert table(decision.policy_weight) == NOTHING
    assert table(decision.distill_weight) == WITH_TEACHER
    assert table(decision.gate) == NOTHING


def test_the_mixed_stage_rewards_the_right_by_difficulty_and_distils_the_wrong():
    decision = decided()
    assert table(decision.policy_weight) == NOTHING | {
        "easy": [0.5, 0.5, 0.5, 0.5],
        "medium": [1, 0, 1, 0],
        "single": [0, 1, 0, 0],
    }
    assert table(decision.distill_weight) == WRONG_WITH_TEACHER


def test_only_right_samples_of_medium_problems_with_a_teacher_are_gated():
    assert table(decided().gate) == NOTHING | {"medium": [1, 0, 1, 0]}


def test_the_teacher_is_run_for_wrong_samples_with_one_and_for_gated_ones():
    # Reading R18: all others have distillation weight 0 and token weights 1.
    needed = table(decided().needs_teacher)
    assert needed == WRONG_WITH_TEACHER | {"medium": [1, 1, 1, 1]}
    assert table(decided(stage="warmup").needs_teacher) == WITH_TEACHER


def test_stage_one_shows_the_highest_entropy_and_stage_two_the_shortest_success():
    easy = PROBLEMS.index("easy")
    assert decided(stage="warmup").choice.sibling[easy].tolist() == [3, 0, 0, 0]
    assert decided(stage="mixed").choice.sibling[easy].tolist() == [2, 2, 3, 2]


def test_a_group_without_success_is_taught_by_the_buffer_or_not_at_all():
    choice = decided().choice
    known, unknown = PROBLEMS.index("known"), PROBLEMS.index("unknown")
    assert choice.text[known] == ["solved before"] * GROUP
    assert choice.text[unknown] == [None] * GROUP
    assert choice.source[known].tolist() == ["buffer"] * GROUP
    # Groups with a success of their own never look there.
    assert set(choice.source[:known].ravel()) == {"sibling", "none"}


@pytest.mark.parametrize("stage", ["warmup", "mixed"])
def test_while_the_buffer_is_only_filled_it_teaches_nobody(stage):
    decision = decided(stage=stage, buffer_enabled=False)
    known = PROBLEMS.index("known")
    assert not decision.distill_weight[known].any() and not decision.needs_teacher[known].any()


def test_nobody_is_taught_by_a_copy_of_itself():
    memory = remembered()
    memory.buffer = SuccessBuffer(3)
    memory.buffer.add("known", "known 2", 1.0, step=1)  # what rollout 2 says again, now wrong
    decision = decided(memory=memory)
    assert table(decision.distill_weight)["known"] == [1, 1, 0, 1]


def test_the_sign_of_the_advantage_counts_for_the_gate_unless_every_sign_is_asked_for():
    # Dense rewards: all three are successes, one below the mean of its group.
    rewards = {"dense": [0.9, 0.5, 0.9, 0.0]}
    advantages = np.array([[0.4, -0.1, 0.4, -0.7]])
    for method, expected in (("drift", [1, 0, 1, 0]), ("drift_literal", [1, 1, 1, 0])):
        decision = decided(method, rewards=rewards, advantages=advantages)
        assert decision.policy_weight.tolist() == [[1, 1, 1, 0]]
        assert decision.gate.astype(int).tolist() == [expected]


def test_a_small_reward_keeps_the_buffer_closed_only_in_eq_19_as_printed():
    rewards = {"known": [0.3, 0.0, 0.0, 0.0]}  # r > 0, but no success
    assert decided(rewards=rewards).distill_weight.tolist() == [[1, 1, 1, 1]]
    assert decided("drift_literal", rewards=rewards).distill_weight.tolist() == [[0, 0, 0, 0]]


def test_nothing_is_gated_where_the_policy_weight_is_zero():
    decision = decided(difficulty__medium_weight=0.0)
    assert not decision.gate.any()
    assert table(decision.needs_teacher) == WRONG_WITH_TEACHER


# ---- other methods and ablations ----------------------------------------------------------------


@pytest.mark.parametrize("stage", ["warmup", "mixed"])
def test_grpo_gives_every_sample_the_policy_gradient_and_runs_no_teacher(stage):
    decision = decided("grpo", stage)
    assert (decision.policy_weight == 1).all()
    assert not decision.distill_weight.any()
    assert not decision.gate.any() and not decision.needs_teacher.any()


@pytest.mark.parametrize("stage", ["warmup", "mixed"])
def test_sdpo_distils_from_the_first_other_success(stage):
    decision = decided("sdpo", stage, buffer_enabled=False)
    assert not decision.policy_weight.any() and not decision.gate.any()
    assert table(decision.distill_weight) == WITH_TEACHER | {"known": [0, 0, 0, 0]}
    assert decision.choice.sibling[PROBLEMS.index("easy")].tolist() == [1, 0, 0, 0]


def test_without_routing_gamma_and_beta_are_1_for_all():
    decision = decided("drift_without_routing")
    right = np.array(list(REWARDS.values())) == 1
    np.testing.assert_array_equal(decision.policy_weight, right)
    gated = table(decision.gate)
    assert gated["hard"] == [0, 0, 1, 1] and gated["medium"] == [1, 0, 1, 0]
    assert gated["single"] == [0, 0, 0, 0]  # no teacher to compare with
    assert gated["easy"] == [0, 0, 0, 0]  # all right: A = 0


def test_without_rhythm_nothing_is_gated_and_the_rest_stays():
    decision, drift = decided("drift_without_rhythm"), decided()
    assert not decision.gate.any()
    np.testing.assert_array_equal(decision.policy_weight, drift.policy_weight)
    np.testing.assert_array_equal(decision.distill_weight, drift.distill_weight)


def test_without_warmup_stage_one_decides_as_stage_two():
    one, two = decided("drift_without_warmup", "warmup"), decided()
    np.testing.assert_array_equal(one.policy_weight, two.policy_weight)
    np.testing.assert_array_equal(one.distill_weight, two.distill_weight)
    np.testing.assert_array_equal(one.choice.sibling, two.choice.sibling)


def test_a_wrong_sample_without_teacher_may_get_the_policy_gradient_instead_of_nothing():
    decision = decided(mixed__no_teacher="policy")
    assert table(decision.policy_weight)["unknown"] == [1, 1, 1, 1]
    assert table(decision.policy_weight)["known"] == [0, 0, 0, 0]


# ---- what it remembers and what it depends on ---------------------------------------------------


def test_pass_rates_include_this_step_and_the_buffer_is_left_alone():
    memory = remembered()
    before = json.dumps(memory.buffer.state_dict())
    decision = decided(memory=memory)
    np.testing.assert_allclose(decision.pass_rate, [1.0, 0.5, 0.25, 0.1, 0.0, 0.0])
    assert memory.pass_rates.state_dict()["rates"] == dict(
        zip(PROBLEMS, decision.pass_rate.tolist(), strict=True)
    )
    assert json.dumps(memory.buffer.state_dict()) == before
    again = decided(memory=memory)
    np.testing.assert_allclose(again.pass_rate[PROBLEMS.index("hard")], 0.8 * 0.1 + 0.2 * 0.5)


def test_advantages_are_passed_on_and_needed_teachers_have_a_text():
    decision = decided()
    np.testing.assert_array_equal(
        decision.advantages, group_advantages(np.array(list(REWARDS.values()), float))
    )
    for row, column in np.argwhere(decision.needs_teacher):
        assert decision.choice.text[row][column] is not None


def test_decisions_do_not_depend_on_the_order_of_the_problems():
    memory = remembered()
    for entry in ("another", "a third"):
        memory.buffer.add("known", entry, 1.0, step=2)
    state = memory.state_dict()
    forward = decided(memory=memory)
    memory.load_state_dict(state)
    backward = decided(memory=memory, rewards=dict(reversed(REWARDS.items())))
    assert forward.choice.text == backward.choice.text[::-1]
    np.testing.assert_array_equal(forward.policy_weight, backward.policy_weight[::-1])
    np.testing.assert_array_equal(forward.gate, backward.gate[::-1])
