"""From sampled tokens to texts and rewards."""

import json

import numpy as np
import pytest

from drift_jax.data import toolcalls
from drift_jax.data.toolcalls_tokenizer import build_tokenizer
from drift_jax.grading import Grader, RewardsFailed, grade
from drift_jax.rewards.pool import RewardPool
from drift_jax.types import Problem, Rollouts

PAD, STOP = 0, 2


class Letters:
    """A tokenizer of characters, as far as decoding goes; ids below 5 are special."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens and not clean_up_tokenization_spaces
        return "".join(chr(token) for token in ids if token >= 5)


def spelled(text: str, *, stopped: bool = True) -> list[int]:
    return [ord(letter) for letter in text] + [STOP] * stopped


def rollouts(responses: list[list[int]], entropies: list[float] | None = None) -> Rollouts:
    """Rows of token ids; the entropy of a row's tokens is one number, padding has garbage."""
    time = max(map(len, responses)) + 2
    tokens = np.full((len(responses), time), ord("x"), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, response in enumerate(responses):
        tokens[row, : len(response)], mask[row, : len(response)] = response, True
    each = np.array(entropies or [0.0] * len(responses), np.float32)[:, None]
    return Rollouts(
        tokens=tokens,
        mask=mask,
        log_probs=-np.ones(tokens.shape, np.float32),
        entropies=np.where(mask, each, np.float32(99)),
        finished=np.array([STOP in response for response in responses]),
    )


def choice(index: int, answer: str) -> Problem:
    return Problem(f"biology/train/{index}", "biology", ({"role": "user", "content": "?"},), answer)


def test_responses_are_decoded_without_special_tokens_and_padding():
    graded = grade(
        Letters(),
        [choice(0, "A")],
        rollouts([spelled("<answer>A</answer>"), spelled("B"), spelled("cut", stopped=False)]),
    )
    assert graded.responses == [["<answer>A</answer>", "B", "cut"]]


def test_each_group_is_graded_by_its_own_problems_answer():
    graded = grade(
        Letters(),
        [choice(0, "A"), choice(1, "B")],
        rollouts([spelled("A"), spelled("B"), spelled("A"), spelled("B")]),
    )
    assert graded.rewards.tolist() == [[1, 0], [0, 1]] and graded.rewards.dtype == np.float64
    assert graded.predictions == [["A", "B"], ["A", "B"]]


def test_the_verifier_is_that_of_the_problems_task():
    call = json.dumps([{"Action": "f", "Action_Input": json.dumps({"x": 1})}])
    tool = Problem("tooluse/train/0", "tooluse", ({"role": "user", "content": "?"},), call)
    text = 'Thought: so.\nAction: f\nAction Input: {"x": 1}'
    graded = grade(Letters(), [tool, choice(0, "A")], rollouts([spelled(text), spelled("A")]))
    assert graded.rewards.tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="task 'unheard' has no grader"):
        unknown = Problem("unheard/train/0", "unheard", tool.messages, "A")
        grade(Letters(), [unknown], rollouts([spelled("A")]))


def test_form_is_reported_and_does_not_enter_the_reward():
    graded = grade(
        Letters(), [choice(0, "A")], rollouts([spelled("<answer>A</answer>"), spelled("A")])
    )
    assert graded.well_formed.tolist() == [[True, False]] and graded.well_formed.dtype == bool
    assert graded.rewards.tolist() == [[1, 1]]


def test_lengths_count_the_stop_token_and_entropies_are_means_over_the_response():
    graded = grade(
        Letters(),
        [choice(0, "A")],
        rollouts([spelled("A"), spelled("ABC", stopped=False)], entropies=[0.5, 2.0]),
    )
    assert graded.lengths.tolist() == [[2, 3]]
    np.testing.assert_allclose(graded.entropies, [[0.5, 2.0]])
    assert graded.finished.tolist() == [[True, False]]


def test_a_response_of_nothing_but_the_stop_token_is_an_empty_text():
    graded = grade(Letters(), [choice(0, "A")], rollouts([[STOP], spelled("A")]))
    assert graded.responses == [["", "A"]] and graded.rewards.tolist() == [[0, 1]]


def test_a_solution_of_the_generated_task_is_rewarded_through_its_own_tokens():
    tokenizer = build_tokenizer()
    asked = toolcalls.problems(toolcalls.World(0), "train", 3)
    rows = []
    for problem in asked:
        right = tokenizer.encode(toolcalls.solution(problem), add_special_tokens=False)
        rows += [[*right, tokenizer.eos_token_id], [*right[:-1], tokenizer.eos_token_id]]
    graded = grade(tokenizer, asked, rollouts(rows))
    assert graded.rewards.tolist() == [[1, 0]] * 3
    assert [group[0] for group in graded.responses] == [toolcalls.solution(p) for p in asked]
    assert graded.lengths[:, 0].tolist() == [len(row) for row in rows[::2]]


# ---- a user's function --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "rewards.py"
    file.write_text(
        "def score(response, answer):\n"
        "    thought, said = response.split('=')\n"  # a response without one is a mistake of this
        "    return 0.5 * len(thought) + (said == answer)\n"
    )
    with Grader(RewardPool(f"{file}:score", workers=2)) as opened:
        yield opened


def test_a_users_function_grades_whatever_the_task_and_in_order(grader):
    own = [Problem(f"mine/train/{i}", "mine", choice(0, "").messages, "AB"[i]) for i in (0, 1)]
    texts = ["=A", "x=B", "=C", "=B"]
    graded = grade(Letters(), own, rollouts([spelled(text) for text in texts]), grader)
    assert graded.rewards.tolist() == [[1, 0.5], [0, 1]]
    assert graded.predictions == [["=A", "x=B"], ["=C", "=B"]]
    assert graded.failures == ()


def test_failures_have_reward_0_and_are_told(grader):
    graded = grade(
        Letters(),
        [choice(0, "A")],
        rollouts([spelled("A"), spelled("=A"), spelled("a=b=c")]),
        grader,
    )
    assert graded.rewards.tolist() == [[0, 1, 0]]
    assert len(graded.failures) == 2
    assert all(
        "ValueError: " in cause and "rewards.py, line 2" in cause for cause in graded.failures
    )


def test_a_function_that_fails_on_everything_is_an_error_and_not_a_row_of_zeros(grader):
    with pytest.raises(
        RewardsFailed, match="all 2 calls .* the first one so: .*ValueError"
    ) as error:
        grade(Letters(), [choice(0, "A")], rollouts([spelled("A"), spelled("B")]), grader)
    assert "\n" not in str(error.value)


def test_what_the_grader_said_is_kept_beside_each_response():
    tokenizer = build_tokenizer()
    [problem] = toolcalls.problems(toolcalls.World(0), "train", 1)
    right = tokenizer.encode(toolcalls.solution(problem), add_special_tokens=False)
    graded = grade(
        tokenizer, [problem], rollouts([[*right, tokenizer.eos_token_id], [tokenizer.eos_token_id]])
    )
    assert graded.feedback is not None
    [[nothing, words]] = graded.feedback
    assert nothing == "" and words != ""
