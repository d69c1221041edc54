"""A decoder as a dataclass of settings, nested dicts of arrays and plain functions.

The settings cover the families that `drift_jax.models.hf_config` reads:

    Qwen3            norm before each sublayer, QK-norm per head
    Qwen2.5          norm before, bias on q, k and v
    Llama 3, SmolLM2 norm before, llama3 rope scaling or none
    OLMo3            norm after each sublayer, QK-norm over the whole projection, sliding-window
                     layers between full ones, YaRN on the full ones

Parameters carry the names of the Hugging Face checkpoint; layers are stacked on a leading axis.
`parameter_shapes` is the one table of them. Training scans over the stacked layers, a period of the
attention pattern at a time (one compiled layer, whatever the depth, where all attend alike);
decoding unrolls them (`drift_jax.sampling`). Both call the same `decoder_layer` and differ only in
how they attend.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from drift_jax.models import kv_cache, rotary

Params = dict[str, Any]
# (query [token, heads, head_dim], key and value [token, kv_heads, head_dim]) -> like query
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

FULL, SLIDING = "full_attention", "sliding_attention"
QK_NORMS = ("none", "head", "projection")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of a decoder; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      rope_theta: base of the rotary frequencies.
      rope_scaling: stretches them in full-attention layers; sliding ones never see far tokens.
      tie_embeddings: the output matrix is the embedding; there is no `lm_head`.
      attention_bias: q, k and v have a bias.
      qk_norm: norm of queries and keys: "none", each "head", or the whole "projection" before it
        is split into heads.
      norm_after: norm what a sublayer puts out, instead of what goes in.
      layer_types: "full_attention" or "sliding_attention" for each layer; empty is all full.
      sliding_window: how many tokens a sliding layer sees, the present one included.
      max_position_embeddings: longest text that the model is meant for; no computation uses it.
    """

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
    attention_bias: bool = False
    qk_norm: str = "head"
    norm_after: bool = False
    rope_scaling: rotary.Scaling | None = None
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    max_position_embeddings: int = 32768

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
        if self.qk_norm not in QK_NORMS:
            raise ValueError(f"qk_norm is {self.qk_norm!r}; expected one of {QK_NORMS}")
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_layers is "
                f"{self.num_layers}; name each layer"
            )
        if unknown := sorted(set(self.layer_types) - {FULL, SLIDING}):
            raise ValueError(f"layer_types has {unknown}; expected {FULL!r} and {SLIDING!r}")
        if SLIDING in self.layer_types and (self.sliding_window or 0) < 1:
            raise ValueError(
                f"sliding_window is {self.sliding_window} but layer_types has sliding layers; "
                "expected at least 1 token"
            )
        if SLIDING not in self.layer_types:  # configurations that compute the same are equal
            object.__setattr__(self, "layer_types", ())
            object.__setattr__(self, "sliding_window", None)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The shortest run of layer types that, repeated, gives the whole stack."""
        types = self.layer_types or (FULL,) * self.num_layers
        periods = (n for n in range(1, self.num_layers + 1) if self.num_layers % n == 0)
        return next(types[:n] for n in periods if types == types[:n] * (self.num_layers // n))

    def layer_type(self, layer: int) -> str:
        """How a layer attends."""
        return self.layer_types[layer] if self.layer_types else FULL

    def window(self, layer_type: str) -> int | None:
        """How many tokens a layer of this type sees, the present one included; None is all."""
        return self.sliding_window if layer_type == SLIDING else None


# Shape and logical axes of every parameter, in one place: initialisation, checkpoint conversion and
# sharding all read it. `layer` is the stacking axis.
def parameter_shapes(config: ModelConfig) -> Params:
    """(shape, logical axes) of every parameter, in the structure of the parameter tree."""
    layers, embed, mlp = config.num_layers, config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norm = ((layers, embed), ("layer", None))
    layer: Params = {
        "q_proj": ((layers, embed, query), ("layer", "embed", "heads")),
        "k_proj": ((layers, embed, key), ("layer", "embed", "kv_heads")),
        "v_proj": ((layers, embed, key), ("layer", "embed", "kv_heads")),
        "o_proj": ((layers, query, embed), ("layer", "heads", "embed")),
        "gate_proj": ((layers, embed, mlp), ("layer", "embed", "mlp")),
        "up_proj": ((layers, embed, mlp), ("layer", "embed", "mlp")),
        "down_proj": ((layers, mlp, embed), ("layer", "mlp", "embed")),
        "post_attention_layernorm": norm,
        # The checkpoints name norms by their place: the one between the sublayers is the second
        # sublayer's input norm in one arrangement and the first one's output norm in the other.
        "post_feedforward_layernorm" if config.norm_after else "input_layernorm": norm,
    }
    if config.attention_bias:
        layer["q_bias"] = ((layers, query), ("layer", "heads"))
        layer["k_bias"] = layer["v_bias"] = ((layers, key), ("layer", "kv_heads"))
    if config.qk_norm != "none":
        whole = config.qk_norm == "projection"
        layer["q_norm"] = ((layers, query if whole else config.head_dim), ("layer", None))
        layer["k_norm"] = ((layers, key if whole else config.head_dim), ("layer", None))
    shapes: Params = {
        "embed_tokens": ((config.vocab_size, embed), ("vocab", "embed")),
        "layers": layer,
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
    """Random parameters: norms at one, biases at zero, matrices normal with 1/sqrt(fan in)."""
    shapes, structure = jax.tree_util.tree_flatten_with_path(
        parameter_shapes(config), is_leaf=_is_leaf
    )
    leaves = []
    for leaf_key, (path, (shape, axes)) in zip(
        jax.random.split(key, len(shapes)), shapes, strict=True
    ):
        name = path[-1].key
        if name.endswith("norm"):
            leaves.append(jnp.ones(shape, dtype))
        elif name.endswith("bias"):
            leaves.append(jnp.zeros(shape, dtype))
        else:
            # The (tied) embedding is also the output matrix, whose fan-in is the hidden size.
            fan_in = config.hidden_size if axes[0] == "vocab" else shape[-2]
            leaves.append(jax.random.normal(leaf_key, shape, dtype) * fan_in**-0.5)
    return jax.tree.unflatten(structure, leaves)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(wide.dtype)).astype(x.dtype)


def rotary_angles(
    positions: jax.Array, config: ModelConfig, layer_type: str = FULL
) -> rotary.Angles:
    """Cosine and sine of each position's rotation in the layers of a type.

    Args:
      positions: [token]
      config: the settings.
      layer_type: sliding layers turn without `rope_scaling`.

    Returns:
      Two of [token, 1, head_dim/2], float32.
    """
    scaling = None if layer_type == SLIDING else config.rope_scaling
    return rotary.angles(positions, config.head_dim, config.rope_theta, scaling)


def angles_by_type(positions: jax.Array, config: ModelConfig) -> dict[str, rotary.Angles]:
    """`rotary_angles` of each type of layer that the model has."""
    return {kind: rotary_angles(positions, config, kind) for kind in dict.fromkeys(config.pattern)}


def decoder_layer(
    weights: Params,
    config: ModelConfig,
    x: jax.Array,
    angles: rotary.Angles,
    attend: Attend,
) -> jax.Array:
    """One block: attention, then the gated MLP, each added to x; a norm stands before or after.

    Tokens stay flat, [token, embed], since XLA:CPU copies three-dimensional operands of the
    weights' gradients (2x the time of a layer's backward pass); only `attend` knows rows and times.
    """

    def norm(x: jax.Array, name: str) -> jax.Array:
        return rms_norm(x, weights[f"{name}_layernorm"], config.rms_norm_eps)

    if config.norm_after:
        x = x + norm(_attention(weights, config, x, angles, attend), "post_attention")
        return x + norm(_mlp(weights, x), "post_feedforward")
    x = x + _attention(weights, config, norm(x, "input"), angles, attend)
    return x + _mlp(weights, norm(x, "post_attention"))


def _attention(
    weights: Params, config: ModelConfig, x: jax.Array, angles: rotary.Angles, attend: Attend
) -> jax.Array:
    def project(name: str) -> jax.Array:
        """Queries, keys or values of all heads. [token, heads, head_dim]"""
        projected = x @ weights[f"{name}_proj"]
        if config.attention_bias:
            projected = projected + weights[f"{name}_bias"]
        heads = (x.shape[0], -1, config.head_dim)
        if name == "v" or config.qk_norm == "none":
            return projected.reshape(heads)
        scale = weights[f"{name}_norm"]
        if config.qk_norm == "projection":
            return rms_norm(projected, scale, config.rms_norm_eps).reshape(heads)
        return rms_norm(projected.reshape(heads), scale, config.rms_norm_eps)

    query, key, value = (project(name) for name in "qkv")
    mixed = attend(rotary.rotate(query, angles), rotary.rotate(key, angles), value)
    return mixed.reshape(x.shape[0], -1) @ weights["o_proj"]


def _mlp(weights: Params, x: jax.Array) -> jax.Array:
    gated = jax.nn.silu(x @ weights["gate_proj"]) * (x @ weights["up_proj"])
    return gated @ weights["down_proj"]


def layer_weights(stacked: Params, index: int) -> Params:
    """The parameters of one layer of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


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
      config: the settings.
      tokens: token ids. [batch, time]
      mask: which tokens are real; either side may be padded. [batch, time] bool
      remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
      [batch, time, embed]; finite but meaningless where `mask` is False.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0).reshape(-1)
    pattern = config.pattern
    angles = angles_by_type(positions, config)
    visible = kv_cache.causal_mask(mask)

    def one_layer(x: jax.Array, weights: Params, kind: str) -> jax.Array:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            rows = (x.reshape(*mask.shape, *x.shape[1:]) for x in (query, key, value))
            return kv_cache.attend_rows(*rows, visible=visible, window=config.window(kind)).reshape(
                query.shape
            )

        return decoder_layer(weights, config, x, angles[kind], attend)

    layer = jax.checkpoint(one_layer, static_argnums=2) if remat else one_layer
    layers, period = params["layers"], len(pattern)
    if period > 1:  # else left as it is: XLA:CPU would copy the gradients of reshaped weights
        layers = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), layers)

    def one_period(x: jax.Array, stacked: Params) -> tuple[jax.Array, None]:
        for index, kind in enumerate(pattern):
            weights = stacked if period == 1 else layer_weights(stacked, index)
            x = layer(x, weights, kind)
        return x, None

    x, _ = jax.lax.scan(one_period, params["embed_tokens"][tokens.reshape(-1)], layers)
    return rms_norm(x, params["norm"], config.rms_norm_eps).reshape(*mask.shape, -1)


def forward(
    params: Params, config: ModelConfig, tokens: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Logits of every position, for notebooks and tests (training never forms them all).

    Args:
      params: parameters.
      config: the settings.
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
