"""The decoder against a plain-loop version, and what padding and settings do to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.models import forward, transformer
from drift_jax.models.transformer import ModelConfig
from tests import tiny


def literal_logits(params, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """One sequence, one head at a time, float64. [time] -> [time, vocab]"""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    group = config.num_heads // config.num_kv_heads
    half = config.head_dim // 2

    def norm(vector, scale):
        return vector / np.sqrt(np.mean(vector**2) + config.rms_norm_eps) * scale

    def turn(vector, position):
        out = np.empty_like(vector)
        for i in range(half):
            angle = position * config.rope_theta ** (-i / half)
            a, b = vector[i], vector[i + half]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    states = [weights["embed_tokens"][token] for token in tokens]
    for index in range(config.num_layers):
        layer = {name: stacked[index] for name, stacked in weights["layers"].items()}
        normed = [norm(state, layer["input_layernorm"]) for state in states]

        def head_slice(projection, vector, head, layer=layer):
            return (vector @ layer[projection])[head * config.head_dim :][: config.head_dim]

        mixed = [[] for _ in states]
        for head in range(config.num_heads):
            keys = [
                turn(norm(head_slice("k_proj", v, head // group), layer["k_norm"]), t)
                for t, v in enumerate(normed)
            ]
            values = [head_slice("v_proj", v, head // group) for v in normed]
            for t, vector in enumerate(normed):
                query = turn(norm(head_slice("q_proj", vector, head), layer["q_norm"]), t)
                scores = np.array([query @ keys[s] for s in range(t + 1)]) / np.sqrt(
                    config.head_dim
                )
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed[t].append(sum(share[s] * values[s] for s in range(t + 1)))
        for t, heads in enumerate(mixed):
            states[t] = states[t] + np.concatenate(heads) @ layer["o_proj"]
            vector = norm(states[t], layer["post_attention_layernorm"])
            gate = vector @ layer["gate_proj"]
            hidden = gate / (1 + np.exp(-gate)) * (vector @ layer["up_proj"])
            states[t] = states[t] + hidden @ layer["down_proj"]
    head = weights.get("lm_head", weights["embed_tokens"].T)
    return np.stack([norm(state, weights["norm"]) @ head for state in states])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_the_plain_loop_version(tied):
    config = dataclasses.replace(tiny.CONFIG, tie_embeddings=tied)
    params = tiny.params(config)
    tokens = tiny.prompts(1)[0]
    np.testing.assert_allclose(
        forward(params, config, tokens[None])[0], literal_logits(params, config, tokens), atol=2e-5
    )


@pytest.mark.parametrize("left, right", [(3, 0), (0, 4), (2, 5)])
def test_padding_on_either_side_changes_no_logit(left, right):
    params, tokens = tiny.params(), tiny.prompts(1)[0]
    alone = forward(params, tiny.CONFIG, tokens[None])[0]
    padded = np.pad(tokens, (left, right), constant_values=7)[None]
    mask = np.pad(np.ones(len(tokens), bool), (left, right))[None]
    together = forward(params, tiny.CONFIG, padded, mask=mask)[0, left : left + len(tokens)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_row_without_any_token_is_finite():
    logits = forward(tiny.params(), tiny.CONFIG, np.zeros((1, 4), int), mask=np.zeros((1, 4), bool))
    assert jnp.isfinite(logits).all()


@pytest.mark.parametrize("field, value", [("rope_theta", 5e5), ("rms_norm_eps", 0.1)])
def test_every_constant_of_the_config_changes_the_logits(field, value):
    params, tokens = tiny.params(), tiny.prompts(1)[0][None]
    changed = dataclasses.replace(tiny.CONFIG, **{field: value})
    gap = jnp.abs(forward(params, tiny.CONFIG, tokens) - forward(params, changed, tokens)).max()
    assert gap > 1e-3


def test_later_tokens_do_not_change_earlier_logits():
    params, tokens = tiny.params(), tiny.prompts(1, longest=12)[0]
    changed = tokens.copy()
    changed[-1] = 5 if tokens[-1] != 5 else 6
    before = forward(params, tiny.CONFIG, tokens[None])[0, :-1]
    np.testing.assert_array_equal(before, forward(params, tiny.CONFIG, changed[None])[0, :-1])


def test_rematerialisation_changes_no_gradient():
    params, tokens = tiny.params(), jnp.asarray(tiny.prompts(1)[0][None])
    mask = jnp.ones(tokens.shape, bool)

    def loss(params, remat):
        hidden = transformer.hidden_states(params, tiny.CONFIG, tokens, mask=mask, remat=remat)
        return jnp.sum(jnp.sin(hidden))

    plain, saved = jax.grad(loss)(params, False), jax.grad(loss)(params, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, saved)


def test_heads_that_do_not_divide_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="num_heads 4 is not a multiple of num_kv_heads 3"):
        dataclasses.replace(tiny.CONFIG, num_kv_heads=3)
