"""The findability gate: by hand, against plain loops, and what moves it."""

import numpy as np
import pytest

from drift_jax import findability
from drift_jax.data import generated
from drift_jax.findability import Finding, findings, rollouts_per_problem


def test_a_small_world_by_hand():
    # b is needed by the last two problems: 40 x (0.1 + 0.01) = 4.4 successes, which is too few.
    found = findings([["a"], ["a", "b"], ["b"]], np.array([0.5, 0.1, 0.01]), rollouts=40)
    assert found[0] == Finding("b", 2, 0.1, pytest.approx(4.4)) and not found[0].found
    assert found[1] == Finding("a", 2, 0.5, pytest.approx(24.0)) and found[1].found


def test_the_bound_is_five_successes():
    assert findings([["a"]], np.array([0.125]), rollouts=40)[0].found
    assert not findings([["a"]], np.array([0.124]), rollouts=40)[0].found


def test_a_fact_that_a_problem_needs_twice_counts_once():
    twice = findings([["a", "a", "b"]], np.array([0.2]), rollouts=10)
    assert [finding.successes for finding in twice] == [pytest.approx(2.0)] * 2


def test_a_problem_gets_the_rollouts_of_half_a_run():
    # The instrument: 160 steps are 10 epochs of 16, so 5 visits of 8 rollouts.
    half = rollouts_per_problem(steps=160, problems_per_step=16, group_size=8, train_problems=256)
    assert half == 40
    # An epoch that is not finished does not count, nor does its dropped end.
    assert rollouts_per_problem(steps=10, problems_per_step=3, group_size=2, train_problems=7) == 4


@pytest.mark.parametrize("task", ["toolcalls", "toolsteps", "lookup"])
def test_it_equals_plain_loops_on_a_real_world(task):
    chosen = generated.TASKS[task]
    world = chosen.world(1)
    problems = chosen.problems(world, "train")
    rates = [chosen.success_rate(world, problem) for problem in problems]
    needs = [chosen.facts(world, problem) for problem in problems]
    for finding in findings(needs, np.array(rates), rollouts=40):
        total, count, best = 0.0, 0, 0.0
        for facts, rate in zip(needs, rates, strict=True):
            if finding.fact in facts:
                total, count, best = total + 40 * rate, count + 1, max(best, rate)
        assert finding == Finding(finding.fact, count, best, pytest.approx(total))


@pytest.mark.parametrize("task", ["toolcalls", "toolsteps"])
@pytest.mark.parametrize("seed", range(8))
def test_by_the_rates_of_the_demonstrations_these_worlds_are_findable(task, seed):
    chosen = generated.TASKS[task]
    world = chosen.world(seed)
    problems = chosen.problems(world, "train")
    rates = np.array([chosen.success_rate(world, problem) for problem in problems])
    needs = [chosen.facts(world, problem) for problem in problems]
    assert all(finding.found for finding in findings(needs, rates, rollouts=40))


@pytest.mark.parametrize("rates", [[0.5], [0.5, 1.5], [[0.5, 0.5]]])
def test_rates_that_are_none_are_refused(rates):
    with pytest.raises(ValueError, match="pass one rate from 0 to 1 a problem"):
        findings([["a"], ["b"]], np.array(rates), rollouts=40)


def test_the_bound_leaves_one_run_in_150_without_a_success():
    misses = np.exp(-findability.EXPECTED_SUCCESSES)
    assert 1 / misses == pytest.approx(150, rel=0.02)
