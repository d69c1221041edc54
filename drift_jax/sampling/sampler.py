"""Sampling: the host's loop over compiled segments.

    admit waiting rollouts -> make room in the caches -> decode a segment -> collect, step down

Each prompt goes through the model once for its group. Rows that ended make place for waiting
rollouts; when none waits, the rest moves to a smaller batch. Caches begin short and grow with the
responses. None of this changes what is drawn: a token's random numbers belong to the seed, the
step, the problem, the rollout and the position.
"""

import dataclasses
import time
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drift_jax import sharding
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.sampling import decode, schedule
from drift_jax.sampling.decode import MAX_STOP_TOKENS, Controls, DecodeState
from drift_jax.sampling.schedule import Chunk, Queue, Shapes, Table
from drift_jax.types import Rollouts


@dataclasses.dataclass(frozen=True)
class Precompiled:
    """What `Sampler.precompile` did."""

    executables: int
    seconds: float  # wall-clock time

    def __add__(self, other: "Precompiled") -> "Precompiled":
        return Precompiled(self.executables + other.executables, self.seconds + other.seconds)

    def __str__(self) -> str:
        return f"{self.executables} executables in {self.seconds:.1f} s"


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model's sizes and the shapes that its sampling may take.

    Attributes:
      config: the model.
      prompt_buckets: prompt lengths that are compiled, ascending; a prompt is padded to the next
        one.
      row_buckets: numbers of rows below `max_rows` that are compiled, ascending. A call starts
        with the smallest that holds its rollouts and steps down as responses end. Empty: as many
        rows as the call has rollouts, from start to end.
      cache_buckets: lengths of the caches, ascending, before their full one, which is the longest
        prompt bucket with the longest response; buckets at least as long as that are not used.
      max_rows: most rows decoded at once; further rollouts wait until rows are free.
      segment_steps: most tokens between two looks at the device from the host.
      dtype: dtype of the computation; None keeps the parameters'.
      mesh: where the rows go; None is the default device.
    """

    config: ModelConfig
    prompt_buckets: tuple[int, ...]
    row_buckets: tuple[int, ...] = ()
    cache_buckets: tuple[int, ...] = ()
    max_rows: int = 256
    segment_steps: int = 128
    dtype: jnp.dtype | None = None
    mesh: Mesh | None = None

    def generate(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_tokens: Sequence[int],
        stream: np.ndarray,
    ) -> Rollouts:
        """Samples `group_size` responses a prompt.

        Log-probs and entropies are those of the full distribution at temperature 1, whatever was
        used to draw. Tokens depend on the stream and on the model alone: not on the other prompts,
        their order or the padding (but for draws within rounding of a boundary).

        Args:
          params: the parameters that are trained; nothing is kept of them after the call.
          prompts: token ids, one array a problem; may be none at all.
          group_size: responses a prompt.
          max_new_tokens: longest response, the stop token included.
          temperature: 0 is greedy.
          top_p: keep the smallest set of tokens of this mass.
          top_k: keep this many tokens; 0 is all.
          stop_tokens: any of these ends a response and is kept as its last token.
          stream: `random_streams` of the problems. [problem, 2]

        Returns:
          `Rollouts` of problem-major rows, [len(prompts) * group_size, max_new_tokens].

        Raises:
          ValueError: if a prompt is empty or longer than the largest bucket, or there are too many
            stop tokens.
        """
        stops = tuple(stop_tokens)
        if not 0 < len(stops) <= MAX_STOP_TOKENS:
            raise ValueError(f"{len(stops)} stop tokens; expected 1 to {MAX_STOP_TOKENS}")
        controls = _controls(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop_tokens=stops,
            max_new_tokens=max_new_tokens,
        )
        results = _no_tokens(len(prompts) * group_size, max_new_tokens)
        queue = Queue(prompts, group_size, self.prompt_buckets)
        if not queue:
            return results
        shapes = self._shapes(len(prompts), group_size, max_new_tokens)
        batch = _Batch(self, params, shapes, queue.width, max_new_tokens)
        while queue or len(batch.table.busy):
            while queue and len(batch.table.free) >= min(shapes.refill, len(queue)):
                batch.admit(queue.take(len(batch.table.free), shapes.chunks), stream, group_size)
            batch.make_room(queue.width)
            batch.run_segment(controls, waiting=len(queue), results=results, stop_tokens=stops)
            if not queue:
                batch.step_down()
        return results

    def precompile(
        self, params: Params, *, problems: Iterable[int], group_size: int, max_new_tokens: int
    ) -> Precompiled:
        """Compiles all that calls of `generate` may need, by running it on nothing.

        Args:
          params: parameters, placed as those of the calls.
          problems: how many prompts the calls have.
          group_size: as in the calls.
          max_new_tokens: as in the calls.
        """
        begin, before = time.perf_counter(), decode.executables()
        walks = set()
        for count in problems:
            shapes = self._shapes(count, group_size, max_new_tokens)
            walks.add((shapes, schedule.chunk_sizes(shapes, count, len(self.prompt_buckets))))
        for shapes, sizes in sorted(walks):
            for width in self.prompt_buckets:
                _Batch(self, params, shapes, width, max_new_tokens).compile(width, sizes)
        return Precompiled(decode.executables() - before, time.perf_counter() - begin)

    def _shapes(self, problems: int, group_size: int, max_new_tokens: int) -> Shapes:
        return schedule.shapes(
            problems,
            group_size,
            self.prompt_buckets[-1] + max_new_tokens,
            row_buckets=self.row_buckets,
            cache_buckets=self.cache_buckets,
            max_rows=self.max_rows,
            multiple=sharding.batch_devices(self.mesh) if self.mesh else 1,
        )


def _controls(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    stop_tokens: tuple[int, ...],
    max_new_tokens: int,
) -> Controls:
    # numpy: a device array made on the way in would cost a dispatch each.
    stops = stop_tokens + (-1,) * (MAX_STOP_TOKENS - len(stop_tokens))
    return Controls(
        temperature=np.float32(temperature),
        top_p=np.float32(top_p),
        top_k=np.int32(top_k),
        stop_tokens=np.array(stops, np.int32),
        limit=np.int32(max_new_tokens),
    )


class _Batch:
    """The rows of one call: the state on the device, and the table of whom they work for."""

    def __init__(
        self, sampler: Sampler, params: Params, shapes: Shapes, width: int, limit: int
    ) -> None:
        self._sampler = sampler
        self._shapes = shapes
        self._limit = limit
        self._params = decode.unstacked(params, config=sampler.config, dtype=sampler.dtype)
        slots = shapes.slots_for(width + sampler.segment_steps)
        self.table = Table.blank(shapes.rows[-1], width, slots)
        self._state: DecodeState = decode.blank(
            self._params,
            np.int32(width),
            rows=shapes.rows[-1],
            slots=slots,
            config=sampler.config,
            mesh=sampler.mesh,
        )

    def admit(self, chunk: Chunk, stream: np.ndarray, group_size: int) -> None:
        """Prefills the prompts of a chunk and gives its rollouts rows."""
        prefilled = decode.prefill(
            self._params,
            *self._put((chunk.tokens, chunk.mask, stream[chunk.problems])),
            config=self._sampler.config,
        )
        rows = self.table.admit(chunk, group_size)
        self._state = decode.admit(
            self._state, prefilled, *self._put(rows), mesh=self._sampler.mesh
        )

    def make_room(self, width: int) -> None:
        """Shifts out what nobody needs and lengthens the caches, if they are full.

        Args:
          width: slots that must remain before the clock, for the next prompt; 0 if none waits.
        """
        table, shapes, steps = self.table, self._shapes, self._sampler.segment_steps
        shift = table.shift(width)
        shorter = shapes.next_slots(table.slots, -1)
        if width and shorter < table.slots and table.clock - shift + steps <= shorter:
            self._move(len(table.owner), shift, shorter)
        elif table.clock == table.slots:
            # Rows of different ages leave much to shift out, rows that began together little.
            enough = shapes.queued and 2 * shift >= min(steps, self._limit)
            longer = table.slots if enough else shapes.next_slots(table.slots, 1)
            self._move(len(table.owner), shift, longer)

    def run_segment(
        self,
        controls: Controls,
        *,
        waiting: int,
        results: Rollouts,
        stop_tokens: Sequence[int],
    ) -> None:
        """Decodes until a look at the rows is worth while, and collects the tokens."""
        rows = len(self.table.owner)
        leave_at = (
            rows - min(self._shapes.refill, waiting) if waiting else self._shapes.lower_rows(rows)
        )
        steps = min(self._sampler.segment_steps, self.table.slots - self.table.clock)
        emitted = jax.device_get(self._segment(controls, steps, leave_at))
        self.table.collect(
            emitted.live,
            emitted.tokens,
            emitted.log_probs,
            emitted.entropies,
            results,
            stop_tokens,
        )

    def step_down(self) -> None:
        """Moves to a smaller batch while one holds all that is left."""
        while 0 < len(self.table.busy) <= (rows := self._shapes.lower_rows(len(self.table.owner))):
            self._move(rows, 0, self.table.slots)

    def compile(self, width: int, sizes: Sequence[int]) -> None:
        """Runs every function on every shape that can follow, on no rollout at all.

        Args:
          width: padded length of the prompts.
          sizes: numbers of prompts that may be prefilled together.
        """
        shapes = self._shapes
        begin = shapes.slots.index(self.table.slots)
        for slots in shapes.slots[begin:]:
            if slots > self.table.slots:
                self._move(len(self.table.owner), 0, slots)
            for size in sizes if shapes.queued or slots == shapes.slots[begin] else ():
                self.admit(schedule.nobody(size, width), np.zeros((1, 2), np.uint32), 1)
            table, state = self.table, None
            for rows in reversed(shapes.rows):
                if rows < len(self.table.owner):
                    self._move(rows, 0, slots)
                self._segment(_NOTHING, 0, 0)
                state = state or self._state  # of all rows; `move` leaves it as it is
                self._visit_neighbours(rows, slots)
            assert state is not None
            self.table, self._state = table, state

    def _visit_neighbours(self, rows: int, slots: int) -> None:
        """Compiles the moves that keep the number of rows."""
        table, state, shapes = self.table, self._state, self._shapes
        targets = {shapes.next_slots(slots, 1)}
        if shapes.queued:
            targets.add(slots)
            if rows == shapes.rows[-1]:  # only there caches become shorter again
                targets.add(shapes.next_slots(slots, -1))
        elif slots == shapes.slots[-1]:
            targets.clear()
        for target in targets:
            self._move(rows, 0, target)
            self.table, self._state = table, state

    def _segment(self, controls: Controls, steps: int, leave_at: int) -> decode.Emitted:
        self._state, emitted = decode.decode_segment(
            self._params,
            self._state,
            controls,
            np.int32(steps),
            np.int32(leave_at),
            columns=self._sampler.segment_steps,
            config=self._sampler.config,
            mesh=self._sampler.mesh,
        )
        return emitted

    def _move(self, rows: int, shift: int, slots: int) -> None:
        self.table, source, keep = self.table.moved(rows, shift, slots)
        self._state = decode.move(
            self._state,
            *self._put((source, keep)),
            np.int32(shift),
            slots=slots,
            mesh=self._sampler.mesh,
        )

    def _put(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray | jax.Array, ...]:
        mesh = self._sampler.mesh
        return sharding.put_batch(mesh, arrays) if mesh else arrays


# For compilation only; no token is drawn with it.
_NOTHING = _controls(temperature=1.0, top_p=1.0, top_k=0, stop_tokens=(0,), max_new_tokens=1)


def _no_tokens(rows: int, time: int) -> Rollouts:
    return Rollouts(
        tokens=np.zeros((rows, time), np.int32),
        mask=np.zeros((rows, time), bool),
        log_probs=np.zeros((rows, time), np.float32),
        entropies=np.zeros((rows, time), np.float32),
        finished=np.zeros(rows, bool),
    )
