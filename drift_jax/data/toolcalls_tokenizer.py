"""The tokenizer of `toolcalls`: one token a name, a value, or a stretch of scaffolding.

A real Hugging Face tokenizer with a vocabulary of 111 pieces, the same for every world. No piece
starts another one, so text splits into pieces in one way only: decode(encode(text)) == text, and
any sequence of pieces that a model writes encodes back to the same ids.
"""

import re
from typing import TYPE_CHECKING

from drift_jax.data import toolcalls
from drift_jax.data.prompting import CLOSING, SOLUTION_HEADER, quiet_import

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, SYSTEM, UNKNOWN)

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

# Roles are single tokens, and only a finished assistant turn is closed: a prompt has no other.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Makes the tokenizer; `save_pretrained` writes it so that `prompting.load_tokenizer` reads it.

    What is not made of pieces becomes `<unk>`.
    """
    with quiet_import():
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    vocabulary = {piece: index for index, piece in enumerate(SPECIAL_TOKENS + PIECES)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(PIECES, key=len, reverse=True)
    pattern = Regex("|".join(re.escape(piece) for piece in longest_first))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
