"""Compaction, growth and refill change where and when rows are decoded, never what is drawn."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import sharding
from drift_jax.models import transformer
from drift_jax.sampling import Sampler, decode, random_streams
from drift_jax.types import Rollouts
from tests import tiny
from tests.sampling.exactness import assert_same_but_at_boundaries, rows_of

GROUP, LIMIT = 3, 20
STOPS = tuple(range(6, 12))  # 6 of 97 tokens: responses of all lengths
PROMPTS = tiny.prompts(6)
IDS = [f"task/train/{i}" for i in range(6)]
PROBLEMS = [{"id": i, "prompt": p} for i, p in zip(IDS, PROMPTS, strict=True)]
PARAMS = tiny.params()
PLAIN = Sampler(tiny.CONFIG, prompt_buckets=(12,))
COMPACT = {"row_buckets": (4, 8)}
GROW = {"cache_buckets": (20, 26), "segment_steps": 4}
REFILL = {"max_rows": 8}


def draw(sampler=PLAIN, problems=PROBLEMS, step=1, params=PARAMS, **settings) -> Rollouts:
    settings = {"group_size": GROUP, "max_new_tokens": LIMIT, "stop_tokens": STOPS} | settings
    return sampler.generate(
        params,
        [problem["prompt"] for problem in problems],
        stream=random_streams(0, step, [problem["id"] for problem in problems]),
        **settings,
    )


@pytest.fixture(scope="module")
def expected() -> Rollouts:
    """Without any mechanism: as many rows as rollouts, one segment, full caches."""
    rollouts = draw()
    assert len(set(rollouts.lengths)) > 6 and rollouts.lengths.max() == LIMIT
    return rollouts


@pytest.fixture
def moves(monkeypatch) -> collections.Counter:
    """Counts the moves of a call by kind; the moves themselves happen."""
    seen: collections.Counter = collections.Counter()
    move, admit = decode.move, decode.admit

    def counted(state, rows, keep, shift, *, slots, mesh):
        before = (len(state.alive), state.caches[0].slots)
        seen["fewer rows"] += len(rows) < before[0]
        seen["longer"] += slots > before[1]
        seen["shorter"] += slots < before[1]
        seen["shifted"] += int(shift) > 0
        return move(state, rows, keep, shift, slots=slots, mesh=mesh)

    def admitted(*arguments, **settings):
        seen["admitted"] += 1
        return admit(*arguments, **settings)

    monkeypatch.setattr(decode, "move", counted)
    monkeypatch.setattr(decode, "admit", admitted)
    return seen


@pytest.mark.parametrize(
    "change, happens",
    [
        (COMPACT, {"fewer rows"}),
        (GROW, {"longer"}),
        (REFILL, {"shifted"}),
        (COMPACT | GROW | REFILL, {"fewer rows", "longer", "shifted"}),
    ],
    ids=["compaction", "growth", "refill", "all"],
)
def test_the_same_tokens_and_log_probs_with_and_without(change, happens, expected, moves):
    changed = draw(dataclasses.replace(PLAIN, **change))
    assert {kind for kind in happens if moves[kind]} == happens
    assert (moves["admitted"] > 1) == ("max_rows" in change)
    assert_same_but_at_boundaries(changed, expected, PROBLEMS, GROUP)
    np.testing.assert_array_equal(changed.mask.sum(1), changed.lengths)
    assert not changed.tokens[~changed.mask].any()


def test_caches_become_shorter_when_a_long_row_has_left(moves):
    problems = [{"id": str(i), "prompt": p} for i, p in enumerate(tiny.prompts(18, seed=3))]
    settings = {"group_size": 1, "stop_tokens": tuple(range(6, 22)), "problems": problems}
    plain = draw(**settings)
    moved = draw(dataclasses.replace(PLAIN, **COMPACT | GROW | {"max_rows": 4}), **settings)
    assert moves["longer"] and moves["shorter"] and moves["shifted"]
    assert_same_but_at_boundaries(moved, plain, problems, 1)


def test_another_order_of_the_problems_gives_each_the_same(expected):
    sampler = dataclasses.replace(PLAIN, **COMPACT | GROW | REFILL)
    order = [4, 2, 5, 0, 3, 1]
    moved = draw(sampler, [PROBLEMS[i] for i in order])
    rows = np.concatenate([np.arange(GROUP) + GROUP * i for i in order])
    same = Rollouts(
        **{f.name: getattr(expected, f.name)[rows] for f in dataclasses.fields(expected)}
    )
    assert_same_but_at_boundaries(moved, same, [PROBLEMS[i] for i in order], GROUP)


def test_eight_devices_compact_and_refill_like_one(expected, moves):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    # 4 is no multiple of the devices and is left out.
    settings = {"row_buckets": (4, 8), "max_rows": 16, "segment_steps": 8, "mesh": mesh}
    many = draw(dataclasses.replace(PLAIN, **settings))
    assert moves["fewer rows"] and moves["admitted"] > 1
    assert_same_but_at_boundaries(many, expected, PROBLEMS, GROUP)


def test_a_group_larger_than_the_batch_is_split(expected):
    alone = draw(dataclasses.replace(PLAIN, max_rows=2), PROBLEMS[:2])
    same = rows_of(expected, slice(6))
    assert_same_but_at_boundaries(alone, same, PROBLEMS[:2], GROUP)


def test_one_problem_alone_is_what_it_is_among_others(expected):
    alone = draw(dataclasses.replace(PLAIN, **COMPACT), PROBLEMS[2:3])
    same = Rollouts(
        **{f.name: getattr(expected, f.name)[6:9] for f in dataclasses.fields(expected)}
    )
    assert_same_but_at_boundaries(alone, same, PROBLEMS[2:3], GROUP)


def test_no_prompt_gives_no_rollout():
    rollouts = draw(problems=[])
    assert rollouts.tokens.shape == rollouts.log_probs.shape == (0, LIMIT)
    assert rollouts.finished.shape == (0,)


@pytest.mark.parametrize("limit", [1, 7])
def test_a_smaller_limit_cuts_the_same_responses(limit, expected):
    sampler = dataclasses.replace(PLAIN, **COMPACT | GROW | REFILL)
    short = draw(sampler, max_new_tokens=limit)
    np.testing.assert_array_equal(short.lengths, np.minimum(expected.lengths, limit))
    np.testing.assert_array_equal(short.finished, expected.finished & (expected.lengths <= limit))
    # Equal but for draws at a boundary; none of these 18 rows has one so early.
    np.testing.assert_array_equal(short.tokens, expected.tokens[:, :limit] * short.mask)


def test_greedy_decoding_moves_like_any_other():
    settings = {"temperature": 0.0, "group_size": 1}
    plain = draw(**settings)
    moved = draw(dataclasses.replace(PLAIN, row_buckets=(2,), max_rows=3), **settings)
    np.testing.assert_array_equal(moved.tokens, plain.tokens)
    np.testing.assert_allclose(moved.log_probs, plain.log_probs, atol=1e-5)


def test_fifty_random_calls_after_precompiling_compile_nothing():
    # A model of its own, so that nothing is compiled already.
    model = dataclasses.replace(tiny.CONFIG, num_layers=1, rope_theta=7e3)
    params = transformer.init(model, jax.random.key(0))
    sampler = Sampler(
        model,
        prompt_buckets=(6, 12),
        row_buckets=(4,),
        cache_buckets=(16, 24, 32),
        max_rows=8,
        segment_steps=4,
    )
    done = sampler.precompile(params, problems=range(1, 13), group_size=2, max_new_tokens=LIMIT)
    assert str(done) == f"{done.executables} executables in {done.seconds:.1f} s"
    before = decode.executables()
    assert 0 < done.executables <= before
    compiled = []

    def listen(name: str, seconds: float, **_: str) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 2.5)(1.5)
        assert len(compiled) == 1  # the listener hears a compilation
        rng = np.random.default_rng(0)
        for step in range(50):
            count = rng.integers(0, 13)
            stops = rng.choice(np.arange(5, 97), rng.integers(1, 16), replace=False)
            sampler.generate(
                params,
                tiny.prompts(count, seed=step),
                group_size=2,
                max_new_tokens=LIMIT,
                temperature=rng.choice([0.0, 0.6, 1.0]),
                top_p=rng.choice([0.9, 1.0]),
                top_k=rng.choice([0, 5]),
                stop_tokens=stops,
                stream=random_streams(0, step, [str(i) for i in range(count)]),
            )
        assert len(compiled) == 1
        assert decode.executables() == before
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_decoding_step_copies_no_cache(kv_heads):
    model = dataclasses.replace(tiny.CONFIG, num_kv_heads=kv_heads)
    params = decode.unstacked(transformer.init(model, jax.random.key(0)), config=model, dtype=None)
    state = decode.blank(params, jnp.int32(12), rows=6, slots=22, config=model, mesh=None)
    controls = decode.Controls(
        temperature=jnp.float32(1),
        top_p=jnp.float32(1),
        top_k=jnp.int32(0),
        stop_tokens=jnp.zeros(decode.MAX_STOP_TOKENS, jnp.int32),
        limit=jnp.int32(10),
    )
    lowered = decode.decode_segment.lower(
        params, state, controls, jnp.int32(8), jnp.int32(0), columns=8, config=model
    )
    program = lowered.compile().as_text()
    shape = rf"f32\[6,{kv_heads},(?:8,22|22,8)\]"
    assert re.search(shape, program)  # the caches are there under this shape
    assert not re.findall(rf"= {shape}\S* copy\(", program)
