"""Every task has its grader, and a task that nobody knows is refused with those that exist."""

import pytest

from drift_jax import rewards


@pytest.mark.parametrize("task", ["biology", "chemistry", "material", "physics"])
def test_science_tasks_are_multiple_choice(task):
    assert rewards.grader_for(task) is rewards.score_multiple_choice


def test_the_benchmark_keeps_the_quirks_and_the_generated_task_is_strict():
    assert rewards.grader_for("tooluse") is rewards.score_tool_call
    assert rewards.grader_for("toolcalls") is rewards.score_tool_call_strict


def test_an_unknown_task_names_the_nearest_and_lists_all():
    with pytest.raises(ValueError, match=r"'biologie' has no grader \(did you mean 'biology'\?\)"):
        rewards.grader_for("biologie")
    with pytest.raises(ValueError, match=r"known: biology, chemistry, .*tooluse") as caught:
        rewards.grader_for("")
    assert "\n" not in str(caught.value)


def test_the_generated_tasks_have_graders_of_their_own():
    assert rewards.grader_for("toolcalls_graded") is rewards.score_tool_call_graded
    assert rewards.grader_for("toolsteps") is rewards.score_step_plan
    assert rewards.grader_for("lookup") is rewards.score_lookup
