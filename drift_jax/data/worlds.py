"""What the generated tasks share: demonstrations, splits, and problems drawn by difficulty.

In each task a world holds *facts* that no prompt tells (which format, which tool, which entry of a
table). A demonstration of the warm start gets a fact right with a known probability, its accuracy.
A problem needs a few facts, so the product of their accuracies is the pass rate that a base policy
starts from, and a level of difficulty is a band of that product.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drift_jax.types import Problem

SPLIT_SIZES = {"train": 256, "validation": 96, "test": 96}

# Many facts are sure, so that a rare one can be met with nothing else to go wrong.
SURE = 0.97
# Probability that a demonstration solves a problem: lowest (inclusive) and highest (exclusive).
BANDS = {
    "easy": (0.4, 0.95),
    "medium": (0.12, 0.4),
    "hard": (0.02, 0.12),
    "extreme": (0.0005, 0.02),
}


@dataclass(frozen=True)
class Family:
    """The outlines of problems by difficulty. An outline says which facts a problem needs.

    Every level takes its outlines by their *rarest* fact, each in turn, so that no fact is left
    out, and half of the time one whose other facts are all sure, so that a rare fact is findable:
    it is met alone, at its own accuracy.

    Attributes:
      outlines: level -> rarest fact -> outlines whose other facts are sure, and all outlines.
    """

    outlines: dict[str, dict[Hashable, tuple[list[Any], list[Any]]]] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator, level: str, fact: Hashable) -> Any:
        """An outline of that level and rarest fact."""
        alone, every = self.outlines[level][fact]
        return pick(rng, alone if alone and rng.random() < 0.5 else every)

    def draw_any(self, rng: np.random.Generator, level: str) -> Any:
        """An outline of that level; its rarest facts come equally often."""
        return self.draw(rng, level, pick(rng, list(self.outlines[level])))


def family(
    outlines: Iterable[tuple[Any, Sequence[Hashable]]], accuracies: Mapping[Hashable, float]
) -> Family:
    """Sorts outlines into levels.

    Outlines that need no unsure fact, or lie in no band, are left out.

    Args:
      outlines: each with the facts that it needs.
      accuracies: of each fact.
    """
    made = Family({level: {} for level in BANDS})
    rarest_first = sorted(accuracies, key=lambda fact: (accuracies[fact], str(fact)))
    place = {fact: index for index, fact in enumerate(rarest_first)}
    for outline, facts in outlines:
        unsure = [fact for fact in facts if accuracies[fact] < SURE]
        chance = math.prod(map(accuracies.__getitem__, facts))
        level = next((name for name, (low, high) in BANDS.items() if low <= chance < high), None)
        if not unsure or level is None:
            continue
        rarest = min(unsure, key=place.__getitem__)
        alone, every = made.outlines[level].setdefault(rarest, ([], []))
        every.append(outline)
        if len(unsure) == 1:
            alone.append(outline)
    return made


def draw_splits(
    task: str,
    rng: np.random.Generator,
    outlines: Family,
    make: Callable[[np.random.Generator, str, str, Any], tuple[Problem, Hashable]],
) -> tuple[dict[str, list[Problem]], frozenset[Hashable]]:
    """The problems of each split, and the questions of test and validation, which stay held out.

    No question is asked twice, within a split or across splits. Levels come in turn.

    Args:
      task: name of the task, for the ids.
      rng: random numbers.
      outlines: to draw from.
      make: (rng, id, level, outline) -> a problem, and what it asks in whatever wording.
    """
    turns = {level: list(facts) for level, facts in outlines.outlines.items()}
    turns = {level: shuffled(rng, facts) for level, facts in turns.items()}
    levels = tuple(turns)
    taken: set[Hashable] = set()
    held_out: frozenset[Hashable] = frozenset()
    splits: dict[str, list[Problem]] = {}
    met = dict.fromkeys(levels, 0)  # turns go on from split to split
    for split in ("test", "validation", "train"):
        splits[split] = []
        for index in range(SPLIT_SIZES[split]):
            level = levels[index % len(levels)]
            fact = turns[level][met[level] % len(turns[level])]
            met[level] += 1
            while True:
                outline = outlines.draw(rng, level, fact)
                problem, question = make(rng, f"{task}/{split}/{index}", level, outline)
                if question not in taken:
                    break
            taken.add(question)
            splits[split].append(problem)
        if split != "train":
            held_out = frozenset(taken)
    return splits, held_out


def head(
    task: str, splits: Mapping[str, list[Problem]], split: str, count: int | None
) -> list[Problem]:
    """The first `count` problems of a split, all by default; levels come in turn.

    Raises:
      ValueError: for an unknown split, or a count that it does not have.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(SPLIT_SIZES)}")
    size = SPLIT_SIZES[split]
    count = size if count is None else count
    if not 0 < count <= size:
        raise ValueError(f"asked for {count} {task} {split} problems; take 1 to {size}")
    return splits[split][:count]


def check_seed(seed: int) -> None:
    """Raises ValueError for a world seed below 0."""
    if seed < 0:
        raise ValueError(f"world seed {seed} is negative; use 0 or more")


def pick(rng: np.random.Generator, options: Sequence) -> Any:
    """One of the options, uniformly. Unlike `rng.choice`, it leaves their type alone."""
    return options[int(rng.integers(len(options)))]


def shuffled(rng: np.random.Generator, items: Sequence) -> list:
    """The items in random order."""
    return [items[index] for index in rng.permutation(len(items))]
