"""The table of a comparison, and its refusal of runs that were not given the same."""

import dataclasses
import json

import numpy as np
import pytest

from drift_jax.comparison import fairness, measures, table
from drift_jax.config import ConfigError
from tests.records import grid, made_up

SKILLS = {"drift": 0.7, "grpo": 0.3, "sdpo": 0.68}


# ---- fairness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "another"}, "the fingerprint of the base weights"),
        ({"problems": "others"}, "the fingerprint of the training problems"),
        ({"order": "another"}, "the fingerprint of the problems' order"),
        ({"rollouts_per_step": 8}, "the number of rollouts per step of grpo"),
        ({"steps": 5}, "the number of steps of grpo, world=0, seed=0 is 5"),
        ({"samples": 4}, "the number of samples"),
        ({"split": "validation"}, "the evaluated split"),
        ({"eval_steps": [0, 3, 4]}, "the list of evaluated steps"),
        (
            {"config": {"evaluation.samples": 8, "evaluation.temperature": 0.1}},
            "evaluation.temperature",
        ),
        (
            {"config": {"evaluation.samples": 8, "rollout.max_new_tokens": 1}},
            "rollout.max_new_tokens",
        ),
    ],
)
def test_runs_that_were_not_given_the_same_make_no_table(change, words):
    runs = grid(SKILLS)
    place = next(i for i, run in enumerate(runs) if run.method == "grpo")
    runs[place] = dataclasses.replace(runs[place], **change)
    with pytest.raises(ConfigError, match="no fair comparison") as error:
        table.make(runs)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_settings_of_the_method_and_of_how_an_evaluation_is_cut_may_differ():
    runs = [
        made_up("drift", config={"evaluation.problems_per_batch": 4, "buffer.capacity": 3}),
        made_up("grpo", config={"evaluation.problems_per_batch": 8, "buffer.capacity": 0}),
    ]
    made = table.make(runs)
    assert "Fair: all runs of a block" in made.text
    assert made.values["settings"] == {
        "evaluation.problems_per_batch": [4, 8],
        "buffer.capacity": [3, 0],
    }


def test_seeds_of_a_variant_must_have_been_evaluated_on_the_same_problems():
    other = [f"other/{index}" for index in range(12)]
    runs = [made_up("drift"), made_up("drift", seed=1, problem_ids=other)]
    with pytest.raises(ConfigError, match="evaluated on other problems"):
        fairness.check([{"drift": run} for run in runs])


# ---- measures -----------------------------------------------------------------------------------


def curve(*means: float, steps: list[int], **changes):
    rows = np.array(means)[:, None] * np.ones(12)
    budgets = {name: 10.0 * np.array(steps) for name in ("tokens", "flops", "cpu_seconds")}
    return made_up(eval_steps=steps, eval_means=rows, **{"budgets": budgets, **changes})


def test_area_peak_and_scores_at_a_budget_by_hand():
    run = curve(0.2, 0.6, 0.4, steps=[0, 10, 40])
    found = measures.measures(run, {"tokens": 50.0, "flops": 250.0})
    assert found["last"] == pytest.approx(0.4)
    assert found["peak"] == pytest.approx(0.6)
    assert found["area"] == pytest.approx((10 * 0.4 + 30 * 0.5) / 40)
    assert found["equal_tokens"] == pytest.approx(0.4)  # half way from step 0 to step 10
    assert found["equal_compute"] == pytest.approx(0.5)  # half way from step 10 to step 40


def test_the_common_budget_is_that_of_the_run_that_consumed_least():
    budgets = {name: np.array([0.0, 7.0]) for name in ("tokens", "flops", "cpu_seconds")}
    small = curve(0.2, 0.3, steps=[0, 4], budgets=budgets)
    block = {"drift": curve(0.2, 0.6, steps=[0, 4]), "grpo": small}
    assert measures.common_budgets(block) == {"tokens": 7.0, "flops": 7.0}
    # 7 of the 40 that drift consumed.
    found = measures.measures(block["drift"], measures.common_budgets(block))
    assert found["equal_tokens"] == pytest.approx(0.2 + 0.4 * 7 / 40)


@pytest.mark.parametrize(
    ("level", "step"), [(0.1, 0.0), (0.2, 0.0), (0.4, 5.0), (0.6, 10.0), (0.61, None)]
)
def test_the_step_that_reaches_a_level_lies_between_two_evaluations(level, step):
    found = measures.steps_to(curve(0.2, 0.6, 0.4, steps=[0, 10, 40]), level)
    assert found == (None if step is None else pytest.approx(step))


# ---- the table ----------------------------------------------------------------------------------


def test_scores_are_means_over_variants_seeds_and_problems_and_the_better_method_wins():
    runs = grid(SKILLS)
    made = table.make(runs, order=["grpo", "drift"])
    assert made.methods == ["grpo", "drift", "sdpo"]
    for name in SKILLS:
        expected = np.mean([run.eval_means[-1].mean() for run in runs if run.method == name])
        assert made.values["scores"][name]["last"]["value"] == pytest.approx(expected)
    gain = made.values["differences"]["drift"]["last"]
    assert gain["low"] > 0.1 and gain["p_holm"] == pytest.approx(2 * gain["p_value"])
    close = table.make(grid({"drift": 0.7, "sdpo": 0.7})).values["differences"]["sdpo"]["last"]
    assert close["low"] < 0 < close["high"] and close["p_value"] > 0.05


def test_blocks_without_all_methods_are_left_out_and_named():
    runs = [run for run in grid(SKILLS) if run.name != "sdpo, world=1, seed=1"]
    made = table.make(runs)
    assert made.values["left_out"] == ["drift, world=1, seed=1", "grpo, world=1, seed=1"]
    assert "Left out" in made.text and len(made.values["blocks"]) == 3
    with pytest.raises(ConfigError, match="no table yet"):
        table.make([made_up("drift", seed=0), made_up("grpo", seed=1)])


def test_text_and_markdown_have_a_row_a_method_and_equal_numbers():
    made = table.make(grid(SKILLS))
    assert "peak mean@8 (optimistic)" in made.text and "chosen on the very problems" in made.text
    assert "after Holm" in made.text and "2 P (prompt + sampled tokens)" in made.text
    for section in made.sections:
        assert len({len(row) for row in section.rows}) == 1
        for row in section.rows:
            assert f"| {' | '.join(row)} |" in made.markdown
            assert all(cell in made.text for cell in row)
    lines = made.sections[0].rows
    text = made.text.splitlines()[1 : 1 + len(lines)]
    assert len({len(line) for line in text}) == 1  # aligned


def test_one_run_makes_a_table_without_differences():
    made = table.make([made_up()])
    assert made.values["differences"] == {} and len(made.sections) == 3
    assert "say nothing about others" in made.text and "nothing about other seeds" in made.text


def test_written_tables_list_the_records_with_their_hashes(tmp_path):
    table.write(tmp_path, table.make(grid(SKILLS)), {"raw/a.json": "12"})
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["records"] == {"raw/a.json": "12"} and content["k"] == 8
    assert (tmp_path / "table.txt").read_text().startswith("test problems, equal steps")
    assert (tmp_path / "table.md").read_text().count("| --- |") == 4
