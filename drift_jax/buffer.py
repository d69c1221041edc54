"""Success buffer: a few correct responses of every problem, kept as text (DRIFT section 3.4).

When no rollout of a group is correct, one of these teaches in place of a sibling. Host side: plain
Python, so the whole state is a piece of JSON.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One stored success, y+ and its reward.

    Attributes:
      response: decoded response, special tokens removed.
      reward: its reward.
      step: training step in which it was sampled.
      token_length: number of response tokens, stop token included; 0 where unknown.
      entropy: mean entropy over its tokens, in nats.
    """

    response: str
    reward: float
    step: int
    token_length: int = 0
    entropy: float = 0.0

    @property
    def length(self) -> int:
        """Length in tokens, or in characters where the number of tokens is unknown."""
        return self.token_length or len(self.response)


@dataclass(frozen=True)
class _Tie:
    """What happens in a full buffer to a new entry whose reward equals the lowest stored one.

    Attributes:
      wins: whether the new entry replaces the old one.
      weakest_first: which of several stored entries with the lowest reward goes; they are sorted
        by this, and by age where it says nothing.
    """

    wins: Callable[[Entry, Entry], bool]
    weakest_first: Callable[[Entry], int]


_TIES = {
    "keep": _Tie(lambda new, old: False, lambda entry: 0),
    "newest": _Tie(lambda new, old: new.step > old.step, lambda entry: entry.step),
    "shortest": _Tie(lambda new, old: new.length < old.length, lambda entry: -entry.length),
}


def is_usable(
    step: int, *, steps_per_epoch: int, fill_epochs: int = 1, fill_steps: int = 0
) -> bool:
    """Whether the buffer may be read in a step, or is only filled (DRIFT Eqs. 18-19).

    For the first `fill_epochs` epochs, k, and the first `fill_steps` steps the buffer is only
    filled; the later of the two counts. Steps and epochs are counted from 1. As every problem
    occurs once an epoch, k = 1 means as soon as there can be anything.
    """
    epoch = (step - 1) // steps_per_epoch + 1
    return epoch > fill_epochs and step > fill_steps


def _uniform(entries: list[Entry], rng: np.random.Generator) -> Entry:
    return entries[int(rng.integers(len(entries)))]


def _top(entries: list[Entry], rng: np.random.Generator) -> Entry:
    return max(entries, key=lambda entry: (entry.reward, entry.step))  # of equals the first offered


# The configuration's `draw`: which of the entries that may be drawn.
_DRAWS: dict[str, Callable[[list[Entry], np.random.Generator], Entry]] = {
    "uniform": _uniform,
    "top": _top,
}


class SuccessBuffer:
    """B(x): at most `capacity` successes of every problem (DRIFT Eqs. 17, 20-22).

    Args:
      capacity: b, entries per problem. 0 stores nothing: the buffer is switched off.
      on_tie: what a full buffer does with a new entry whose reward equals the lowest one stored.
        "keep" is Eq. 22 as printed (strictly higher replaces); with rewards of 0 and 1 a buffer
        then freezes at its first `capacity` successes. "newest" replaces an entry of an earlier
        step, "shortest" a longer one.
      draw: which entry is drawn: "uniform" is Eq. 20; "top", of the authors' release, is the one
        with the highest reward, of these the newest, of these the first that was offered.
      max_problems: problems with entries; when there are more, the one whose best entry has the
        lowest reward, of these the oldest, is forgotten. 0 keeps all.
    """

    def __init__(
        self,
        capacity: int = 3,
        on_tie: str = "keep",
        *,
        draw: str = "uniform",
        max_problems: int = 0,
    ) -> None:
        if capacity < 0:
            raise ValueError(f"buffer capacity is {capacity}; use 0 (off) or a positive number")
        if on_tie not in _TIES:
            raise ValueError(f"buffer on_tie is {on_tie!r}; use one of {', '.join(_TIES)}")
        if draw not in _DRAWS:
            raise ValueError(f"buffer draw is {draw!r}; use one of {', '.join(_DRAWS)}")
        if max_problems < 0:
            raise ValueError(f"buffer max_problems is {max_problems}; use 0 (all) or more")
        self.capacity = capacity
        self.on_tie = on_tie
        self.draw = draw
        self.max_problems = max_problems
        self._entries: dict[str, list[Entry]] = {}
        self._replaced = 0

    def add(
        self,
        problem_id: str,
        response: str,
        reward: float,
        *,
        step: int,
        token_length: int = 0,
        entropy: float = 0.0,
    ) -> bool:
        """Offers one success to the buffer of a problem (DRIFT Eqs. 21-22).

        A buffer that is not full takes it. A full one replaces the entry with the lowest reward
        when the new reward is higher, or when it is equal and `on_tie` says so. A text that is
        stored already is never stored twice: it keeps the higher reward, and at equal reward the
        newer step. The caller passes successes only, the preferred ones first.

        Args:
          problem_id: persistent id, `task/split/idx`.
          response: decoded response, special tokens removed.
          reward: its reward, finite.
          step: training step.
          token_length: response tokens, stop token included; 0 where unknown.
          entropy: mean entropy over its tokens, in nats.

        Returns:
          Whether this success is now stored.
        """
        if not math.isfinite(reward):
            raise ValueError(f"reward of {problem_id!r} is {reward}; a success has a finite reward")
        if self.capacity == 0:
            return False
        new = Entry(response, float(reward), int(step), int(token_length), float(entropy))
        stored = self._entries.setdefault(problem_id, [])
        for old in stored:
            if old.response == new.response:
                return _renew(stored, old, new)
        if len(stored) < self.capacity:
            stored.append(new)
            self._forget_surplus()
            return problem_id in self._entries
        tie = _TIES[self.on_tie]
        lowest = min(stored, key=lambda entry: (entry.reward, tie.weakest_first(entry)))
        if new.reward > lowest.reward or (new.reward == lowest.reward and tie.wins(new, lowest)):
            stored.remove(lowest)
            stored.append(new)
            self._replaced += 1
            return True
        return False

    def sample(
        self, problem_id: str, rng: np.random.Generator, *, exclude: Collection[str] = ()
    ) -> Entry | None:
        """Draws one success of a problem, each with equal probability (DRIFT Eq. 20), or the top.

        Args:
          problem_id: persistent id.
          rng: the only source of randomness.
          exclude: texts that must not be drawn.

        Returns:
          An entry, or None where nothing is left to draw from.
        """
        excluded = set(exclude)
        left = [entry for entry in self.entries(problem_id) if entry.response not in excluded]
        return _DRAWS[self.draw](left, rng) if left else None

    def entries(self, problem_id: str) -> tuple[Entry, ...]:
        """The stored successes of a problem, oldest first."""
        return tuple(self._entries.get(problem_id, ()))

    @property
    def problem_count(self) -> int:
        """Number of problems with at least one success."""
        return len(self._entries)

    @property
    def entry_count(self) -> int:
        """Number of stored successes."""
        return sum(map(len, self._entries.values()))

    @property
    def replaced(self) -> int:
        """How often an entry of a full buffer gave way to another (Eq. 22) since training began."""
        return self._replaced

    @property
    def reward_mean(self) -> float:
        """Mean reward of the stored successes; 0 where there are none."""
        return sum(entry.reward for entry in self._all()) / max(self.entry_count, 1)

    @property
    def text_bytes(self) -> int:
        """Size of the stored text as UTF-8."""
        return sum(len(entry.response.encode("utf-8", "surrogatepass")) for entry in self._all())

    def age_mean(self, step: int) -> float:
        """Mean age of the stored successes in steps, seen from `step`; 0 where there are none."""
        return sum(step - entry.step for entry in self._all()) / max(self.entry_count, 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything the buffer knows, ready for JSON; a round trip through text is exact."""
        problems = {
            problem_id: [dataclasses.asdict(entry) for entry in stored]
            for problem_id, stored in self._entries.items()
        }
        return {"replaced": self._replaced, "problems": problems}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the content by that of `state_dict`.

        Capacity, `on_tie`, `draw` and `max_problems` are settings, not state. A state with more
        entries than this buffer may hold (a run that goes on with a smaller capacity) is offered
        entry by entry.

        Raises:
          ValueError: the state is not one that `state_dict` gives; the buffer is left untouched.
        """
        loaded = SuccessBuffer(self.capacity, self.on_tie, max_problems=self.max_problems)
        try:
            for problem_id, stored in state["problems"].items():
                for fields in stored:
                    loaded._offer(problem_id, Entry(**fields))
            replaced = int(state["replaced"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the state of a success buffer: {error!r}") from error
        self._entries, self._replaced = loaded._entries, replaced

    def _forget_surplus(self) -> None:
        """Drops the problem whose best entry ranks lowest if there is one too many."""
        if 0 < self.max_problems < len(self._entries):
            best = {
                problem_id: max((entry.reward, entry.step) for entry in stored)
                for problem_id, stored in self._entries.items()
            }
            del self._entries[min(best, key=best.__getitem__)]

    def _offer(self, problem_id: str, entry: Entry) -> None:
        if not isinstance(entry.response, str):
            raise TypeError(f"response {entry.response!r} of {problem_id!r} is not text")
        self.add(problem_id, **dataclasses.asdict(entry))

    def _all(self) -> list[Entry]:
        return [entry for stored in self._entries.values() for entry in stored]


def _renew(stored: list[Entry], old: Entry, new: Entry) -> bool:
    """Puts `new` in the place of `old`, the same text, if its reward is higher or else newer."""
    if (new.reward, new.step) <= (old.reward, old.step):
        return False
    stored.remove(old)
    stored.append(new)
    return True
