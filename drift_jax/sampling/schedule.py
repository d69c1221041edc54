"""Which shapes a call of the sampler uses, and which rollout each row decodes. No device here.

The shapes come from two ladders: the batch is one of a few numbers of rows, a cache one of a few
lengths. A call starts on the rung that holds its rollouts (or on the top one, with the others
waiting), climbs the cache ladder as its responses grow, and steps down the row ladder as they end.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from drift_jax import batching
from drift_jax.types import Rollouts

# The share of the rows that is free before waiting rollouts come in: less leaves fewer rows idle,
# more lets prompts go through the model together.
REFILL = 1 / 8


@dataclasses.dataclass(frozen=True, order=True)
class Shapes:
    """What one call may compile.

    Attributes:
      rows: numbers of rows, ascending; the call starts with the last.
      slots: cache lengths, ascending.
      queued: whether there are more rollouts than rows.
      chunks: how many prompts are prefilled together: while rows end one by one, and at the start.
      refill: rows that are free before waiting rollouts come in.
    """

    rows: tuple[int, ...]
    slots: tuple[int, ...]
    queued: bool
    chunks: tuple[int, int]
    refill: int

    def lower_rows(self, rows: int) -> int:
        """The next smaller number of rows; 0 if there is none."""
        return max((rung for rung in self.rows if rung < rows), default=0)

    def slots_for(self, wanted: int) -> int:
        """The shortest cache that holds so many slots, or the longest of all."""
        return next((rung for rung in self.slots if rung >= wanted), self.slots[-1])

    def next_slots(self, slots: int, by: int) -> int:
        """The cache length one rung up (`by` 1) or down (-1)."""
        return self.slots[min(max(self.slots.index(slots) + by, 0), len(self.slots) - 1)]


def shapes(
    problems: int,
    group_size: int,
    longest: int,
    *,
    row_buckets: Sequence[int],
    cache_buckets: Sequence[int],
    max_rows: int,
    multiple: int,
) -> Shapes:
    """The shapes of a call.

    Args:
      problems: how many prompts.
      group_size: rollouts of each.
      longest: tokens of the largest prompt bucket and the longest response together.
      row_buckets, cache_buckets, max_rows: as in `Sampler`.
      multiple: what a smaller number of rows must be a multiple of, to be spread over devices.
    """
    total = problems * group_size
    rungs = [rung for rung in row_buckets if rung < max_rows and rung % multiple == 0]
    top = min((rung for rung in [*rungs, max_rows] if rung >= total), default=max_rows)
    if not row_buckets:  # nothing is said about shapes: those of the call
        top = min(total, max_rows)
    refill = max(1, int(top * REFILL))
    # Never a cache longer than any response can get: every slot of it is read at every step.
    slots = [rung for rung in cache_buckets if rung < longest]
    return Shapes(
        rows=tuple(sorted({rung for rung in rungs if rung < top} | {top})),
        slots=(*sorted(slots), longest),
        queued=total > top,
        chunks=(-(-refill // group_size), -(-top // group_size)),
        refill=refill,
    )


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Prompts that go through the model together, and the rollouts that continue them."""

    tokens: np.ndarray  # [problem, time] int32, left-padded
    mask: np.ndarray  # [problem, time] bool
    problems: np.ndarray  # [problem] which of the call's prompts; repeated to fill up
    rollouts: np.ndarray  # [rollout, 2] place in the chunk, index in the group


def chunk_sizes(shapes: Shapes, problems: int, prompt_buckets: int) -> tuple[int, ...]:
    """The numbers of prompts that a call may prefill together."""
    small, large = shapes.chunks
    at_once = not shapes.queued and prompt_buckets == 1 and 2 * problems >= large
    return (large,) if at_once else tuple(sorted({small, large}))


def nobody(size: int, width: int) -> Chunk:
    """A chunk without a rollout, to compile with."""
    tokens = np.zeros((size, width), np.int32)
    return Chunk(tokens, tokens == 0, np.zeros(size, int), np.zeros((0, 2), int))


class Queue:
    """Rollouts that wait, those of long prompts first.

    So prompts of one chunk need about the same padding, no later prompt is longer than an earlier
    one, and what probably takes longest is not begun last.
    """

    def __init__(
        self, prompts: Sequence[np.ndarray], group_size: int, prompt_buckets: Sequence[int]
    ) -> None:
        self._prompts = prompts
        self._widths = [_bucket(len(prompt), prompt_buckets) for prompt in prompts]
        self._group_size = group_size
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        self._waiting = [(i, rollout) for i in order for rollout in range(group_size)]
        self._taken = 0

    def __len__(self) -> int:
        return len(self._waiting) - self._taken

    @property
    def width(self) -> int:
        """Padded length of the next prompt; 0 if none waits."""
        return self._widths[self._waiting[self._taken][0]] if self else 0

    def take(self, room: int, sizes: tuple[int, int]) -> Chunk:
        """Takes out rollouts for at most `room` rows.

        Args:
          room: free rows.
          sizes: numbers of prompts in a chunk; the larger one is used where it is half filled by
            prompts of the same bucket.
        """
        small, large = sizes
        waiting = self._waiting[self._taken : self._taken + room]
        alike = [i for i in dict.fromkeys(i for i, _ in waiting) if self._widths[i] == self.width]
        size = large if 2 * len(alike) >= large else small
        if size == small:  # prompts of several buckets may share a small chunk
            alike = list(dict.fromkeys(i for i, _ in waiting))
        chosen = alike[:size]
        place = {problem: index for index, problem in enumerate(chosen)}
        taken = [(place[i], rollout) for i, rollout in waiting if i in place]
        width = self.width
        self._taken += len(taken)
        problems = np.array(chosen + chosen[:1] * (size - len(chosen)))
        tokens, mask = batching.left_pad([self._prompts[i] for i in problems], width)
        return Chunk(tokens, mask, problems, np.array(taken))


def _bucket(length: int, prompt_buckets: Sequence[int]) -> int:
    for bucket in prompt_buckets:
        if length <= bucket:
            return bucket
    raise ValueError(
        f"a prompt has {length} tokens but the largest prompt bucket is {prompt_buckets[-1]}; "
        "drop it (data.max_prompt_tokens) or enlarge rollout.prompt_buckets"
    )


@dataclasses.dataclass
class Table:
    """The host's side of a `DecodeState`: whom each row works for, and since when."""

    owner: np.ndarray  # [rows] int, row of the results; -1 is free
    first: np.ndarray  # [rows] int, slot of the first token of the prompt
    start: np.ndarray  # [rows] int, slot of the first token of the response
    clock: int
    slots: int

    @classmethod
    def blank(cls, rows: int, clock: int, slots: int) -> "Table":
        """All rows free."""
        nobody, zeros = np.full(rows, -1), np.zeros(rows, int)
        return cls(nobody, zeros, zeros.copy(), clock, slots)

    @property
    def free(self) -> np.ndarray:
        """Indices of the rows without an owner."""
        return np.flatnonzero(self.owner < 0)

    @property
    def busy(self) -> np.ndarray:
        """Indices of the others."""
        return np.flatnonzero(self.owner >= 0)

    def admit(self, chunk: Chunk, group_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives free rows to the rollouts of a chunk.

        Returns:
          For each row the prompt in the chunk (-1: none) and the rollout's index. Two of [rows]
        """
        rows = self.free[: len(chunk.rollouts)]
        place, rollout = chunk.rollouts.T
        self.owner[rows] = chunk.problems[place] * group_size + rollout
        self.first[rows] = self.clock - chunk.mask.sum(axis=1)[place]
        self.start[rows] = self.clock
        problem = np.full(len(self.owner), -1, np.int32)
        index = np.zeros(len(self.owner), np.int32)
        problem[rows], index[rows] = place, rollout
        return problem, index

    def shift(self, keep: int) -> int:
        """Slots at the front that nobody needs, if `keep` ones before the clock must remain."""
        return max(0, min(self.first[self.busy].min(initial=self.clock), self.clock - keep))

    def moved(self, rows: int, shift: int, slots: int) -> tuple["Table", np.ndarray, np.ndarray]:
        """The table after `decode.move`, the old row of each new one, and which are meant."""
        busy = self.busy if rows < len(self.owner) else np.arange(rows)
        source = np.zeros(rows, np.int32)
        source[: len(busy)] = busy
        keep = np.arange(rows) < len(busy)
        owner = np.where(keep, self.owner[source], -1)
        first, start = self.first[source] - shift, self.start[source] - shift
        return Table(owner, first, start, self.clock - shift, slots), source, keep

    def collect(
        self,
        live: np.ndarray,
        tokens: np.ndarray,
        log_probs: np.ndarray,
        entropies: np.ndarray,
        results: Rollouts,
        stop_tokens: Sequence[int],
    ) -> None:
        """Writes what a segment drew into the results and frees the rows that ended.

        Args:
          live, tokens, log_probs, entropies: as in `decode.Emitted`.
          results: of the whole call.
          stop_tokens: what ends a response.
        """
        column, row = np.nonzero(live)
        at = self.owner[row], self.clock - self.start[row] + column
        results.tokens[at] = tokens[column, row]
        results.log_probs[at] = log_probs[column, row]
        results.entropies[at] = entropies[column, row]
        results.mask[at] = True
        stopped = np.isin(tokens[column, row], stop_tokens)
        results.finished[at[0]] |= stopped
        ended = stopped | (at[1] + 1 == results.tokens.shape[1])
        self.owner[row[ended]] = -1
        self.clock += int(column.max(initial=-1)) + 1
