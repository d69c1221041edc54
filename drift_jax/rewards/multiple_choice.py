"""Grader of the four science benchmarks: one letter between answer tags."""

import re

from drift_jax.types import Score

# `$` also matches before one trailing newline, as it does in the reference grader.
_CLOSING_BLOCK = re.compile(r"<answer>\s*[ABCD]\s*</answer>$")


def score_multiple_choice(response: str, answer: str) -> Score:
    """1 where the text after the last `<answer>` is exactly the gold letter, else 0.

    The candidate runs from the last `<answer>` to the first `</answer>` after it, without the
    white space around it; a missing tag is as if it stood at the edge of the response. So a bare
    `A` counts, while `a`, `A.` or `(A)` do not. There is no partial credit.

    This is the reference grader on every string, except that its format flag is inverted there:
    here `well_formed` is True when the response ends with `<answer>`, one of the letters A-D and
    `</answer>`. The flag does not enter the reward.

    Args:
      response: decoded response, special tokens removed. Any string; time is linear in its length.
      answer: gold letter.

    Returns:
      A `Score` whose `prediction` is the candidate and whose `feedback` is always empty.
    """
    candidate = response.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    return Score(
        reward=float(candidate == answer),
        prediction=candidate,
        well_formed=_CLOSING_BLOCK.search(response) is not None,
        feedback="",
    )
