"""The longest shapes first: they are the ones that come, and their memory is tried."""

from unittest import mock

import jax
import numpy as np
import pytest

from drift_jax import assemble, batching, longest, shapes, sharding
from drift_jax import config as configs
from drift_jax.reporting import RunStopped
from drift_jax.types import Rollouts
from tests import small_run


def real_batch(of, mesh, prompt: int, response: int, teacher: int | None):
    """What a step of these lengths puts on the devices."""
    problems, group = of.rollout.problems_per_step, of.rollout.group_size
    rows = problems * group
    mask = np.arange(of.rollout.max_new_tokens) < response
    mask = np.broadcast_to(mask, (rows, len(mask)))
    zeros = np.zeros(mask.shape, np.float32)
    rollouts = Rollouts(zeros.astype(np.int32), mask, zeros, zeros, np.ones(rows, bool))
    each = np.zeros((problems, group))
    made = batching.make(
        [np.ones(prompt, np.int32)] * problems,
        rollouts,
        None if teacher is None else [np.ones(teacher, np.int32)] * rows,
        advantages=each,
        policy_weight=each,
        distill_weight=each,
        gate=each,
        prompt_buckets=of.rollout.prompt_buckets,
        teacher_buckets=of.teacher.prompt_buckets,
        response_buckets=of.rollout.response_buckets,
        micro_batch=assemble.rows_at_once(of, rows),
    )
    return sharding.put_batch(mesh, made, axis=1)


@pytest.mark.parametrize("micro_batch", [0, 8])
@pytest.mark.parametrize("method", ["drift", "grpo"])
def test_the_shapes_without_numbers_are_those_of_a_real_batch_on_its_mesh(method, micro_batch):
    of = small_run.config(method, compute__micro_batch=micro_batch)
    mesh = assemble.make_mesh(of)
    teacher = of.teacher.prompt_buckets[-1] if configs.needs_teacher(of) else None
    real = real_batch(of, mesh, 16, 10, teacher)
    lengths = shapes.longest(of)
    assert (lengths.student, lengths.teacher) == (26, 0 if teacher is None else 36)
    planned = shapes.abstract_batch(of, mesh, lengths)
    for name, array in real._asdict().items():
        expected = getattr(planned, name)
        if array is None:
            assert expected is None
        else:
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype), name
            assert array.sharding.is_equivalent_to(expected.sharding, array.ndim), name


def test_the_longest_of_the_papers_setting_is_a_teachers_row_of_18432_tokens():
    lengths = shapes.longest(configs.load("configs/qwen3_8b.py"))
    assert (lengths.student, lengths.teacher) == (2048 + 8192, 10240 + 8192)


def test_shapes_are_counted_as_combinations_of_buckets():
    of = configs.load("configs/qwen3_8b.py")
    assert shapes.update_shapes(of) == 3 * 4 * 4
    assert shapes.update_shapes(configs.load("configs/qwen3_8b.py:method=grpo")) == 3 * 4
    assert shapes.update_shapes(small_run.config()) == 1


def opened(of):
    """Mesh, sizes and state of a run on one device."""
    with small_run.one_device():
        tokenizer, mesh = assemble.open_tokenizer(of), assemble.make_mesh(of)
        model, params = assemble.open_model(of, tokenizer, mesh)
        return mesh, model, assemble.open_state(of, params, mesh, model)


BUCKETS = {"rollout__response_buckets": (5, 10)}


def test_a_run_with_one_shape_begins_without_it(capsys):
    for of in (small_run.config(), small_run.config(**BUCKETS, compute__longest_first=False)):
        with mock.patch.object(shapes, "abstract_batch", side_effect=AssertionError):
            longest.make_update(of, *opened(of))
    assert capsys.readouterr().out == ""


def test_the_longest_update_is_compiled_once_named_and_used(capsys):
    of = small_run.config(**BUCKETS)
    mesh, model, state = opened(of)
    before = jax.device_get(state.trainable)
    update = longest.make_update(of, mesh, model, state)
    told = capsys.readouterr().out
    assert told.startswith("longest update (rows of 26 tokens, teacher's 36): compiled in ")
    assert told.count("\n") == 1 and " GB beside the state" in told
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.trainable))
    batch = real_batch(of, mesh, 16, 10, 26)
    with mock.patch("jax._src.compiler.compile_or_get_cached", side_effect=AssertionError):
        update(state, batch, 0.0)  # compiles nothing


def test_memory_that_is_not_there_ends_the_run_in_one_line_before_a_step():
    of = small_run.config(**BUCKETS)
    with (
        mock.patch.object(shapes, "extra_bytes", return_value=2**60),
        pytest.raises(RunStopped, match=r"needs 1.15e\+09 GB beside the state, which a device"),
    ):
        longest.make_update(of, *opened(of))
