"""The release's estimate of a pass rate: decayed counts, a prior, and shrinkage to one half."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.decayed_counts import DecayedCounts

VISITS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 30)), max_size=8
)


def literal(visits, decay=0.85, prior=1.0, shrink=8.0, group=4):
    """Rate after each visit (problem, successes, steps since the visit before), one at a time."""
    counts, step, rates = {}, 0, []
    for problem, right, gap in visits:
        step += gap
        successes, failures, last = counts.get(problem, (0.0, 0.0, step))
        for _ in range(step - last):
            successes, failures = decay * successes, decay * failures
        successes, failures = successes + right, failures + group - right
        counts[problem] = (successes, failures, step)
        raw = (successes + prior) / (successes + failures + 2 * prior)
        confidence = (successes + failures) / (successes + failures + shrink)
        rates.append(confidence * raw + (1 - confidence) * 0.5)
    return rates


def visited(counts, visits, group=4):
    step, rates = 0, []
    for problem, right, gap in visits:
        step += gap
        outcome = np.arange(group)[None] < right
        rates.append(counts.visit([problem], outcome, step=step)[0])
    return rates


def test_a_first_visit_by_hand():
    # 6 of 8: raw = 7 / 10, half of the weight on 1/2, so 0.6.
    assert DecayedCounts().visit(["p"], np.arange(8)[None] < 6, step=3)[0] == pytest.approx(0.6)


@given(VISITS)
def test_the_rate_equals_the_plain_loop(visits):
    np.testing.assert_allclose(visited(DecayedCounts(), visits), literal(visits), atol=1e-12)


@given(VISITS, st.floats(0, 1), st.floats(0.1, 3), st.floats(0, 9))
def test_the_rate_equals_the_plain_loop_for_any_constants(visits, decay, prior, shrink):
    ours = visited(DecayedCounts(decay, prior, shrink), visits)
    np.testing.assert_allclose(ours, literal(visits, decay, prior, shrink), atol=1e-9)
    assert all(0 <= rate <= 1 for rate in ours)


def test_without_decay_prior_and_shrinkage_it_is_the_share_of_all_rollouts():
    counts = DecayedCounts(decay=1.0, prior=0.0, shrink=0.0)
    assert visited(counts, [("p", 1, 1), ("p", 4, 9), ("p", 1, 2)]) == [0.25, 5 / 8, 0.5]


@given(VISITS, VISITS)
def test_a_run_that_is_resumed_anywhere_estimates_the_same_bits(before, after):
    straight = DecayedCounts()
    visited(straight, before)
    restored = DecayedCounts()
    restored.visit(["left over"], np.ones((1, 4), bool), step=1)
    restored.load_state_dict(json.loads(json.dumps(straight.state_dict(), allow_nan=False)))
    assert restored.state_dict() == straight.state_dict()
    later = [("a", 1, 200), *after]
    assert visited(restored, later) == visited(straight, later)


def test_what_is_forgotten_is_as_if_it_had_never_been_seen():
    counts = DecayedCounts()
    visited(counts, [("p", 4, 1)])
    counts.clear()
    assert len(counts) == 0
    assert visited(counts, [("p", 2, 1)]) == literal([("p", 2, 0)])


@pytest.mark.parametrize(
    "state",
    [{}, {"rates": {"a": 0.5}}, {"counts": {"a": [1, 2]}}, {"counts": {"a": [1, -2, 3]}},
     {"counts": {"a": "abc"}}],
)  # fmt: skip
def test_a_damaged_state_is_refused_in_one_line_and_changes_nothing(state):
    counts = DecayedCounts()
    visited(counts, [("p", 4, 1)])
    before = counts.state_dict()
    with pytest.raises(ValueError, match="expected") as error:
        counts.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert counts.state_dict() == before


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"shape \(2,\) for 1 ids"):
        DecayedCounts().visit(["a"], np.ones(2, bool), step=1)
    with pytest.raises(ValueError, match=r"count_decay is 1\.5"):
        DecayedCounts(decay=1.5)
    with pytest.raises(ValueError, match="at least 0"):
        DecayedCounts(prior=-1.0)
    counts = DecayedCounts()
    counts.visit(["a"], np.ones((1, 2), bool), step=9)
    with pytest.raises(ValueError, match="seen in step 9, after step 3"):
        counts.visit(["a"], np.ones((1, 2), bool), step=3)
