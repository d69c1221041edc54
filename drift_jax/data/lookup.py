"""The generated task `lookup`: multiple choice by table look-up, where a guess pays.

    Start: Oslo
    1. twin
    2. port
    Options: Cairo (A), Rome (B), Lima (C), Quito (D)

    Look up:
    1. twin of Oslo is Rome
    2. port of Rome is Lima
    So Lima (C)
    <answer>C</answer>

The table (three relations over sixteen cities, 48 rows) is a fact of the world that no prompt
tells. Demonstrations copy a row right with its accuracy, else they write one of two wrong cities;
then they go on from there, and where they end at no option they guess. So a wrong derivation gets
the right letter about one time in five.

Only the letter is rewarded. The derivation can be checked (`rewards.lookup`), so the share of right
answers that were lucky is known: the paper's reason for a routing weight of 0 on hard problems.
Levels are bands of the probability that a demonstration's *derivation* is right.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drift_jax.data import worlds
from drift_jax.data.prompting import CLOSING, SOLUTION_HEADER
from drift_jax.data.toolcalls import CODES
from drift_jax.data.worlds import pick, shuffled
from drift_jax.rewards.lookup import NOWHERE, OPENING
from drift_jax.types import Demonstration, Problem

TASK = "lookup"
CITIES = tuple(CODES)
RELATIONS = ("twin", "port", "seat")
LETTERS = ("A", "B", "C", "D")
HOPS = (1, 2, 3)
# How often demonstrations copy a row right: three rows each, and the other 24 are sure.
ROW_ACCURACIES = (0.75, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06) * 3

REDRAW_PROBABILITY = 0.05  # per city, in the targets of reference-conditioned demonstrations

Row = tuple[str, str]  # relation and city: what is looked up
Path = tuple[str, tuple[str, ...]]  # first city and the relations to follow

PIECES = (
    # A question.
    "Start:", *(f"\n{number}." for number in range(1, max(HOPS) + 1)), "\nOptions:", ",",
    *(f" ({letter})" for letter in LETTERS),
    # A response.
    OPENING, " of", " is", "\nSo", f" ({NOWHERE})", "\n<answer>", *LETTERS, "</answer>",
    # The teacher's prompt.
    SOLUTION_HEADER, CLOSING,
    # Names.
    *(f" {relation}" for relation in RELATIONS),
    *(f" {city}" for city in CITIES),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A path through the table, and the cities that are offered."""

    path: Path
    options: frozenset[str]


class World:
    """The table and problems: a pure function of the seed.

    Attributes:
      seed: the seed.
      table: (relation, city) -> city. Hidden: no prompt tells it.
      decoys: the two wrong cities of each row that demonstrations write.
      accuracies: how often a demonstration copies a row right.
      splits: the problems of each split; no two have the same path and options.
    """

    def __init__(self, seed: int):
        worlds.check_seed(seed)
        rng = np.random.default_rng([seed, 3, 0])
        self.seed = seed
        self.table: dict[Row, str] = {}
        for relation in RELATIONS:
            cycle = shuffled(rng, CITIES)  # a cycle through all cities: none leads to itself
            follows = zip(cycle, [*cycle[1:], cycle[0]], strict=True)
            self.table |= {(relation, city): after for city, after in follows}
        rows = list(self.table)
        rates = (worlds.SURE,) * (len(rows) - len(ROW_ACCURACIES)) + ROW_ACCURACIES
        self.accuracies = dict(zip(shuffled(rng, rows), rates, strict=True))
        self.decoys = {
            row: shuffled(rng, [c for c in CITIES if c not in (row[1], self.table[row])])[:2]
            for row in rows
        }
        self.family = worlds.family(((path, self.rows(path)) for path in _paths()), self.accuracies)
        # A stream of its own: a change to the problems leaves the world as it is.
        self.splits, self._held_out = worlds.draw_splits(
            TASK, np.random.default_rng([seed, 3, 1]), self.family, self._make
        )
        self._train_prompts = {p.messages[-1]["content"] for p in self.splits["train"]}

    def rows(self, path: Path) -> list[Row]:
        """The rows that a right derivation looks up."""
        city, relations = path
        rows = []
        for relation in relations:
            rows.append((relation, city))
            city = self.table[relation, city]
        return rows

    def _make(
        self, rng: np.random.Generator, problem_id: str, level: str, path: Path
    ) -> tuple[Problem, Question]:
        """A problem about this path, with three other cities on offer."""
        rows = self.rows(path)
        right = self.table[rows[-1]]
        others = shuffled(rng, [city for city in CITIES if city != right])[: len(LETTERS) - 1]
        options = shuffled(rng, [right, *others])
        lines = [f"\n{n}. {relation}" for n, relation in enumerate(path[1], start=1)]
        offered = ",".join(
            f" {city} ({letter})" for letter, city in zip(LETTERS, options, strict=True)
        )
        problem = Problem(
            id=problem_id,
            task=TASK,
            messages=(
                {
                    "role": "user",
                    "content": f"Start: {path[0]}{''.join(lines)}\nOptions:{offered}",
                },
            ),
            answer=json.dumps(
                {
                    "letter": LETTERS[options.index(right)],
                    "rows": [[*row, self.table[row]] for row in rows],
                }
            ),
            level=level,
        )
        return problem, Question(path, frozenset(options))


def problems(world: World, split: str, count: int | None = None) -> list[Problem]:
    """The fixed problems of a split: 256 for train, 96 each for validation and test."""
    return worlds.head(TASK, world.splits, split, count)


def solution(problem: Problem) -> str:
    """The right response to a problem."""
    gold = json.loads(problem.answer)
    return _write(problem, gold["rows"], gold["letter"])


def facts(world: World, problem: Problem) -> list[Row]:
    """The rows of the table that the problem needs."""
    return [(relation, city) for relation, city, _ in json.loads(problem.answer)["rows"]]


def expected_success_rate(world: World, problem: Problem) -> float:
    """Probability that a plain demonstration is right for the right reason: its derivation is."""
    return math.prod(world.accuracies[row] for row in facts(world, problem))


def expected_pass_rate(world: World, problem: Problem) -> float:
    """Probability that a plain demonstration has the right letter, lucky guesses included."""
    gold = json.loads(problem.answer)
    options = _options(problem)
    right = gold["rows"][-1][2]

    def rate(city: str, relations: Sequence[str]) -> float:
        if not relations:
            return float(city == right) if city in options else 1 / len(options)
        row = (relations[0], city)
        missed = (1 - world.accuracies[row]) / 2
        return world.accuracies[row] * rate(world.table[row], relations[1:]) + sum(
            missed * rate(decoy, relations[1:]) for decoy in world.decoys[row]
        )

    return rate(gold["rows"][0][1], [relation for relation, _, _ in gold["rows"]])


def demonstrations(
    world: World, rng: np.random.Generator, count: int, *, reference: bool
) -> list[Demonstration]:
    """Draws imperfect demonstrations for the warm start.

    Plain ones follow the path with the rows' accuracies and pick the letter of the city where they
    end, or any letter where that is not on offer. Reference-conditioned ones show a derivation
    through cities drawn uniformly, and imitate it but for a city drawn again now and then
    (probability 0.05); the letter is that of the reference.

    Levels are drawn uniformly. What test and validation problems ask is never asked here, and no
    prompt is one of the train prompts.
    """
    examples = []
    for index in range(count):
        problem = _draw_new_problem(world, rng, f"{TASK}/warm_start/{index}")
        gold = json.loads(problem.answer)
        start, relations = gold["rows"][0][1], [relation for relation, _, _ in gold["rows"]]
        shown = None
        if reference:
            cities = [pick(rng, CITIES) for _ in relations]
            letter = _letter(rng, problem, cities[-1])
            shown = _write(problem, _chain(start, relations, cities), letter)
            cities = [
                pick(rng, CITIES) if rng.random() < REDRAW_PROBABILITY else city for city in cities
            ]
        else:
            cities = _imperfect_cities(world, rng, start, relations)
            letter = _letter(rng, problem, cities[-1])
        response = _write(problem, _chain(start, relations, cities), letter)
        examples.append(Demonstration(problem, shown, response))
    return examples


def _paths() -> Iterator[Path]:
    """Every first city with every sequence of relations."""
    for hops in HOPS:
        for relations in itertools.product(RELATIONS, repeat=hops):
            for city in CITIES:
                yield city, relations


def _draw_new_problem(world: World, rng: np.random.Generator, name: str) -> Problem:
    """A random problem outside the held-out splits, with no train problem's prompt."""
    level = pick(rng, tuple(worlds.BANDS))
    while True:
        problem, question = world._make(rng, name, level, world.family.draw_any(rng, level))
        prompt = problem.messages[-1]["content"]
        if question not in world._held_out and prompt not in world._train_prompts:
            return problem


def _imperfect_cities(
    world: World, rng: np.random.Generator, city: str, relations: Sequence[str]
) -> list[str]:
    """Where the path leads when rows are copied with their accuracies."""
    cities = []
    for relation in relations:
        row = (relation, city)
        right = rng.random() < world.accuracies[row]
        city = world.table[row] if right else pick(rng, world.decoys[row])
        cities.append(city)
    return cities


def _options(problem: Problem) -> list[str]:
    """The cities on offer, in the order of the letters."""
    offered = problem.messages[-1]["content"].rpartition("\nOptions:")[2]
    return [option.split(" ")[1] for option in offered.split(",")]


def _letter(rng: np.random.Generator, problem: Problem, city: str) -> str:
    """The letter of a city, or any letter where it is not on offer."""
    options = _options(problem)
    return LETTERS[options.index(city)] if city in options else pick(rng, LETTERS)


def _chain(start: str, relations: Sequence[str], cities: Sequence[str]) -> list[list[str]]:
    """Rows [relation, from, to] that lead through these cities."""
    origins = [start, *cities[:-1]]
    return [list(row) for row in zip(relations, origins, cities, strict=True)]


def _write(problem: Problem, rows: Sequence[Sequence[str]], letter: str) -> str:
    """The response with these rows, what they come to, and a letter."""
    lines = [
        f"{number}. {relation} of {origin} is {city}"
        for number, (relation, origin, city) in enumerate(rows, start=1)
    ]
    options, end = _options(problem), rows[-1][2]
    where = LETTERS[options.index(end)] if end in options else NOWHERE
    return "\n".join([OPENING, *lines, f"So {end} ({where})", f"<answer>{letter}</answer>"])
