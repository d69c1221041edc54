"""The vocabulary of `toolcalls`: 111 tokens, the same for every world; see `word_tokenizer`."""

from typing import TYPE_CHECKING

from drift_jax.data import toolcalls, word_tokenizer
from drift_jax.data.prompting import CLOSING, SOLUTION_HEADER
from drift_jax.data.word_tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PIECES", "SPECIAL_TOKENS", "build_tokenizer"]

PIECES = (
    # A question.
    "API: ", "(", ", ", "); ", ")\nQuestion: ", "; ",
    *(f"{intent}: " for intent in toolcalls.INTENTS.values()),
    # A response.
    *toolcalls.THOUGHTS.values(),
    "\nAction: ", '\nAction Input: {"', '", "', '"}',
    *(f'": "{word}' for word in toolcalls.FORMATS),
    # The teacher's prompt.
    SOLUTION_HEADER, CLOSING,
    # Names and values.
    *toolcalls.INTENTS,
    *toolcalls.PARAMETERS,
    *(f" {city}" for city in toolcalls.CODES),
    *(f" {code}" for code in toolcalls.CODES.values()),
)  # fmt: skip


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of `toolcalls`."""
    return word_tokenizer.build_tokenizer(PIECES)
