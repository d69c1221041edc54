"""Every family against `transformers`: its checkpoints, and the logits that it gave (no torch)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import models, sharding
from drift_jax.models import rotary, transformer
from drift_jax.models.transformer import FULL, SLIDING, ModelConfig
from tests import golden_models

# Float32 sums in another order; the logits are 5 to 11 units wide.
TOLERANCE = 1e-4
CHANGED = 1e-2  # a setting that is read wrongly moves some logit by more


def gap(golden, config=None, params=None):
    """Largest difference from the logits of transformers, over the real tokens."""
    logits = models.forward(
        golden.params if params is None else params,
        config or golden.config,
        golden.tokens,
        mask=golden.mask,
    )
    return np.abs(np.asarray(logits) - golden.logits)[golden.mask].max()


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_logits_are_those_of_transformers_beyond_the_window_and_with_left_padding(name):
    golden = golden_models.load(name)
    assert not golden.mask[1, 0]
    assert golden.mask.sum(-1).min() > 2 * (golden.config.sliding_window or 8)
    assert gap(golden) < TOLERANCE


@pytest.mark.parametrize("name", ["olmo3", "qwen2_sliding"])
def test_padding_on_the_right_changes_no_logit_of_a_sliding_layer(name):
    golden = golden_models.load(name)
    room = ((0, 0), (0, 5))
    tokens = np.pad(golden.tokens, room, constant_values=7)
    logits = models.forward(golden.params, golden.config, tokens, mask=np.pad(golden.mask, room))
    differs = np.abs(np.asarray(logits)[:, :-5] - golden.logits)
    assert differs[golden.mask].max() < TOLERANCE


# ---- every setting acts -------------------------------------------------------------------------


def scaled(name, **changes):
    """A change of the checkpoint's rope scaling."""
    scaling = golden_models.load(name).config.rope_scaling
    return name, {"rope_scaling": dataclasses.replace(scaling, **changes)}


SETTINGS = [
    ("qwen3_tied", {"rope_theta": 310.0}),
    ("qwen3_tied", {"rms_norm_eps": 1e-6}),
    ("qwen3_tied", {"qk_norm": "none"}),
    ("olmo3", {"qk_norm": "none"}),
    ("olmo3", {"rope_scaling": None}),
    ("olmo3", {"sliding_window": 5}),
    ("olmo3", {"sliding_window": 7}),
    ("olmo3", {"layer_types": (FULL, SLIDING) * 4}),
    ("olmo3", {"layer_types": ()}),
    ("qwen2_sliding", {"sliding_window": 8}),
    ("qwen2_sliding", {"layer_types": (FULL, FULL, SLIDING, SLIDING)}),
    ("qwen2", {"attention_bias": False}),
    ("qwen3_yarn", {"rope_scaling": None}),
    scaled("qwen3_yarn", attention_factor=1.0),
    scaled("qwen3_yarn", factor=5.0),
    scaled("olmo3", attention_factor=None),
    scaled("olmo3", factor=2.0),
    scaled("olmo3", original_max_position_embeddings=64),
    scaled("olmo3", beta_fast=4.0),
    scaled("olmo3", beta_slow=1.0),
    scaled("llama3", factor=4.0),
    scaled("llama3", low_freq_factor=0.5),
    scaled("llama3", high_freq_factor=3.0),
    scaled("llama3", original_max_position_embeddings=64),
    ("llama3", {"rope_scaling": None}),
]


@pytest.mark.parametrize(
    "name, change", SETTINGS, ids=[f"{name}-{change}"[:70] for name, change in SETTINGS]
)
def test_changing_a_setting_changes_the_logits(name, change):
    golden = golden_models.load(name)
    config = dataclasses.replace(golden.config, **change)
    assert config != golden.config
    assert gap(golden, config) > CHANGED


def test_where_the_norm_stands_changes_the_logits():
    golden = golden_models.load("olmo3")
    layers = dict(golden.params["layers"])
    # The same scales at the places of the other arrangement.
    layers["input_layernorm"] = layers["post_attention_layernorm"]
    layers["post_attention_layernorm"] = layers.pop("post_feedforward_layernorm")
    before = dataclasses.replace(golden.config, norm_after=False)
    assert transformer.parameter_shapes(before)["layers"].keys() == layers.keys()
    assert gap(golden, before, {**golden.params, "layers": layers}) > CHANGED


def test_the_output_matrix_of_an_untied_checkpoint_is_its_own():
    golden = golden_models.load("llama3")
    tied = {name: leaf for name, leaf in golden.params.items() if name != "lm_head"}
    assert gap(golden, params=tied) > CHANGED


def test_every_setting_of_the_model_is_changed_by_a_test():
    sizes = {name for name in ModelConfig.__annotations__ if name.startswith(("num_", "hidden_"))}
    sizes |= {"vocab_size", "intermediate_size", "head_dim"}  # the shapes of the tensors hold them
    apart = {"norm_after", "tie_embeddings"}  # tests of their own, above
    unused = {"max_position_embeddings"}  # no computation
    changed = {field for _, change in SETTINGS for field in change}
    assert changed | sizes | apart | unused == {
        field.name for field in dataclasses.fields(ModelConfig)
    }
    for kind, name in ((rotary.Llama3Scaling, "llama3"), (rotary.YarnScaling, "olmo3")):
        base = golden_models.load(name).config.rope_scaling
        seen = {
            field.name
            for _, change in SETTINGS
            for field in dataclasses.fields(kind)
            if isinstance(other := change.get("rope_scaling"), kind)
            and getattr(other, field.name) != getattr(base, field.name)
        }
        assert seen == {field.name for field in dataclasses.fields(kind)}


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, pattern",
    [
        ("qwen3_tied", (FULL,)),
        ("olmo3", (SLIDING, SLIDING, SLIDING, FULL)),
        ("qwen2_sliding", (FULL, SLIDING, SLIDING, SLIDING)),  # no shorter run gives the stack
    ],
)
def test_layers_are_scanned_a_period_of_their_pattern_at_a_time(name, pattern):
    assert golden_models.load(name).config.pattern == pattern


def test_rematerialisation_changes_no_gradient_of_mixed_layers():
    golden = golden_models.load("olmo3")
    tokens, mask = jnp.asarray(golden.tokens[:, :24]), jnp.asarray(golden.mask[:, :24])

    @jax.jit(static_argnums=1)
    def gradient(params, remat):
        def loss(params):
            hidden = transformer.hidden_states(
                params, golden.config, tokens, mask=mask, remat=remat
            )
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0))

        return jax.grad(loss)(params)

    plain, saved = jax.device_get([gradient(golden.params, remat) for remat in (False, True)])
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(plain["layers"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)


# ---- sharding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_loading_onto_eight_devices_gives_the_same_numbers(name):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    config, loaded = models.load(str(golden_models.ROOT / name), mesh=mesh)
    golden = golden_models.load(name)
    assert config == golden.config
    jax.tree.map(np.testing.assert_array_equal, loaded, golden.params)
    jax.tree.map(
        lambda leaf, axes: (
            leaf.sharding == sharding.named(mesh, leaf.shape, axes)
            or pytest.fail(f"{axes} lies on {leaf.sharding}")
        ),
        loaded,
        transformer.logical_axes(config),
    )
    up_proj = loaded["layers"]["up_proj"]
    assert up_proj.addressable_shards[0].data.size == up_proj.size // 4


def test_norms_over_a_projection_that_is_split_over_devices_see_all_of_it():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    golden = golden_models.load("olmo3")
    config, params = models.load(str(golden_models.ROOT / "olmo3"), mesh=mesh)
    forward = jax.jit(models.forward, static_argnums=1)
    logits = np.asarray(forward(params, config, golden.tokens, mask=golden.mask))
    assert np.abs(logits - golden.logits)[golden.mask].max() < TOLERANCE


# ---- initialisation -----------------------------------------------------------------------------


def test_fresh_parameters_have_the_shapes_of_the_table_with_norms_one_and_biases_zero():
    for name in ("qwen2", "olmo3"):
        config = golden_models.load(name).config
        create = jax.jit(transformer.init, static_argnums=0)
        params = jax.device_get(create(config, jax.random.key(0)))
        shapes = jax.tree.map(
            lambda leaf: leaf[0],
            transformer.parameter_shapes(config),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes
        for leaf, value in params["layers"].items():
            if leaf.endswith("norm"):
                assert (value == 1).all()
            elif leaf.endswith("bias"):
                assert (value == 0).all()
            else:
                assert 0.5 < value.std() * value.shape[1] ** 0.5 < 2
