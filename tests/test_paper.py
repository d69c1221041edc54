"""The paper's experiments: they load for every task and method, and their cards say what is so."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from drift_jax import buffer, config, evaluate, methods, models, paper, rewards, train
from drift_jax.config import flatten, load, validate
from drift_jax.data import prompting, source, toolcalls
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import estimate, sizes
from drift_jax.prepare import checkpoints, published
from drift_jax.types import Problem

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = {
    "qwen3_8b": "models/Qwen3-8B",
    "qwen3_4b": "models/Qwen3-4B",
    "olmo3_7b": "models/OLMo3-7B",
}
PROBLEMS = {
    **{task: published.FILES[task, "train"].rows for task in source.KINDS},
    "toolcalls": toolcalls.SPLIT_SIZES["train"],
}


def file(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.py")


def card(name: str) -> str:
    return Path(file(name)).read_text(encoding="utf-8").split('"""')[1]


def table(name: str) -> dict[str, list[str]]:
    """Rows of the card's table by their first word; the header is the row `task`."""
    text = card(name)
    lines = text[text.index("task  ") : text.index("average  ") + 100].splitlines()
    rows = [line.split() for line in lines]
    return {row[0]: row[1:] for row in rows if row[0] in ("task", "average", *PROBLEMS)}


def planned(name: str, **values: config.Value) -> estimate.Plan:
    """The plan of an experiment on 8 x H200; `values` have `__` for the dot."""
    chosen = {field.replace("__", "."): value for field, value in values.items()}
    loaded = config.assign(load(f"{file(name)}:task=biology"), chosen)
    return estimate.make(loaded, model_of(name), device="h200", devices=8)


def model_of(name: str) -> ModelConfig:
    return sizes.PUBLISHED[Path(EXPERIMENTS[name]).name.lower()]


# ---- the configurations -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("task", (*source.KINDS, "toolcalls"))
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_model_task_and_method_validates_on_eight_devices(name, task, method):
    loaded = load(f"{file(name)}:task={task},method={method},seed=3")
    assert validate(loaded, device_count=8, problem_count=PROBLEMS[task]) is None
    assert (loaded.task, loaded.method, loaded.seed) == (task, method, 3)
    assert loaded.model.path == EXPERIMENTS[name]


def test_the_three_files_differ_in_the_model_and_in_the_rows_that_fit():
    loaded = {name: flatten(load(file(name))) for name in EXPERIMENTS}
    differing = {
        field
        for field in loaded["qwen3_8b"]
        if len({values[field] for values in loaded.values()}) > 1
    }
    assert differing == {"model.path", "rollout.max_rows"}


@pytest.mark.parametrize("task", source.KINDS)
def test_a_benchmark_keeps_the_papers_values_in_all_that_a_result_depends_on(task):
    loaded, default = flatten(load(f"{file('olmo3_7b')}:task={task}")), flatten(config.default())
    own = {"task", "data.path", "model.path"}
    fields = {field.name: field for field in config.FIELDS}
    differing = {name for name in loaded if loaded[name] != default[name]} - own
    assert all(fields[name].may_change for name in differing)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runlocal_is_the_same_small_run_for_every_model(name):
    assert load(f"{file(name)}:runlocal") == load(f"{file('qwen3_8b')}:runlocal")
    assert validate(load(f"{file(name)}:runlocal,task=biology"), problem_count=256) is None


def test_the_rows_that_fit_bound_both_samplers():
    from drift_jax import assemble

    model = ModelConfig(64, 32, 48, 2, 4, 2, 8)
    for name, rows in (("olmo3_7b", 128), ("qwen3_8b", 256)):
        loaded = load(file(name))
        mesh = assemble.make_mesh(loaded)
        assert assemble.make_sampler(loaded, model, mesh).max_rows == rows
        assert assemble.make_sampler(loaded, model, mesh, teacher=True).max_rows == rows


def test_an_experiment_file_loads_from_any_directory_and_through_the_command_line(tmp_path):
    copied = tmp_path / "elsewhere" / "olmo3_7b.py"
    copied.parent.mkdir()
    shutil.copy(file("olmo3_7b"), copied)
    code = (
        "import sys; from absl import flags; from ml_collections import config_flags;"
        f"sys.path.append({str(ROOT)!r});"
        "made = config_flags.DEFINE_config_file('config'); flags.FLAGS(sys.argv);"
        "print(made.value.task, made.value.rollout.max_rows, made.value.train.steps)"
    )
    arguments = [f"--config={copied}:task=physics", "--config.train.steps=7"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.split() == ["physics", "128", "7"], result.stderr


def test_what_the_file_sets_wins_over_the_setting_and_runlocal_over_the_file():
    values = {"compute.micro_batch": 16, "model.path": "mine", "evaluation.every": 9}
    plain, local = paper.experiment("", values), paper.experiment("runlocal", values)
    assert (plain.compute.micro_batch, plain.model.path, plain.evaluation.every) == (16, "mine", 9)
    assert (local.model.path, local.evaluation.every) == ("quickstart_base", 2)
    with pytest.raises(config.ConfigError, match="did you mean 'model.path'"):
        paper.experiment("", {"model.pth": "mine"})


@pytest.mark.parametrize(("name", "folder"), EXPERIMENTS.items())
def test_the_folder_of_the_weights_is_named_as_prepare_knows_the_model(name, folder):
    short = Path(folder).name.lower()
    assert short in checkpoints.HUB_MODELS
    assert f"--model={short} --out={folder}" in card(name)
    assert checkpoints.HUB_MODELS[short] in card(name)


# ---- the cards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(("task", "count"), PROBLEMS.items())
def test_the_card_counts_epochs_visits_and_the_first_step_of_the_buffer(name, task, count):
    loaded = load(f"{file(name)}:task={task}")
    per_step, steps = loaded.rollout.problems_per_step, loaded.train.steps
    problem = Problem(f"{task}/train/0", task, ({"role": "user", "content": "?"},), "A")
    stream = source.ProblemStream([problem] * count, 0, per_step)
    first = next(
        step
        for step in range(1, steps)
        if buffer.is_usable(
            step,
            steps_per_epoch=stream.steps_per_epoch,
            fill_epochs=loaded.buffer.fill_epochs,
        )
    )
    assert table(name)["task"][:4] == ["problems", "epoch", "visits", "buffer"]
    written = [float(cell) for cell in table(name)[task][:4]]
    visits = round(per_step * steps / count, 1)
    assert written == [count, stream.steps_per_epoch, visits, first]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_card_says_how_long_the_run_and_its_first_stage_are(name):
    loaded = load(file(name))
    said = (
        f"{loaded.train.steps} (",
        f"{loaded.rollout.problems_per_step} problems x {loaded.rollout.group_size} rollouts",
        f"prompts to {loaded.data.max_prompt_tokens} and responses to "
        f"{loaded.rollout.max_new_tokens}",
        f"Stage 1 to step {config.warmup_length(loaded, 1)}.",
    )
    text = " ".join(card(name).split())
    for words in said:
        assert words in text
    cut = load(f"{file(name)}:task=toolcalls").rollout.max_new_tokens
    assert f"its answers are cut at {cut} tokens" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_published_scores_of_a_column_average_to_the_published_average(name):
    """The paper rounds its averages to a tenth, so a mistyped score shows."""
    rows = table(name)
    assert rows["task"][4:5] + rows["task"][-1:] == ["base", "DRIFT"]
    scores = np.array([[float(x) for x in rows[task][4:]] for task in source.KINDS])
    assert scores.shape == (5, 5)
    np.testing.assert_allclose(scores.mean(axis=0), [float(x) for x in rows["average"]], atol=0.051)
    assert "arXiv 2606.30345v1" in card(name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_memory_and_hours_of_the_card_are_those_of_the_plan(name):
    loaded = load(f"{file(name)}:task=biology")
    text = " ".join(card(name).split())
    plan, model = planned(name), model_of(name)
    size = {phase: f"{plan.needs(phase) / 1e9:.1f}" for phase in plan.phases}
    state = sum(plan.state.values()) / 1e9
    assert f"state {state:.1f} ({sizes.parameters(model) / 1e9:.2f} B parameters)" in text
    update = max((plan.needs(phase), phase) for phase in estimate.UPDATING)[1]
    taught = size["teacher's evaluation"]
    assert f"with it {size['sampling']} while sampling" in text
    assert f"and {size[update]} in the longest update" in text
    assert f"{taught} in the teacher's evaluation" in text
    assert f"A checkpoint is {estimate.checkpoint_bytes(model) / 1e9:.1f} GB" in text
    short, long = (
        "{:.0f} to {:.0f}".format(
            *estimate.hours(
                loaded,
                model,
                device="h200",
                devices=8,
                response=tokens,
                problems=published.FILES["biology", "test"].rows,
            )
        )
        for tokens in (1024, 8192)
    )
    assert f"{short} if the longest answer of every batch has 1,024 tokens" in text
    assert f"{long} if it has 8,192" in text
    assert text.count("modelled") == 2 and "No GPU has measured it yet." in text
    assert f"`python -m drift_jax.plan --config=configs/{name}.py`" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_by_the_plan_sampling_and_updating_fit_an_h200(name):
    for task in (*source.KINDS, "toolcalls"):
        loaded = load(f"{file(name)}:task={task}")
        plan = estimate.make(loaded, model_of(name), device="h200", devices=8)
        evaluation = "teacher's evaluation"
        over = {phase for phase in plan.phases if plan.needs(phase) > plan.device.memory}
        assert over <= {evaluation}
        # What the card says mends that.
        (rows,) = re.findall(r"rollout.max_rows=(\d+) mends", card(name))
        assert planned(name, rollout__max_rows=int(rows)).fits


def test_the_state_that_the_plan_counts_is_the_one_that_is_trained():
    """16 bytes a parameter: counted on a small model's real train state."""
    import jax

    from drift_jax import optimizer, update

    model = ModelConfig(64, 32, 48, 2, 4, 2, 8)
    transform = optimizer.direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
    state = update.init_state(transformer.init(model, jax.random.key(0)), transform)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert abs(size - estimate.checkpoint_bytes(model)) < 64  # counters
    plan = estimate.make(load(file("qwen3_8b")), model, device="h200", devices=8)
    norms = 2 * (32 + 32 + 8 + 8) + 32  # of two layers and the last one: whole on every device
    assert sum(plan.state.values()) == pytest.approx(size / 8 + 16 * norms * 7 / 8, rel=0.001)


# ---- toolcalls on a released model --------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny Qwen3 checkpoint whose byte-level tokenizer and template are of Qwen3's kind."""
    import jax
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    text = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
            "{% endif %}{% endif %}"
        ),
        clean_up_tokenization_spaces=False,
    )
    model = ModelConfig(len(fast), 16, 32, 1, 2, 1, 8)
    folder = tmp_path_factory.mktemp("released") / "model"
    models.save(str(folder), model, transformer.init(model, jax.random.key(0)), tokenizer=fast)
    return folder


def instructed(split: str, **values: bool) -> list:
    return source.load_task("toolcalls", split, instructions=True, **values)


def test_instructions_are_a_system_turn_before_the_same_question():
    bare = source.load_task("toolcalls", "test")
    for problem, told in zip(bare, instructed("test"), strict=True):
        assert told.messages[1:] == problem.messages
        assert told.messages[0] == {"role": "system", "content": toolcalls.INSTRUCTIONS}
        assert (told.id, told.answer, told.level) == (problem.id, problem.answer, problem.level)


def test_the_form_that_the_instructions_show_is_the_one_that_the_grader_takes():
    answer = '[{"Action": "f", "Action_Input": "{}"}]'
    start = toolcalls.INSTRUCTIONS.index("Thought:")
    shown = toolcalls.INSTRUCTIONS[start:].partition("\n\n")[0]
    assert rewards.grader_for("toolcalls")(shown, answer).well_formed
    for world in (toolcalls.World(seed) for seed in range(3)):
        for problem in toolcalls.problems(world, "train"):
            calls = json.loads(problem.answer)
            values = [v for call in calls for v in json.loads(call["Action_Input"]).values()]
            assert values
            for word, city in map(str.split, values):
                assert word in toolcalls.FORMATS
                assert re.search(rf"\b{city}\b", toolcalls.INSTRUCTIONS)


def test_the_instructions_tell_no_fact_of_the_world():
    """Their examples use a parameter that no world has, and one text serves every world."""
    for parameter in toolcalls.PARAMETERS:
        assert not re.search(rf"\b{parameter}\b", toolcalls.INSTRUCTIONS)
    for function in toolcalls.INTENTS:
        assert function not in toolcalls.INSTRUCTIONS
    assert instructed("test", world_seed=1)[0].messages[0] == instructed("test")[0].messages[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_generated_problems_fit_a_released_models_template_and_the_buckets(name, checkpoint):
    """With some 600 merges the tokenizer needs more tokens than a released one, with 100,000."""
    loaded = load(f"{file(name)}:task=toolcalls")
    tokenizer = prompting.load_tokenizer(checkpoint)
    for split in ("train", "test"):
        problems = instructed(split)
        kept, dropped = prompting.drop_long(problems, tokenizer, loaded.data.max_prompt_tokens)
        assert (len(kept), dropped) == (len(problems), 0)
        for problem in problems:
            gold = toolcalls.solution(problem)
            tokens = tokenizer.encode(gold, add_special_tokens=False)
            assert prompting.decode(tokenizer, tokens) == gold
            assert len(tokens) < loaded.rollout.max_new_tokens
            shown = prompting.render_teacher(
                tokenizer, problem, gold, max_tokens=loaded.teacher.max_prompt_tokens
            )
            text = tokenizer.decode(shown)
            assert gold in text and text.endswith("<think>\n\n</think>\n\n")


def test_a_released_model_is_evaluated_on_generated_problems(checkpoint, tmp_path, capsys):
    loaded = load(f"{file('qwen3_4b')}:task=toolcalls")
    values = {"evaluation.samples": 2, "evaluation.max_problems": 4, "rollout.max_new_tokens": 8}
    config.assign(loaded, values)
    kept = evaluate.evaluate(loaded, str(tmp_path), step=None, model=str(checkpoint))
    _, *rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == 4 and all(name.startswith("toolcalls/test/") for name in ids)
    assert all(1 <= length <= 8 for row in rows for length in row["lengths"])
    assert "mean@2" in capsys.readouterr().out


@pytest.mark.slow  # the gate alone samples 96 problems twice
def test_a_released_model_trains_on_generated_problems_from_its_own_folder(checkpoint, tmp_path):
    loaded: ConfigDict = load(f"{file('qwen3_4b')}:task=toolcalls")
    config.assign(
        loaded,
        {
            "model.path": str(checkpoint),
            "rollout.problems_per_step": 4,
            "rollout.group_size": 2,
            "rollout.max_rows": 768,  # the gate's: 96 problems x 8 samples
            "rollout.max_new_tokens": 4,
            "rollout.response_buckets": (4,),
            "compute.micro_batch": 0,
            "train.steps": 1,
            "evaluation.at_start": False,
            "evaluation.samples": 1,
            "evaluation.teacher_samples": 1,
            "evaluation.max_problems": 4,
            "logging.tensorboard": False,
        },
    )
    assert train.train(loaded, str(tmp_path / "run")) is True
    (samples,) = (tmp_path / "run" / "eval").glob("1.json")
    assert samples.read_text(encoding="utf-8").count('"responses"') == 4
