"""From problems to tokens: the chat template, and the teacher's prompt with a solution in it.

The teacher is the model itself with a successful response shown in its prompt, or the verifier's
feedback on its own attempt, or both. Templates, handling of thinking and lengths follow SDPO, which
DRIFT builds on (DRIFT §3.1), with one difference: a teacher prompt that is too long loses the start
of what is shown instead of the end of the prompt, so the answer, the closing request and the
assistant's header always survive.

transformers is imported when a tokenizer is loaded, not before: it takes a second.
"""

import bisect
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drift_jax.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# {prompt}{SOLUTION_HEADER}{demonstration}{FEEDBACK_HEADER}{feedback}{CLOSING}; a header comes with
# what it announces or not at all.
SOLUTION_HEADER = "\nCorrect solution:\n\n"
FEEDBACK_HEADER = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
CLOSING = "\n\nCorrectly solve the original question."

THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Holds back what transformers logs when it is imported: that PyTorch is missing."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a local folder, such as a checkpoint's. Never asks a model hub.

    Raises:
      ValueError: if there is no such folder, no tokenizer in it, or one that lacks a chat
        template, an end token, or the fast implementation that gives character offsets.
    """
    if not Path(path).is_dir():
        raise ValueError(
            f"no tokenizer at {path}: it is not a folder; "
            "expected a local folder with tokenizer.json and tokenizer_config.json"
        )
    with quiet_import():
        from transformers import AutoTokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the loader raises many kinds, in messages of many lines
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"no tokenizer could be read from {path} ({reason}); "
            "expected tokenizer.json and tokenizer_config.json"
        ) from error
    # Without the file, transformers makes an empty tokenizer for the model type in config.json.
    file = Path(path) / "tokenizer.json"
    missing = [
        name
        for name, found in (
            ("fast tokenizer (tokenizer.json)", tokenizer.is_fast and file.is_file()),
            ("chat template (chat_template.jinja)", tokenizer.chat_template),
            ("end token (eos_token in tokenizer_config.json)", tokenizer.eos_token_id is not None),
        )
        if not found
    ]
    if missing:
        raise ValueError(f"the tokenizer in {path} has no {' and no '.join(missing)}; add it there")
    return tokenizer


def render(
    tokenizer: "PreTrainedTokenizerFast", problem: Problem, *, thinking: bool = False
) -> np.ndarray:
    """The student's prompt: the problem's messages and the header of the assistant's turn.

    `thinking` is passed on to the chat template; templates without such a switch ignore it.
    Returns token ids, int32 [time].
    """
    return _encode(tokenizer, problem.messages, thinking)


def render_teacher(
    tokenizer: "PreTrainedTokenizerFast",
    problem: Problem,
    demonstration: str | None,
    *,
    feedback: str | None = None,
    max_tokens: int,
    thinking: bool = False,
    remove_thinking: bool = True,
) -> np.ndarray:
    """The teacher's prompt: the last user turn also shows a correct solution, feedback, or both.

    Both are cleaned first (`clean_demonstration`). If the prompt would be longer than `max_tokens`,
    the demonstration loses as many tokens at its start as it must, and when nothing is left of it,
    so does the feedback. None shows nothing, not even a header.
    Returns token ids, int32 [time], at most `max_tokens`.

    Raises:
      ValueError: if the prompt is too long even with nothing shown.
    """
    *earlier, question = problem.messages

    def cleaned(text: str | None) -> str | None:
        if text is None:
            return None
        return clean_demonstration(text, tokenizer, remove_thinking=remove_thinking)

    demonstration, feedback = cleaned(demonstration), cleaned(feedback)

    def rendered(solution: str | None, verdict: str | None) -> np.ndarray:
        content = question["content"]
        content += "" if solution is None else SOLUTION_HEADER + solution
        content += "" if verdict is None else FEEDBACK_HEADER + verdict
        content += CLOSING
        return _encode(tokenizer, (*earlier, {"role": "user", "content": content}), thinking)

    def fits(solution: str | None, verdict: str | None) -> bool:
        return len(rendered(solution, verdict)) <= max_tokens

    tokens = rendered(demonstration, feedback)
    if len(tokens) <= max_tokens:
        return tokens
    empty = None if demonstration is None else ""
    if len(bare := rendered(empty, None if feedback is None else "")) > max_tokens:
        raise ValueError(
            f"the teacher prompt of {problem.id} has {len(bare)} tokens without a solution, over "
            f"the limit of {max_tokens}; raise the limit or drop longer prompts"
        )
    if demonstration is not None and fits(empty, feedback):
        return rendered(_shorten(tokenizer, demonstration, lambda s: fits(s, feedback)), feedback)
    return rendered(empty, _shorten(tokenizer, feedback or "", lambda s: fits(empty, s)))


def encode_response(tokenizer: "PreTrainedTokenizerFast", text: str) -> np.ndarray:
    """A stored response as the policy might have sampled it: its tokens, then the end token.

    Spellings of control tokens are removed (`clean_demonstration`); thinking stays. The tokens may
    differ from the sampled ones, since a text can be split into tokens in more than one way.
    Returns token ids, int32 [time].
    """
    text = clean_demonstration(text, tokenizer, remove_thinking=False)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return np.array([*tokens, tokenizer.eos_token_id], np.int32)


def clean_demonstration(
    text: str, tokenizer: "PreTrainedTokenizerFast", *, remove_thinking: bool = True
) -> str:
    """A response as it may be shown to the teacher: no thinking, no control tokens.

    Closed `<think>` blocks go, with the whitespace after them. The spelling of a control token
    goes too, wherever it stands: encoded with the prompt, it would end the user's turn and let
    the response write turns of its own.
    """
    if remove_thinking:
        text = _remove_thinking(text)
    controls = "|".join(re.escape(token) for token in control_tokens(tokenizer))
    # Taking one out may join the halves of another, so go on until there is none.
    while (cleaned := re.sub(controls, "", text)) != text:
        text = cleaned
    return text


def control_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Spellings of the tokenizer's special tokens, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    spellings = {token.content for token in added if token.special}
    return sorted(spellings | set(tokenizer.all_special_tokens), key=lambda s: (-len(s), s))


def decode(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[int] | np.ndarray) -> str:
    """The text of a response, without special tokens: what is graded, stored and shown."""
    ids = np.asarray(tokens, np.int64).tolist()
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_tokens(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Ids that end a response: the end token, then those of generation_config.json beside it.

    Many chat models can end a turn in more than one way, and only that file lists them all.

    Raises:
      ValueError: if the file is damaged.
    """
    found = [int(tokenizer.eos_token_id)]
    folder = Path(tokenizer.name_or_path)
    file = folder / "generation_config.json"
    # A tokenizer that was not loaded from a folder has an empty name.
    if tokenizer.name_or_path and file.is_file():
        try:
            listed = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") or []
            listed = listed if isinstance(listed, list) else [listed]
            found += [int(token) for token in listed]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); expected JSON with eos_token_id, an id or a list"
            ) from error
    return tuple(dict.fromkeys(found))


def drop_long(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerFast",
    max_prompt_tokens: int,
    *,
    thinking: bool = False,
) -> tuple[list[Problem], int]:
    """Splits off the problems whose prompt is too long. Returns (kept, number dropped).

    Raises:
      ValueError: if no problem is left.
    """
    lengths = [len(render(tokenizer, problem, thinking=thinking)) for problem in problems]
    kept = [
        problem
        for problem, length in zip(problems, lengths, strict=True)
        if length <= max_prompt_tokens
    ]
    if not kept:
        raise ValueError(
            f"all {len(problems)} prompts are longer than the limit of {max_prompt_tokens} tokens "
            f"(the shortest has {min(lengths, default=0)}); raise the limit"
        )
    return kept, len(problems) - len(kept)


def _remove_thinking(text: str) -> str:
    """The text without closed `<think>` blocks and the whitespace after each."""
    # Openings after the last closing tag match nothing, but each would search to the end: a
    # policy that repeats `<think>` a thousand times would make this quadratic.
    unclosed = text.find("<think>", max(text.rfind("</think>"), 0))
    end = len(text) if unclosed < 0 else unclosed
    return THINKING.sub("", text[:end]) + text[end:]


def _encode(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[dict[str, str]], thinking: bool
) -> np.ndarray:
    """Chat messages and the assistant's header as token ids, int32 [time]."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    # The template writes the start token where a model wants one.
    return np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)


def _shorten(tokenizer: "PreTrainedTokenizerFast", text: str, fits: Callable[[str], bool]) -> str:
    """The longest end of the text, cut before a token, that fits. The empty text must fit."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoding["offset_mapping"]] + [len(text)]
    cut = bisect.bisect_left(starts, True, key=lambda start: fits(text[start:]))
    # The text at a cut may encode to a token more than before; then step on until it fits.
    while not fits(text[starts[cut] :]):
        cut += 1
    return text[starts[cut] :]
