"""The compiled parts of sampling; `drift_jax.sampling.sampler` decides when each is called.

    unstacked(params)                    the layers one by one, in the dtype of the computation
    prefill(params, prompts)             one pass over a few prompts
    blank(rows, slots)                   a state whose rows are all free
    admit(state, prefilled, rows)        gives free rows a prompt each, shared by its rollouts
    decode_segment(state, steps)         up to so many tokens a row; sooner if few rows are left
    move(state, rows, shift, slots)      fewer rows, longer or shorter caches

All rows write their token to the same slot, the clock; a prompt is put directly before the clock
of the moment when it comes in. So a row is contiguous, [first, clock), whenever it started, a step
updates one slice of each cache, and what lies before the first living row can be shifted out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from drift_jax import sharding
from drift_jax.models import kv_cache, transformer
from drift_jax.models.kv_cache import LayerCache
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.sampling.choose import Choice, choose
from drift_jax.sampling.randomness import rollout_keys, token_uniforms

MAX_STOP_TOKENS = 16


@struct.dataclass
class Prefilled:
    """A few prompts that went through the model."""

    caches: tuple[LayerCache, ...]  # a layer; rows are problems, slots the padded prompt
    hidden: jax.Array  # [problem, embed], final hidden state of the last token
    lengths: jax.Array  # [problem] int32
    streams: jax.Array  # [problem, 2] uint32, random streams


@struct.dataclass
class DecodeState:
    """Everything between two segments. A row is one rollout."""

    caches: tuple[LayerCache, ...]  # a layer
    clock: jax.Array  # scalar int32, the slot that the next token of every row goes to
    first: jax.Array  # [rows] int32, slot of the first token of the prompt
    start: jax.Array  # [rows] int32, slot of the first token of the response
    hidden: jax.Array  # [rows, embed], final hidden state of the last token
    alive: jax.Array  # [rows] bool; False: free, or finished
    keys: jax.Array  # [rows, 2] uint32, random stream of the row


@struct.dataclass
class Controls:
    """The traced settings of a call: one executable serves them all."""

    temperature: jax.Array  # scalar, 0 is greedy
    top_p: jax.Array  # scalar
    top_k: jax.Array  # scalar int32, 0 is off
    stop_tokens: jax.Array  # [MAX_STOP_TOKENS] int32, unused places -1
    limit: jax.Array  # scalar int32, most tokens of a response


@struct.dataclass
class Emitted:
    """What a segment drew, a column a step."""

    live: jax.Array  # [columns, rows] bool, whether there is a token
    tokens: jax.Array  # [columns, rows] int32
    log_probs: jax.Array  # [columns, rows] float32
    entropies: jax.Array  # [columns, rows] float32


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def unstacked(params: Params, *, config: ModelConfig, dtype: jnp.dtype | None) -> Params:
    """The parameters with a tuple of layers, so that no segment has to cut them out of the stack.

    Args:
      params: parameters.
      config: the model's settings.
      dtype: dtype of the computation; None keeps the parameters'.
    """
    params = transformer.cast(params, dtype)
    layers = range(config.num_layers)
    return params | {
        "layers": tuple(transformer.layer_weights(params["layers"], layer) for layer in layers)
    }


@functools.partial(jax.jit, static_argnames=("config",))
def prefill(
    params: Params, tokens: jax.Array, mask: jax.Array, streams: jax.Array, *, config: ModelConfig
) -> Prefilled:
    """Runs every prompt once.

    Args:
      params: `unstacked` parameters.
      tokens: left-padded prompts. [problem, time]
      mask: which are real. [problem, time] bool
      streams: random stream of each problem. [problem, 2] uint32
      config: the model's settings.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    angles = transformer.angles_by_type(positions.reshape(-1), config)
    visible = kv_cache.causal_mask(mask)
    x = params["embed_tokens"][tokens.reshape(-1)]
    caches: list[LayerCache] = []
    for layer, weights in enumerate(params["layers"]):
        kind = config.layer_type(layer)

        def attend(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            window: int | None = config.window(kind),
        ) -> jax.Array:
            rows = [x.reshape(*mask.shape, *x.shape[1:]) for x in (query, key, value)]
            caches.append(kv_cache.from_prefill(*rows[1:]))
            return kv_cache.attend_rows(*rows, visible=visible, window=window).reshape(query.shape)

        x = transformer.decoder_layer(weights, config, x, angles[kind], attend)
    last = x.reshape(*mask.shape, -1)[:, -1]
    return Prefilled(
        caches=tuple(caches),
        hidden=transformer.rms_norm(last, params["norm"], config.rms_norm_eps),
        lengths=mask.sum(axis=-1, dtype=jnp.int32),
        streams=streams,
    )


@functools.partial(jax.jit, static_argnames=("rows", "slots", "config", "mesh"))
def blank(
    params: Params,
    clock: jax.Array,
    *,
    rows: int,
    slots: int,
    config: ModelConfig,
    mesh: Mesh | None,
) -> DecodeState:
    """A state whose rows are all free.

    Args:
      params: `unstacked` parameters, for their dtype.
      clock: scalar, room for the longest prompt that will be admitted first.
      rows: rows decoded at once.
      slots: length of the caches.
      config: the model's settings.
      mesh: where the rows go; None is the default device.
    """
    dtype = params["embed_tokens"].dtype
    cache = functools.partial(
        kv_cache.empty, rows, config.num_kv_heads, config.head_dim, slots, dtype
    )
    state = DecodeState(
        caches=tuple(cache() for _ in range(config.num_layers)),
        clock=clock,
        first=jnp.zeros(rows, jnp.int32),
        start=jnp.zeros(rows, jnp.int32),
        hidden=jnp.zeros((rows, config.hidden_size), dtype),
        alive=jnp.zeros(rows, bool),
        keys=jnp.zeros((rows, 2), jnp.uint32),
    )
    return _placed(state, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def admit(
    state: DecodeState,
    prefilled: Prefilled,
    problem: jax.Array,
    rollout: jax.Array,
    *,
    mesh: Mesh | None,
) -> DecodeState:
    """Gives rows a prompt; the rollouts of a problem copy its keys and values.

    Args:
      state: its buffers are reused. The clock is at least the padded length of the prompts.
      prefilled: the prompts.
      problem: which of the prompts each row gets, -1 for none. [rows] int32
      rollout: which rollout of it the row is. [rows] int32
      mesh: as in `blank`.
    """
    fresh, chosen = problem >= 0, jnp.maximum(problem, 0)

    def new(values: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), values, old)

    state = dataclasses.replace(
        state,
        caches=tuple(
            kv_cache.insert(cache, prompts, chosen, fresh, state.clock)
            for cache, prompts in zip(state.caches, prefilled.caches, strict=True)
        ),
        first=new(state.clock - prefilled.lengths[chosen], state.first),
        start=new(state.clock, state.start),
        hidden=new(prefilled.hidden[chosen], state.hidden),
        alive=state.alive | fresh,
        keys=new(rollout_keys(prefilled.streams[chosen], rollout), state.keys),
    )
    return _placed(state, mesh)


@functools.partial(jax.jit, static_argnames=("slots", "mesh"))
def move(
    state: DecodeState,
    rows: jax.Array,
    keep: jax.Array,
    shift: jax.Array,
    *,
    slots: int,
    mesh: Mesh | None,
) -> DecodeState:
    """Takes some rows along and changes the length of the caches.

    Args:
      state: left as it is.
      rows: which old row each new one is. [new rows] int32
      keep: False for new rows that only fill up. [new rows] bool
      shift: scalar, how many slots go at the front; no living row may begin before it.
      slots: new length of the caches.
      mesh: as in `blank`.
    """
    moved = DecodeState(
        caches=tuple(kv_cache.moved(cache, rows, shift, slots) for cache in state.caches),
        clock=state.clock - shift,
        first=state.first[rows] - shift,
        start=state.start[rows] - shift,
        hidden=state.hidden[rows],
        alive=state.alive[rows] & keep,
        keys=state.keys[rows],
    )
    return _placed(moved, mesh)


@functools.partial(
    jax.jit, static_argnames=("columns", "config", "mesh"), donate_argnames=("state",)
)
def decode_segment(
    params: Params,
    state: DecodeState,
    controls: Controls,
    steps: jax.Array,
    leave_at: jax.Array,
    *,
    columns: int,
    config: ModelConfig,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, Emitted]:
    """Draws up to `steps` tokens of every row.

    Ends sooner once `leave_at` rows or fewer are alive: the host then has better use for the rest.

    Args:
      params: `unstacked` parameters.
      state: its buffers are reused.
      controls: sampling settings.
      steps: scalar, at most `columns`; the caches have as much room behind the clock.
      leave_at: scalar.
      columns: room for tokens.
      config: the model's settings.
      mesh: as in `blank`.
    """
    rows = state.alive.shape[0]
    emitted = Emitted(
        live=jnp.zeros((columns, rows), bool),
        tokens=jnp.zeros((columns, rows), jnp.int32),
        log_probs=jnp.zeros((columns, rows), jnp.float32),
        entropies=jnp.zeros((columns, rows), jnp.float32),
    )
    last = state.clock + steps

    def unfinished(carry: tuple[DecodeState, Emitted]) -> jax.Array:
        state, _ = carry
        return (state.clock < last) & (state.alive.sum() > leave_at)

    def one_token(carry: tuple[DecodeState, Emitted]) -> tuple[DecodeState, Emitted]:
        state, emitted = carry
        column = state.clock - last + steps
        choice, state = _draw(params, controls, state)
        emitted = jax.tree.map(
            lambda buffer, values: jax.lax.dynamic_update_index_in_dim(buffer, values, column, 0),
            emitted,
            Emitted(carry[0].alive, *choice),
        )
        return _advance(params, config, state, choice.token), emitted

    state, emitted = jax.lax.while_loop(unfinished, one_token, (state, emitted))
    return _placed(state, mesh), emitted


def executables() -> int:
    """How many functions of this module have been compiled, for all shapes together."""
    compiled = (unstacked, prefill, blank, admit, move, decode_segment)
    return sum(function._cache_size() for function in compiled)


def _draw(params: Params, controls: Controls, state: DecodeState) -> tuple[Choice, DecodeState]:
    """The next token of every row; a row ends with its stop token or at the limit."""
    logits = jnp.matmul(
        state.hidden, transformer.output_head(params), preferred_element_type=jnp.float32
    )
    age = state.clock - state.start
    choice = choose(
        logits,
        token_uniforms(state.keys, age),
        temperature=controls.temperature,
        top_p=controls.top_p,
        top_k=controls.top_k,
    )
    stopped = (choice.token[:, None] == controls.stop_tokens).any(axis=-1)
    alive = state.alive & ~stopped & (age + 1 < controls.limit)
    return choice, dataclasses.replace(state, alive=alive)


def _advance(
    params: Params, config: ModelConfig, state: DecodeState, token: jax.Array
) -> DecodeState:
    """Runs one token of every row through the model."""
    slot = state.clock
    angles = transformer.angles_by_type(slot - state.first, config)
    slots = state.caches[0].slots
    visible = {
        kind: kv_cache.visible_slots(state.first, slot, slots, config.window(kind))
        for kind in angles
    }
    x = params["embed_tokens"][token]
    caches: list[LayerCache] = []
    for layer, (weights, cache) in enumerate(zip(params["layers"], state.caches, strict=True)):
        kind = config.layer_type(layer)

        def attend(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            cache: LayerCache = cache,
            seen: jax.Array = visible[kind],
        ) -> jax.Array:
            caches.append(kv_cache.append(cache, key, value, slot))
            return kv_cache.attend(caches[-1], query, seen)

        x = transformer.decoder_layer(weights, config, x, angles[kind], attend)
    return dataclasses.replace(
        state,
        caches=tuple(caches),
        hidden=transformer.rms_norm(x, params["norm"], config.rms_norm_eps),
        clock=slot + 1,
    )


def _placed(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """The state laid out over the mesh by rows, the same whichever function it comes from."""
    if mesh is None:
        return state

    def place(leaf: jax.Array, *axes: str | None) -> jax.Array:
        axes = axes or ("batch", *(None,) * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, sharding.named(mesh, leaf.shape, axes))

    by_head = ("batch", "kv_heads", None, None)
    caches = tuple(
        LayerCache(key=place(cache.key, *by_head), value=place(cache.value, *by_head))
        for cache in state.caches
    )
    clock = jax.lax.with_sharding_constraint(state.clock, sharding.replicated(mesh))
    rows = {
        field.name: place(getattr(state, field.name))
        for field in dataclasses.fields(state)
        if field.name not in ("caches", "clock")
    }
    return DecodeState(caches=caches, clock=clock, **rows)
