"""Grader of `lookup`: a letter is rewarded, a derivation is only checked.

    Look up:
    1. twin of Oslo is Rome
    2. port of Rome is Lima
    So Lima (C)
    <answer>C</answer>

A letter that does not follow from right rows is a lucky guess.
"""

import dataclasses
import json
import re

from drift_jax.rewards.multiple_choice import score_multiple_choice
from drift_jax.types import Score

OPENING = "Look up:"
NOWHERE = "none"  # in place of the letter, where what was looked up is not on offer

_ROW = re.compile(r"(\d{1,3})\. (\w+) of (\w+) is (\w+)")
# What follows the rows. A response without it gives no derivation.
_CONCLUSION = re.compile(rf"So \w+ \(([A-D]|{NOWHERE})\)")
_ANSWER = re.compile(r"<answer>[^\n]*")


def score_lookup(response: str, answer: str) -> Score:
    """1 where the letter is right, as in the multiple-choice benchmarks, whatever came before it.

    `derived` says whether the rows are exactly those that lead to the answer, whatever is concluded
    from them. It is never rewarded: a right letter with `derived` False is a lucky guess.

    Args:
      response: decoded response, special tokens removed. Any string; time is linear in its length.
      answer: JSON text with `letter` and `rows`, a list of [relation, from, to].

    Returns:
      A `Score`; `well_formed` asks for rows and a letter between answer tags at the end.
    """
    gold = json.loads(answer)
    letter = score_multiple_choice(response, gold["letter"])
    rows = read_rows(response)
    return dataclasses.replace(
        letter,
        well_formed=letter.well_formed and rows is not None,
        derived=rows == gold["rows"],
    )


def read_rows(response: str) -> list[list[str]] | None:
    """The rows of a response, or None where it does not have the form of a derivation."""
    opening, *lines = response.strip().split("\n")
    if opening != OPENING or len(lines) < 2:
        return None
    if not _CONCLUSION.fullmatch(lines[-2]) or not _ANSWER.fullmatch(lines[-1]):
        return None
    rows = []
    for number, line in enumerate(lines[:-2], start=1):
        found = _ROW.fullmatch(line)
        if found is None or int(found[1]) != number:
            return None
        rows.append([found[2], found[3], found[4]])
    return rows
