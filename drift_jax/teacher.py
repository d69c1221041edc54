"""Who teaches whom: the success sibling sib+ of every sample (DRIFT section 3.1, Eqs. 19-20).

The self-teacher is the model itself, shown a correct answer to the same problem: a sibling of the
same group, or, where the whole group is wrong, an entry of the success buffer. It may also be shown
what the verifier said about the sample itself. Host side: plain loops over a few hundred samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drift_jax.buffer import SuccessBuffer

NO_SIBLING = -1


# What each rule prefers, as a key to sort by: (reward, entropy, length) of one success -> key. Ties
# go to the lowest rollout index.
_PREFERENCES: dict[str, Callable[[float, float, float], tuple[float, ...]]] = {
    "highest_entropy": lambda reward, entropy, length: (-reward, -entropy),
    "shortest": lambda reward, entropy, length: (-reward, length),
    "first": lambda reward, entropy, length: (),
}


def select_sibling(
    rewards: np.ndarray,
    entropies: np.ndarray,
    lengths: np.ndarray,
    *,
    sibling: str,
    success_threshold: float = 0.5,
    reward_tolerance: float = 0.1,
) -> np.ndarray:
    """The sibling that teaches each sample (DRIFT section 3.1).

    Candidates of a sample are the successes of its group, itself excluded. Among them:

    * "highest_entropy" (stage 1): of those within `reward_tolerance` of the largest reward, the
      one with the highest entropy, to keep exploration up during warm-up.
    * "shortest" (stage 2): of those with exactly the largest reward, the shortest.
    * "first": the one with the lowest rollout index, as in SDPO.

    Ties go to the lowest rollout index.

    Args:
      rewards: [problem, group]; compared in float64.
      entropies: mean entropy over the response tokens, in nats. [problem, group].
      lengths: number of response tokens, stop token included. [problem, group].
      sibling: one of the three rules.
      success_threshold: theta_r; a success has at least this reward.
      reward_tolerance: delta of stage 1; the largest reward is that of the candidates.

    Returns:
      Rollout index of the sibling within the group, or -1 where there is none.
      int64 [problem, group].
    """
    rewards, entropies, lengths = _group_arrays(rewards, entropies, lengths)
    chosen = np.full(rewards.shape, NO_SIBLING, dtype=np.int64)
    for problem, reward in enumerate(rewards):
        successes = np.flatnonzero(reward >= success_threshold)
        for rollout in range(len(reward)):
            candidates = successes[successes != rollout]
            if not candidates.size:
                continue
            considered = reward
            if sibling == "highest_entropy":
                # Inside the window reward no longer counts: level it, so that entropy decides.
                best = reward[candidates].max()
                candidates = candidates[reward[candidates] >= best - reward_tolerance]
                considered = np.full_like(reward, best)
            order = _preferred_first(
                candidates, considered, entropies[problem], lengths[problem], sibling
            )
            chosen[problem, rollout] = order[0]
    return chosen


def preference_order(
    rewards: np.ndarray,
    entropies: np.ndarray,
    lengths: np.ndarray,
    *,
    sibling: str,
    success_threshold: float = 0.5,
) -> np.ndarray:
    """The successes of one group in the order in which they are offered to the buffer.

    Highest reward first; at equal reward highest entropy ("highest_entropy"), or fewest tokens
    ("shortest"); then lowest rollout index. "first" is by rollout index alone. The order matters
    because a full buffer replaces only what is worse.

    Args:
      rewards, entropies, lengths: of one group, as in `select_sibling`. [group].
      sibling: the rule of the stage.
      success_threshold: theta_r.

    Returns:
      Rollout indices of the successes, the preferred one first. int64 [success].
    """
    rewards, entropies, lengths = _group_arrays([rewards], [entropies], [lengths])
    successes = np.flatnonzero(rewards[0] >= success_threshold)
    order = _preferred_first(successes, rewards[0], entropies[0], lengths[0], sibling)
    return np.asarray(order, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Choice:
    """The teacher of every sample.

    Attributes:
      text: response shown to the teacher, or None where there is none to show. [problem][group].
      source: where the teacher's context comes from: "sibling", "buffer", "feedback" (of the
        verifier, and no solution) or "none". str [problem, group].
      sibling: rollout index of the sibling within the group, or -1. int64 [problem, group].
      feedback: the verifier's words about the sample shown to its teacher, or None.
        [problem][group].
    """

    text: list[list[str | None]]
    source: np.ndarray
    sibling: np.ndarray
    feedback: list[list[str | None]]

    @property
    def has_teacher(self) -> np.ndarray:
        """Where there is a teacher of any kind. bool [problem, group]."""
        return self.source != "none"

    def widened(self, members: int) -> "Choice":
        """The same choice with `members` more samples a group at its end, without a teacher."""
        nothing: list[str | None] = [None] * members
        pad = ((0, 0), (0, members))
        return Choice(
            [row + nothing for row in self.text],
            np.pad(self.source, pad, constant_values="none"),
            np.pad(self.sibling, pad, constant_values=NO_SIBLING),
            [row + nothing for row in self.feedback],
        )


def select(
    problem_ids: Sequence[str],
    responses: Sequence[Sequence[str]],
    rewards: np.ndarray,
    entropies: np.ndarray,
    lengths: np.ndarray,
    buffer: SuccessBuffer,
    *,
    sibling: str,
    success_threshold: float = 0.5,
    reward_tolerance: float = 0.1,
    buffer_enabled: bool,
    rng_for: Callable[[str], np.random.Generator],
    fallback_above: float | None = None,
    feedback: str = "none",
    verdicts: Sequence[Sequence[str]] | None = None,
) -> Choice:
    """A sibling for every sample, or a buffer entry where its whole group is wrong.

    A group without a success draws one entry of the problem's buffer, the same for all its
    rollouts (DRIFT Eqs. 19-20). A rollout whose own text is the one drawn draws again among the
    others: nobody is taught by a copy of itself. The only success of a group has no teacher.

    Args:
      problem_ids: persistent ids. [problem].
      responses: decoded responses. [problem][group].
      rewards, entropies, lengths: as in `select_sibling`. [problem, group].
      buffer: read only; add this step's successes afterwards.
      sibling, success_threshold, reward_tolerance: as in `select_sibling`.
      buffer_enabled: False while the buffer is only filled: no sample falls back on it.
      rng_for: random numbers of a problem in this step; must depend on (seed, step, id) only.
      fallback_above: a group falls back on the buffer when no reward exceeds this, 0 in Eq. 19 as
        printed. None, the reading used by default, is one definition of success everywhere: when
        no reward reaches `success_threshold`. With rewards of 0 and 1 both are the same.
      feedback: whose teacher is shown what the verifier said about the sample, where it said
        anything: nobody's ("none"), that of a sample without a solution to show
        ("without_solution"), or everybody's ("always").
      verdicts: the verifier's words about each response, blank where it has none.
        [problem][group]; None for a task without.

    Returns:
      A `Choice`.
    """
    if feedback not in _FEEDBACK:
        raise ValueError(f"feedback is {feedback!r}; use one of {', '.join(_FEEDBACK)}")
    rewards, entropies, lengths = _group_arrays(rewards, entropies, lengths)
    problems, group_size = rewards.shape
    if len(problem_ids) != problems or [len(row) for row in responses] != [group_size] * problems:
        raise ValueError(
            f"got {len(problem_ids)} problem ids and {len(responses)} rows of responses for"
            f" rewards of shape {rewards.shape}; pass [problem] and [problem][group]"
        )
    siblings = select_sibling(
        rewards,
        entropies,
        lengths,
        sibling=sibling,
        success_threshold=success_threshold,
        reward_tolerance=reward_tolerance,
    )
    source = np.where(siblings == NO_SIBLING, "none", "sibling").astype("<U8")
    text: list[list[str | None]] = []
    for row, problem_id in enumerate(problem_ids):
        own = responses[row]
        text.append([own[index] if index != NO_SIBLING else None for index in siblings[row]])
        if fallback_above is None:
            all_wrong = not np.any(rewards[row] >= success_threshold)
        else:
            all_wrong = not np.any(rewards[row] > fallback_above)
        if buffer_enabled and all_wrong:
            text[row] = _draw(buffer, problem_id, own, rng_for(problem_id))
            source[row] = ["none" if drawn is None else "buffer" for drawn in text[row]]
    shown: list[list[str | None]] = [[None] * group_size for _ in range(problems)]
    for row, words in enumerate(verdicts or ()):
        for rollout, verdict in enumerate(words):
            if verdict.strip() and _FEEDBACK[feedback](text[row][rollout] is not None):
                shown[row][rollout] = verdict
                if text[row][rollout] is None:
                    source[row, rollout] = "feedback"
    return Choice(text, source, siblings, shown)


# The configuration's `feedback`: whether it is shown, by whether there is a solution to show.
_FEEDBACK: dict[str, Callable[[bool], bool]] = {
    "none": lambda has_solution: False,
    "without_solution": lambda has_solution: not has_solution,
    "always": lambda has_solution: True,
}


def _draw(
    buffer: SuccessBuffer, problem_id: str, responses: Sequence[str], rng: np.random.Generator
) -> list[str | None]:
    """One draw shared by the group, drawn again for a rollout with that very text (Eq. 20)."""
    shared = buffer.sample(problem_id, rng)
    drawn: list[str | None] = []
    for response in responses:
        entry = shared
        if shared is not None and shared.response == response:
            entry = buffer.sample(problem_id, rng, exclude=(response,))
        drawn.append(None if entry is None else entry.response)
    return drawn


def _preferred_first(
    candidates: np.ndarray,
    rewards: np.ndarray,
    entropies: np.ndarray,
    lengths: np.ndarray,
    sibling: str,
) -> list[int]:
    """The candidates of one group (rollout indices, ascending) in order of preference."""
    if sibling not in _PREFERENCES:
        raise ValueError(f"sibling is {sibling!r}; use one of {', '.join(_PREFERENCES)}")
    prefer = _PREFERENCES[sibling]
    keys = list(map(prefer, rewards.tolist(), entropies.tolist(), lengths.tolist()))
    return sorted(candidates.tolist(), key=keys.__getitem__)  # stable: equals stay ascending


def _group_arrays(*arrays: object) -> tuple[np.ndarray, ...]:
    """float64 [problem, group] each, all of one shape."""
    out = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if out[0].ndim != 2 or any(array.shape != out[0].shape for array in out):
        raise ValueError(
            "rewards, entropies and lengths must all be [problem, group];"
            f" got {', '.join(str(array.shape) for array in out)}"
        )
    return out
