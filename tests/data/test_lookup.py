"""What is particular about `lookup`: a table, guesses that pay, and how often they do."""

import itertools
import json

import numpy as np
import pytest

from drift_jax.data import lookup, worlds
from drift_jax.data.lookup import (
    CITIES,
    LETTERS,
    RELATIONS,
    World,
    demonstrations,
    expected_pass_rate,
    expected_success_rate,
    problems,
)
from drift_jax.rewards.lookup import read_rows, score_lookup


@pytest.fixture(scope="module")
def world():
    return World(0)


def test_every_relation_leads_from_each_city_to_another_and_to_all_of_them(world):
    assert set(world.table) == set(itertools.product(RELATIONS, CITIES))
    for relation in RELATIONS:
        reached = [world.table[relation, city] for city in CITIES]
        assert sorted(reached) == sorted(CITIES)
        assert all(city != other for city, other in zip(CITIES, reached, strict=True))


def test_half_of_the_rows_are_sure_and_the_others_spread_over_the_ladder(world):
    rates = sorted(world.accuracies.values())
    assert rates == sorted([worlds.SURE] * 24 + [*lookup.ROW_ACCURACIES])
    for row, decoys in world.decoys.items():
        assert len({*decoys, world.table[row], row[1]}) == 4


def test_options_are_four_cities_with_the_right_one_at_the_letter_of_the_answer(world):
    letters = []
    for problem in problems(world, "train"):
        gold = json.loads(problem.answer)
        options = lookup._options(problem)
        assert len(set(options)) == len(LETTERS) == 4
        assert options[LETTERS.index(gold["letter"])] == gold["rows"][-1][2]
        letters.append(gold["letter"])
    counts = [letters.count(letter) for letter in LETTERS]
    assert min(counts) > 40  # no letter is worth more than another


def test_the_expected_pass_rate_counts_luck(world):
    rng = np.random.default_rng(0)
    expected, rewarded, lucky = [], [], []
    for example in demonstrations(world, rng, 4000, reference=False):
        score = score_lookup(example.response, example.problem.answer)
        expected.append(expected_pass_rate(world, example.problem))
        rewarded.append(score.reward)
        if not score.derived:
            lucky.append(score.reward)
    deviation = np.sqrt(np.mean(np.multiply(expected, np.subtract(1, expected))) / len(expected))
    assert abs(np.mean(rewarded) - np.mean(expected)) < 4 * deviation
    assert 0.17 < np.mean(lucky) < 0.27  # what a wrong derivation earns


def test_the_expected_pass_rate_equals_the_sum_over_all_ways_through_the_table(world):
    for problem in problems(world, "validation")[:40]:
        gold = json.loads(problem.answer)
        options, right = lookup._options(problem), gold["rows"][-1][2]
        relations = [relation for relation, _, _ in gold["rows"]]
        total = 0.0
        for choices in itertools.product(range(3), repeat=len(relations)):  # 0 is the right city
            city, chance = gold["rows"][0][1], 1.0
            for relation, choice in zip(relations, choices, strict=True):
                row = relation, city
                right_rate = world.accuracies[row]
                chance *= right_rate if choice == 0 else (1 - right_rate) / 2
                city = world.table[row] if choice == 0 else world.decoys[row][choice - 1]
            total += chance * (float(city == right) if city in options else 0.25)
        assert expected_pass_rate(world, problem) == pytest.approx(total)
        assert expected_success_rate(world, problem) <= total + 1e-12


def test_what_is_concluded_says_where_the_city_stands_or_that_it_is_not_on_offer(world):
    seen = set()
    for example in demonstrations(world, np.random.default_rng(1), 300, reference=False):
        options = lookup._options(example.problem)
        end = read_rows(example.response)[-1][2]
        *_, conclusion, answer = example.response.split("\n")
        where = LETTERS[options.index(end)] if end in options else "none"
        assert conclusion == f"So {end} ({where})"
        if end in options:
            assert answer == f"<answer>{where}</answer>"
        seen.add(where)
    assert seen == {*LETTERS, "none"}


def test_reference_demonstrations_take_the_letter_of_what_they_show(world):
    same_city = []
    for example in demonstrations(world, np.random.default_rng(2), 600, reference=True):
        assert example.reference.split("\n")[-1] == example.response.split("\n")[-1]
        shown, written = read_rows(example.reference), read_rows(example.response)
        same_city += [a[2] == b[2] for a, b in zip(shown, written, strict=True)]
    assert np.mean(same_city) == pytest.approx(1 - 0.05 * 15 / 16, abs=0.02)
