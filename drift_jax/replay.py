"""Stored successes as members of a group: experience replay in the policy gradient (RLEP).

RLEP (arXiv 2507.07451) adds M stored successes of the same problem to the G rollouts of a group.
They count in the advantages of all G + M members and are reinforced like the others; the old
policy's log-probs are those of the present weights, for they were sampled long ago.

A group always has M places, so shapes do not change; a place for which the buffer has nothing is
empty: no tokens, no weight, counted nowhere. What was not sampled in this step is no outcome of
it: replayed members enter neither pass rates, nor metrics of rollouts, nor the choice of siblings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drift_jax.buffer import Entry, SuccessBuffer
from drift_jax.types import Rollouts


@dataclass(frozen=True, eq=False)
class Replayed:
    """The stored successes that join the groups of a step.

    Attributes:
      entries: what was drawn, None in an empty place. [problem][member].
      tokens: the texts in token ids, stop token included; empty in an empty place.
        [problem][member], int32 [time].
    """

    entries: list[list[Entry | None]]
    tokens: list[list[np.ndarray]]

    @property
    def members(self) -> int:
        """M, places a group."""
        return len(self.entries[0]) if self.entries else 0

    @property
    def present(self) -> np.ndarray:
        """Which places are filled. bool [problem, member]."""
        filled = [[entry is not None for entry in group] for group in self.entries]
        return np.array(filled, bool).reshape(len(self.entries), self.members)

    @property
    def rewards(self) -> np.ndarray:
        """Their rewards, 0 in an empty place. float64 [problem, member]."""
        rewards = [[entry.reward if entry else 0.0 for entry in group] for group in self.entries]
        return np.array(rewards, np.float64).reshape(len(self.entries), self.members)

    def joined_rewards(self, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of all members, and which of them count.

        Args:
          rewards: of the rollouts. [problem, group].

        Returns:
          float64 and bool, [problem, group + member] each: rollouts first.
        """
        sampled = np.ones(np.shape(rewards), bool)
        return (
            np.concatenate([rewards, self.rewards], axis=1),
            np.concatenate([sampled, self.present], axis=1),
        )

    def joined(self, rollouts: Rollouts) -> Rollouts:
        """Rollouts and replayed members, problem by problem, rollouts first.

        Log-probs and entropies of replayed tokens are 0: nobody sampled them in this step.
        """
        if not self.members:
            return rollouts
        problems = len(self.entries)
        longest = max((len(row) for group in self.tokens for row in group), default=0)
        time = max(rollouts.tokens.shape[1], longest)
        tokens = np.zeros((problems, self.members, time), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for problem, group in enumerate(self.tokens):
            for member, row in enumerate(group):
                tokens[problem, member, : len(row)] = row
                mask[problem, member, : len(row)] = True

        def join(sampled: np.ndarray, stored: np.ndarray) -> np.ndarray:
            rows = sampled.reshape(problems, -1, *sampled.shape[1:])
            if rows.ndim == 3:
                rows = np.pad(rows, ((0, 0), (0, 0), (0, time - rows.shape[2])))
            both = np.concatenate([rows, stored.astype(rows.dtype)], axis=1)
            return both.reshape(-1, *both.shape[2:])

        return Rollouts(
            tokens=join(rollouts.tokens, tokens),
            mask=join(rollouts.mask, mask),
            log_probs=join(rollouts.log_probs, np.zeros(tokens.shape)),
            entropies=join(rollouts.entropies, np.zeros(tokens.shape)),
            finished=join(rollouts.finished, self.present),
        )


def draw(
    problem_ids: Sequence[str],
    buffer: SuccessBuffer,
    *,
    members: int,
    max_tokens: int,
    encode: Callable[[str], np.ndarray],
    rng_for: Callable[[str], np.random.Generator],
) -> Replayed:
    """Draws up to `members` different successes of every problem from the buffer.

    Args:
      problem_ids: persistent ids of the step's problems. [problem].
      buffer: read only; it holds successes of earlier steps.
      members: M, places a group; 0 replays nothing.
      max_tokens: an entry that is longer, stop token included, is left out.
      encode: text -> token ids with the stop token.
      rng_for: random numbers of a problem in this step; must depend on (seed, step, id) only.
    """
    entries: list[list[Entry | None]] = []
    tokens: list[list[np.ndarray]] = []
    for problem_id in problem_ids:
        rng = rng_for(problem_id)
        fitting: list[tuple[Entry, np.ndarray]] = []
        seen: list[str] = []
        while len(fitting) < members:
            entry = buffer.sample(problem_id, rng, exclude=seen)
            if entry is None:
                break
            seen.append(entry.response)
            encoded = encode(entry.response)
            if len(encoded) <= max_tokens:
                fitting.append((entry, encoded))
        empty = members - len(fitting)
        entries.append([*(entry for entry, _ in fitting), *[None] * empty])
        tokens.append([*(encoded for _, encoded in fitting), *[np.zeros(0, np.int32)] * empty])
    return Replayed(entries, tokens)


def nothing(problems: int, members: int) -> Replayed:
    """Groups whose places are all empty: what a step has in which the buffer is only filled."""
    return Replayed(
        [[None] * members for _ in range(problems)],
        [[np.zeros(0, np.int32)] * members for _ in range(problems)],
    )
