"""Stored successes as members of a group (RLEP): what is drawn, and what joins the rollouts."""

import numpy as np
import pytest

from drift_jax import replay
from drift_jax.buffer import SuccessBuffer
from drift_jax.memory import draws
from drift_jax.types import Rollouts

END = 2


def encode(text: str) -> np.ndarray:
    """One token a letter, then the end token."""
    return np.array([*(ord(letter) for letter in text), END], np.int32)


def stored(**problems: str) -> SuccessBuffer:
    """A buffer with the words of each problem."""
    buffer = SuccessBuffer(8)
    for problem, words in problems.items():
        for step, word in enumerate(words.split()):
            buffer.add(problem, word, 1.0, step=step, token_length=len(word) + 1)
    return buffer


def drawn(ids, buffer, *, members=2, max_tokens=9, step=1) -> replay.Replayed:
    return replay.draw(
        ids, buffer, members=members, max_tokens=max_tokens, encode=encode, rng_for=draws(0, step)
    )


def texts(of: replay.Replayed) -> list[list[str | None]]:
    return [[entry and entry.response for entry in group] for group in of.entries]


def rollouts(*responses: str, room: int = 5) -> Rollouts:
    tokens = np.zeros((len(responses), room), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, response in enumerate(responses):
        tokens[row, : len(response) + 1], mask[row, : len(response) + 1] = encode(response), True
    values = np.where(mask, np.arange(room) - 7.0, 0).astype(np.float32)
    return Rollouts(tokens, mask, values, -values, np.ones(len(responses), bool))


def test_members_of_a_group_are_different_successes_of_its_own_problem():
    buffer = stored(p="one two three", q="four five")
    seen = set()
    for step in range(40):
        of_p, of_q = texts(drawn(["p", "q"], buffer, step=step))
        assert len(set(of_p)) == 2 and set(of_p) <= {"one", "two", "three"}
        assert set(of_q) == {"four", "five"}
        seen.add(tuple(of_p))
    assert len(seen) == 6  # every ordered pair turns up


def test_a_place_for_which_there_is_nothing_stays_empty():
    joined = drawn(["p", "q", "r"], stored(p="one two", q="four"))
    assert sorted(texts(joined)[0]) == ["one", "two"]
    assert texts(joined)[1:] == [["four", None], [None, None]]
    assert joined.present.tolist() == [[True, True], [True, False], [False, False]]
    assert joined.rewards.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_an_entry_that_is_longer_than_a_response_may_be_is_left_out():
    buffer = stored(p="short incomprehensible tiny")
    for step in range(9):
        group = texts(drawn(["p"], buffer, max_tokens=6, step=step))[0]
        assert sorted(group) == ["short", "tiny"]


def test_the_draw_depends_on_seed_step_and_problem_and_on_no_other_problem():
    buffer = stored(p="a b c d", q="e f g h")
    both, alone = drawn(["p", "q"], buffer), drawn(["q"], buffer)
    assert texts(both)[1] == texts(alone)[0]
    assert texts(drawn(["p", "q"], buffer)) == texts(both)
    # A draw for another purpose is another draw: that which teaches is not repeated here.
    numbers = {tuple(draws(0, 1, *purpose)("p").integers(1000, size=4)) for purpose in [(), (1,)]}
    assert len(numbers) == 2


def test_rollouts_come_first_and_the_stored_answers_of_their_problem_follow():
    fresh = rollouts("ab", "c", "def", "g")  # two problems of two
    joined = drawn(["p", "q"], stored(p="stored", q="x yy"))
    both = joined.joined(fresh)
    assert both.tokens.shape == (8, 7)  # the longest has seven tokens
    rows = [row[mask].tolist() for row, mask in zip(both.tokens, both.mask, strict=True)]
    words = ["ab", "c", "stored", None, "def", "g", *texts(joined)[1]]
    assert rows == [[] if word is None else encode(word).tolist() for word in words]
    assert both.lengths.tolist() == [3, 2, 7, 0, 4, 2, *map(len, joined.tokens[1])]
    # Nobody sampled the stored ones in this step; what was sampled keeps its numbers.
    of_fresh = [0, 1, 4, 5]
    np.testing.assert_array_equal(both.log_probs[of_fresh, :5], fresh.log_probs)
    np.testing.assert_array_equal(both.entropies[of_fresh, :5], fresh.entropies)
    assert not both.log_probs[[2, 3, 6, 7]].any()
    assert both.finished.tolist() == [True, True, True, False, True, True, True, True]


def test_without_members_nothing_changes():
    fresh = rollouts("ab", "c")
    for joined in (drawn(["p"], stored(p="one"), members=0), replay.nothing(1, 0)):
        assert joined.joined(fresh) is fresh
        rewards, counted = joined.joined_rewards(np.array([[1.0, 0.0]]))
        assert rewards.tolist() == [[1, 0]] and counted.all()


def test_while_the_buffer_is_only_filled_all_places_are_empty():
    joined = replay.nothing(2, 3)
    assert joined.present.shape == (2, 3) and not joined.present.any()
    both = joined.joined(rollouts("ab", "c", "def", "g"))
    assert both.lengths.tolist() == [3, 2, 0, 0, 0, 4, 2, 0, 0, 0]


@pytest.mark.parametrize("members", [1, 2])
def test_drawing_leaves_the_buffer_as_it_was(members):
    buffer = stored(p="one two three")
    before = buffer.state_dict()
    drawn(["p"], buffer, members=members)
    assert buffer.state_dict() == before
