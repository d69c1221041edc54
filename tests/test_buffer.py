"""Success buffer (DRIFT Eqs. 17-22): what goes in, what goes out, what is drawn."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.buffer import Entry, SuccessBuffer, is_usable
from tests import reference

# Successes offered to the buffer: problem, text, reward, length. Few values each, so that ties,
# repetitions and full buffers are common.
SUCCESS = st.tuples(
    st.sampled_from("pq"),
    st.sampled_from(["a", "bb", "ccc", "dddd", "é", "\ud800"]),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.integers(0, 3),
)
SUCCESSES = st.lists(SUCCESS, max_size=30)
TIES = st.sampled_from(["keep", "newest", "shortest"])
CAPACITIES = st.integers(0, 4)


def filled(successes, capacity=3, on_tie="keep") -> SuccessBuffer:
    """A buffer that was offered these successes, two to a step."""
    buffer = SuccessBuffer(capacity, on_tie)
    for index, (problem, text, reward, length) in enumerate(successes):
        buffer.add(problem, text, reward, step=1 + index // 2, token_length=length, entropy=0.25)
    return buffer


def texts(buffer: SuccessBuffer, problem: str = "p") -> list[str]:
    return [entry.response for entry in buffer.entries(problem)]


# ---- Eqs. 17, 21, 22 ----------------------------------------------------------------------------


def test_three_successes_go_in_and_a_better_one_replaces_the_worst():
    buffer = SuccessBuffer(capacity=3)
    for step, (text, reward) in enumerate([("a", 0.9), ("b", 0.6), ("c", 0.8)], start=1):
        assert buffer.add("p", text, reward, step=step)  # Eq. 21
    assert buffer.add("p", "d", 0.7, step=4, token_length=9, entropy=0.3)  # Eq. 22, 0.7 > 0.6
    assert texts(buffer) == ["a", "c", "d"]  # oldest first
    assert buffer.entries("p")[-1] == Entry("d", 0.7, 4, token_length=9, entropy=0.3)
    assert not buffer.add("p", "e", 0.7, step=5)  # Eq. 22, 0.7 is not above 0.7
    assert not buffer.add("p", "f", 0.1, step=6)
    assert texts(buffer) == ["a", "c", "d"]
    assert buffer.replaced == 1


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from([0.5, 0.7, 1.0]))), CAPACITIES)
def test_different_texts_are_kept_as_by_the_literal_equations(offers, capacity):
    buffer, literal = SuccessBuffer(capacity), reference.Buffer(capacity)
    for index, (problem, reward) in enumerate(offers):
        buffer.add(problem, f"text {index}", reward, step=index)
        literal.update(problem, f"text {index}", reward)
    for problem in "pq":
        stored = [(entry.response, entry.reward) for entry in buffer.entries(problem)]
        assert stored == literal.entries.get(problem, [])


@given(SUCCESSES, CAPACITIES, TIES)
def test_never_over_capacity_and_never_the_same_text_twice(successes, capacity, on_tie):
    buffer = filled(successes, capacity, on_tie)
    for problem in "pq":
        stored = texts(buffer, problem)
        assert len(stored) <= capacity
        assert len(set(stored)) == len(stored)


@given(SUCCESSES, SUCCESS, TIES)
def test_the_lowest_reward_of_a_full_buffer_never_falls(successes, last, on_tie):
    buffer = filled([*successes, *(("p", text, 0.5, 1) for text in "xyz")], 3, on_tie)
    before = [entry.reward for entry in buffer.entries("p")]
    _, text, reward, length = last
    buffer.add("p", text, reward, step=99, token_length=length)
    after = [entry.reward for entry in buffer.entries("p")]
    assert len(before) == len(after) == 3
    assert sorted(after) >= sorted(before)
    assert min(after) >= min(before)


@given(SUCCESSES, SUCCESS, CAPACITIES, TIES)
def test_add_says_whether_the_success_is_stored(successes, last, capacity, on_tie):
    buffer = filled(successes, capacity, on_tie)
    problem, text, reward, length = last
    before = buffer.entries(problem)
    added = buffer.add(problem, text, reward, step=99, token_length=length)
    assert added == (Entry(text, reward, 99, length) in buffer.entries(problem))
    assert added == (buffer.entries(problem) != before)


def test_capacity_zero_stores_nothing():
    buffer = SuccessBuffer(capacity=0)
    assert not buffer.add("p", "a", 1.0, step=1)
    assert buffer.entries("p") == ()
    assert buffer.sample("p", np.random.default_rng(0)) is None
    assert (buffer.problem_count, buffer.entry_count) == (0, 0)


# ---- ties ---------------------------------------------------------------------------------------


def offer_equal(on_tie: str, *offers: tuple[str, int, int]) -> list[str]:
    """Texts kept by a buffer of two after offers (text, step, token length) of equal reward."""
    buffer = SuccessBuffer(capacity=2, on_tie=on_tie)
    for text, step, length in offers:
        buffer.add("p", text, 1.0, step=step, token_length=length)
    return texts(buffer)


def test_keep_freezes_at_the_first_successes():
    assert offer_equal("keep", ("a", 1, 9), ("b", 2, 8), ("c", 3, 1)) == ["a", "b"]


def test_newest_replaces_the_oldest():
    assert offer_equal("newest", ("a", 1, 1), ("b", 2, 1), ("c", 3, 9)) == ["b", "c"]


def test_newest_lets_the_preferred_successes_of_one_step_stand():
    """The caller offers the preferred ones first; the rest of the group is not newer."""
    offers = [("old", 1, 1), ("best", 2, 1), ("second", 2, 1), ("third", 2, 1)]
    assert offer_equal("newest", *offers) == ["best", "second"]


def test_shortest_replaces_the_longest_and_only_by_a_shorter_one():
    offers = [("a", 1, 5), ("b", 2, 7), ("c", 3, 7), ("d", 4, 6), ("e", 5, 6)]
    assert offer_equal("shortest", *offers) == ["a", "d"]


def test_shortest_counts_characters_where_tokens_are_unknown():
    assert offer_equal("shortest", ("long", 1, 0), ("longer", 2, 0), ("x", 3, 0)) == ["long", "x"]


@pytest.mark.parametrize("on_tie", ["keep", "newest", "shortest"])
def test_a_higher_reward_wins_whatever_its_age_and_length(on_tie):
    buffer = SuccessBuffer(capacity=1, on_tie=on_tie)
    buffer.add("p", "a", 0.5, step=9, token_length=1)
    assert buffer.add("p", "longer", 0.6, step=9, token_length=99)
    assert not buffer.add("p", "s", 0.5, step=10, token_length=1)
    assert texts(buffer) == ["longer"]


def test_of_one_text_the_higher_reward_is_kept_else_the_newer_step():
    buffer = SuccessBuffer(capacity=2)
    buffer.add("p", "a", 0.7, step=1)
    buffer.add("p", "b", 0.7, step=2)
    assert not buffer.add("p", "a", 0.6, step=3)  # lower
    assert buffer.add("p", "a", 0.7, step=4)  # newer
    assert not buffer.add("p", "a", 0.7, step=4)  # the same
    assert buffer.add("p", "b", 0.9, step=2)  # higher
    assert [(e.response, e.reward, e.step) for e in buffer.entries("p")] == [
        ("a", 0.7, 4),
        ("b", 0.9, 2),
    ]
    assert buffer.replaced == 0


# ---- Eq. 20 and Eqs. 18-19 ----------------------------------------------------------------------


def test_draws_are_uniform_over_what_is_stored():
    buffer = filled([("p", text, 1.0, 1) for text in ("a", "bb", "ccc")])
    rng = np.random.default_rng(0)
    drawn = [buffer.sample("p", rng).response for _ in range(3000)]
    counts = [drawn.count(text) for text in texts(buffer)]
    # 1000 expected with standard deviation sqrt(3000 * 1/3 * 2/3) = 26
    assert sum(counts) == 3000
    assert max(abs(count - 1000) for count in counts) < 5 * 26


@given(SUCCESSES, TIES, st.integers(0, 2**31))
def test_a_draw_depends_on_the_random_numbers_only_and_changes_nothing(successes, on_tie, seed):
    buffer = filled(successes, on_tie=on_tie)
    before = buffer.state_dict()
    first = buffer.sample("p", np.random.default_rng(seed))
    buffer.sample("q", np.random.default_rng(0))
    assert buffer.sample("p", np.random.default_rng(seed)) == first
    assert buffer.state_dict() == before
    literal = reference.Buffer()
    literal.entries["p"] = [(entry.response, entry.reward) for entry in buffer.entries("p")]
    drawn = literal.draw("p", np.random.default_rng(seed))
    assert drawn == (None if first is None else first.response)


def test_excluded_texts_are_never_drawn():
    buffer = filled([("p", text, 1.0, 1) for text in ("a", "bb", "ccc")])
    rng = np.random.default_rng(0)
    drawn = {buffer.sample("p", rng, exclude=("a", "unknown")).response for _ in range(50)}
    assert drawn == {"bb", "ccc"}
    assert buffer.sample("p", rng, exclude={"a", "bb", "ccc"}) is None


def test_a_problem_without_successes_draws_nothing():
    assert SuccessBuffer().sample("p", np.random.default_rng(0)) is None


def test_the_buffer_is_only_filled_for_the_first_epochs():
    """14 steps an epoch: steps 1-14 are epoch 1, step 15 is the first of epoch 2."""
    assert not is_usable(14, steps_per_epoch=14)
    assert is_usable(15, steps_per_epoch=14)
    assert is_usable(1, steps_per_epoch=14, fill_epochs=0)
    for step in range(1, 60):
        epoch = (step + 13) // 14
        for fill_epochs in range(4):
            expected = reference.buffer_may_teach(epoch, fill_epochs)
            assert is_usable(step, steps_per_epoch=14, fill_epochs=fill_epochs) == expected


def test_the_later_of_fill_epochs_and_fill_steps_counts():
    usable = [is_usable(s, steps_per_epoch=4, fill_epochs=1, fill_steps=6) for s in range(1, 9)]
    assert usable == [False] * 6 + [True] * 2
    assert not is_usable(4, steps_per_epoch=4, fill_epochs=1, fill_steps=2)


# ---- the authors' release: top entries, and a limit of problems ---------------------------------


@given(SUCCESSES)
def test_the_top_entry_is_the_first_of_the_list_sorted_by_reward_and_step(successes):
    buffer = SuccessBuffer(4, "newest", draw="top")
    for index, (problem, text, reward, _) in enumerate(successes):
        buffer.add(problem, text, reward, step=1 + index // 2)
    for problem in "pq":
        ranked = sorted(buffer.entries(problem), key=lambda e: (e.reward, e.step), reverse=True)
        rng, drawn = np.random.default_rng(0), []
        while (entry := buffer.sample(problem, rng, exclude=drawn)) is not None:
            drawn.append(entry.response)
        assert drawn == [entry.response for entry in ranked]


def test_a_buffer_of_the_release_keeps_the_newest_of_the_best():
    # Sorted by (score, step) and cut to four, as the release does after every insertion.
    offers = [(f"text {n}", [0.5, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0][n]) for n in range(7)]
    buffer, literal = SuccessBuffer(4, "newest", draw="top"), []
    for step, (text, reward) in enumerate(offers):
        buffer.add("p", text, reward, step=step)
        literal = sorted([*literal, (reward, step, text)], reverse=True)[:4]
        assert {entry.response for entry in buffer.entries("p")} == {text for *_, text in literal}
        assert buffer.sample("p", np.random.default_rng(0)).response == literal[0][2]


def test_a_problem_too_many_makes_the_lowest_ranking_one_forgotten():
    buffer = SuccessBuffer(2, max_problems=2)
    buffer.add("old", "a", 1.0, step=1)
    buffer.add("poor", "b", 0.5, step=2)
    assert buffer.add("new", "c", 0.75, step=3)
    assert [problem for problem in ("old", "poor", "new") if buffer.entries(problem)] == [
        "old",
        "new",
    ]
    assert not buffer.add("worse", "d", 0.6, step=4)  # is itself the lowest
    assert buffer.add("better", "e", 0.75, step=5)  # of equal rewards the oldest goes
    assert buffer.entries("old") and buffer.entries("better") and not buffer.entries("new")
    assert buffer.problem_count == 2


def test_bad_settings_of_the_draw_are_refused_in_one_line():
    with pytest.raises(ValueError, match="draw is 'best'; use one of uniform, top"):
        SuccessBuffer(draw="best")
    with pytest.raises(ValueError, match="max_problems is -1"):
        SuccessBuffer(max_problems=-1)


# ---- state --------------------------------------------------------------------------------------


@given(SUCCESSES, SUCCESSES, CAPACITIES, TIES)
def test_a_buffer_survives_a_trip_through_text_and_goes_on_alike(before, after, capacity, on_tie):
    buffer = filled(before, capacity, on_tie)
    restored = SuccessBuffer(capacity, on_tie)
    restored.add("left over", "x", 1.0, step=1)
    restored.load_state_dict(json.loads(json.dumps(buffer.state_dict(), allow_nan=False)))
    assert restored.state_dict() == buffer.state_dict()
    for one in (buffer, restored):
        for problem, text, reward, length in after:
            one.add(problem, text, reward, step=50, token_length=length)
    assert restored.state_dict() == buffer.state_dict()
    assert restored.replaced == buffer.replaced
    draws = [one.sample("p", np.random.default_rng(3)) for one in (buffer, restored)]
    assert draws[0] == draws[1]


def test_a_state_is_a_copy():
    buffer = filled([("p", "a", 1.0, 1)])
    state = buffer.state_dict()
    text = json.dumps(state)
    buffer.add("p", "b", 1.0, step=2)
    assert json.dumps(state) == text


def test_a_run_that_goes_on_with_a_smaller_capacity_keeps_the_best():
    state = filled([("p", "a", 0.5, 1), ("p", "bb", 1.0, 1), ("p", "ccc", 0.75, 1)]).state_dict()
    smaller = SuccessBuffer(capacity=2)
    smaller.load_state_dict(state)
    assert sorted(texts(smaller)) == ["bb", "ccc"]
    assert smaller.replaced == 0
    off = SuccessBuffer(capacity=0)
    off.load_state_dict(state)
    assert off.entry_count == 0


DAMAGED = [
    {},
    {"replaced": 0},
    {"problems": {}},
    {"replaced": 0, "problems": []},
    {"replaced": 0, "problems": {"p": [1]}},
    {"replaced": 0, "problems": {"p": [{"response": "a"}]}},
    {"replaced": 0, "problems": {"p": [{"response": 3, "reward": 1.0, "step": 1}]}},
    {"replaced": 0, "problems": {"p": [{"response": "a", "reward": "x", "step": 1}]}},
    {"replaced": 0, "problems": {"p": [{"response": "a", "reward": float("nan"), "step": 1}]}},
    {"replaced": 0, "problems": {"p": [{"response": "a", "reward": 1.0, "step": 1, "odd": 1}]}},
]


@pytest.mark.parametrize("state", DAMAGED, ids=str)
def test_a_damaged_state_is_refused_and_changes_nothing(state):
    buffer = filled([("p", "a", 1.0, 1)])
    before = buffer.state_dict()
    with pytest.raises(ValueError) as caught:
        buffer.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert buffer.state_dict() == before


# ---- what the metrics read ----------------------------------------------------------------------


def test_the_summary_counts_what_is_stored():
    buffer = SuccessBuffer(capacity=2)
    buffer.add("p", "ab", 0.5, step=1)
    buffer.add("p", "é", 1.0, step=3)
    buffer.add("q", "\ud800", 0.6, step=5)
    assert (buffer.problem_count, buffer.entry_count, buffer.replaced) == (2, 3, 0)
    assert buffer.reward_mean == pytest.approx(0.7)
    assert buffer.age_mean(step=5) == pytest.approx((4 + 2 + 0) / 3)
    assert buffer.text_bytes == 2 + 2 + 3
    buffer.add("p", "new", 0.75, step=6)
    assert (buffer.entry_count, buffer.replaced) == (3, 1)


def test_the_summary_of_an_empty_buffer_is_zero():
    buffer = SuccessBuffer()
    assert (buffer.problem_count, buffer.entry_count, buffer.replaced, buffer.text_bytes) == (
        0,
    ) * 4
    assert (buffer.reward_mean, buffer.age_mean(step=7)) == (0, 0)


def test_bad_settings_and_rewards_are_refused():
    with pytest.raises(ValueError, match="capacity is -1"):
        SuccessBuffer(capacity=-1)
    with pytest.raises(ValueError, match="'oldest'; use one of keep, newest, shortest"):
        SuccessBuffer(on_tie="oldest")
    with pytest.raises(ValueError, match="reward of 'p' is nan"):
        SuccessBuffer().add("p", "a", float("nan"), step=1)
