"""When the self-teacher follows the student, against plain loops over the steps of a run."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.teacher_schedule import COPY, TeacherSchedule

# Mean reward, mean and longest length of a step, as one group of two.
STEPS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 40), st.integers(0, 200)), min_size=1, max_size=40
)
QUICK = {"check_every": 2, "min_steps": 4, "window": 3, "reward_gain": 0.05, "length_ratio": 2.0}


def rates(schedule, steps, first=1):
    return [
        schedule.next_rate(
            first + index, np.array([[reward, reward]]), np.array([[shorter, shorter + more]])
        )
        for index, (reward, shorter, more) in enumerate(steps)
    ]


def gated_copies(steps, *, check_every, min_steps, window, reward_gain, length_ratio):
    """CGTR's rule (arXiv 2606.03532), one step after another over the whole history."""
    made, last, reference = [], 0, None
    for step in range(1, len(steps) + 1):
        made.append(0.0)
        if step < window:
            continue
        seen = steps[step - window : step]
        reward = sum(r for r, _, _ in seen) / window
        mean_length = sum((short + short + more) / 2 for _, short, more in seen) / window
        longest = max(short + more for _, short, more in seen)
        if reference is None:
            reference = reward
        checked = step % check_every == 0 and step - last >= min_steps
        if checked and reward > reference + reward_gain and longest / mean_length <= length_ratio:
            made[-1], last, reference = 1.0, step, reward
    return made


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("ema", [0.05] * 6), ("frozen", [0.0] * 6), ("trust_region", [0.0] * 6),
     ("snapshot", [0, 0, 1, 0, 0, 1])],
)  # fmt: skip
def test_rules_that_do_not_look_at_rewards(rule, expected):
    assert rates(TeacherSchedule(rule, rate=0.05, copy_every=3), [(1.0, 5, 0)] * 6) == expected


def test_a_gated_copy_by_hand():
    # Window 3: rewards 0, 0, .6 | mean .2 is the reference of the initial teacher.
    steps = [(0.0, 9, 0), (0.0, 9, 0), (0.6, 9, 0), (0.6, 9, 0), (0.6, 9, 0), (0.6, 9, 0)]
    # Step 4 has mean .4 > .25 and 4 steps behind it; step 6 has .6 but only 2 more.
    assert rates(TeacherSchedule("gated_copy", **QUICK), steps) == [0, 0, 0, 1, 0, 0]
    # One runaway answer in the window, and the copy waits until it has left it.
    steps[3] = (0.6, 9, 30)
    more = [(0.9, 9, 0)] * 4
    assert rates(TeacherSchedule("gated_copy", **QUICK), steps + more) == [0] * 7 + [1, 0, 0]


@given(STEPS)
def test_a_gated_copy_equals_the_plain_loop(steps):
    assert rates(TeacherSchedule("gated_copy", **QUICK), steps) == gated_copies(steps, **QUICK)


def test_with_the_papers_constants_it_waits_for_thirty_steps():
    made = rates(TeacherSchedule("gated_copy"), [(step / 100, 9, 0) for step in range(100)])
    assert [step for step, rate in enumerate(made, 1) if rate == COPY] == [30, 60, 90]


@pytest.mark.parametrize("rule", ["ema", "frozen", "trust_region", "snapshot", "gated_copy"])
@given(steps=STEPS, stop=st.integers(0, 40))
def test_a_run_that_is_resumed_anywhere_makes_the_same_copies(rule, steps, stop):
    stop = min(stop, len(steps))
    straight = rates(TeacherSchedule(rule, copy_every=3, **QUICK), steps)
    one, other = (TeacherSchedule(rule, copy_every=3, **QUICK) for _ in range(2))
    before = rates(one, steps[:stop])
    other.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    assert other.state_dict() == one.state_dict()
    assert before + rates(other, steps[stop:], first=stop + 1) == straight


def test_bad_input_is_refused_in_one_line_and_changes_nothing():
    with pytest.raises(ValueError, match="update_rule is 'emma'; use one of ema, frozen, trust_re"):
        TeacherSchedule("emma")
    with pytest.raises(ValueError, match="copy_every 0"):
        TeacherSchedule("snapshot", copy_every=0)
    schedule = TeacherSchedule("gated_copy", **QUICK)
    rates(schedule, [(0.5, 3, 1)] * 3)
    before = schedule.state_dict()
    for state in ({}, {"last_copy": 1, "copied_reward": None, "recent": [[1.0, 2.0]]}):
        with pytest.raises(ValueError, match="not the state of a teacher schedule"):
            schedule.load_state_dict(state)
    assert schedule.state_dict() == before
