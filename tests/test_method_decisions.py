"""What each method decides about each sample, against plain loops that are written from its paper.

The loops read the groups of tests/groups.py one sample at a time: u and v are the weights of the
policy-gradient and of the distillation term, beta says whether the teacher reshapes the tokens.
"""

import dataclasses
import math

import numpy as np
import pytest

from drift_jax import config as configs
from drift_jax import methods, replay
from drift_jax.buffer import Entry, SuccessBuffer
from drift_jax.decayed_counts import DecayedCounts
from drift_jax.memory import Memory
from tests import reference
from tests.groups import GROUP, PROBLEMS, REWARDS, answers, decided, remembered

STAGES = ("warmup", "mixed")
# Shares by the smoothed pass rates of the groups: see tests/groups.py.
BINS = dict(zip(PROBLEMS, ["easy", "medium", "medium", "hard", "hard", "hard"], strict=True))
GAMMA = {"easy": 0.5, "medium": 1.0, "hard": 0.0}


def sample(problem: str, rollout: int) -> dict:
    """What a rule may look at: correctness, teachers, difficulty and advantage of one sample."""
    group = REWARDS[problem]
    sibling = any(right for other, right in enumerate(group) if right and other != rollout)
    return {
        "correct": bool(group[rollout]),
        "sibling": sibling,
        "buffer": problem == "known",
        "bin": BINS[problem],
        "p": sum(group) / len(group),
        "A": group[rollout] - sum(group) / len(group),
    }


def expected(rule) -> np.ndarray:
    """(u, v, beta) of every sample by a rule. [problem, group, 3]"""
    return np.array(
        [[rule(**sample(problem, i)) for i in range(GROUP)] for problem in PROBLEMS], float
    )


def grpo(**_):
    return 1, 0, 0


def sdpo(sibling, **_):
    return 0, sibling, 0


def srpo(correct, sibling, **_):
    distilled = not correct and sibling
    return not distilled, distilled, 0


def sc_sdpo(sibling, p, **_):
    mixed = [g for g in REWARDS.values() if 0 < sum(g) < len(g)]
    weights = [math.sqrt(sum(g) / 4 * (1 - sum(g) / 4)) for g in mixed]
    return 0, sibling * math.sqrt(p * (1 - p)) * len(weights) / sum(weights), 0


def both(sibling, **_):
    return 1, sibling, 0


def rlsd(sibling, **_):
    return 1, 0, sibling


def rlrt(correct, sibling, **_):
    return 1, 0, correct and sibling


def drift(correct, sibling, buffer, bin, A, **_):
    gated = correct and sibling and bin == "medium" and A > 0
    return correct * GAMMA[bin], not correct and (sibling or buffer), gated


def drift_distil_correct(correct, sibling, buffer, **rest):
    u, _, beta = drift(correct=correct, sibling=sibling, buffer=buffer, **rest)
    return u, sibling or buffer, beta


def drift_wrong_by_grpo(correct, **rest):
    u, _, beta = drift(correct=correct, **rest)
    return u if correct else 1, 0, beta


def drift_wrong_by_both(correct, **rest):
    u, v, beta = drift(correct=correct, **rest)
    return u if correct else 1, v, beta


NO_CURRICULUM = {
    "grpo": grpo, "grpo_offpolicy": grpo, "grpo_std": grpo, "grpo_lead": grpo,
    "sdpo": sdpo, "srpo": srpo, "sc_sdpo": sc_sdpo, "distil": sdpo, "pgpo": sdpo,
    "rlep": grpo, "cgtr": both, "rlsd": rlsd, "rlrt": rlrt,
    "advantage_mix": both, "sdpo_feedback": sdpo,
}  # fmt: skip
SECOND_STAGE = {
    "drift": drift, "drift_sdpo_stack": drift, "drift_newest_buffer": drift,
    "drift_gate_only": drift, "drift_bonus_only": drift, "drift_screened_gate": drift,
    "drift_warmup_first": drift, "drift_warmup_shortest": drift, "drift_mixed_first": drift,
    "drift_mixed_highest_entropy": drift, "drift_distil_correct": drift_distil_correct,
    "drift_wrong_by_grpo": drift_wrong_by_grpo, "drift_wrong_by_both": drift_wrong_by_both,
}  # fmt: skip


def assert_decides(decision, rule):
    wanted = expected(rule)
    np.testing.assert_allclose(decision.policy_weight, wanted[..., 0], rtol=1e-6)
    np.testing.assert_allclose(decision.distill_weight, wanted[..., 1], rtol=1e-6)
    # Where A = 0 the policy term is 0 whatever its weights.
    acts = np.array([[sample(p, i)["A"] != 0 for i in range(GROUP)] for p in PROBLEMS])
    np.testing.assert_allclose(decision.gate * acts, wanted[..., 2] * acts)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NO_CURRICULUM)
def test_a_method_without_curriculum_decides_as_its_plain_loop_in_both_stages(name, stage):
    # Off the buffer, as in training: none of them keeps one that teaches.
    assert_decides(decided(name, stage, buffer_enabled=False), NO_CURRICULUM[name])


@pytest.mark.parametrize("name", SECOND_STAGE)
def test_drift_and_its_ablations_decide_as_their_plain_loop(name):
    assert_decides(decided(name), SECOND_STAGE[name])


@pytest.mark.parametrize("name", ["drift_distil_correct", "drift_wrong_by_grpo", "drift_soft_bins"])
def test_an_ablation_of_stage_2_leaves_stage_1_alone(name):
    one, other = decided(name, "warmup"), decided("drift", "warmup")
    np.testing.assert_array_equal(one.policy_weight, other.policy_weight)
    np.testing.assert_array_equal(one.distill_weight, other.distill_weight)


@pytest.mark.parametrize(
    ("name", "stage", "rule"),
    [
        ("drift_warmup_first", "warmup", "first"),
        ("drift_warmup_shortest", "warmup", "shortest"),
        ("drift_mixed_first", "mixed", "first"),
        ("drift_mixed_highest_entropy", "mixed", "highest_entropy"),
    ],
)
def test_the_teachers_of_an_ablation_are_those_of_its_rule(name, stage, rule):
    graded = answers(REWARDS)
    siblings = decided(name, stage).choice.sibling
    for row, group in enumerate(REWARDS.values()):
        for rollout in range(GROUP):
            if rule == "highest_entropy":
                wanted = reference.stage_one_teacher(group, graded.entropies[row], rollout)
            elif rule == "shortest":
                wanted = reference.stage_two_teacher(group, graded.lengths[row], rollout)
            else:
                wanted = next(iter(reference.candidates(group, rollout)), None)
            assert siblings[row, rollout] == (-1 if wanted is None else wanted)
    assert siblings.tolist() != decided("drift", stage).choice.sibling.tolist()


def test_over_successes_alone_no_advantage_is_left_with_rewards_of_0_and_1():
    assert not decided("drift_success_advantage").advantages.any()
    dense = {"p": [0.9, 0.5, 0.7, 0.1]}
    advantages = decided("drift_success_advantage", rewards=dense).advantages
    np.testing.assert_allclose(advantages, [[0.2, -0.2, 0.0, 0.0]], atol=1e-12)


# ---- SDPO with feedback -------------------------------------------------------------------------


def test_lead_weighs_each_advantage_by_how_rare_its_outcome_is():
    plain, weighed = (decided(name).advantages for name in ("grpo_std", "grpo_lead"))
    for row, problem in enumerate(PROBLEMS):
        p = sum(REWARDS[problem]) / GROUP
        for member in range(GROUP):
            q = p if plain[row, member] > 0 else 1 - p
            weight = 0.4 + (1.5 - 0.4) / (1 + math.exp(10 * (q - 0.75)))
            assert weighed[row, member] == pytest.approx(plain[row, member] * weight, rel=1e-12)
    assert np.abs(weighed - plain).max() > 0.1


def test_feedback_teaches_the_wrong_samples_of_groups_without_success():
    words = [
        ["" if right else f"wrong {i}" for i, right in enumerate(group)]
        for group in REWARDS.values()
    ]
    graded = dataclasses.replace(answers(REWARDS), feedback=words)
    decision = decided("sdpo_feedback", graded=graded, buffer_enabled=False)
    for row, problem in enumerate(PROBLEMS):
        for i in range(GROUP):
            has_sibling, alone = sample(problem, i)["sibling"], words[row][i]
            assert decision.distill_weight[row, i] == (has_sibling or alone != "")
            told = decision.choice.feedback[row][i]
            assert told == (alone if alone and not has_sibling else None)
    # What is distilled without it stays the same.
    plain = decided("sdpo", graded=graded, buffer_enabled=False)
    known = plain.distill_weight > 0
    np.testing.assert_array_equal(decision.distill_weight[known], plain.distill_weight[known])


# ---- RLEP ---------------------------------------------------------------------------------------


def replayed(**rewards: list[float]) -> replay.Replayed:
    """Two places a group; a problem has as many stored successes as rewards are named."""
    groups = [rewards.get(problem, []) for problem in PROBLEMS]
    entries = [
        [Entry(f"stored {i}", reward, step=1) for i, reward in enumerate(group)]
        + [None] * (2 - len(group))
        for group in groups
    ]
    tokens = [[np.zeros(0 if entry is None else 3, np.int32) for entry in row] for row in entries]
    return replay.Replayed(entries, tokens)


def test_stored_successes_count_in_the_advantages_of_their_group_and_nowhere_else():
    joined = replayed(medium=[1.0], known=[1.0, 1.0], easy=[1.0, 1.0])
    memory, plain = remembered(), remembered()
    decision = decided("rlep", memory=memory, joined=joined, buffer_enabled=False)
    alone = decided("grpo_std", memory=plain, buffer_enabled=False)
    for row, group in enumerate(REWARDS.values()):
        stored = [entry.reward for entry in joined.entries[row] if entry]
        literal = reference.group_advantages([*group, *stored], scale_by_std=True)
        members = decision.advantages[row][: GROUP + len(stored)]
        np.testing.assert_allclose(members, literal, rtol=1e-12, atol=1e-14)
        filled = [True] * (GROUP + len(stored)) + [False] * (2 - len(stored))
        assert decision.policy_weight[row].tolist() == filled
        assert decision.policy_rows[row].tolist() == filled
    # An all-wrong group learns from what was solved before.
    assert decision.advantages[PROBLEMS.index("known")][0] < 0 < decision.advantages[4][GROUP]
    assert memory.state_dict() == plain.state_dict()
    np.testing.assert_array_equal(decision.pass_rate, alone.pass_rate)
    np.testing.assert_array_equal(decision.choice.sibling[:, :GROUP], alone.choice.sibling)
    assert decision.fresh.tolist() == [[True] * GROUP + [False] * 2] * len(PROBLEMS)


def test_a_stored_success_teaches_nobody_and_is_taught_by_nobody():
    joined = replayed(single=[1.0, 1.0], known=[1.0])
    decision = decided("sdpo", joined=joined, buffer_enabled=False)
    assert not decision.distill_weight[:, GROUP:].any()
    np.testing.assert_array_equal(
        decision.distill_weight[:, :GROUP], decided("sdpo", buffer_enabled=False).distill_weight
    )
    assert decision.distill_rows[PROBLEMS.index("known")].tolist() == [True] * 5 + [False]


# ---- the authors' release -----------------------------------------------------------------------


def released() -> tuple[Memory, dict[str, tuple[float, float, int]]]:
    """The hard problem was seen twice before, in steps 1 and 5; the decision is in step 7."""
    config = methods.apply(configs.default(), "drift_release")
    assert config.difficulty.estimate == "beta"
    counts = DecayedCounts(0.85, 1.0, 8.0)
    counts.visit(["hard"], np.zeros((1, GROUP), bool), step=1)
    counts.visit(["hard"], np.zeros((1, GROUP), bool), step=5)
    memory = Memory(counts, SuccessBuffer(4, "newest", draw="top"))
    memory.buffer.add("known", "older", 1.0, step=1)
    memory.buffer.add("known", "newer", 1.0, step=2)
    failures = GROUP * 0.85**4 + GROUP
    return memory, {"hard": (0.0, failures, 5)}


def test_the_release_weighs_each_sample_as_its_pseudo_code_does():
    memory, before = released()
    decision = decided("drift_release", memory=memory)
    for row, (problem, group) in enumerate(REWARDS.items()):
        successes, failures, last = before.get(problem, (0.0, 0.0, 7))
        successes = successes * 0.85 ** (7 - last) + sum(group)
        failures = failures * 0.85 ** (7 - last) + GROUP - sum(group)
        raw = (successes + 1) / (successes + failures + 2)
        confidence = (successes + failures) / (successes + failures + 8)
        p = confidence * raw + (1 - confidence) * 0.5
        hard = 1 / (1 + math.exp(-(0.3 - p) / 0.08))
        easy = 1 / (1 + math.exp(-(p - 0.7) / 0.08))
        medium = (1 - hard) * (1 - easy)
        easy, medium, hard = (share / (easy + medium + hard) for share in (easy, medium, hard))
        assert decision.pass_rate[row] == pytest.approx(p)
        for i in range(GROUP):
            one = sample(problem, i)
            taught = one["sibling"] or (problem == "known" and not any(group))
            u = v = gate = 0.0
            if one["correct"]:
                u = 0.05 * easy + medium + 0.3 * hard if taught else 1.0
                gate = medium if taught and one["A"] > 0 else 0.0
            elif taught:
                v = 0.35 * easy + 0.0 * medium + 1.0 * hard
            else:
                u = 1.0
            assert decision.policy_weight[row, i] == pytest.approx(u, rel=1e-6)
            assert decision.distill_weight[row, i] == pytest.approx(v, rel=1e-6)
            assert decision.gate[row, i] == pytest.approx(gate, rel=1e-6)


def test_the_release_teaches_an_all_wrong_group_from_the_top_of_its_buffer():
    memory, _ = released()
    choice = decided("drift_release", memory=memory).choice
    assert choice.text[PROBLEMS.index("known")] == ["newer"] * GROUP


def test_the_release_differs_from_the_paper_in_stage_2_and_not_in_the_objective():
    theirs = methods.METHODS["drift_release"]
    assert {name.partition(".")[0] for name in theirs} == {"difficulty", "mixed", "buffer"}
    memory, _ = released()
    stage_1 = decided("drift_release", "warmup", memory=memory)
    np.testing.assert_array_equal(stage_1.distill_weight, decided(stage="warmup").distill_weight)


def test_soft_bins_alone_keep_the_papers_thresholds_weights_and_estimate():
    decision, drift_ = decided("drift_soft_bins"), decided()
    np.testing.assert_array_equal(decision.pass_rate, drift_.pass_rate)
    np.testing.assert_array_equal(decision.distill_weight, drift_.distill_weight)
    rate = decision.pass_rate[PROBLEMS.index("medium")]
    hard, easy = (1 / (1 + math.exp(-x / 0.08)) for x in (0.2 - rate, rate - 0.8))
    medium = (1 - hard) * (1 - easy)
    total = easy + medium + hard
    assert decision.gate[1].tolist() == pytest.approx([medium / total, 0] * 2)
    assert decision.policy_weight[1, 0] == pytest.approx((0.5 * easy + medium) / total)


# ---- the rows that a normaliser counts ----------------------------------------------------------


@pytest.mark.parametrize("name", ["drift", "srpo", "sdpo"])
def test_counted_rows_are_all_or_those_with_a_teacher_or_those_with_a_weight(name):
    for rows in ("valid", "with_teacher", "routed"):
        decision = decided(name, objective__normaliser_rows=rows)
        routed = (decision.policy_weight > 0) | (decision.distill_weight > 0)
        taught = decision.choice.has_teacher
        everything = np.ones_like(taught)
        policy, distill = {
            "valid": (everything, everything),
            "with_teacher": (everything, taught),
            "routed": (routed, routed),
        }[rows]
        np.testing.assert_array_equal(decision.policy_rows, policy)
        np.testing.assert_array_equal(decision.distill_rows, distill)
        # No row acts that is not counted: its share of the loss would be lost.
        assert not ((decision.policy_weight > 0) & ~decision.policy_rows).any()
        assert not ((decision.distill_weight > 0) & ~decision.distill_rows).any()
