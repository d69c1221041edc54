"""The sampler against re-running the prefix, and what its random numbers depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax import sharding
from drift_jax.sampling import Sampler, random_streams
from drift_jax.sampling.decode import executables
from drift_jax.sampling.randomness import row_keys, token_uniforms
from tests import tiny
from tests.sampling.exactness import (
    assert_same_but_at_boundaries,
    distance_to_a_boundary,
    rerun,
    rows_of,
)

GROUP, LIMIT, STOP = 3, 10, 2
SAMPLER = Sampler(tiny.CONFIG, prompt_buckets=(16, 32), segment_steps=4)
PROMPTS = tiny.prompts(4)
IDS = [f"task/train/{i}" for i in range(4)]
PARAMS = tiny.params()
PROBLEMS = [{"id": i, "prompt": p} for i, p in zip(IDS, PROMPTS, strict=True)]


def draw(sampler=SAMPLER, prompts=PROMPTS, ids=IDS, step=1, stop_tokens=(STOP,), **settings):
    settings = {"group_size": GROUP, "max_new_tokens": LIMIT} | settings
    return sampler.generate(
        PARAMS,
        prompts,
        stop_tokens=stop_tokens,
        stream=random_streams(0, step, ids),
        **settings,
    )


def test_cached_decoding_equals_rerunning_the_prefix():
    rollouts = draw()
    for row, length in enumerate(rollouts.lengths):
        tokens = rollouts.tokens[row, :length]
        log_probs = np.asarray(jax.nn.log_softmax(rerun(PROMPTS[row // GROUP], tokens)))
        entropies = -(np.exp(log_probs) * log_probs).sum(-1)
        picked = log_probs[np.arange(length), tokens]
        np.testing.assert_allclose(rollouts.log_probs[row, :length], picked, atol=1e-5)
        np.testing.assert_allclose(rollouts.entropies[row, :length], entropies, atol=1e-5)


def test_greedy_decoding_takes_the_largest_logit_of_the_uncached_model():
    rollouts = draw(temperature=0.0, group_size=1)
    for row, length in enumerate(rollouts.lengths):
        tokens = rollouts.tokens[row, :length]
        np.testing.assert_array_equal(tokens, rerun(PROMPTS[row], tokens).argmax(-1))


def test_group_prefill_equals_separate_prefill():
    together, separate = (
        draw(),
        [draw(prompts=[p], ids=[i]) for p, i in zip(PROMPTS, IDS, strict=True)],
    )
    for problem, alone in enumerate(separate):
        rows = slice(problem * GROUP, (problem + 1) * GROUP)
        assert_same_but_at_boundaries(alone, rows_of(together, rows), PROBLEMS[problem:], GROUP)


def test_the_distance_to_a_boundary_tells_a_draw_from_another():
    rollouts = draw()
    distances = [
        distance_to_a_boundary(PROBLEMS[row // GROUP], row % GROUP, rollouts.tokens[row, : t + 1])
        for row in range(4)
        for t in range(rollouts.lengths[row])
    ]
    assert 0 < min(distances) < 0.05 and max(distances) < 0.5


def test_rollouts_of_a_group_and_steps_differ():
    first, second = draw(step=1), draw(step=2)
    assert not np.array_equal(first.tokens[0], first.tokens[1])
    assert not np.array_equal(first.tokens, second.tokens)


def test_the_same_step_gives_the_same_samples():
    np.testing.assert_array_equal(draw().tokens, draw().tokens)


def test_tokens_do_not_depend_on_batch_order_bucket_segments_or_turns():
    expected = draw()
    order = [2, 0, 3, 1]
    rows = np.concatenate([np.arange(GROUP) + GROUP * i for i in order])
    moved = draw(prompts=[PROMPTS[i] for i in order], ids=[IDS[i] for i in order])
    assert_same_but_at_boundaries(
        moved, rows_of(expected, rows), [PROBLEMS[i] for i in order], GROUP
    )
    for change in ({"prompt_buckets": (32,)}, {"segment_steps": 128}, {"max_rows": 2 * GROUP + 1}):
        changed = draw(sampler=dataclasses.replace(SAMPLER, **change))
        assert_same_but_at_boundaries(changed, expected, PROBLEMS, GROUP)


def test_random_numbers_do_not_depend_on_the_batch():
    streams = random_streams(0, 1, IDS)
    keys = np.asarray(row_keys(jnp.asarray(streams), GROUP))
    alone = np.asarray(row_keys(jnp.asarray(random_streams(0, 1, IDS[2:3])), GROUP))
    np.testing.assert_array_equal(keys[2 * GROUP : 3 * GROUP], alone)
    uniforms = token_uniforms(jnp.asarray(keys), jnp.int32(5))
    assert len(np.unique(uniforms)) == uniforms.size
    assert (
        (random_streams(0, 1, IDS) != random_streams(0, 1, IDS, purpose="eval")).any(axis=1).all()
    )


def test_the_stop_token_is_kept_and_ends_the_row():
    # With a third of the vocabulary as stop set, most rows end early.
    stops = tuple(range(0, 32))
    rollouts = draw(stop_tokens=stops[:16])
    stopped = np.flatnonzero(rollouts.finished)
    assert len(stopped) > 0
    for row in stopped:
        length = rollouts.lengths[row]
        assert rollouts.tokens[row, length - 1] in stops
        assert not np.isin(rollouts.tokens[row, : length - 1], stops[:16]).any()
        assert not rollouts.tokens[row, length:].any()
    assert (rollouts.lengths[~rollouts.finished] == LIMIT).all()


def test_a_drawn_padding_id_is_a_token_like_any_other():
    rollouts = draw(group_size=64, temperature=5.0)
    drawn = (rollouts.tokens == 0) & (np.arange(LIMIT) < rollouts.lengths[:, None])
    assert drawn.any()
    assert rollouts.mask[drawn].all()


def test_stop_tokens_are_honoured_call_by_call():
    free = draw()
    early = int(free.tokens[0, 1])
    stopped = draw(stop_tokens=(STOP, early))
    assert stopped.lengths[0] <= 2 and stopped.finished[0]
    np.testing.assert_array_equal(draw().tokens, free.tokens)


def test_settings_are_traced_and_lengths_share_executables():
    draw()
    before = executables()
    for settings in ({"temperature": 0.6, "top_p": 0.95}, {"top_k": 5}, {"stop_tokens": (3, 4)}):
        draw(**settings)
    draw(prompts=tiny.prompts(4, seed=9), step=7)
    assert executables() == before


def test_eight_devices_draw_what_one_draws():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    prompts, ids = tiny.prompts(8), [f"p{i}" for i in range(8)]
    one = draw(prompts=prompts, ids=ids)
    many = draw(sampler=dataclasses.replace(SAMPLER, mesh=mesh), prompts=prompts, ids=ids)
    problems = [{"id": i, "prompt": p} for i, p in zip(ids, prompts, strict=True)]
    assert_same_but_at_boundaries(many, one, problems, GROUP)


def test_a_prompt_over_the_largest_bucket_is_refused_with_both_numbers():
    with pytest.raises(
        ValueError, match="a prompt has 33 tokens but the largest prompt bucket is 32"
    ):
        draw(prompts=[np.ones(33, np.int32)], ids=IDS[:1])


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        draw(prompts=[np.ones(0, np.int32)], ids=IDS[:1])
