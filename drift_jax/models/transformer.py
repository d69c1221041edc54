"""A Qwen3 decoder: dataclass of sizes, nested dict of arrays, plain functions.

Parameters carry the names of the Hugging Face checkpoint; layers are stacked on a leading axis:

    embed_tokens [vocab, embed]      norm [embed]      lm_head [embed, vocab] (absent when tied)
    layers: input_layernorm, post_attention_layernorm [layer, embed]
            q_norm, k_norm [layer, head_dim]
            q_proj [layer, embed, heads*head_dim]; k_proj, v_proj [layer, embed, kv_heads*head_dim]
            o_proj [layer, heads*head_dim, embed]; gate_proj, up_proj [layer, embed, mlp]; down_proj

Training scans over the stacked layers (one compiled layer, whatever the depth); decoding unrolls
them (`drift_jax.sampling`). Both call the same `decoder_layer` and differ only in how they attend.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from drift_jax.models import kv_cache

Params = dict[str, Any]
# (query [token, heads, head_dim], key and value [token, kv_heads, head_dim]) -> like query
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}; every key-value head serves as many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is odd; rotary embedding turns pairs, use an even one"
            )


# Shape and logical axes of every parameter, in one place: initialisation, checkpoint conversion and
# sharding all read it. `layer` is the stacking axis.
def parameter_shapes(config: ModelConfig) -> Params:
    """(shape, logical axes) of every parameter, in the structure of the parameter tree."""
    layers, embed, mlp = config.num_layers, config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Params = {
        "embed_tokens": ((config.vocab_size, embed), ("vocab", "embed")),
        "layers": {
            "input_layernorm": ((layers, embed), ("layer", None)),
            "q_proj": ((layers, embed, query), ("layer", "embed", "heads")),
            "k_proj": ((layers, embed, key), ("layer", "embed", "kv_heads")),
            "v_proj": ((layers, embed, key), ("layer", "embed", "kv_heads")),
            "o_proj": ((layers, query, embed), ("layer", "heads", "embed")),
            "q_norm": ((layers, config.head_dim), ("layer", None)),
            "k_norm": ((layers, config.head_dim), ("layer", None)),
            "post_attention_layernorm": ((layers, embed), ("layer", None)),
            "gate_proj": ((layers, embed, mlp), ("layer", "embed", "mlp")),
            "up_proj": ((layers, embed, mlp), ("layer", "embed", "mlp")),
            "down_proj": ((layers, mlp, embed), ("layer", "mlp", "embed")),
        },
        "norm": ((embed,), (None,)),
    }
    if not config.tie_embeddings:
        shapes["lm_head"] = ((embed, config.vocab_size), ("embed", "vocab"))
    return shapes


def _is_leaf(node: Any) -> bool:
    return isinstance(node, tuple)


def logical_axes(config: ModelConfig) -> Params:
    """Logical axis names of every parameter; `drift_jax.sharding` maps them to the mesh."""
    return jax.tree.map(lambda leaf: leaf[1], parameter_shapes(config), is_leaf=_is_leaf)


def init(config: ModelConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32) -> Params:
    """Random parameters: norms at one, matrices normal with standard deviation 1/sqrt(fan in)."""
    shapes, structure = jax.tree.flatten(parameter_shapes(config), is_leaf=_is_leaf)
    leaves = []
    for leaf_key, (shape, axes) in zip(jax.random.split(key, len(shapes)), shapes, strict=True):
        if axes[-1] is None:  # a norm's scale
            leaves.append(jnp.ones(shape, dtype))
            continue
        # The (tied) embedding is also the output matrix, whose fan-in is the hidden size.
        fan_in = config.hidden_size if axes[0] == "vocab" else shape[-2]
        leaves.append(jax.random.normal(leaf_key, shape, dtype) * fan_in**-0.5)
    return jax.tree.unflatten(structure, leaves)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(wide.dtype)).astype(x.dtype)


def rotary_angles(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's rotation. [token] -> two [token, 1, head_dim/2]"""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding on [token, heads, head_dim]; pairs are (i, i + head_dim/2)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def decoder_layer(
    weights: Params,
    config: ModelConfig,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> jax.Array:
    """One pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    Tokens stay flat, [token, embed], since XLA:CPU copies three-dimensional operands of the
    weights' gradients (2x the time of a layer's backward pass); only `attend` knows rows and times.
    """
    normed = rms_norm(x, weights["input_layernorm"], config.rms_norm_eps)
    heads = (x.shape[0], -1, config.head_dim)
    query, key, value = ((normed @ weights[f"{name}_proj"]).reshape(heads) for name in "qkv")
    query = rotate(rms_norm(query, weights["q_norm"], config.rms_norm_eps), angles)
    key = rotate(rms_norm(key, weights["k_norm"], config.rms_norm_eps), angles)
    mixed = attend(query, key, value)
    x = x + mixed.reshape(x.shape[0], -1) @ weights["o_proj"]
    normed = rms_norm(x, weights["post_attention_layernorm"], config.rms_norm_eps)
    gated = jax.nn.silu(normed @ weights["gate_proj"]) * (normed @ weights["up_proj"])
    return x + gated @ weights["down_proj"]


def cast(params: Params, dtype: jnp.dtype | None) -> Params:
    """The parameters in the compute dtype; None keeps them as they are."""
    return params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def output_head(params: Params) -> jax.Array:
    """The matrix from final hidden states to logits. [embed, vocab]."""
    return params["lm_head"] if "lm_head" in params else params["embed_tokens"].T


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    *,
    mask: jax.Array,
    remat: bool = False,
) -> jax.Array:
    """Final hidden states, after the last norm: what the vocabulary head reads.

    Args:
      params: parameters, in the dtype of the computation.
      config: the sizes.
      tokens: token ids. [batch, time]
      mask: which tokens are real; either side may be padded. [batch, time] bool
      remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
      [batch, time, embed]; finite but meaningless where `mask` is False.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    angles = rotary_angles(positions.reshape(-1), config)
    visible = kv_cache.causal_mask(mask)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        rows = (x.reshape(*mask.shape, *x.shape[1:]) for x in (query, key, value))
        return jax.nn.dot_product_attention(*rows, mask=visible).reshape(query.shape)

    def one_layer(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        return decoder_layer(weights, config, x, angles, attend), None

    body = jax.checkpoint(one_layer) if remat else one_layer
    x, _ = jax.lax.scan(body, params["embed_tokens"][tokens.reshape(-1)], params["layers"])
    return rms_norm(x, params["norm"], config.rms_norm_eps).reshape(*mask.shape, -1)


def forward(
    params: Params, config: ModelConfig, tokens: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Logits of every position, for notebooks and tests (training never forms them all).

    Args:
      params: parameters.
      config: the sizes.
      tokens: token ids. [batch, time]
      mask: which tokens are real; positions count them. None means all. [batch, time] bool

    Returns:
      [batch, time, vocab], float32 at least.
    """
    tokens = jnp.asarray(tokens)
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask, bool)
    hidden = hidden_states(params, config, tokens, mask=mask)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.matmul(hidden, output_head(params), preferred_element_type=wide)
