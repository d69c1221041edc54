"""Sampling: each prompt is prefilled once for its whole group, then all rows decode together.

    prefill(prompts)             -> DecodeState   one pass over the prompts, caches copied a group
    decode_segment(state, steps) -> DecodeState   up to `steps` tokens, sooner if all rows are done
    Sampler.generate             -> Rollouts      calls both, returns numpy

What varies between calls (temperature, top-p, top-k, stop tokens, the limit) is a traced value, so
one executable serves training and evaluation, and no stop set of an earlier call survives in it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from drift_jax import batching, sharding
from drift_jax.models import kv_cache, transformer
from drift_jax.models.kv_cache import LayerCache
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.sampling.choose import choose
from drift_jax.sampling.randomness import row_keys, token_uniforms
from drift_jax.types import Rollouts

MAX_STOP_TOKENS = 16


@struct.dataclass
class DecodeState:
    """Everything between two segments. A row is one rollout; slots count prompt and response."""

    caches: tuple[LayerCache, ...]  # a layer
    filled: jax.Array  # [rows, slots] bool, which slots hold a token of the row
    hidden: jax.Array  # [rows, embed], final hidden state of the last token
    position: jax.Array  # [rows] int32, rotary position of the next token
    produced: jax.Array  # scalar int32, tokens decoded so far
    done: jax.Array  # [rows] bool, a stop token was produced
    keys: jax.Array  # [rows, 2] uint32, random stream of the row
    tokens: jax.Array  # [rows, time] int32
    mask: jax.Array  # [rows, time] bool
    log_probs: jax.Array  # [rows, time] float32
    entropies: jax.Array  # [rows, time] float32


@struct.dataclass
class Controls:
    """The traced settings of a call."""

    temperature: jax.Array  # scalar, 0 is greedy
    top_p: jax.Array  # scalar
    top_k: jax.Array  # scalar int32, 0 is off
    stop_tokens: jax.Array  # [MAX_STOP_TOKENS] int32, unused places -1
    limit: jax.Array  # scalar int32, most tokens of a response


@functools.partial(jax.jit, static_argnames=("config", "group_size", "new_slots", "dtype"))
def prefill(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    streams: jax.Array,
    *,
    config: ModelConfig,
    group_size: int,
    new_slots: int,
    dtype: jnp.dtype | None = None,
) -> DecodeState:
    """Runs every prompt once and gives each of its rollouts a copy of its keys and values.

    Args:
      params: parameters.
      tokens: left-padded prompts. [problem, time]
      mask: which are real. [problem, time] bool
      streams: random stream of each problem. [problem, 2] uint32
      config: the model's settings.
      group_size: rollouts a prompt.
      new_slots: room for the response, the longest that any call may ask of this state.
      dtype: dtype of the computation; None keeps the parameters'.
    """
    params = transformer.cast(params, dtype)
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    angles = transformer.angles_by_type(positions.reshape(-1), config)
    visible = kv_cache.causal_mask(mask)
    x = params["embed_tokens"][tokens.reshape(-1)]
    caches = []
    slots = tokens.shape[1] + new_slots
    for layer in range(config.num_layers):
        kind = config.layer_type(layer)
        kept: list[LayerCache] = []

        def attend(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            window: int | None = config.window(kind),
            kept: list[LayerCache] = kept,
        ) -> jax.Array:
            rows = [x.reshape(*mask.shape, *x.shape[1:]) for x in (query, key, value)]
            kept.append(kv_cache.from_prefill(*rows[1:], copies=group_size, slots=slots))
            return kv_cache.attend_rows(*rows, visible=visible, window=window).reshape(query.shape)

        weights = transformer.layer_weights(params["layers"], layer)
        x = transformer.decoder_layer(weights, config, x, angles[kind], attend)
        caches += kept
    last = x.reshape(*mask.shape, -1)[:, -1]
    hidden = transformer.rms_norm(last, params["norm"], config.rms_norm_eps)
    rows = tokens.shape[0] * group_size
    return DecodeState(
        caches=tuple(caches),
        filled=jnp.pad(jnp.repeat(mask, group_size, axis=0), ((0, 0), (0, new_slots))),
        hidden=jnp.repeat(hidden, group_size, axis=0),
        position=jnp.repeat(positions[:, -1] + 1, group_size, axis=0).astype(jnp.int32),
        produced=jnp.int32(0),
        done=jnp.zeros(rows, bool),
        keys=row_keys(streams, group_size),
        tokens=jnp.zeros((rows, new_slots), jnp.int32),
        mask=jnp.zeros((rows, new_slots), bool),
        log_probs=jnp.zeros((rows, new_slots), jnp.float32),
        entropies=jnp.zeros((rows, new_slots), jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("state",))
def decode_segment(
    params: Params,
    state: DecodeState,
    controls: Controls,
    steps: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype | None = None,
) -> DecodeState:
    """Decodes up to `steps` tokens of every row; ends sooner once all are done or at the limit.

    Args:
      params: parameters.
      state: from `prefill` or an earlier segment; its buffers are reused.
      controls: sampling settings.
      steps: scalar.
      config: the model's settings.
      dtype: dtype of the computation.
    """
    params = transformer.cast(params, dtype)
    layers = [
        transformer.layer_weights(params["layers"], layer) for layer in range(config.num_layers)
    ]
    end = jnp.minimum(state.produced + steps, controls.limit)

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.produced < end) & ~state.done.all()

    def one_token(state: DecodeState) -> DecodeState:
        state, token = _emit(params, state, controls)
        return _advance(params, layers, config, state, token)

    return jax.lax.while_loop(unfinished, one_token, state)


def _emit(params: Params, state: DecodeState, controls: Controls) -> tuple[DecodeState, jax.Array]:
    """Draws the next token of every row and writes it down. The stop token itself is kept."""
    logits = jnp.matmul(
        state.hidden, transformer.output_head(params), preferred_element_type=jnp.float32
    )
    choice = choose(
        logits,
        token_uniforms(state.keys, state.produced),
        temperature=controls.temperature,
        top_p=controls.top_p,
        top_k=controls.top_k,
    )
    alive = ~state.done
    stopped = (choice.token[:, None] == controls.stop_tokens).any(axis=-1)

    def write(buffer: jax.Array, column: jax.Array) -> jax.Array:
        column = jnp.where(alive, column, 0).astype(buffer.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(buffer, column, state.produced, axis=1)

    state = dataclasses.replace(
        state,
        tokens=write(state.tokens, choice.token),
        mask=write(state.mask, alive),
        log_probs=write(state.log_probs, choice.log_prob),
        entropies=write(state.entropies, choice.entropy),
        done=state.done | stopped,
    )
    return state, choice.token


def _advance(
    params: Params, layers: list[Params], config: ModelConfig, state: DecodeState, token: jax.Array
) -> DecodeState:
    """Runs one token of every row through the model."""
    slot = state.filled.shape[1] - state.tokens.shape[1] + state.produced
    filled = state.filled | (jnp.arange(state.filled.shape[1]) == slot)
    angles = transformer.angles_by_type(state.position, config)
    visible = {kind: kv_cache.within_window(filled, slot, config.window(kind)) for kind in angles}
    x = params["embed_tokens"][token]
    caches = []
    for layer, (weights, cache) in enumerate(zip(layers, state.caches, strict=True)):
        kind = config.layer_type(layer)
        kept: list[LayerCache] = []

        def attend(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            cache: LayerCache = cache,
            seen: jax.Array = visible[kind],
            kept: list[LayerCache] = kept,
        ) -> jax.Array:
            kept.append(kv_cache.append(cache, key, value, slot))
            return kv_cache.attend(kept[0], query, seen)

        x = transformer.decoder_layer(weights, config, x, angles[kind], attend)
        caches += kept
    return dataclasses.replace(
        state,
        caches=tuple(caches),
        filled=filled,
        hidden=transformer.rms_norm(x, params["norm"], config.rms_norm_eps),
        position=state.position + 1,
        produced=state.produced + 1,
    )


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model's sizes and the shapes that its sampling may take.

    Attributes:
      config: the model.
      prompt_buckets: prompt lengths that are compiled, ascending; a prompt is padded to the next
      one.
      max_rows: most rows decoded at once; more prompts are done in turns of equal shape.
      segment_steps: tokens between two looks at the device from the host.
      dtype: dtype of the computation; None keeps the parameters'.
      mesh: where the rows go; None is the default device.
    """

    config: ModelConfig
    prompt_buckets: tuple[int, ...]
    max_rows: int = 256
    segment_steps: int = 128
    dtype: jnp.dtype | None = None
    mesh: Mesh | None = None

    def generate(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_tokens: Sequence[int],
        stream: np.ndarray,
    ) -> Rollouts:
        """Samples `group_size` responses a prompt.

        Log-probs and entropies are those of the full distribution at temperature 1, whatever was
        used to draw. Tokens depend on the stream and on the model alone: not on the other prompts,
        their order or the padding (but for draws within rounding of a boundary).

        Args:
          params: the parameters that are trained; there is no second copy.
          prompts: token ids, one array a problem.
          group_size: responses a prompt.
          max_new_tokens: longest response, the stop token included.
          temperature: 0 is greedy.
          top_p: keep the smallest set of tokens of this mass.
          top_k: keep this many tokens; 0 is all.
          stop_tokens: any of these ends a response and is kept as its last token.
          stream: `random_streams` of the problems. [problem, 2]

        Returns:
          `Rollouts` of problem-major rows, [len(prompts) * group_size, max_new_tokens].

        Raises:
          ValueError: if a prompt is empty or longer than the largest bucket, or there are too many
            stop tokens.
        """
        stops = tuple(stop_tokens)
        if not 0 < len(stops) <= MAX_STOP_TOKENS:
            raise ValueError(f"{len(stops)} stop tokens; expected 1 to {MAX_STOP_TOKENS}")
        controls = Controls(
            temperature=jnp.float32(temperature),
            top_p=jnp.float32(top_p),
            top_k=jnp.int32(top_k),
            stop_tokens=jnp.array(stops + (-1,) * (MAX_STOP_TOKENS - len(stops)), jnp.int32),
            limit=jnp.int32(max_new_tokens),
        )
        at_once = min(len(prompts), max(1, self.max_rows // group_size))
        width = self._bucket(max((len(prompt) for prompt in prompts), default=0))
        parts = []
        for start in range(0, len(prompts), at_once):
            chosen = [*range(start, min(start + at_once, len(prompts)))]
            padded = chosen + chosen[:1] * (at_once - len(chosen))  # equal shapes, one executable
            tokens, mask = batching.left_pad([prompts[i] for i in padded], width)
            rollouts = self._decode(
                params, tokens, mask, stream[padded], controls, group_size, max_new_tokens
            )
            parts.append(_take(rollouts, slice(len(chosen) * group_size)))
        return _concatenate(parts)

    def _bucket(self, length: int) -> int:
        for bucket in self.prompt_buckets:
            if length <= bucket:
                return bucket
        raise ValueError(
            f"a prompt has {length} tokens but the largest prompt bucket is "
            f"{self.prompt_buckets[-1]}; drop it (data.max_prompt_tokens) or enlarge "
            "rollout.prompt_buckets"
        )

    def _decode(
        self,
        params: Params,
        tokens: np.ndarray,
        mask: np.ndarray,
        stream: np.ndarray,
        controls: Controls,
        group_size: int,
        max_new_tokens: int,
    ) -> Rollouts:
        arrays = (tokens, mask, stream)
        tokens, mask, stream = sharding.put_batch(self.mesh, arrays) if self.mesh else arrays
        state = prefill(
            params,
            tokens,
            mask,
            stream,
            config=self.config,
            group_size=group_size,
            new_slots=max_new_tokens,
            dtype=self.dtype,
        )
        steps = jnp.int32(self.segment_steps)
        for _ in range(0, max_new_tokens, self.segment_steps):
            state = decode_segment(
                params, state, controls, steps, config=self.config, dtype=self.dtype
            )
            if max_new_tokens > self.segment_steps and bool(jax.device_get(state.done.all())):
                break
        tokens, mask, log_probs, entropies, done = jax.device_get(
            (state.tokens, state.mask, state.log_probs, state.entropies, state.done)
        )
        return Rollouts(
            tokens=tokens, mask=mask, log_probs=log_probs, entropies=entropies, finished=done
        )


def _fields(rollouts: Rollouts) -> dict[str, np.ndarray]:
    return {field.name: getattr(rollouts, field.name) for field in dataclasses.fields(rollouts)}


def _take(rollouts: Rollouts, rows: slice) -> Rollouts:
    return Rollouts(**{name: array[rows] for name, array in _fields(rollouts).items()})


def _concatenate(parts: Sequence[Rollouts]) -> Rollouts:
    if len(parts) == 1:
        return parts[0]
    columns = [_fields(part) for part in parts]
    return Rollouts(
        **{name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    )
