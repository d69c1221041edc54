"""What a warm start imitates: gold solutions that their own graders accept, and references."""

from collections import Counter

import numpy as np
import pytest

from drift_jax.data import demonstrations, source, toolcalls
from drift_jax.rewards import grader_for
from drift_jax.types import Problem
from tests.tool_rows import tool_row, write_tool_rows

TWO = [
    {"Action": "find", "Action_Input": '{"name": "Bach"}'},
    {"Action": "play", "Action_Input": {"id": 3}},  # a few rows hold the object itself
]


def choice(answer="B"):
    turn = {"role": "user", "content": "Which gas?\n\nA: argon\nB: neon"}
    return Problem("physics/train/0", "physics", (turn,), answer)


def tools(folder, count, first=None):
    write_tool_rows(folder, count, first)
    return source.load_task("tooluse", "train", path=folder)


# ---- solutions ---------------------------------------------------------------------------------


def test_a_tool_use_solution_is_a_thought_and_the_gold_calls_in_the_published_form(tmp_path):
    (problem,) = tools(tmp_path, 1, [tool_row(0, TWO)])
    assert demonstrations.solution(problem) == (
        "Thought: I should call find, then play.\n"
        'Action: find\nAction Input: {"name": "Bach"}\n'
        'Action: play\nAction Input: {"id": 3}'
    )


def test_a_multiple_choice_solution_is_a_stub_and_the_letter_in_the_asked_form():
    text = demonstrations.solution(choice("C"))
    assert text.startswith("<reasoning>\n") and text.endswith("<answer>\nC\n</answer>")


def test_solutions_are_right_and_well_formed_and_in_other_words_still_are(tmp_path):
    generated = toolcalls.problems(toolcalls.World(0), "train", 3)
    for problem in [*tools(tmp_path, 2, [tool_row(0, TWO)]), choice("A"), choice("D"), *generated]:
        for other_words in (False, True):
            text = demonstrations.solution(problem, other_words=other_words)
            score = grader_for(problem.task)(text, problem.answer)
            assert (score.reward, score.well_formed) == (1.0, True), text


def test_other_words_change_the_thought_and_leave_the_answer(tmp_path):
    for problem in (*tools(tmp_path, 1), choice()):
        one, other = (
            demonstrations.solution(problem, other_words=words).partition("\nAction:")
            for words in (False, True)
        )
        assert one != other and one[2] == other[2]


# ---- draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [False, True])
def test_a_draw_is_a_function_of_the_random_numbers(tmp_path, reference):
    draw = demonstrations.of_problems(tools(tmp_path, 10))
    drawn = [draw(np.random.default_rng(seed), 4, reference=reference) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 4
    for shown in drawn[0]:
        assert shown.response == demonstrations.solution(shown.problem)
        if reference:
            assert shown.reference == demonstrations.solution(shown.problem, other_words=True)
        else:
            assert shown.reference is None


def test_every_problem_is_drawn_equally_often_and_neighbours_are_alike_in_length(tmp_path):
    problems = tools(tmp_path, 10)
    draw = demonstrations.of_problems(problems)
    rng, counts, spreads = np.random.default_rng(0), Counter(), []
    for _ in range(2000):
        ids = [shown.problem for shown in draw(rng, 3, reference=False)]
        assert len({problem.id for problem in ids}) == 3
        counts.update(problem.id for problem in ids)
        sizes = [len(problem.messages[-1]["content"]) for problem in ids]
        spreads.append(max(sizes) - min(sizes))
    # 600 each; the deviation of a count is under 21.
    assert len(counts) == 10 and max(abs(n - 600) for n in counts.values()) < 85
    # Prompts differ by up to 4 characters; only the draws that wrap around see it all.
    assert np.mean(np.array(spreads) <= 1) >= 0.7


def test_more_demonstrations_than_problems_repeat_them(tmp_path):
    draw = demonstrations.of_problems(tools(tmp_path, 3))
    counts = Counter(d.problem.id for d in draw(np.random.default_rng(0), 6, reference=False))
    assert set(counts.values()) == {2}


def test_a_problem_whose_gold_solution_the_grader_refuses_is_not_demonstrated(tmp_path):
    hyphen = [{"Action": "get-x", "Action_Input": "{}"}]  # the published grader cannot read it
    problems = tools(tmp_path, 4, [tool_row(0, hyphen)])
    assert not demonstrations.is_solvable(problems[0])
    drawn = demonstrations.of_problems(problems)(np.random.default_rng(0), 12, reference=False)
    assert {shown.problem.id for shown in drawn} == {problem.id for problem in problems[1:]}
    with pytest.raises(ValueError, match="none of the 1 problems has a gold solution"):
        demonstrations.of_problems(problems[:1])


def test_every_task_has_demonstrations():
    for task in source.TASKS:
        kind = source.KINDS.get(task)
        assert demonstrations.is_generated(task) or kind in demonstrations.WRITERS, task


def test_the_generated_task_has_the_same_signature():
    assert demonstrations.is_generated("toolcalls") and not demonstrations.is_generated("physics")
    draw = demonstrations.of_generated("toolcalls", 0)
    world = toolcalls.World(0)
    for reference in (False, True):
        drawn = draw(np.random.default_rng(3), 5, reference=reference)
        rng = np.random.default_rng(3)
        assert drawn == toolcalls.demonstrations(world, rng, 5, reference=reference)
        assert all((shown.reference is not None) == reference for shown in drawn)


def test_every_real_row_that_can_be_scored_is_solvable(data_dir):
    for task, unsolvable in (("physics", 0), ("biology", 0), ("tooluse", 2)):
        problems = source.load_task(task, "test", path=data_dir)
        found = [p.id for p in problems if not demonstrations.is_solvable(p)]
        assert len(found) == unsolvable, found
