"""A step in numbers and in lines, with replayed members, feedback and soft bins among them."""

import dataclasses
import json

import numpy as np

from drift_jax import summary
from drift_jax.types import Problem
from tests.groups import GROUP, PROBLEMS, REWARDS, answers, decided
from tests.test_method_decisions import replayed

ASKED = [Problem(name, "t", ({"role": "user", "content": f"{name}?"},), "A") for name in PROBLEMS]
TIME = 9


def lines(decision, graded=None, fraction=0.0) -> list[dict]:
    """The objects of a sample file; a token's value names its row and its position."""
    shape = (decision.advantages.size, TIME)
    values = np.arange(shape[0])[:, None] + np.arange(TIME) / 100
    return list(
        summary.sample_rows(
            ASKED,
            answers(REWARDS) if graded is None else graded,
            decision,
            np.arange(shape[0] * TIME).reshape(shape),
            dict.fromkeys(summary.TOKEN_DETAILS, values),
            detail_fraction=fraction,
        )
    )


def test_a_line_for_every_rollout_and_every_filled_place_in_the_order_of_the_batch():
    decision = decided("rlep", joined=replayed(medium=[1.0], known=[0.5, 1.0]))
    rows = lines(decision, fraction=1.0)
    expected = []
    for name in PROBLEMS:
        stored = {"medium": 1, "known": 2}.get(name, 0)
        expected += [(name, member, member >= GROUP) for member in range(GROUP + stored)]
    assert [(row["id"], row["rollout"], row["replayed"]) for row in rows] == expected
    for row in rows:
        member = PROBLEMS.index(row["id"]) * (GROUP + 2) + row["rollout"]
        assert row["student_entropy"] == [member + t / 100 for t in range(row["length"])]
        assert row["tokens"][0] == member * TIME
    stored = [row for row in rows if row["replayed"]]
    assert [row["response"] for row in stored] == ["stored 0", "stored 0", "stored 1"]
    assert [row["reward"] for row in stored] == [1.0, 0.5, 1.0]
    json.dumps(rows, allow_nan=False)


def test_metrics_of_rollouts_and_teachers_leave_replayed_members_out():
    graded = answers(REWARDS)
    alone = decided("grpo_std", buffer_enabled=False)
    joined = replayed(medium=[1.0], known=[1.0, 1.0])
    both = decided("rlep", joined=joined, buffer_enabled=False)
    edges = {"easy_above": 0.8, "hard_below": 0.2, "bins": "strict", "softness": 0.08}
    changed = {"rollout/advantage_abs_mean"}  # the group that A is relative to has grown
    one, other = (summary.rollout_metrics(graded, decision) for decision in (alone, both))
    assert {name for name in one if one[name] != other[name]} == changed
    assert summary.routing_metrics(alone, **edges) == summary.routing_metrics(both, **edges)
    taught, less = (summary.teacher_metrics(decision) for decision in (both, alone))
    assert taught.pop("buffer/replayed_rows") == 3 and less.pop("buffer/replayed_rows") == 0
    assert taught == less


def test_feedback_is_written_with_its_source_and_counted():
    words = [[f"wrong {i}" for i in range(GROUP)] for _ in PROBLEMS]
    graded = dataclasses.replace(answers(REWARDS), feedback=words)
    decision = decided("sdpo_feedback", graded=graded, buffer_enabled=False)
    rows = lines(decision, graded)
    told = [row for row in rows if row["teacher_feedback"] is not None]
    # The only success of a group, and two groups without any.
    assert [row["id"] for row in told] == ["single"] + ["known"] * 4 + ["unknown"] * 4
    assert all(row["teacher_source"] == "feedback" and row["teacher_text"] is None for row in told)
    assert summary.teacher_metrics(decision)["teacher/feedback_fraction"] == 9 / 24


def test_soft_bins_are_written_as_shares():
    decision = decided("drift_soft_bins")
    rows = lines(decision)
    for row in rows:
        index = PROBLEMS.index(row["id"])
        assert row["medium"] == decision.routes.is_medium[index]
        assert row["gate"] == decision.gate[index, row["rollout"]]
    metrics = summary.routing_metrics(
        decision, easy_above=0.8, hard_below=0.2, bins="soft", softness=0.08
    )
    shares = [metrics[f"routing/{name}_fraction"] for name in ("easy", "medium", "hard")]
    assert abs(sum(shares) - 1) < 1e-12 and 0 < shares[0] < 1 / 6 * 1.1
    assert [type(row["medium"]) for row in lines(decided())] == [bool] * 24


def test_the_mean_distillation_weight_is_that_of_distilled_rollouts():
    edges = {"easy_above": 0.8, "hard_below": 0.2, "bins": "strict", "softness": 0.08}
    for method, mean in (("drift", 1.0), ("grpo", 0.0)):
        metrics = summary.routing_metrics(decided(method), **edges)
        assert metrics["routing/distill_weight_mean"] == mean
