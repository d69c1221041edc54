"""Decoding with a cache against what `transformers` decoded, for every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.batching import left_pad
from drift_jax.models import transformer
from drift_jax.sampling import Sampler, decode, random_streams
from drift_jax.sampling.decode import Controls
from tests import golden_models
from tests.golden_models import NO_STOP, PROMPT

NEW_TOKENS = 64
BUCKET = PROMPT + 4  # so that both prompts have padding on the left
TOLERANCE = 1e-4

forced = jax.jit(lambda hidden, head: hidden @ head)


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_greedy_tokens_are_those_of_transformers(name):
    golden = golden_models.load(name)
    rollouts = Sampler(golden.config, prompt_buckets=(BUCKET,), segment_steps=16).generate(
        golden.params,
        golden.prompts,
        group_size=1,
        max_new_tokens=NEW_TOKENS,
        temperature=0.0,
        stop_tokens=(NO_STOP,),
        stream=random_streams(0, 1, ["a", "b"]),
    )
    np.testing.assert_array_equal(rollouts.tokens, golden.tokens[:, PROMPT:])
    # Log-prob and entropy of each token, from transformers' pass without a cache.
    log_probs = log_softmax(golden.logits[:, PROMPT - 1 : -1])
    np.testing.assert_allclose(rollouts.log_probs, log_probs.max(-1), atol=TOLERANCE)
    entropies = -(np.exp(log_probs) * log_probs).sum(-1)
    np.testing.assert_allclose(rollouts.entropies, entropies, atol=TOLERANCE)


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_logits_token_by_token_through_the_cache_are_those_of_transformers(name):
    golden = golden_models.load(name)
    tokens, mask = left_pad(golden.prompts, BUCKET)
    config, problems = golden.config, np.arange(2, dtype=np.int32)
    params = decode.unstacked(golden.params, config=config, dtype=None)
    prefilled = decode.prefill(
        params, tokens, mask, random_streams(0, 1, ["a", "b"]), config=config
    )
    clock, slots = jnp.int32(BUCKET), BUCKET + NEW_TOKENS + 1
    state = decode.blank(params, clock, rows=2, slots=slots, config=config, mesh=None)
    state = decode.admit(state, prefilled, problems, 0 * problems, mesh=None)
    controls = Controls(
        temperature=jnp.float32(0),
        top_p=jnp.float32(1),
        top_k=jnp.int32(0),
        stop_tokens=jnp.full(16, NO_STOP, jnp.int32),
        limit=jnp.int32(NEW_TOKENS + 1),
    )
    head = transformer.output_head(golden.params)
    largest = 0.0
    for column in range(PROMPT - 1, PROMPT + NEW_TOKENS):  # the last one read all 64 from the cache
        differs = np.abs(forced(state.hidden, head) - golden.logits[:, column])
        largest = max(largest, differs.max())
        state, _ = decode.decode_segment(
            params, state, controls, jnp.int32(1), jnp.int32(0), columns=1, config=config
        )
    assert largest < TOLERANCE
