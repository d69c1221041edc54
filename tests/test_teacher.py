"""Who teaches whom (DRIFT section 3.1, Eqs. 19-20): the rules of both stages and the fall-back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.buffer import SuccessBuffer
from drift_jax.teacher import preference_order, select, select_sibling
from tests import reference

RULES = ["highest_entropy", "shortest", "first"]

# One rollout of a group: reward, entropy, length. Few values each, so that ties are common.
ROLLOUT = st.tuples(
    st.sampled_from([0.0, 0.4, 0.5, 0.7, 0.75, 0.8, 0.9, 1.0]),
    st.sampled_from([0.1, 0.2, 0.3]),
    st.integers(1, 3),
)
GROUP = st.lists(ROLLOUT, min_size=1, max_size=8)


def one_group(rollouts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rewards, entropies, lengths [1, group] of rollouts (reward, entropy, length)."""
    return tuple(np.array([column]) for column in zip(*rollouts, strict=True))


def chosen(rollouts, sibling: str, **settings) -> list[int]:
    return select_sibling(*one_group(rollouts), sibling=sibling, **settings)[0].tolist()


# ---- the rules ----------------------------------------------------------------------------------

#            reward entropy length
GOLDEN = [
    (1.00, 0.20, 30),
    (0.95, 0.90, 10),  # within 0.1 of the best, highest entropy
    (0.85, 2.00, 5),  # a success, but outside the window
    (1.00, 0.40, 20),  # the shortest of the best
    (0.00, 3.00, 1),  # wrong
]


def test_warm_up_takes_the_highest_entropy_among_nearly_the_best():
    # for sample 1 itself the candidates are 0, 2, 3: best 1.0, window [0.9, 1.0], so 0 and 3
    assert chosen(GOLDEN, "highest_entropy") == [1, 3, 1, 1, 1]


def test_the_mixed_stage_takes_the_shortest_of_exactly_the_best():
    assert chosen(GOLDEN, "shortest") == [3, 3, 3, 0, 3]


def test_the_plain_rule_takes_the_first_other_success():
    assert chosen(GOLDEN, "first") == [1, 0, 0, 0, 0]


def test_the_largest_reward_is_that_of_the_candidates_not_of_the_sample():
    # Sample 0 has the best reward of all; among the others 0.8 is the best, and 0.7 is in reach.
    rollouts = [(1.0, 0.1, 1), (0.8, 0.1, 1), (0.75, 0.5, 1), (0.5, 0.9, 1)]
    assert chosen(rollouts, "highest_entropy")[0] == 2


@pytest.mark.parametrize("sibling", RULES)
def test_ties_go_to_the_lowest_rollout_index(sibling):
    assert chosen([(1.0, 0.5, 7)] * 4, sibling) == [1, 0, 0, 0]


@pytest.mark.parametrize("sibling", RULES)
def test_the_only_success_teaches_all_others_and_has_no_teacher(sibling):
    assert chosen([(0.0, 1, 1), (1.0, 1, 1), (0.0, 1, 1)], sibling) == [1, -1, 1]


@pytest.mark.parametrize("sibling", RULES)
def test_a_group_without_success_has_no_sibling(sibling):
    assert chosen([(0.0, 1, 1), (0.4, 1, 1)], sibling) == [-1, -1]
    assert chosen([(1.0, 1, 1)], sibling) == [-1]


def test_success_begins_at_the_threshold_itself():
    rollouts = [(0.5, 1, 1), (0.49, 1, 1)]
    assert chosen(rollouts, "first") == [-1, 0]
    assert chosen(rollouts, "first", success_threshold=0.51) == [-1, -1]


@given(GROUP, st.sampled_from([0.0, 0.1, 0.25, 1.0]), st.sampled_from([0.0, 0.5, 0.75]))
def test_every_rule_equals_its_plain_loop(rollouts, tolerance, threshold):
    rewards, entropies, lengths = (list(column) for column in zip(*rollouts, strict=True))
    settings = {"success_threshold": threshold, "reward_tolerance": tolerance}
    for sample in range(len(rollouts)):
        others = reference.candidates(rewards, sample, threshold)
        expected = {
            "highest_entropy": reference.stage_one_teacher(
                rewards, entropies, sample, threshold, tolerance
            ),
            "shortest": reference.stage_two_teacher(rewards, lengths, sample, threshold),
            "first": others[0] if others else None,
        }
        for sibling, index in expected.items():
            got = chosen(rollouts, sibling, **settings)[sample]
            assert got == (-1 if index is None else index)


@given(GROUP, st.sampled_from(RULES))
def test_nobody_teaches_itself_and_only_successes_teach(rollouts, sibling):
    for sample, index in enumerate(chosen(rollouts, sibling)):
        assert index != sample
        assert index == -1 or rollouts[index][0] >= 0.5


def test_groups_are_independent():
    groups = [GOLDEN, [(0.0, 1, 1)] * 5, [(1.0, 0.5, 7)] * 5]
    arrays = (np.concatenate(columns) for columns in zip(*map(one_group, groups), strict=True))
    together = select_sibling(*arrays, sibling="shortest")
    np.testing.assert_array_equal(together, [chosen(group, "shortest") for group in groups])


# ---- the order in which successes are offered to the buffer -------------------------------------


def order(rollouts, sibling: str) -> list[int]:
    rewards, entropies, lengths = one_group(rollouts)
    return preference_order(rewards[0], entropies[0], lengths[0], sibling=sibling).tolist()


def test_the_buffer_is_offered_the_successes_a_stage_prefers_first():
    assert order(GOLDEN, "highest_entropy") == [3, 0, 1, 2]  # reward, then entropy
    assert order(GOLDEN, "shortest") == [3, 0, 1, 2]  # reward, then length
    assert order(GOLDEN, "first") == [0, 1, 2, 3]
    assert order([(1.0, 0.2, 3), (1.0, 0.9, 9), (1.0, 0.9, 1)], "highest_entropy") == [1, 2, 0]
    assert order([(1.0, 0.2, 3), (1.0, 0.9, 9), (1.0, 0.9, 1)], "shortest") == [2, 0, 1]
    assert order([(0.0, 1, 1)], "shortest") == []


@given(GROUP, st.sampled_from(RULES))
def test_every_success_is_offered_once_and_nothing_else(rollouts, sibling):
    successes = [index for index, (reward, _, _) in enumerate(rollouts) if reward >= 0.5]
    assert sorted(order(rollouts, sibling)) == successes


@given(GROUP)
def test_the_first_one_offered_is_the_teacher_a_wrong_sample_would_get(rollouts):
    wrong = [*rollouts, (0.0, 9.0, 0)]
    offered = order(wrong, "shortest")
    assert chosen(wrong, "shortest")[-1] == (offered[0] if offered else -1)


# ---- siblings, then the buffer ------------------------------------------------------------------

LETTERS = ["a", "b", "c"]


def buffer_of(*stored: str, capacity: int = 3) -> SuccessBuffer:
    buffer = SuccessBuffer(capacity)
    for text in stored:
        buffer.add("p", text, 1.0, step=1)
    return buffer


def choose(rewards, buffer, *, responses=None, problem="p", seed=0, **settings):
    rewards = np.array([rewards])
    return select(
        [problem],
        [responses or LETTERS[: rewards.shape[1]]],
        rewards,
        np.ones(rewards.shape),
        np.ones(rewards.shape),
        buffer,
        sibling="shortest",
        rng_for=lambda _: np.random.default_rng(seed),
        **{"buffer_enabled": True, **settings},
    )


def test_a_sibling_comes_before_the_buffer():
    choice = choose([0.0, 1.0, 0.0], buffer_of("x"))
    assert choice.text == [["b", None, "b"]]
    assert choice.source.tolist() == [["sibling", "none", "sibling"]]
    assert choice.sibling.tolist() == [[1, -1, 1]]
    np.testing.assert_array_equal(choice.has_teacher, [[True, False, True]])


def test_an_all_wrong_group_shares_one_draw_from_the_buffer():
    buffer = buffer_of("x", "y", "z")
    draws = set()
    for seed in range(30):
        choice = choose([0.0, 0.0, 0.0], buffer, seed=seed)
        assert len(set(choice.text[0])) == 1
        assert choice.source.tolist() == [["buffer"] * 3]
        assert choice.sibling.tolist() == [[-1] * 3]
        draws.add(choice.text[0][0])
    assert draws == {"x", "y", "z"}


def test_the_draw_is_the_uniform_draw_of_the_literal_equation():
    literal = reference.Buffer()
    for text in ("x", "y", "z"):
        literal.update("p", text, 1.0)
    for seed in range(10):
        drawn = literal.draw("p", np.random.default_rng(seed))
        choice = choose([0.0, 0.0], buffer_of("x", "y", "z"), seed=seed)
        assert choice.text == [[drawn, drawn]]


def test_nobody_is_taught_by_a_copy_of_itself():
    for seed in range(20):
        shared, own, again = choose(
            [0.0] * 3, buffer_of("x", "y"), responses=["a", "x", "b"], seed=seed
        ).text[0]
        assert own == "y"
        assert shared == again
    only = choose([0.0, 0.0], buffer_of("x"), responses=["x", "a"])
    assert only.text == [[None, "x"]]
    assert only.source.tolist() == [["none", "buffer"]]


@pytest.mark.parametrize(
    ("buffer", "problem", "enabled"),
    [
        (buffer_of("x"), "p", False),  # the first epochs only fill it
        (buffer_of("x"), "q", True),  # nothing known of this problem
        (buffer_of("x", capacity=0), "p", True),  # switched off
    ],
    ids=["not yet", "unknown problem", "capacity 0"],
)
def test_without_a_usable_buffer_an_all_wrong_group_has_no_teacher(buffer, problem, enabled):
    choice = choose([0.0, 0.0], buffer, problem=problem, buffer_enabled=enabled)
    assert choice.text == [[None, None]]
    assert not choice.has_teacher.any()


def test_one_definition_of_success_unless_eq_19_is_taken_as_printed():
    """A reward of 0.3 is no success, but Eq. 19 asks whether any reward is above 0."""
    buffer = buffer_of("x")
    assert choose([0.0, 0.3], buffer).text == [["x", "x"]]
    assert choose([0.0, 0.3], buffer, fallback_above=0.0).text == [[None, None]]
    assert choose([0.0, 0.0], buffer, fallback_above=0.0).text == [["x", "x"]]


@given(st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=1, max_size=3))
def test_the_fall_back_equals_the_literal_condition(rewards):
    sources = choose(rewards, buffer_of("x")).source
    assert ("buffer" in sources) == reference.no_success_in(rewards)
    literal = choose(rewards, buffer_of("x"), fallback_above=0.0).source
    assert ("buffer" in literal) == reference.no_success_in_literal(rewards)


def test_choosing_leaves_the_buffer_as_it_was():
    buffer = buffer_of("x", "y")
    before = buffer.state_dict()
    choose([0.0, 0.0], buffer)
    assert buffer.state_dict() == before


def test_each_problem_draws_with_its_own_random_numbers():
    """Whatever else is in the batch, a problem draws the same entry."""
    buffer = SuccessBuffer()
    problems = [f"problem {index}" for index in range(6)]
    for problem in problems:
        for text in "xyz":
            buffer.add(problem, text, 1.0, step=1)

    def drawn(batch: list[str]) -> dict[str, str | None]:
        zeros = np.zeros((len(batch), 2))
        choice = select(
            batch,
            [["a", "b"]] * len(batch),
            *(zeros, zeros, zeros),
            buffer,
            sibling="first",
            buffer_enabled=True,
            rng_for=lambda problem: np.random.default_rng(int(problem.split()[1])),
        )
        return dict(zip(batch, (row[0] for row in choice.text), strict=True))

    together = drawn(problems)
    assert len(set(together.values())) > 1
    assert drawn(problems[::-1]) == together
    assert drawn(problems[3:4]) == {problems[3]: together[problems[3]]}


def test_bad_input_is_refused_in_one_line():
    ones = np.ones((1, 2))
    with pytest.raises(ValueError, match="'longest'; use one of highest_entropy, shortest, first"):
        select_sibling(ones, ones, ones, sibling="longest")
    with pytest.raises(ValueError, match=r"\[problem, group\]; got \(1, 2\), \(2,\), \(1, 2\)"):
        select_sibling(ones, np.ones(2), ones, sibling="first")
    with pytest.raises(ValueError, match=r"1 problem ids and 1 rows of responses.*\(1, 2\)"):
        choose([0.0, 0.0], buffer_of(), responses=["a"])


# ---- feedback of the verifier -------------------------------------------------------------------


def test_feedback_stands_in_where_there_is_no_solution_to_show():
    verdicts = [["no a", "", " \n"]]
    choice = choose([0.0, 0.0, 0.0], buffer_of(), feedback="without_solution", verdicts=verdicts)
    assert choice.source.tolist() == [["feedback", "none", "none"]]
    assert choice.feedback == [["no a", None, None]]
    assert choice.text == [[None] * 3]
    assert choice.has_teacher.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("feedback", "shown"),
    [
        ("none", [None, None, None]),
        ("without_solution", [None, None, None]),
        ("always", ["no a", None, "no c"]),
    ],
)
def test_feedback_joins_a_solution_only_where_it_is_always_shown(feedback, shown):
    for rewards, source in (([0.0, 1.0, 0.0], "sibling"), ([0.0, 0.0, 0.0], "buffer")):
        verdicts = [["no a", "", "no c"]]
        choice = choose(rewards, buffer_of("x"), feedback=feedback, verdicts=verdicts)
        assert choice.feedback == [shown]
        assert choice.source[0, 0] == choice.source[0, 2] == source
        assert choice.text[0][0] == choice.text[0][2] == ("b" if source == "sibling" else "x")


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "no"])), min_size=1, max_size=3),
    st.sampled_from(["none", "without_solution", "always"]),
)
def test_feedback_equals_the_plain_loop(samples, feedback):
    rewards = [1.0 if right else 0.0 for right, _ in samples]
    verdicts = [[words for _, words in samples]]
    choice = choose(rewards, buffer_of(), feedback=feedback, verdicts=verdicts)
    for sample, (_, words) in enumerate(samples):
        solved = reference.candidates(rewards, sample) != []
        used = feedback == "always" or (feedback == "without_solution" and not solved)
        assert (choice.feedback[0][sample] is not None) == (used and words != "")
        assert choice.has_teacher[0, sample] == (solved or (used and words != ""))


def test_more_members_of_a_group_have_no_teacher():
    choice = choose([0.0, 1.0], buffer_of(), feedback="always", verdicts=[["no", ""]]).widened(2)
    assert choice.text == [["b", None, None, None]]
    assert choice.feedback == [["no", None, None, None]]
    assert choice.source.tolist() == [["sibling", "none", "none", "none"]]
    assert choice.sibling.tolist() == [[1, -1, -1, -1]]


def test_an_unknown_use_of_feedback_is_refused_in_one_line():
    with pytest.raises(ValueError, match="'never'; use one of none, without_solution, always"):
        choose([0.0], buffer_of(), feedback="never")
