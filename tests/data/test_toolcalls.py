"""The generated task: what holds for every world, and what demonstrations look like."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.data import source, toolcalls
from drift_jax.data.toolcalls import World, demonstrations, problems, solution
from drift_jax.rewards import grader_for

SEEDS = range(8)
grade = grader_for("toolcalls")


@pytest.fixture(scope="module")
def world():
    return World(0)


def every_problem(world):
    return [problem for split in toolcalls.SPLIT_SIZES for problem in problems(world, split)]


def asked(problem):
    """What a question asks for, whatever the wording: its calls, in any order."""
    return frozenset((call["Action"], call["Action_Input"]) for call in json.loads(problem.answer))


def arguments(text):
    """(function, parameter, format, value) of each argument of a response."""
    found = []
    lines = text.split("\n")[1:]
    for action, inputs in zip(lines[::2], lines[1::2], strict=True):
        function = action.removeprefix("Action: ")
        for parameter, value in json.loads(inputs.removeprefix("Action Input: ")).items():
            found.append((function, parameter, *value.split(" ")))
    return found


def test_a_world_is_a_function_of_its_seed_alone():
    first, second = World(3), World(3)
    assert source.fingerprint(every_problem(first)) == source.fingerprint(every_problem(second))
    assert (first.signatures, first.formats, first.lookups, first.accuracies) == (
        second.signatures,
        second.formats,
        second.lookups,
        second.accuracies,
    )


def test_worlds_of_two_seeds_differ_in_every_hidden_fact():
    first, second = World(0), World(1)
    assert first.signatures != second.signatures
    assert first.formats != second.formats
    assert first.lookups != second.lookups
    assert first.accuracies != second.accuracies


def test_world_0_is_the_one_that_shipped_results_were_made_in():
    # A new random number generator, or a change to the generator here, would silently orphan the
    # shipped base policy and every recorded result.
    fingerprint = source.fingerprint(every_problem(World(0)))
    assert fingerprint == "1e5e320c67ccf1ee688b4d469708b477f5119b01ec6f1b914ea236571a5c643b"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rare_parameter_is_met_alone_in_every_split(seed):
    world = World(seed)
    rare = {name for name, accuracy in world.accuracies.items() if accuracy <= 0.25}
    assert len(rare) == 6
    for split in toolcalls.SPLIT_SIZES:
        easy = [p for p in problems(world, split) if p.level == "easy"]
        alone = {parameter for p in easy for _, parameter, _, _ in arguments(solution(p))}
        assert rare <= alone, split


@pytest.mark.parametrize("seed", SEEDS)
def test_no_parameter_is_unused_in_any_split(seed):
    world = World(seed)
    for split in toolcalls.SPLIT_SIZES:
        used = {
            parameter
            for problem in problems(world, split)
            for _, parameter, _, _ in arguments(solution(problem))
        }
        assert used == set(toolcalls.PARAMETERS), split


@pytest.mark.parametrize("seed", SEEDS)
def test_no_function_takes_a_parameter_twice_and_sizes_are_as_stated(seed):
    signatures = World(seed).signatures
    assert all(len(set(signature)) == len(signature) for signature in signatures.values())
    assert Counter(map(len, signatures.values())) == {1: 10, 2: 5, 3: 5}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_is_asked_twice_within_or_across_splits(seed):
    world = World(seed)
    questions = [asked(problem) for problem in every_problem(world)]
    assert len(set(questions)) == len(questions) == 256 + 96 + 96


def test_splits_have_the_sizes_and_persistent_ids_of_the_task(world):
    for split, size in {"train": 256, "validation": 96, "test": 96}.items():
        ids = [problem.id for problem in problems(world, split)]
        assert ids == [f"toolcalls/{split}/{index}" for index in range(size)]


def test_levels_come_in_turn_and_have_the_stated_numbers_of_calls_and_slots(world):
    for split in toolcalls.SPLIT_SIZES:
        chosen = problems(world, split)
        counts = Counter(problem.level for problem in chosen)
        assert max(counts.values()) - min(counts.values()) <= 1
        for problem in chosen:
            calls = json.loads(problem.answer)
            slots = sum(len(json.loads(call["Action_Input"])) for call in calls)
            allowed = {"easy": (1, [1]), "medium": (1, [2, 3]), "hard": (2, [3, 4, 5])}
            assert len(calls) == allowed[problem.level][0]
            assert slots in allowed[problem.level][1]


def test_a_smaller_split_is_the_beginning_of_the_whole(world):
    assert problems(world, "train", 30) == problems(world, "train")[:30]


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_count_that_the_split_does_not_have_is_refused(world, count):
    with pytest.raises(ValueError, match=rf"asked for {count} .* take 1 to 256"):
        problems(world, "train", count)


def test_an_unknown_split_and_a_negative_seed_are_refused(world):
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        problems(world, "dev")
    with pytest.raises(ValueError, match="seed -1 is negative"):
        World(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_solution_of_every_problem_earns_the_full_reward(seed):
    for problem in every_problem(World(seed)):
        assert grade(solution(problem), problem.answer).reward == 1.0, problem.id


def test_one_wrong_format_earns_nothing(world):
    for problem in problems(world, "test"):
        text = solution(problem)
        right = next(word for word in toolcalls.FORMATS if f'"{word} ' in text)
        for wrong in set(toolcalls.FORMATS) - {right}:
            spoiled = text.replace(f'"{right} ', f'"{wrong} ', 1)
            assert grade(spoiled, problem.answer).reward == 0.0, problem.id


def test_a_solution_reads_as_the_papers_format_with_json_arguments(world):
    text = solution(problems(world, "test")[2])
    thought, *lines = text.split("\n")
    assert thought == "Thought: I need two calls."
    assert [line.split(":")[0] for line in lines] == ["Action", "Action Input"] * 2
    assert all(isinstance(json.loads(line.split(": ", 1)[1]), dict) for line in lines[1::2])


def test_a_question_names_every_argument_and_offers_every_function_it_needs(world):
    for problem in every_problem(world):
        api, question = problem.messages[-1]["content"].split("\n")
        offered = {doc.split("(")[0] for doc in api.removeprefix("API: ").split("; ")}
        assert len(offered) == 2  # two calls, or one and a function that is not wanted
        cities = {code: city for city, code in toolcalls.CODES.items()}
        for function, parameter, _, value in arguments(solution(problem)):
            assert function in offered
            assert toolcalls.INTENTS[function] in question
            assert f"{parameter} {cities.get(value, value)}" in question


def test_no_prompt_tells_a_format_or_a_code(world):
    secrets = {*toolcalls.FORMATS, *toolcalls.CODES.values()}
    for problem in every_problem(world):
        words = problem.messages[-1]["content"].replace(",", " ").replace(";", " ").split()
        assert secrets.isdisjoint(words)


def test_exactly_the_look_up_parameters_want_codes(world):
    codes = set(toolcalls.CODES.values())
    assert len(world.lookups) == 8
    for problem in every_problem(world):
        for _, parameter, _, value in arguments(solution(problem)):
            assert (value in codes) == (parameter in world.lookups)


def test_the_expected_pass_rate_is_the_product_over_arguments(world):
    problem = problems(world, "test")[1]
    used = [parameter for _, parameter, _, _ in arguments(solution(problem))]
    assert toolcalls.expected_pass_rate(world, problem) == pytest.approx(
        np.prod([world.accuracies[parameter] for parameter in used])
    )


def test_plain_demonstrations_pass_as_often_as_expected_at_every_level(world):
    examples = demonstrations(world, np.random.default_rng(0), 3000, reference=False)
    for level in toolcalls.LEVELS:
        chosen = [example for example in examples if example.problem.level == level]
        passed = np.mean([grade(e.response, e.problem.answer).reward for e in chosen])
        expected = np.mean([toolcalls.expected_pass_rate(world, e.problem) for e in chosen])
        # Four standard errors of a share of about 1000.
        assert abs(passed - expected) < 4 * np.sqrt(0.25 / 900)
        assert len(chosen) > 900


def test_plain_demonstrations_use_each_format_at_its_accuracy_and_both_wrong_ones(world):
    examples = demonstrations(world, np.random.default_rng(1), 3000, reference=False)
    used = {parameter: Counter() for parameter in toolcalls.PARAMETERS}
    for example in examples:
        for _, parameter, word, _ in arguments(example.response):
            used[parameter][word] += 1
    for parameter, counts in used.items():
        total = counts.total()
        right = counts[world.formats[parameter]] / total
        accuracy = world.accuracies[parameter]
        assert abs(right - accuracy) < 4.5 * np.sqrt(accuracy * (1 - accuracy) / total)
        assert len(counts) == 3


def test_a_demonstration_errs_in_formats_only(world):
    for reference in (False, True):
        for example in demonstrations(world, np.random.default_rng(2), 200, reference=reference):
            for text in filter(None, (example.reference, example.response)):
                right = arguments(solution(example.problem))
                assert [(f, p, v) for f, p, _, v in arguments(text)] == [
                    (f, p, v) for f, p, _, v in right
                ]
                assert grade(text, example.problem.answer).well_formed


def test_formats_of_a_reference_are_random_and_the_target_copies_nearly_all_of_them(world):
    examples = demonstrations(world, np.random.default_rng(3), 2000, reference=True)
    shown = [word for e in examples for _, _, word, _ in arguments(e.reference)]
    written = [word for e in examples for _, _, word, _ in arguments(e.response)]
    right = [
        word == world.formats[parameter]
        for e in examples
        for _, parameter, word, _ in arguments(e.reference)
    ]
    assert np.mean(right) == pytest.approx(1 / 3, abs=0.03)
    # A redrawn format is another one in two cases of three.
    changed = np.mean([before != after for before, after in zip(shown, written, strict=True)])
    assert changed == pytest.approx(0.05 * 2 / 3, abs=0.01)


def test_plain_demonstrations_carry_no_reference(world):
    examples = demonstrations(world, np.random.default_rng(4), 10, reference=False)
    assert [example.reference for example in examples] == [None] * 10


def test_the_warm_start_meets_no_held_out_question_and_no_train_prompt(world):
    held_out = {asked(p) for split in ("test", "validation") for p in problems(world, split)}
    train = {problem.messages[-1]["content"] for problem in problems(world, "train")}
    for reference in (False, True):
        for example in demonstrations(world, np.random.default_rng(5), 2000, reference=reference):
            assert asked(example.problem) not in held_out
            assert example.problem.messages[-1]["content"] not in train


@given(st.integers(0, 2**32), st.booleans())
def test_demonstrations_are_a_function_of_the_generator_they_are_given(seed, reference):
    world = World(0)
    first = demonstrations(world, np.random.default_rng(seed), 3, reference=reference)
    second = demonstrations(world, np.random.default_rng(seed), 3, reference=reference)
    assert first == second


def test_making_a_world_loads_neither_jax_nor_transformers_nor_grain():
    # Host-side work must not cost a start-up of seconds.
    code = (
        "import sys; from drift_jax.data import prompting, source, toolcalls, toolcalls_tokenizer;"
        "source.load_task('toolcalls', 'test');"
        "print(sorted({'jax', 'grain', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stderr
