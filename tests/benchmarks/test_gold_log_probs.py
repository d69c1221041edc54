"""The measurement of gold solutions equals a plain softmax over the whole text."""

import json
import sys

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from benchmarks import gold_log_probs
from drift_jax import assemble, command, models
from drift_jax.data import demonstrations, prompting
from drift_jax.types import Problem
from tests import small_run


@pytest.fixture(scope="module")
def rows():
    settings = small_run.config(evaluation__max_problems=3)
    with small_run.one_device():
        return settings, gold_log_probs.measure(settings)


def test_each_number_is_the_mean_log_prob_of_the_solution(rows):
    settings, measured = rows
    with small_run.one_device():
        tokenizer = assemble.open_tokenizer(settings)
        model, params = assemble.open_model(settings, tokenizer, assemble.make_mesh(settings))
    problems = {p.id: p for p in assemble.open_problems(settings, tokenizer, "test")[0]}
    assert len(measured) == 3
    for row in measured:
        problem = problems[row["id"]]
        text = demonstrations.solution(problem)
        response = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert row["tokens"] == len(response)
        # The newline before a call belongs to the piece that starts it.
        thought = len(tokenizer.encode(text[: text.index("\nAction:")], add_special_tokens=False))
        contexts = {
            "bare": prompting.render(tokenizer, problem),
            "taught": prompting.render_teacher(tokenizer, problem, text, max_tokens=99),
        }
        for name, prompt in contexts.items():
            logits = models.forward(params, model, np.array([[*prompt, *response]]))[0]
            log_probs = jax.nn.log_softmax(logits, axis=-1)
            wanted = [
                float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(response)
            ]
            assert row[name] == pytest.approx(np.mean(wanted), abs=1e-5)
            assert row[f"{name}_answer"] == pytest.approx(np.mean(wanted[thought:]), abs=1e-5)


def test_the_packaged_model_reads_a_sibling(rows):
    _, measured = rows
    assert all(row["taught"] > row["bare"] for row in measured)
    text = gold_log_probs.summary(measured)
    assert text.startswith("3 problems, ") and "(higher in 3 of 3)" in text


def test_the_answer_of_a_choice_starts_at_its_tag():
    tokenizer = assemble.open_tokenizer(small_run.config())
    turn = {"role": "user", "content": "?"}
    problem = Problem("physics/test/0", "physics", (turn,), "B")
    tokens, answer_from = gold_log_probs.encode_solution(tokenizer, problem)
    assert 0 < answer_from < len(tokens)


@pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "words"), [((), "--out is missing"), (("--out=x", "--config.task=no"), "unknown")]
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "tune_cpu", lambda: None)
    file = small_run.ROOT / "configs" / "quickstart.py"
    monkeypatch.setattr(sys, "argv", ["gold_log_probs", f"--config={file}", *arguments])
    with flagsaver.flagsaver(), small_run.one_device(), pytest.raises(SystemExit) as exit_:
        command.run(gold_log_probs.main, gold_log_probs.__doc__ or "")
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and words in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_the_file_holds_numbers_and_ids_only(rows):
    _, measured = rows
    names = {"id", "tokens", "bare", "taught", "bare_answer", "taught_answer"}
    assert all(set(row) == names for row in measured)
    assert json.loads(json.dumps(measured)) == measured
