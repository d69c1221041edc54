"""The arithmetic of memory against what jax and XLA allocate on a CPU."""

import functools
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from drift_jax import assemble, sharding
from drift_jax import config as configs
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import compiled, estimate, memory, sizes
from drift_jax.sampling import random_streams
from drift_jax.shapes import Lengths

# Large enough that activations, scores and logits outweigh what is rounded up.
MODEL = ModelConfig(4096, 256, 768, 4, 8, 4, 32)
VALUES: dict[str, configs.Value] = {
    "model.compute_dtype": "float32",
    "rollout.problems_per_step": 4,
    "rollout.group_size": 2,
    "rollout.max_new_tokens": 64,
    "rollout.response_buckets": (64,),
    "data.max_prompt_tokens": 32,
    "rollout.prompt_buckets": (32,),
    "teacher.max_prompt_tokens": 64,
    "teacher.prompt_buckets": (64,),
    "evaluation.problems_per_batch": 4,
    "evaluation.samples": 2,
    "compute.vocab_chunk": 256,
}


def config(**values: configs.Value) -> Any:
    """The small run; `values` have `__` for the dot."""
    chosen = {name.replace("__", "."): value for name, value in values.items()}
    return configs.assign(configs.default(), VALUES | chosen)


def modelled(of: Any, lengths: Lengths) -> float:
    """Bytes of the longest phase of the update, the state included."""
    plan = estimate.make(of, MODEL, device="h200", devices=1, lengths=lengths)
    return max(plan.needs(phase) for phase in estimate.UPDATING if phase in plan.phases)


def allocated(of: Any, lengths: Lengths) -> float:
    """What XLA gives the compiled update of one device."""
    with mock.patch.object(jax, "device_count", return_value=1):
        return compiled.update(of, MODEL, lengths)["peak"]


@pytest.mark.skipif(jax.device_count() != 8, reason="needs eight devices")
@pytest.mark.parametrize("axes", [{}, {"mesh__data": 2}, {"mesh__tensor": 2}])
def test_the_state_is_counted_to_the_byte_on_every_mesh(axes):
    of = config(**axes)
    mesh = assemble.make_mesh(of)
    counted = sum(memory.state(of, MODEL, estimate.mesh_of(of, 8)).values())
    template = assemble.state_template(of, mesh, MODEL)
    places = assemble.placement(template)
    state = jax.jit(
        lambda: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), template),
        out_shardings=places,
    )()
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert counted == here


LONG_TEACHER = Lengths(48, 240, 720)


def test_an_update_is_predicted_within_a_tenth_of_what_the_compiler_allocates():
    of = config(model__remat="full", compute__micro_batch=2)
    assert modelled(of, LONG_TEACHER) == pytest.approx(allocated(of, LONG_TEACHER), rel=0.1)


@pytest.mark.slow  # each compiles an update
@pytest.mark.parametrize(
    "lengths, values",
    [
        (LONG_TEACHER, {"compute__micro_batch": 2}),
        (LONG_TEACHER, {"model__remat": "full"}),
        (Lengths(48, 240, 0), {"model__remat": "full", "compute__micro_batch": 2}),
        (
            Lengths(48, 240, 96),
            {"model__remat": "full", "compute__micro_batch": 4, "compute__vocab_chunk": 1024},
        ),
    ],
    ids=["activations kept", "one batch", "no teacher", "large chunk"],
)
def test_what_decides_may_differ_and_the_prediction_holds(lengths, values):
    of = config(**values)
    assert modelled(of, lengths) == pytest.approx(allocated(of, lengths), rel=0.1)


@pytest.mark.slow  # compiles an update of eight devices for minutes
@pytest.mark.skipif(jax.device_count() != 8, reason="needs eight devices")
def test_qwen3_8b_compiles_ahead_of_time_without_an_array():
    of = configs.load("configs/qwen3_8b.py")
    model = sizes.PUBLISHED["qwen3-8b"]
    plan = estimate.make(of, model, device="h200", devices=8)
    said = compiled.update(of, model, plan.lengths)
    state = sum(plan.state.values())
    assert said["arguments"] == pytest.approx(state, rel=0.01)
    # Scores decide; the rest differs, as the compiler spreads products in another way.
    update = max(plan.needs(phase) for phase in estimate.UPDATING)
    assert said["peak"] == pytest.approx(update, rel=0.1)


def test_sampling_holds_as_many_live_bytes_as_predicted():
    of, model = config(), ModelConfig(64, 16, 24, 2, 4, 4, 32)
    mesh = one_device_mesh(of)
    params = jax.jit(functools.partial(transformer.init, model))(jax.random.key(0))
    sampler = assemble.make_sampler(of, model, mesh)
    prompts = [np.arange(5, 5 + length, dtype=np.int32) for length in (32, 9, 20, 31)]
    before, seen = live_bytes(), []
    fetch = jax.device_get

    def watching(tree: Any) -> Any:
        seen.append(live_bytes() - before)
        return fetch(tree)

    with mock.patch.object(jax, "device_get", watching):
        sampler.generate(
            params,
            prompts,
            group_size=2,
            max_new_tokens=64,
            stop_tokens=(1,),
            stream=random_streams(0, 1, [f"p{i}" for i in range(4)]),
        )
    lengths = Lengths(32, 64, 64)
    setting = memory.setting(of, model, estimate.mesh_of(of, 1), fused=False, lengths=lengths)
    parts = memory.sampling(setting, 8, 2, 32)
    assert max(seen) == pytest.approx(parts["cache"] + parts["results"], rel=0.1)


def one_device_mesh(of: Any) -> Any:
    with mock.patch.object(jax, "device_count", return_value=1):
        return assemble.make_mesh(of)


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


# ---- properties ---------------------------------------------------------------------------------


def test_fused_attention_keeps_no_scores_and_longer_rows_need_more():
    of = config(compute__micro_batch=2)
    mesh = estimate.mesh_of(of, 1)
    peaks = []
    for length in (64, 128, 256):
        lengths = Lengths(32, length, 64)
        fused = memory.setting(of, MODEL, mesh, fused=True, lengths=lengths)
        phases = memory.phases(fused, 0.0)
        assert not any(parts.get("scores") for parts in phases.values())
        assert not any(parts.get("saved scores") for parts in phases.values())
        peaks.append(max(sum(parts.values()) for parts in phases.values()))
    assert peaks == sorted(peaks) and peaks[0] < peaks[-1]


def test_eight_devices_have_an_eighth_of_the_state_and_of_the_cache():
    of = config()
    one, eight = (estimate.make(of, MODEL, device="h200", devices=n) for n in (1, 8))
    assert 8 * sum(eight.state.values()) == pytest.approx(sum(one.state.values()), rel=0.01)
    assert 8 * eight.phases["sampling"]["cache"] == one.phases["sampling"]["cache"]


def test_gathered_parameters_are_whole_but_for_their_tensor_parts():
    mesh = sharding.abstract_mesh(data=1, fsdp=4, tensor=2)
    assert sharding.gathered((16, 24), ("embed", "mlp"), mesh) == 16 * 12
    assert sharding.gathered((24, 16), ("mlp", "embed"), mesh) == 16 * 12
    assert sharding.gathered((16,), (None,), mesh) == 16
