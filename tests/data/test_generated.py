"""What holds for every generated task and every world."""

import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drift_jax.data import demonstrations, generated, prompting, source, word_tokenizer, worlds
from drift_jax.rewards import grader_for

TASKS = tuple(generated.TASKS)
BANDED = ("toolsteps", "lookup")  # those whose levels are bands of the success rate
SEEDS = range(3)
# configs/instrument.py: longest prompt, response with its end token, teacher's prompt.
LENGTHS = {
    "toolcalls": (40, 28, 64),
    "toolcalls_graded": (40, 28, 64),
    "toolsteps": (20, 54, 74),
    "lookup": (24, 26, 50),
}
# A change here orphans base policies and recorded results.
FINGERPRINTS = {
    "toolcalls": "1e5e320c67ccf1ee",
    "toolcalls_graded": "8c01e583fab22014",
    "toolsteps": "7a79bacbb2a6b5ae",
    "lookup": "05f7309f008833f4",
}


def every_problem(task, seed=0):
    chosen = generated.TASKS[task]
    world = chosen.world(seed)
    return world, [p for split in worlds.SPLIT_SIZES for p in chosen.problems(world, split)]


def prompt(problem):
    return problem.messages[-1]["content"]


@pytest.mark.parametrize("task", TASKS)
def test_world_0_is_the_one_that_results_were_made_in(task):
    assert source.fingerprint(every_problem(task)[1]).startswith(FINGERPRINTS[task])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_dispatch_gives_the_world_of_the_seed_with_persistent_ids(task, split):
    loaded = source.load_task(task, split, world_seed=2)
    assert [p.id for p in loaded] == [f"{task}/{split}/{i}" for i in range(len(loaded))]
    assert len(loaded) == worlds.SPLIT_SIZES[split]
    assert {p.task for p in loaded} == {task}
    assert loaded == generated.TASKS[task].problems(generated.TASKS[task].world(2), split)
    assert loaded != source.load_task(task, split, world_seed=1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_comes_twice_within_or_across_splits(task, seed):
    prompts = [prompt(problem) for problem in every_problem(task, seed)[1]]
    assert len(set(prompts)) == len(prompts) == 256 + 96 + 96


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_solution_is_right_and_that_of_another_problem_is_not(task, seed):
    _, problems = every_problem(task, seed)
    grade, solution = grader_for(task), generated.TASKS[task].solution
    wrong = 0
    for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
        score = grade(solution(problem), problem.answer)
        assert (score.reward, score.well_formed, score.feedback) == (1.0, True, "")
        assert score.derived in (None, True)
        wrong += grade(solution(other), problem.answer).reward < 1
    assert wrong > 0.7 * len(problems)  # letters coincide now and then


@pytest.mark.parametrize("task", TASKS)
def test_every_text_survives_encoding_and_keeps_within_the_limits(task):
    tokenizer = generated.build_tokenizer(task)
    _, problems = every_problem(task)
    most_prompt, most_response, most_teacher = LENGTHS[task]
    longest = Counter()
    for problem in problems:
        gold = generated.TASKS[task].solution(problem)
        response = tokenizer.encode(gold, add_special_tokens=False)
        shown = prompting.render(tokenizer, problem)
        teacher = prompting.render_teacher(tokenizer, problem, gold, max_tokens=1000)
        assert prompting.decode(tokenizer, response) == gold
        assert tokenizer.decode(shown) == f"<|user|>{prompt(problem)}<|assistant|>"
        assert tokenizer.unk_token_id not in {*shown.tolist(), *response, *teacher.tolist()}
        longest["prompt"] = max(longest["prompt"], len(shown))
        longest["response"] = max(longest["response"], len(response) + 1)
        longest["teacher"] = max(longest["teacher"], len(teacher))
    assert longest["prompt"] <= most_prompt
    assert longest["response"] <= most_response
    assert longest["teacher"] <= most_teacher


@pytest.mark.parametrize("task", TASKS)
def test_the_vocabulary_of_a_task_is_small_and_whole(task):
    pieces = generated.TASKS[task].pieces
    tokenizer = generated.build_tokenizer(task)
    assert len(tokenizer) == len({*word_tokenizer.SPECIAL_TOKENS, *pieces}) <= 128
    assert tokenizer.convert_ids_to_tokens(range(6, len(tokenizer))) == list(pieces)


def test_the_packaged_base_has_the_tokenizer_that_the_machinery_builds(tmp_path):
    generated.build_tokenizer("toolcalls").save_pretrained(tmp_path)
    packaged = Path(generated.__file__).parents[1] / "assets" / "quickstart_base"
    built = (tmp_path / "tokenizer.json").read_bytes()
    assert built == (packaged / "tokenizer.json").read_bytes()


def test_the_packaged_base_was_taught_by_the_demonstrations_that_are_drawn_now():
    digest = hashlib.sha256()
    for seed, reference in itertools.product((0, 3), (False, True)):
        draw = demonstrations.of_generated("toolcalls", seed)
        for example in draw(np.random.default_rng(seed), 400, reference=reference):
            row = (example.problem, example.reference, example.response)
            digest.update(repr(row).encode())
    assert digest.hexdigest().startswith("74b449ea92605ab5")


def test_a_piece_that_starts_another_one_is_refused():
    with pytest.raises(ValueError, match="piece ' to' starts piece ' torch'") as caught:
        word_tokenizer.build_tokenizer((" torch", " brush", " to"))
    assert "\n" not in str(caught.value)


# ---- demonstrations -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_plain_demonstrations_succeed_as_often_as_stated(task):
    chosen = generated.TASKS[task]
    world = chosen.world(0)
    grade = grader_for(task)
    rng = np.random.default_rng(1)
    stated, seen = [], []
    for example in chosen.demonstrations(world, rng, 3000, reference=False):
        assert example.reference is None
        score = grade(example.response, example.problem.answer)
        assert score.well_formed
        seen.append(score.reward == 1 and score.derived is not False)
        stated.append(chosen.success_rate(world, example.problem))
    deviation = np.sqrt(np.mean(np.multiply(stated, np.subtract(1, stated))) / len(stated))
    assert abs(np.mean(seen) - np.mean(stated)) < 4 * deviation


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_ask_nothing_that_is_held_out_and_no_train_prompt(task):
    chosen = generated.TASKS[task]
    world, problems = every_problem(task)
    prompts = {prompt(problem) for problem in problems}
    for reference in (False, True):
        rng = np.random.default_rng(2)
        for example in chosen.demonstrations(world, rng, 1500, reference=reference):
            assert prompt(example.problem) not in prompts


@pytest.mark.parametrize("task", TASKS)
def test_reference_demonstrations_follow_what_they_show_and_not_what_is_right(task):
    chosen = generated.TASKS[task]
    grade = grader_for(task)
    examples = chosen.demonstrations(chosen.world(0), np.random.default_rng(3), 600, reference=True)
    assert all(example.reference for example in examples)
    right = [
        grade(e.response, e.problem.answer).derived or grade(e.response, e.problem.answer).reward
        for e in examples
    ]
    assert np.mean([value == 1 for value in right]) < 0.45  # drawn without looking at the answer


@pytest.mark.parametrize("task", TASKS)
def test_a_draw_is_a_function_of_its_random_numbers(task):
    draw = demonstrations.of_generated(task, 1)
    first, second = (draw(np.random.default_rng(5), 20, reference=True) for _ in range(2))
    assert first == second
    assert first != draw(np.random.default_rng(6), 20, reference=True)


# ---- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", BANDED)
@pytest.mark.parametrize("seed", SEEDS)
def test_levels_are_bands_of_the_success_rate_and_come_in_turn(task, seed):
    chosen = generated.TASKS[task]
    world, problems = every_problem(task, seed)
    for problem in problems:
        low, high = worlds.BANDS[problem.level]
        assert low <= chosen.success_rate(world, problem) < high
    for split in worlds.SPLIT_SIZES:
        levels = [problem.level for problem in chosen.problems(world, split)]
        assert levels == [tuple(worlds.BANDS)[i % 4] for i in range(len(levels))]


@pytest.mark.parametrize("task", BANDED)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_unsure_fact_is_met_in_training_with_nothing_else_to_go_wrong(task, seed):
    chosen = generated.TASKS[task]
    world = chosen.world(seed)
    alone = set()
    for problem in chosen.problems(world, "train"):
        unsure = [f for f in chosen.facts(world, problem) if world.accuracies[f] < worlds.SURE]
        if len(unsure) == 1:
            alone.add(unsure[0])
    assert alone == {fact for fact, rate in world.accuracies.items() if rate < worlds.SURE}


@pytest.mark.parametrize("task", TASKS)
def test_bad_requests_are_one_line(task):
    chosen = generated.TASKS[task]
    with pytest.raises(ValueError, match="world seed -1 is negative"):
        chosen.world(-1)
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has train, validation, test"):
        chosen.problems(chosen.world(0), "dev")


def test_the_data_layer_loads_no_jax():
    code = (
        "import sys; from drift_jax.data import generated; assert generated.TASKS; "
        "from drift_jax import findability, rewards; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
