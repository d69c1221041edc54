"""The mesh: where arrays lie, and that eight devices compute what one computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drift_jax import assemble, sharding, update
from drift_jax import config as configs
from drift_jax.losses.divergence import Divergence
from drift_jax.models import transformer
from drift_jax.sampling import random_streams
from drift_jax.sampling.randomness import row_keys, token_uniforms
from tests import method_steps, steps, tiny

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs eight devices")

MESHES = {"data=2 x fsdp=4": {"data": 2, "fsdp": 4}, "fsdp=8": {"fsdp": 8}}


# ---- the mesh and its table ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (1, 8, 1)),
        ({"data": 2}, (2, 4, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 8, "fsdp": 1}, (8, 1, 1)),
    ],
)
def test_the_size_that_is_left_open_takes_the_devices_that_remain(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
    "sizes, places", [({"data": 3}, 6), ({"data": 2, "fsdp": 2}, 4), ({"fsdp": 16}, 16)]
)
def test_a_mesh_of_another_number_of_places_is_refused_with_both_numbers(sizes, places):
    with pytest.raises(ValueError, match=f"has {places} places but there are 8 devices; set one"):
        sharding.make_mesh(**sizes)


def test_rows_are_spread_over_data_and_fsdp_but_not_over_tensor():
    assert sharding.batch_devices(sharding.make_mesh(data=2, fsdp=4)) == 8
    assert sharding.batch_devices(sharding.make_mesh(data=2, fsdp=2, tensor=2)) == 4


def test_every_logical_axis_of_the_model_has_a_place():
    for axes in jax.tree.leaves(transformer.logical_axes(tiny.CONFIG), is_leaf=_is_axes):
        assert set(axes) <= {*sharding.LOGICAL_AXES, None}


def _is_axes(node: object) -> bool:
    return isinstance(node, tuple)


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    axes = ("layer", "embed", "mlp")
    assert sharding.spec(mesh, (2, 16, 24), axes) == PartitionSpec(None, "fsdp", "tensor")
    assert sharding.spec(mesh, (2, 18, 24), axes) == PartitionSpec(None, None, "tensor")
    assert sharding.spec(mesh, (2, 16, 25), axes) == PartitionSpec(None, "fsdp", None)
    assert sharding.spec(mesh, (97, 16), ("vocab", "embed")) == PartitionSpec(None, "fsdp")
    assert sharding.spec(mesh, (8,), ("batch",)) == PartitionSpec(("data", "fsdp"))
    assert sharding.spec(mesh, (6,), ("batch",)) == PartitionSpec(None)


def test_shape_and_axes_must_fit_each_other():
    with pytest.raises(ValueError):
        sharding.spec(sharding.make_mesh(), (2, 16), ("embed",))


# ---- placing a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_a_batch_is_spread_over_its_rows_and_keeps_its_values(sizes):
    mesh, batch = sharding.make_mesh(**sizes), steps.make_batch()
    placed = sharding.put_batch(mesh, batch, axis=1)
    for name, array in placed._asdict().items():
        expected = getattr(batch, name)
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        shards = array.addressable_shards
        assert len(shards) == 8
        assert {shard.data.shape for shard in shards} == {(1, 1, *array.shape[2:])}, name
        assert len({shard.index[1].start for shard in shards}) == 8, name


def test_rows_that_do_not_divide_are_placed_whole_on_every_device():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    placed = sharding.put_batch(mesh, np.arange(6))
    assert placed.sharding.is_fully_replicated
    np.testing.assert_array_equal(placed, np.arange(6))


def test_a_batch_without_teacher_stays_without():
    batch = steps.make_batch()._replace(teacher_tokens=None, teacher_mask=None)
    placed = sharding.put_batch(sharding.make_mesh(), batch, axis=1)
    assert placed.teacher_tokens is None and placed.teacher_mask is None


# ---- placing a state ----------------------------------------------------------------------------


@functools.cache
def opened(name: str) -> tuple[Mesh, update.TrainState]:
    """The train state of a run on a mesh."""
    mesh = sharding.make_mesh(**MESHES[name])
    params = jax.device_put(tiny.params(), assemble.parameter_shardings(tiny.CONFIG, mesh))
    return mesh, assemble.open_state(configs.default(), params, mesh, tiny.CONFIG)


@pytest.mark.parametrize("name", MESHES)
def test_optimizer_and_teacher_are_laid_out_like_the_parameters(name):
    mesh, state = opened(name)
    axes = transformer.parameter_shapes(tiny.CONFIG)

    def check(leaf: jax.Array, shape_and_axes: tuple) -> None:
        assert leaf.sharding == sharding.named(mesh, *shape_and_axes)

    moments = state.optimizer[1]
    for tree in (state.trainable, state.teacher, moments.mu, moments.nu):
        jax.tree.map(check, tree, axes)
    for scalar in (state.step, state.skipped, moments.count):
        assert scalar.sharding.is_fully_replicated and len(scalar.sharding.device_set) == 8


def test_sharded_parameters_take_a_share_of_the_memory_of_each_device():
    _, state = opened("fsdp=8")
    matrices = [leaf for leaf in jax.tree.leaves(state.trainable["layers"]) if leaf.ndim == 3]
    assert len(matrices) == 7
    for leaf in matrices:
        assert {8 * shard.data.size for shard in leaf.addressable_shards} == {leaf.size}


# ---- eight devices and one ----------------------------------------------------------------------


@functools.cache
def one_device() -> list[tuple]:
    """Two steps on one device: (state, metrics, details) each, on the host."""
    state, out = steps.make_state(steps.KEEP_GRADIENT), []
    for weights in (steps.MIXED, steps.WARMUP):
        state, *rest = steps.gradient_update()(state, steps.make_batch(weights), 0.0)
        out.append(jax.device_get((state, *rest)))
    return out


@functools.cache
def eight_devices(name: str) -> tuple[list[tuple], list[bool], int]:
    """The same on a mesh; whether the state stayed where it was; and how much was compiled."""
    mesh = sharding.make_mesh(**MESHES[name])
    like_parameters = assemble.parameter_shardings(tiny.CONFIG, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = steps.make_state(steps.KEEP_GRADIENT)
    placement = update.TrainState(
        step=everywhere,
        trainable=like_parameters,
        frozen={},
        optimizer=state.optimizer._replace(trace=like_parameters),
        teacher=like_parameters,
        skipped=everywhere,
    )
    step = update.make_update(
        model=tiny.CONFIG,
        settings=steps.DEFAULT,
        compute=steps.PLAIN,
        optimizer=steps.KEEP_GRADIENT,
        learning_rate=lambda step: jnp.float32(0.5),
        placement=placement,
    )
    state, out, stayed = jax.device_put(state, placement), [], []
    for weights in (steps.MIXED, steps.WARMUP):
        batch = sharding.put_batch(mesh, steps.make_batch(weights), axis=1)
        state, *rest = step(state, batch, 0.0)
        out.append(jax.device_get((state, *rest)))
        stayed.append(jax.tree.map(lambda leaf: leaf.sharding, state) == placement)
    return out, stayed, step._cache_size()


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_loss_gradient_and_parameters_of_one(name):
    ours, _, _ = eight_devices(name)
    for (state, metrics, details), (one, one_metrics, one_details) in zip(
        ours, one_device(), strict=True
    ):
        for key in ("loss/total", "loss/policy", "loss/distill", "actor/grad_norm"):
            np.testing.assert_allclose(metrics[key], one_metrics[key], rtol=1e-5, atol=1e-6)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, state.optimizer.trace, one.optimizer.trace)
        jax.tree.map(close, state.trainable, one.trainable)
        jax.tree.map(close, details, one_details)


# All that is computed over the rows of a whole batch, or before its first mini-batch: both
# normalisers, SRPO's mean, pi_old, DistIL's frozen credit, PGPO's information.
EVERYTHING = update.LossSettings(
    Divergence("forward_ce", top_k=5),
    aggregation="token_mean",
    distill_token_weight="teacher_entropy",
    credit="future_mean",
    sampler_correction_cap=2.0,
)


def test_eight_devices_agree_on_what_needs_the_whole_batch():
    batch = method_steps.make_batch(method_steps.SRPO, micro_batches=2)
    function = method_steps.make_update(EVERYTHING, mini_batches=2)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    like_parameters = assemble.parameter_shardings(method_steps.CONFIG, mesh)
    everywhere = sharding.replicated(mesh)
    # float64, since the second mini-batch starts where the first one led.
    with jax.enable_x64(True):
        one = jax.device_get(function(method_steps.make_state(), batch, 0.25))
        state = method_steps.make_state()
        placement = update.TrainState(
            step=everywhere,
            trainable=like_parameters,
            frozen={},
            optimizer=state.optimizer._replace(trace=like_parameters),
            teacher=like_parameters,
            skipped=everywhere,
        )
        state = jax.device_put(state, placement)
        eight = jax.device_get(function(state, sharding.put_batch(mesh, batch, axis=1), 0.25))
    assert one[1]["distill/weight_max"] > 1.5 and one[1]["actor/ratio_max"] > 1.1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, eight, one)


@pytest.mark.parametrize("name", MESHES)
def test_the_state_stays_where_it_lies_so_that_the_second_step_compiles_nothing(name):
    _, stayed, compiled = eight_devices(name)
    assert stayed == [True, True]
    assert compiled == 1


@pytest.mark.parametrize("name", MESHES)
def test_random_numbers_are_the_same_bits_on_any_number_of_devices(name):
    streams = random_streams(0, 3, [f"p{i}" for i in range(8)])
    mesh = sharding.make_mesh(**MESHES[name])

    @jax.jit
    def uniforms(streams):
        return token_uniforms(row_keys(streams, 2), jnp.int32(5))

    spread = uniforms(sharding.put_batch(mesh, streams))
    np.testing.assert_array_equal(spread, uniforms(streams))
