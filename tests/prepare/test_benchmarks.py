"""`prepare --task` from local copies: which bytes it writes, and what it refuses."""

import json
import sys

import numpy as np
import pytest

from drift_jax.data.source import KINDS, load_task
from drift_jax.prepare import files, published, science, tooluse
from drift_jax.prepare.__main__ import main
from tests.prepare.upstream import (
    api,
    call,
    instance,
    original_questions,
    publish,
    question,
    write_git_form,
    write_json,
    write_lines,
)

SCIENCE = [task for task in KINDS if task != "tooluse"]


def run(*arguments):
    """Runs the command on arguments of any kind."""
    main([str(argument) for argument in arguments])


def refusal(capsys, *arguments):
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as refused:
        run(*arguments)
    output = capsys.readouterr()
    assert refused.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


def all_files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def physics(tmp_path, monkeypatch):
    """A source with 25 made-up questions, whose split counts as the published one."""
    rows = [question(number) for number in range(25)]
    built = science.build(rows)
    for split, data in built.items():
        publish(monkeypatch, "physics", split, data)
    return write_lines(tmp_path / "source" / "sciknoweval_test_v2.jsonl", rows).parent, built


# ---- the real files ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", SCIENCE)
def test_the_published_science_files_come_out_as_they_went_in(task, data_dir, tmp_path, capsys):
    run(f"--task={task}", f"--out={tmp_path}", f"--source={data_dir}")
    assert capsys.readouterr().out.count("the published split") == 2
    for split in ("train", "test"):
        data = (tmp_path / task / f"{split}.json").read_bytes()
        assert data == (data_dir / task / f"{split}.json").read_bytes()
        assert published.is_published(task, split, data)


@pytest.mark.parametrize("task", SCIENCE)
@pytest.mark.parametrize("form", ["data set", "git repository"])
def test_the_science_files_are_rebuilt_to_the_byte(task, form, data_dir, tmp_path, capsys):
    questions = original_questions(data_dir, task)
    if form == "data set":
        other = [question(0, domain="Geology"), question(0, level="L2"), question(0, kind="open")]
        source = tmp_path / "data" / "v2" / "sciknoweval_test_v2.jsonl"
        write_lines(source, [other[0], *questions, *other])
    else:
        write_git_form(tmp_path, task, questions)
    run(f"--task={task}", f"--out={tmp_path / 'out'}", f"--source={tmp_path}")
    assert capsys.readouterr().out.count("the published split") == 2


def test_the_tool_use_test_split_is_rebuilt_to_the_byte(data_dir, tmp_path, capsys):
    run("--task=tooluse", f"--out={tmp_path}", f"--source={data_dir / 'toolalpaca_raw'}")
    said, missing = capsys.readouterr().out.splitlines()
    assert "the published split, 68 rows" in said
    assert "train.json: NOT WRITTEN" in missing
    data = (tmp_path / "tooluse" / "test.json").read_bytes()
    assert data == (data_dir / "tooluse" / "test.json").read_bytes()


def test_the_stand_in_has_114_rows_and_a_folder_of_its_own(data_dir, tmp_path, capsys):
    run("--task=tooluse", "--stand-in", f"--out={tmp_path}", f"--source={data_dir}")
    said = capsys.readouterr().out
    assert "train.json: the stand-in, 114 rows" in said
    assert "test.json: the published split, 68 rows" in said
    assert all_files(tmp_path) == [
        "stand_in/tooluse/test.json",
        "stand_in/tooluse/train.json",
    ]
    problems = load_task("tooluse", "train", path=tmp_path / "stand_in")
    assert len({problem.level for problem in problems}) == 11
    assert not {p.level for p in problems} & {
        p.level for p in load_task("tooluse", "test", path=tmp_path / "stand_in")
    }


# ---- science, made-up --------------------------------------------------------------------------


def test_a_question_becomes_a_row_in_upstreams_spelling(tmp_path, physics):
    source, built = physics
    run("--task=physics", f"--out={tmp_path}", f"--source={source}")
    lines = (tmp_path / "physics" / "test.json").read_text(encoding="ascii").splitlines()
    first = int(np.random.default_rng(42).permutation(25)[0])
    assert lines[0].startswith(
        f'{{"idx":{first},"kind":"mcq","dataset":"sciknoweval","answer":"{"ABCD"[first % 4]}",'
        f'"elo":1500,"prompt":"What is {first} m\\/s, n\\u00e9?\\n\\nA: {first} m\\/s\\nB: '
    )
    assert len(lines) == 3  # a tenth of 25, rounded up
    assert built["test"].decode() == "".join(line + "\n" for line in lines)
    assert [p.answer for p in load_task("physics", "test", path=tmp_path)] == [
        json.loads(line)["answer"] for line in lines
    ]


def test_only_the_domain_level_and_kind_of_the_task_count(tmp_path):
    rows = [
        question(0, domain="Chemistry"),
        question(1),
        question(2, level="L2"),
        question(3, kind="true_or_false"),
        question(4, kind="mcq-2-choices"),
    ]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    assert science.read_questions("physics", [file]) == [rows[1], rows[4]]


def test_a_file_may_be_the_source(tmp_path, physics, capsys):
    source, _ = physics
    other_name = (source / "sciknoweval_test_v2.jsonl").rename(tmp_path / "mine.jsonl")
    run("--task=physics", f"--out={tmp_path}", f"--source={other_name}")
    assert capsys.readouterr().out.count("the published split") == 2


def test_another_version_of_the_data_is_refused_with_both_checksums(tmp_path, physics, capsys):
    source, built = physics
    rows = [question(number) for number in range(24)]
    write_lines(source / "sciknoweval_test_v2.jsonl", rows)
    error = refusal(capsys, "--task=physics", f"--out={tmp_path}", f"--source={source}")
    other = science.build(rows)
    assert published.measure(built["train"], "sha256").checksum in error
    assert published.measure(other["train"], "sha256").checksum in error
    assert "21 rows" in error and "22 rows" in error
    assert not (tmp_path / "physics").exists()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"question": ', "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('"\\ud800"', "line 2: expected a JSON object"),
        ("[" * 100_000, "line 2: not readable"),
        ({**question(1), "details": None}, "line 2: details is missing"),
        ({**question(1), "domain": 3}, "line 2: domain is missing"),
        ({**question(1), "question": None}, "line 2: question or choices is missing"),
        ({**question(1), "answerKey": "E"}, "line 2: answerKey is 'E'"),
        ({**question(1), "choices": {"label": ["A"], "text": []}}, "line 2: choices is damaged"),
        ({**question(1), "choices": {"label": ["A"], "text": [1]}}, "line 2: choices is damaged"),
    ],
)
def test_a_damaged_question_is_named_by_file_and_line(tmp_path, capsys, row, fault):
    source = write_lines(tmp_path / "in" / "sciknoweval_test_v2.jsonl", [question(0), row])
    error = refusal(capsys, "--task=physics", f"--out={tmp_path}", f"--source={source.parent}")
    assert f"{source}, {fault}" in error
    assert not (tmp_path / "physics").exists()


def test_bytes_that_are_no_text_are_named_by_line(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(json.dumps(question(0)).encode() + b"\n\xff\xfe\n")
    error = refusal(capsys, "--task=physics", f"--out={tmp_path}", f"--source={source}")
    assert f"{source}, line 2: not readable" in error


def test_a_git_folder_without_a_sub_task_is_refused(tmp_path, capsys):
    folder = tmp_path / "raw_data" / "Materials" / "L3"
    write_lines(folder / "lattice_volume_calculation.jsonl", [question(0)])
    error = refusal(capsys, "--task=material", f"--out={tmp_path}", f"--source={tmp_path}")
    assert "lacks diffusion_rate_analysis.jsonl, perovskite" in error


def test_half_of_a_science_split_is_refused(tmp_path, physics, capsys):
    _, built = physics
    (tmp_path / "physics").mkdir()
    (tmp_path / "physics" / "test.json").write_bytes(built["test"])
    out = tmp_path / "out"
    error = refusal(capsys, "--task=physics", f"--out={out}", f"--source={tmp_path}")
    assert "has only" in error and not out.exists()


def test_a_damaged_row_of_a_split_file_is_named_by_file_and_line(tmp_path, physics, capsys):
    _, built = physics
    for split, data in built.items():
        file = tmp_path / "in" / "physics" / f"{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.replace(b'"kind":"mcq"', b'"kind":"m"', 1))
    error = refusal(capsys, "--task=physics", f"--out={tmp_path}", f"--source={tmp_path / 'in'}")
    assert "train.json, line 1: kind is 'm'" in error


# ---- tool use, made-up -------------------------------------------------------------------------


def test_an_instruction_becomes_the_scaffold_and_its_calls(tmp_path):
    calls = [call(), call("getY", "{}")]
    file = write_json(
        tmp_path / "eval.json",
        [
            api(
                Instructions=["Is it {hot}?", "And then?"],
                Golden_Answers=[calls, [call("z", "$1")]],
            )
        ],
    )
    [row] = map(json.loads, tooluse.build_test(file).splitlines())
    assert list(row) == [
        "prompt", "description", "idx", "dataset", "system", "answer", "tests", "kind", "elo",
    ]  # fmt: skip
    assert row["idx"] == 4046
    assert row["answer"] == json.dumps(calls)
    assert row["system"] is None
    assert row["prompt"] == (
        "Your task is to answer the user's question using available tools. \n"
        "You have access to the following tools:\nName: Weather\nDescription: The Weather API\n"
        "Documentation:\ngetWeather: gets it.\n\nUse the following format:\n"
        "Thought: you should always think about what to do\n"
        "Action: the action to take, should be one of the tool names.\n"
        "Action Input: the input to the action, must be in JSON format. All of the action input "
        "must be realistic and from the user.\n\nBegin!\nQuestion: Is it {hot}?"
    )


def training_file(folder):
    """Six instances, each of which another rule would leave out."""
    instances = [
        instance("plain", call()),
        instance("hinted\nHint: think", call()),
        instance("placeholder", call(text='{"a": "$1"}')),
        instance("long", *[call()] * 6),
        instance("asks back", call("getDetails")),
        instance("no JSON", call(text="{")),
        instance("failed"),
        {"input": "failed too", "output": ""},
    ]
    return write_json(folder / "train_data.json", [api(Instances=instances)])


def questions_of(data):
    return [json.loads(line)["prompt"].rpartition("Question: ")[2] for line in data.splitlines()]


def test_the_documented_rule_keeps_what_has_calls_and_cuts_hints(tmp_path):
    data = tooluse.build_train(training_file(tmp_path))
    assert questions_of(data) == [
        "plain", "hinted", "placeholder", "long", "asks back", "no JSON",
    ]  # fmt: skip
    assert [json.loads(line)["idx"] for line in data.splitlines()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"cut_hint": False}, 6),
        ({"drop_placeholders": True}, 5),
        ({"drop_long": True, "drop_questions": True}, 4),
        ({"cut_hint": False, "drop_unparsable": True}, 5),
    ],
)
def test_the_rule_that_gives_the_published_checksum_is_found(tmp_path, monkeypatch, rule, kept):
    file = training_file(tmp_path)
    instances = list(tooluse._training_instances(file))
    wanted = tooluse._encode(tooluse._apply(tooluse.TrainRule(**rule), instances))
    assert len(wanted.splitlines()) == kept
    assert tooluse.build_train(file) != wanted
    publish(monkeypatch, "tooluse", "train", wanted)
    monkeypatch.setattr(tooluse, "TRAIN_ROWS", kept)
    assert tooluse.build_train(file) == wanted


def test_a_train_split_that_is_not_the_published_one_is_written_and_said(tmp_path, capsys):
    source = training_file(tmp_path / "in").parent
    run("--task=tooluse", f"--out={tmp_path}", f"--source={source}")
    said = capsys.readouterr().out
    data = (tmp_path / "tooluse" / "train.json").read_bytes()
    assert "NOT the published split: 6 rows, git-blob " in said
    assert published.measure(data, "git-blob").checksum in said
    assert "has 4046 rows, git-blob b3f1449172a9a98389c03d38f83ab2795426d7f8" in said
    assert "test.json: NOT WRITTEN" in said
    assert len(load_task("tooluse", "train", path=tmp_path)) == 6


def test_a_train_split_of_the_users_own_is_checked_row_by_row(tmp_path, capsys):
    data = tooluse.build_train(training_file(tmp_path / "in"))
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "train.json"
    file.write_bytes(data)
    run("--task=tooluse", f"--out={tmp_path}", f"--source={file}")
    assert "NOT the published split" in capsys.readouterr().out
    assert (tmp_path / "tooluse" / "train.json").read_bytes() == data
    file.write_bytes(data.replace(b'"answer":"[', b'"answer":"', 1))
    out = tmp_path / "other"
    error = refusal(capsys, "--task=tooluse", f"--out={out}", f"--source={file}")
    assert f"{file}, line 1: answer is" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("apis", "fault"),
    [
        ([], "expected a JSON list of APIs"),
        ([api(Instances=[]), 3], "API 2: expected an object that has Instances"),
        ([{"Instances": []}], "API 1: Name is missing"),
        ([api(Instances={})], "API 1: expected a list of Instances"),
        ([api(Instances=[instance("a", call()), {}])], "API 1, instance 2: expected input"),
        ([api(Instances=[3])], "API 1, instance 1: expected input"),
        ([api(Instances=[instance("a", call(text=None))])], "API 1, instance 1: expected input"),
    ],
)
def test_a_damaged_training_file_is_named_with_its_place(tmp_path, capsys, apis, fault):
    file = write_json(tmp_path / "train_data.json", apis)
    error = refusal(capsys, "--task=tooluse", f"--out={tmp_path}", f"--source={file}")
    assert f"{file}" in error and fault in error


def test_a_damaged_evaluation_file_is_named_with_its_place(tmp_path, capsys):
    file = tmp_path / "eval_simulated.json"
    arguments = ["--task=tooluse", f"--out={tmp_path}", f"--source={tmp_path}"]
    write_json(file, [api(Instructions=["a"], Golden_Answers=[[{"Action": "x"}]])])
    assert f"{file}, API 1, instruction 1: expected text and a list" in refusal(capsys, *arguments)
    file.write_text('[\n{"Name": \n', encoding="utf-8")
    assert f"{file}, line 3: not JSON" in refusal(capsys, *arguments)


def test_tables_give_the_same_rows_as_the_json_files(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e .[parquet]")
    from pyarrow import Table, parquet

    data, out = tooluse.build_train(training_file(tmp_path / "in")), tmp_path / "out"
    rows = [json.loads(line) for line in data.splitlines()]
    table = [{"golden_answer": json.loads(r["answer"]), "prompt": r["prompt"]} for r in rows]
    file = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(Table.from_pylist(table), file)
    assert tooluse.build_from_table(file, first_idx=0) == data
    run("--task=tooluse", f"--out={out}", f"--source={tmp_path}")
    assert (out / "tooluse" / "train.json").read_bytes() == data
    parquet.write_table(Table.from_pylist([*table, {"prompt": "p", "golden_answer": None}]), file)
    capsys.readouterr()
    error = refusal(capsys, "--task=tooluse", f"--out={out}", f"--source={tmp_path}")
    assert f"{file}, row 7: expected a prompt and its gold calls" in error
    file.write_bytes(b"PAR1 no")
    error = refusal(capsys, "--task=tooluse", f"--out={out}", f"--source={tmp_path}")
    assert f"{file} cannot be read as parquet" in error


def test_a_table_without_pyarrow_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    error = refusal(capsys, "--task=tooluse", f"--out={tmp_path}", f"--source={tmp_path}")
    assert "pip install pyarrow" in error


# ---- writing -----------------------------------------------------------------------------------


def test_running_twice_changes_nothing(tmp_path, physics, capsys):
    source, _ = physics
    arguments = ["--task=physics", f"--out={tmp_path}", f"--source={source}"]
    run(*arguments)
    file = tmp_path / "physics" / "train.json"
    before = file.stat()
    capsys.readouterr()
    run(*arguments)
    assert capsys.readouterr().out.count("(was there already)") == 2
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_other_content_is_never_overwritten(tmp_path, physics, capsys):
    source, _ = physics
    file = tmp_path / "physics" / "train.json"
    file.parent.mkdir()
    file.write_text("mine\n")
    error = refusal(capsys, "--task=physics", f"--out={tmp_path}", f"--source={source}")
    assert f"{file} exists with other content" in error
    assert all_files(tmp_path / "physics") == ["train.json"]
    assert file.read_text() == "mine\n"


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, physics, capsys):
    source, _ = physics
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "data"
    error = refusal(capsys, "--task=physics", f"--out={out}", f"--source={source}")
    assert "cannot be written" in error


def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    contents = {tmp_path / name: b"x" for name in ("a.json", "b.json")}

    def full_disk(descriptor):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        files.write_all(contents)
    assert all_files(tmp_path) == []


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out=x"], "one of the arguments --task --model is required"),
        (["--task=maths", "--out=x"], "invalid choice: 'maths'"),
        (["--task=physics"], "--out"),
        (["--task=physics", "--out=x", "--sauce=y"], "unrecognized arguments: --sauce=y"),
        (["--task=physics", "--out=x", "--source=/nowhere"], "--source=/nowhere does not exist"),
        (["--task=physics", "--out=x", "--stand-in"], "add --task=tooluse"),
        (["--task=tooluse", "--out=x", "--stand-in"], "--stand-in needs --source"),
        (["--task=physics", "--out=x", "--dtype=float16"], "--dtype is for the weights"),
        (["--task=physics", "--out=x", "--source=y", "--revision=z"], "give one of them"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(capsys, arguments, said):
    assert said in refusal(capsys, *arguments)


def test_a_source_without_anything_known_says_what_was_looked_for(tmp_path, capsys):
    for task, expected in (("physics", "sciknoweval_test_v2.jsonl"), ("tooluse", "train_data")):
        error = refusal(capsys, f"--task={task}", f"--out={tmp_path}", f"--source={tmp_path}")
        assert f"holds nothing for task {task}" in error and expected in error


def test_the_stand_in_of_another_file_is_refused(tmp_path, capsys):
    rows = [api(Instructions=["a"], Golden_Answers=[[call()]])]
    write_json(tmp_path / "eval_real.json", rows)
    arguments = ["--task=tooluse", "--stand-in", f"--out={tmp_path}", f"--source={tmp_path}"]
    error = refusal(capsys, *arguments)
    assert "eval_real.json gives another tooluse stand_in file" in error
    assert "the published one has 114 rows" in error
    (tmp_path / "eval_real.json").unlink()
    assert "has no eval_real.json" in refusal(capsys, *arguments)


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "python -m drift_jax.prepare --task=biology --out=data" in capsys.readouterr().out
