"""One token a name, value or stretch of scaffolding; text and tokens are two forms of one thing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.data import prompting
from drift_jax.data.toolcalls import SPLIT_SIZES, World, demonstrations, problems, solution
from drift_jax.data.toolcalls_tokenizer import PIECES, SPECIAL_TOKENS, build_tokenizer

VOCABULARY = SPECIAL_TOKENS + PIECES
# What the quickstart's shapes are planned with; the response limit includes the end token.
MAX_PROMPT, MAX_RESPONSE, MAX_TEACHER_PROMPT = 40, 32, 72


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return prompting.load_tokenizer(folder)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_vocabulary_is_small_and_has_no_piece_twice(tokenizer):
    assert len(tokenizer) == len(VOCABULARY) == len(set(VOCABULARY)) == 111


def test_no_piece_begins_with_another_so_text_splits_in_one_way_only():
    assert [(a, b) for a in VOCABULARY for b in VOCABULARY if a != b and b.startswith(a)] == []


@given(ids=st.lists(st.integers(len(SPECIAL_TOKENS), len(VOCABULARY) - 1), max_size=40))
def test_whatever_pieces_a_model_writes_encode_back_to_the_same_ids(tokenizer, ids):
    text = prompting.decode(tokenizer, ids)
    assert text == "".join(VOCABULARY[token] for token in ids)
    assert encode(tokenizer, text) == ids


@pytest.mark.parametrize("seed", range(6))
def test_every_text_of_a_world_survives_encoding_and_keeps_within_the_limits(tokenizer, seed):
    world = World(seed)
    unknown, end = tokenizer.unk_token_id, tokenizer.eos_token_id
    for problem in [p for split in SPLIT_SIZES for p in problems(world, split)]:
        gold = solution(problem)
        response = encode(tokenizer, gold)
        assert prompting.decode(tokenizer, response) == gold
        prompt = prompting.render(tokenizer, problem)
        question = problem.messages[-1]["content"]
        assert tokenizer.decode(prompt) == f"<|user|>{question}<|assistant|>"
        teacher = prompting.render_teacher(tokenizer, problem, gold, max_tokens=MAX_TEACHER_PROMPT)
        assert tokenizer.decode(teacher) == (
            f"<|user|>{question}\nCorrect solution:\n\n{gold}\n\n"
            "Correctly solve the original question.<|assistant|>"
        )
        assert len(prompt) <= MAX_PROMPT
        assert len(response + [end]) <= MAX_RESPONSE
        # The teacher sees the student's tokens, two more, and the solution's own.
        assert len(teacher) == len(prompt) + len(response) + 2
        assert unknown not in {*prompt.tolist(), *response, *teacher.tolist()}


def test_demonstrations_have_no_unknown_piece_and_the_lengths_of_solutions(tokenizer):
    world = World(0)
    for reference in (False, True):
        examples = demonstrations(world, np.random.default_rng(0), 300, reference=reference)
        for example in examples:
            for text in filter(None, (example.reference, example.response)):
                ids = encode(tokenizer, text)
                assert tokenizer.unk_token_id not in ids
                assert len(ids) == len(encode(tokenizer, solution(example.problem)))


def test_text_of_no_piece_becomes_unknown_instead_of_failing(tokenizer):
    assert encode(tokenizer, "Zürich") == [tokenizer.unk_token_id]
    assert encode(tokenizer, "") == []


def test_a_saved_tokenizer_loads_as_the_same_one(tokenizer, reloaded):
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.chat_template == tokenizer.chat_template
    assert reloaded.eos_token == "<|end|>" and reloaded.pad_token == "<|pad|>"
    assert prompting.stop_tokens(reloaded) == prompting.stop_tokens(tokenizer) == (1,)
    for problem in problems(World(0), "test", 9):
        gold = solution(problem)
        assert encode(reloaded, gold) == encode(tokenizer, gold)
        assert prompting.decode(reloaded, encode(reloaded, gold)) == gold
        np.testing.assert_array_equal(
            prompting.render(reloaded, problem), prompting.render(tokenizer, problem)
        )


def test_the_chat_template_takes_a_system_turn_and_closes_finished_answers(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    finished = tokenizer.apply_chat_template(messages, tokenize=False)
    assert finished == "<|system|>S<|user|>Q<|assistant|>A<|end|>"
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<|system|>S<|user|>Q<|assistant|>"


def test_padding_and_stop_tokens_do_not_reach_the_decoded_text(tokenizer):
    gold = solution(problems(World(0), "test")[0])
    ids = encode(tokenizer, gold) + [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 3
    assert prompting.decode(tokenizer, np.asarray(ids, np.int32)) == gold
