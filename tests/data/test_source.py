"""Loading tasks, and the order in which training meets their problems."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.data import toolcalls
from drift_jax.data.source import ProblemStream, fingerprint, load_task, sample
from drift_jax.types import Problem

ROW = {
    "idx": 0,
    "kind": "mcq",
    "dataset": "sciknoweval",
    "prompt": "Which gas?\n\nA: argon\nB: neon",
    "answer": "A",
    "system": "\nPlease select.\n",
}
CALLS = json.dumps([{"Action": "getX", "Action_Input": '{"a": 1}'}])
TOOL_ROW = {
    "idx": 5,
    "kind": "tooluse",
    "prompt": "Tools:\nName: 1Forge\nQuestion: which pair?",
    "answer": CALLS,
    "system": None,
}


def write(folder, task, split, rows):
    """A task file of these rows; text stands for itself."""
    file = folder / task / f"{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def numbered(count, row=ROW):
    return [{**row, "idx": index} for index in range(count)]


def make_problems(count):
    turn = {"role": "user", "content": "?"}
    return [Problem(f"physics/train/{i}", "physics", (turn,), "A") for i in range(count)]


# ---- tasks -------------------------------------------------------------------------------------


def test_a_science_row_becomes_a_system_and_a_user_turn(tmp_path):
    write(tmp_path, "biology", "test", [{**ROW, "idx": 250}])
    assert load_task("biology", "test", path=tmp_path) == [
        Problem(
            id="biology/test/250",
            task="biology",
            messages=(
                {"role": "system", "content": ROW["system"]},
                {"role": "user", "content": ROW["prompt"]},
            ),
            answer="A",
            level="beta-lactamase activity",
        )
    ]


def test_a_tool_use_row_has_no_system_turn_and_its_api_as_sub_task(tmp_path):
    write(tmp_path, "tooluse", "test", [TOOL_ROW])
    (problem,) = load_task("tooluse", "test", path=str(tmp_path))
    assert problem.messages == ({"role": "user", "content": TOOL_ROW["prompt"]},)
    assert (problem.id, problem.answer, problem.level) == ("tooluse/test/5", CALLS, "1Forge")


@pytest.mark.parametrize(
    ("task", "idx", "level"),
    [
        ("chemistry", 299, "molecule structure"),
        ("chemistry", 300, "molar weight"),
        ("material", 934, "valence-electron difference"),
        ("physics", 799, "general physics calculation"),
        ("physics", 800, ""),
    ],
)
def test_sub_tasks_follow_from_the_row_number(tmp_path, task, idx, level):
    write(tmp_path, task, "test", [{**ROW, "idx": idx}])
    assert load_task(task, "test", path=tmp_path)[0].level == level


def test_toolcalls_are_generated_from_the_world_seed():
    for split in ("train", "validation", "test"):
        world = toolcalls.World(4)
        assert load_task("toolcalls", split, world_seed=4) == toolcalls.problems(world, split)


def test_a_missing_file_is_answered_by_the_command_to_type(tmp_path):
    with pytest.raises(ValueError) as caught:
        load_task("tooluse", "train", path=tmp_path)
    message = str(caught.value)
    assert f"`python -m drift_jax.prepare --task=tooluse --out={tmp_path}`" in message
    assert str(tmp_path / "tooluse" / "train.json") in message and "\n" not in message


def test_a_benchmark_without_a_folder_is_answered_by_the_command_too():
    with pytest.raises(ValueError, match=r"drift_jax.prepare --task=physics --out=FOLDER"):
        load_task("physics", "test")


def test_unknown_tasks_and_splits_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'bio'; expected one of biology, "):
        load_task("bio", "test", path=tmp_path)
    with pytest.raises(ValueError, match=r"unknown split 'dev'; expected one of train, "):
        load_task("biology", "dev", path=tmp_path)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "physics" / "test.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"test.json cannot be read"):
        load_task("physics", "test", path=tmp_path)


def test_an_empty_file_is_refused_by_name(tmp_path):
    file = write(tmp_path, "physics", "test", [])
    with pytest.raises(ValueError, match=f"{file} is empty; expected one problem a line"):
        load_task("physics", "test", path=tmp_path)


@pytest.mark.parametrize(
    ("damaged", "complaint"),
    [
        ('{"idx": 1, "kind"', "not a JSON object: "),
        ("", "not a JSON object: "),
        ("[" * 100_000, "not readable: "),
        ('{"idx": ' + "9" * 5000 + "}", "not readable: "),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ("{}", "missing idx, kind, prompt, answer"),
        ({**ROW, "idx": "1"}, "idx is '1', expected a whole number"),
        ({**ROW, "idx": True}, "idx is True, expected a whole number"),
        ({**ROW, "idx": -1}, "idx is -1, expected a whole number"),
        ({**ROW, "idx": 0}, "idx 0 is also that of line 1"),
        ({**ROW, "idx": 1, "kind": "tooluse"}, "kind is 'tooluse', expected 'mcq'"),
        ({**ROW, "idx": 1, "prompt": " "}, "prompt is ' ', expected text"),
        ({**ROW, "idx": 1, "prompt": "\ud800"}, "prompt is '.*', expected text"),
        ({**ROW, "idx": 1, "prompt": ["a"] * 99}, r"prompt is \['a', .*\.\.\., expected text"),
        ({**ROW, "idx": 1, "system": 3}, "system is 3, expected text or null"),
        ({**ROW, "idx": 1, "answer": "a"}, "answer is 'a', expected a letter from A to D"),
        ({**ROW, "idx": 1, "answer": ["A"]}, "answer is .*, expected a letter from A to D"),
    ],
)
def test_a_damaged_row_names_file_line_and_fault(tmp_path, damaged, complaint):
    file = write(tmp_path, "physics", "train", [ROW, damaged])
    with pytest.raises(ValueError, match=f"{file}, line 2: {complaint}") as caught:
        load_task("physics", "train", path=tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_bytes_that_are_no_text_name_file_and_line(tmp_path):
    file = write(tmp_path, "physics", "train", [ROW])
    file.write_bytes(file.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2: not readable: 'utf-8' codec"):
        load_task("physics", "train", path=tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        "[]",
        "{}",
        "[1]",
        '[{"Action": "f"}]',
        '[{"Action": 1, "Action_Input": "{}"}]',
        None,
    ],
)
def test_a_tool_use_answer_that_no_grader_can_read_is_refused(tmp_path, answer):
    write(tmp_path, "tooluse", "train", [{**TOOL_ROW, "answer": answer}])
    with pytest.raises(ValueError, match=r"line 1: answer is .* expected text with a JSON list"):
        load_task("tooluse", "train", path=tmp_path)


def test_a_file_without_final_newline_or_with_windows_newlines_is_read_whole(tmp_path):
    file = write(tmp_path, "physics", "test", numbered(3))
    file.write_bytes(file.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    assert len(load_task("physics", "test", path=tmp_path)) == 3


def test_validation_and_train_share_the_train_file_by_a_fixed_hash(tmp_path):
    write(tmp_path, "physics", "train", numbered(500))
    everything = load_task("physics", "train", path=tmp_path)
    train = load_task("physics", "train", path=tmp_path, validation_fraction=0.1)
    validation = load_task("physics", "validation", path=tmp_path, validation_fraction=0.1)
    assert len(everything) == 500 == len(train) + len(validation)
    assert 30 <= len(validation) <= 70
    rows = [problem.id.rpartition("/")[2] for problem in train + validation]
    assert len(set(rows)) == 500
    assert {problem.id.split("/")[1] for problem in validation} == {"validation"}
    # A larger share keeps those that a smaller one has chosen.
    larger = load_task("physics", "validation", path=tmp_path, validation_fraction=0.3)
    assert {problem.id for problem in validation} < {problem.id for problem in larger}


def test_the_test_split_is_whole_whatever_the_validation_fraction(tmp_path):
    write(tmp_path, "physics", "test", numbered(20))
    assert len(load_task("physics", "test", path=tmp_path, validation_fraction=0.5)) == 20


def test_a_validation_split_that_would_be_empty_is_refused(tmp_path):
    write(tmp_path, "physics", "train", numbered(3))
    with pytest.raises(ValueError, match="only with validation_fraction above 0"):
        load_task("physics", "validation", path=tmp_path)
    with pytest.raises(ValueError, match="leaves no validation problem"):
        load_task("physics", "validation", path=tmp_path, validation_fraction=1e-6)
    with pytest.raises(ValueError, match=r"validation_fraction is 1\.0; use 0 or more, below 1"):
        load_task("physics", "train", path=tmp_path, validation_fraction=1.0)


# ---- order -------------------------------------------------------------------------------------


def ids(batch):
    return [problem.id for problem in batch]


def epoch_ids(stream, epoch):
    first = (epoch - 1) * stream.steps_per_epoch + 1
    steps = range(first, first + stream.steps_per_epoch)
    return [name for step in steps for name in ids(stream[step])]


@given(count=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_shows_every_problem_at_most_once_in_full_batches(count, data, seed):
    per_step = data.draw(st.integers(1, count))
    stream = ProblemStream(make_problems(count), seed, per_step)
    assert stream.steps_per_epoch == count // per_step
    for epoch in (1, 2, 5):
        shown = epoch_ids(stream, epoch)
        assert len(shown) == len(set(shown)) == per_step * (count // per_step)


def test_every_epoch_is_another_permutation():
    stream = ProblemStream(make_problems(32), 0, 8)
    epochs = [epoch_ids(stream, epoch) for epoch in range(1, 5)]
    assert len({tuple(order) for order in epochs}) == 4
    assert len({frozenset(order) for order in epochs}) == 1


def test_the_problems_left_over_by_one_epoch_are_others_in_the_next():
    stream = ProblemStream(make_problems(10), 0, 4)
    seen = Counter(name for epoch in range(1, 21) for name in epoch_ids(stream, epoch))
    assert len(seen) == 10 and max(seen.values()) < 20


def test_a_step_is_a_function_of_seed_and_step_alone():
    problems = make_problems(50)
    stream = ProblemStream(problems, 7, 8)
    forwards = [ids(stream[step]) for step in range(1, 30)]
    again = ProblemStream(problems, 7, 8)
    assert [ids(again[step]) for step in reversed(range(1, 30))] == forwards[::-1]


def test_neighbouring_seeds_share_no_epoch():
    # Shuffling epoch e with seed + e would make epoch 2 of seed 0 and epoch 1 of seed 1 the same.
    streams = [ProblemStream(make_problems(32), seed, 8) for seed in range(4)]
    orders = {tuple(epoch_ids(stream, epoch)) for stream in streams for epoch in range(1, 5)}
    assert len(orders) == 16


def test_steps_and_epochs_count_from_one():
    stream = ProblemStream(make_problems(10), 0, 4)
    assert [stream.epoch(step) for step in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    for step in (0, -1):
        with pytest.raises(ValueError, match=f"no step {step}; training steps count from 1"):
            stream[step]


@pytest.mark.parametrize("per_step", [0, -2, 11])
def test_a_step_with_more_problems_than_there_are_is_refused(per_step):
    message = f"problems_per_step is {per_step} and there are 10 problems; use 1 to 10"
    with pytest.raises(ValueError, match=message):
        ProblemStream(make_problems(10), 0, per_step)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed {seed} does not fit; use 0 to 4294967295"):
        ProblemStream(make_problems(10), seed, 2)


def test_the_fingerprint_tells_content_and_order_apart():
    turn = {"role": "user", "content": "?"}
    base = [Problem("t/a/0", "t", (turn,), "A"), Problem("t/a/1", "t", (turn,), "B")]
    others = [
        base[:1],
        base[::-1],
        [Problem("t/b/0", "t", (turn,), "A"), base[1]],
        [Problem("t/a/0", "t", (turn,), "B"), base[1]],
        [Problem("t/a/0", "t", ({**turn, "content": "!"},), "A"), base[1]],
    ]
    assert fingerprint(base) == fingerprint(list(base)) == ProblemStream(base, 0, 1).fingerprint
    assert len({fingerprint(problems) for problems in [base, *others]}) == 6


def test_two_worlds_have_two_fingerprints():
    first, second = (fingerprint(load_task("toolcalls", "train", world_seed=s)) for s in (0, 1))
    assert first != second


# ---- the published files -----------------------------------------------------------------------

COUNTS = {
    "biology": (450, 50),
    "chemistry": (1890, 210),
    "material": (841, 94),
    "physics": (720, 80),
}


@pytest.mark.parametrize("task", COUNTS)
def test_published_science_files_load_whole_with_all_sub_tasks_known(data_dir, task):
    train, test = (load_task(task, split, path=data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == COUNTS[task]
    assert all(len(problem.messages) == 2 and problem.level for problem in train + test)
    rows = {problem.id.rpartition("/")[2] for problem in train + test}
    assert len(rows) == sum(COUNTS[task])


def test_published_tool_use_test_rows_load_with_their_apis(data_dir):
    problems = load_task("tooluse", "test", path=data_dir)
    apis = Counter(problem.level for problem in problems)
    assert len(problems) == 68 and len(apis) == 10
    assert apis["Axolotl"] == 10 and apis["AniAPI"] == 2


# ---- samples -----------------------------------------------------------------------------------


def test_a_sample_keeps_the_order_and_a_larger_one_contains_it():
    problems = make_problems(40)
    ids = [[p.id for p in sample(problems, count)] for count in (5, 12, 40, 99)]
    order = {problem.id: place for place, problem in enumerate(problems)}
    assert [len(chosen) for chosen in ids] == [5, 12, 40, 40]
    assert set(ids[0]) < set(ids[1])
    assert all(chosen == sorted(chosen, key=order.__getitem__) for chosen in ids)
    # It is no beginning of the list, and no draw: the same ids are chosen from any order.
    assert max(order[name] for name in ids[0]) > 10
    assert {p.id for p in sample(problems[::-1], 5)} == set(ids[0])
