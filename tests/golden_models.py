"""The golden checkpoints (tests/golden/make_golden.py), loaded once for all tests."""

import dataclasses
import functools
import pathlib

import numpy as np

from drift_jax import models
from drift_jax.models.transformer import ModelConfig, Params

ROOT = pathlib.Path(__file__).parent / "golden" / "checkpoints"
NAMES = ("qwen3_tied", "qwen3_yarn", "qwen2", "qwen2_sliding", "llama3", "smollm2", "olmo3")
PROMPT = 16  # columns of the prompts; the second one is shorter and padded on the left
NO_STOP = 96  # an id beyond the vocabulary


@dataclasses.dataclass(frozen=True)
class Golden:
    """A checkpoint with what `transformers` says of it.

    Attributes:
      config, params: as loaded, float32.
      tokens: prompts, then 64 greedy tokens of decoding with a cache. [row, time]
      mask: which are real. [row, time]
      logits: of one pass over all tokens. [row, time, vocab]
    """

    config: ModelConfig
    params: Params
    tokens: np.ndarray
    mask: np.ndarray
    logits: np.ndarray

    @property
    def prompts(self) -> list[np.ndarray]:
        """The prompts without padding."""
        rows = zip(self.tokens[:, :PROMPT], self.mask[:, :PROMPT], strict=True)
        return [tokens[mask] for tokens, mask in rows]


@functools.cache
def load(name: str) -> Golden:
    """One of `NAMES`."""
    config, params = models.load(str(ROOT / name))
    stored = np.load(ROOT / name / "golden.npz")
    mask = np.ones(stored["tokens"].shape, bool)
    mask[:, :PROMPT] = stored["prompt_mask"]
    return Golden(config, params, stored["tokens"], mask, stored["logits"])
