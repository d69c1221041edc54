"""Figures: drawn without a display, with units on the axes, and small."""

import pytest

from drift_jax.report import figures
from tests.records import grid, made_up

pytest.importorskip("matplotlib", reason="figures need the extra report")

SKILLS = {"drift": 0.7, "grpo": 0.3, "sdpo": 0.6}


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("over", ["steps", "tokens", "flops", "cpu_seconds"])
def test_learning_curves_have_a_line_and_a_band_a_method(over):
    figure = figures.learning_curves(grid(SKILLS), order=["sdpo"], over=over)
    (axes,) = figure.axes
    assert labels(axes) == ["sdpo", "drift", "grpo"]
    assert len(axes.lines) == len(axes.collections) == 3
    assert len({line.get_color() for line in axes.lines}) == 3
    assert axes.get_ylabel() == "test mean@8 (%)" and axes.get_xlabel()


def test_differences_are_to_the_first_method_and_pair_what_is_there():
    runs = [run for run in grid(SKILLS) if run.name != "grpo, world=1, seed=1"]
    figure = figures.paired_differences(runs, order=["grpo"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["drift", "sdpo"]
    assert "that of grpo" in axes.get_xlabel()
    assert min(axes.lines[1].get_xdata()) > 0  # drift's interval lies above


def test_routing_has_a_panel_a_method_and_dynamics_a_panel_a_quantity():
    routing = figures.routing_fractions(grid(SKILLS))
    assert [axes.get_title() for axes in routing.axes] == ["drift", "grpo", "sdpo"]
    dynamics = figures.dynamics(grid(SKILLS))
    assert next(axes.get_ylabel() for axes in dynamics.axes) == "entropy (nats a token)"
    assert all(len(axes.lines) == 3 for axes in dynamics.axes)


def test_all_figures_are_written_twice_small_and_the_same_every_time(tmp_path):
    names = figures.write_all(tmp_path / "one", grid(SKILLS))
    figures.write_all(tmp_path / "two", grid(SKILLS))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(f"{name}.{end}" for name in names for end in ("png", "svg"))
    assert "differences" in names
    for name in files:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second and len(first) < 150_000, name
    assert "differences" not in figures.write_all(tmp_path / "three", [made_up()])
