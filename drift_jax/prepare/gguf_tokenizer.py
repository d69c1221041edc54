"""A Hugging Face tokenizer from the header of a GGUF file.

Byte-level BPE only: vocabulary and merges are lists in the header, and a name stands for the rule
that splits text before merging.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from drift_jax.prepare.gguf_file import GGUFFile

BYTE_LEVEL_BPE = "gpt2"
# How text is split, by the header's name for it.
SPLITTERS = {
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), _byte_level()],
    "gpt-2": lambda: [_byte_level()],
}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that are matched before text is split
# Special tokens: their field in the header, and their name at Hugging Face.
ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def save(file: GGUFFile, folder: Path) -> dict[str, int]:
    """Writes tokenizer.json, tokenizer_config.json and the chat template into a folder.

    Returns:
      The ids of the special tokens, as config.json names them.

    Raises:
      ValueError: in one line, if the tokenizer is of another kind or damaged.
    """
    vocabulary = _texts(file, "tokens")
    roles = _roles(file, vocabulary)
    make(file, vocabulary).save(str(folder / "tokenizer.json"))
    config = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.settings.get("llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": vocabulary[token] for role, token in roles.items()},
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template = file.settings.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise ValueError(f"{file.path} has no chat template; use a model tuned for chat")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return {f"{role}_token_id": token for role, token in roles.items() if role != "unk"}


def make(file: GGUFFile, vocabulary: list[str]) -> Tokenizer:
    """The tokenizer with this vocabulary and the header's merges, splitter and added tokens."""
    kind, splitter = _setting(file, "model"), _setting(file, "pre")
    if kind != BYTE_LEVEL_BPE or splitter not in SPLITTERS:
        raise ValueError(
            f"{file.path} has the tokenizer {kind!r} with the splitter {splitter!r}; known is "
            f"{BYTE_LEVEL_BPE!r} with one of {', '.join(SPLITTERS)}"
        )
    halves = [merge.partition(" ") for merge in _texts(file, "merges")]
    merges = [(left, right) for left, _, right in halves]
    ids = {token: index for index, token in enumerate(vocabulary)}
    known = all({left, right, left + right} <= ids.keys() for left, right in merges)
    if not known or len(ids) < len(vocabulary):
        raise ValueError(f"{file.path}: its vocabulary and its merges do not fit together")
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITTERS[splitter]())
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _setting(file, "token_type")
    if not isinstance(kinds, list) or len(kinds) != len(vocabulary):
        raise ValueError(f"{file.path}: tokenizer.ggml.token_type does not fit the vocabulary")
    for added in (CONTROL, USER_DEFINED):
        texts = [text for text, kind in zip(vocabulary, kinds, strict=True) if kind == added]
        tokens = [AddedToken(text, normalized=False, special=added == CONTROL) for text in texts]
        tokenizer.add_tokens(tokens)
    return tokenizer


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _roles(file: GGUFFile, vocabulary: list[str]) -> dict[str, int]:
    """The id of each special token that the header names."""
    found = {ours: _setting(file, f"{theirs}_token_id") for theirs, ours in ROLES.items()}
    roles = {role: token for role, token in found.items() if token is not None}
    if "eos" not in roles:
        raise ValueError(f"{file.path}: the tokenizer has no end token")
    for role, token in roles.items():
        if type(token) is not int or not 0 <= token < len(vocabulary):
            raise ValueError(f"{file.path}: the tokenizer's {role} token is {token!r}")
    return {"pad": roles["eos"], **roles}


def _setting(file: GGUFFile, key: str) -> Any:
    return file.settings.get(f"tokenizer.ggml.{key}")


def _texts(file: GGUFFile, key: str) -> list[str]:
    value = _setting(file, key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{file.path}: tokenizer.ggml.{key} is damaged, expected a list of texts")
    return value
