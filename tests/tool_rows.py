"""Tool-use rows in the published form, and a tokenizer that can write any text."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)


def tool_row(idx: int, calls: list[dict] | None = None) -> dict:
    """A request with one call; the API's name is that of the row."""
    gold = calls or [{"Action": f"get{idx}", "Action_Input": json.dumps({"city": "Oslo"})}]
    return {
        "idx": idx,
        "kind": "tooluse",
        "dataset": "tooluse",
        "prompt": f"Tools:\nName: api{idx}\n{'x' * (idx % 5)}\nQuestion: call get{idx} of Oslo.",
        "answer": json.dumps(gold),
        "system": None,
    }


def write_tool_rows(folder: Path, count: int, first: list[dict] | None = None) -> None:
    """`folder`/tooluse/train.json and test.json, the given rows before the made ones."""
    (folder / "tooluse").mkdir(parents=True, exist_ok=True)
    rows = first or []
    rows = rows + [tool_row(idx) for idx in range(len(rows), count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "test"):
        (folder / "tooluse" / f"{split}.json").write_text(text, encoding="utf-8")


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer with a token a byte, as a checkpoint folder holds it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|pad|>", "<|end|>", "<|start|>", *alphabet]
    vocabulary = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|start|>"],
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(str(folder))
