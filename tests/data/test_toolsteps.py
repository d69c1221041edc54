"""What is particular about `toolsteps`: several steps, and several wordings of each."""

import json
from collections import Counter

import numpy as np
import pytest

from drift_jax.data import generated, toolsteps
from drift_jax.data.toolsteps import PLACES, TOOLS, VERBS, World, demonstrations, problems, solution
from drift_jax.rewards.step_plan import WORDINGS, read_plan, score_step_plan


@pytest.fixture(scope="module")
def world():
    return World(0)


def wordings(response):
    """The number of each step's wording."""
    starts = [wording.split(" {")[0] for wording in WORDINGS]
    lines = response.split("\n")[1:-1]
    return [
        next(n for n, start in enumerate(starts) if line.partition(".")[2].startswith(start))
        for line in lines
    ]


def test_the_example_of_the_module_is_what_the_task_writes(world):
    problem = problems(world, "train")[0]
    gold = json.loads(problem.answer)
    text = solution(problem)
    assert text.startswith(f"Plan:\n1. Go from {gold['start']} on to {gold['steps'][0][1]} and ")
    assert text.endswith("Answer: " + " ".join(tool for _, _, tool in gold["steps"]))
    asked = problem.messages[-1]["content"].split("\n")
    assert asked[0] == f"Start: {gold['start']}"
    assert asked[1:] == [f"{n}. {v} {p}" for n, (v, p, _) in enumerate(gold["steps"], start=1)]


def test_a_reasoning_has_20_to_60_tokens_and_at_least_three_wordings_a_step(world):
    tokenizer = generated.build_tokenizer("toolsteps")
    lengths = {len(tokenizer.encode(solution(p))) for p in problems(world, "train")}
    assert lengths == {32, 42, 52}
    assert len(WORDINGS) >= 3
    # Every wording takes as many tokens, so no stage prefers one for its length.
    for number in range(len(WORDINGS)):
        plan = toolsteps.Plan("Oslo", (("weld", "Rome"),))
        assert len(tokenizer.encode(toolsteps._write(plan, ["torch"], [number]))) == 12


def test_no_place_and_no_verb_comes_twice_in_a_plan(world):
    for problem in problems(world, "train"):
        gold = json.loads(problem.answer)
        verbs, places, tools = zip(*gold["steps"], strict=True)
        assert len(set(verbs)) == len(verbs) and set(verbs) <= set(VERBS)
        assert len({gold["start"], *places}) == len(places) + 1
        assert {gold["start"], *places} <= set(PLACES)
        assert list(tools) == [world.tools[verb] for verb in verbs]


def test_worlds_differ_in_right_tools_and_in_what_is_rare():
    first, second = World(0), World(1)
    assert first.tools != second.tools and first.accuracies != second.accuracies
    assert Counter(first.accuracies.values()) == Counter(second.accuracies.values())


def test_plain_demonstrations_use_every_wording_equally_often(world):
    examples = demonstrations(world, np.random.default_rng(0), 1500, reference=False)
    counts = Counter(number for example in examples for number in wordings(example.response))
    share = np.array([counts[n] for n in range(3)]) / counts.total()
    np.testing.assert_allclose(share, 1 / 3, atol=0.02)


def test_reference_demonstrations_keep_most_tools_and_wordings(world):
    examples = demonstrations(world, np.random.default_rng(1), 1500, reference=True)
    same_tool, same_wording, used = [], [], Counter()
    for example in examples:
        shown, written = read_plan(example.reference)[0], read_plan(example.response)[0]
        for (*asked, one), (*again, other) in zip(shown, written, strict=True):
            assert asked == again
            same_tool.append(one == other)
            used[one] += 1
        same_wording += [
            a == b
            for a, b in zip(wordings(example.reference), wordings(example.response), strict=True)
        ]
    # What is drawn again is the old one in a third of the cases.
    assert np.mean(same_tool) == pytest.approx(1 - 0.02 * 2 / 3, abs=0.005)
    assert np.mean(same_wording) == pytest.approx(1 - 0.3 * 2 / 3, abs=0.02)
    assert max(used.values()) / min(used.values()) < 1.15 and set(used) == set(TOOLS)


def test_a_demonstration_is_wrong_in_its_tools_alone(world):
    for example in demonstrations(world, np.random.default_rng(2), 400, reference=False):
        score = score_step_plan(example.response, example.problem.answer)
        steps, tools = read_plan(example.response)
        gold = json.loads(example.problem.answer)["steps"]
        assert [(verb, place) for _, verb, place, _ in steps] == [(v, p) for v, p, _ in gold]
        assert tools == [tool for *_, tool in steps]
        assert (score.reward == 1) == (tools == [tool for _, _, tool in gold])
