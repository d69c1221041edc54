"""Tokenizers of the generated tasks: one token a name, a value, or a stretch of scaffolding.

A task lists its pieces. No piece may start another one, so text splits into pieces in one way only:
decode(encode(text)) == text, and any sequence of pieces that a model writes encodes back to the
same ids. The result is a real Hugging Face tokenizer with a chat template.
"""

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drift_jax.data.prompting import quiet_import

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, SYSTEM, UNKNOWN)

# Roles are single tokens, and only a finished assistant turn is closed: a prompt has no other.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(pieces: Sequence[str]) -> "PreTrainedTokenizerFast":
    """Makes the tokenizer; `save_pretrained` writes it so that `prompting.load_tokenizer` reads it.

    Ids are the special tokens and then the pieces, in order. What is not made of pieces becomes
    `<unk>`.

    Raises:
      ValueError: if a piece starts another one, or stands there twice.
    """
    ordered = sorted([*SPECIAL_TOKENS, *pieces])
    for first, second in itertools.pairwise(ordered):
        if second.startswith(first):
            raise ValueError(
                f"piece {first!r} starts piece {second!r}, so text would split in two ways; "
                "spell one of them differently"
            )
    with quiet_import():
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL_TOKENS, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(pieces, key=len, reverse=True)
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
