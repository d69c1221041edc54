"""When, and how far, the self-teacher follows the student.

    ema          a share of the student enters after every step
    frozen       never: the teacher is the initial model
    trust_region never: its weights stay, the update mixes their logits with the student's
    snapshot     a copy of the student after every so many steps
    gated_copy   a copy when the student has become better and stayed stable (CGTR, 2606.03532)

Host side: the rate of a step is a number that the update takes. What a rule must remember is a
piece of JSON in the checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

COPY = 1.0  # the rate that makes the teacher a copy of the student


class TeacherSchedule:
    """The rate of every step: the share of the new student that enters the teacher.

    Args:
      rule: one of the five names above.
      rate: of "ema", in [0, 1].
      copy_every: of "snapshot": a copy after each step that this number divides.
      check_every: of "gated_copy": steps between two looks at the conditions.
      min_steps: of "gated_copy": fewest steps between two copies.
      window: of "gated_copy": steps over which rewards and lengths are read.
      reward_gain: of "gated_copy": the window's mean reward must exceed that of the last copy by
        more than this. The initial teacher counts as a copy; its reward is that of the first
        window.
      length_ratio: of "gated_copy": the longest response of the window over the mean length of
        its responses must not exceed this: runaway answers must not become the teacher's.
    """

    def __init__(
        self,
        rule: str = "ema",
        *,
        rate: float = 0.05,
        copy_every: int = 10,
        check_every: int = 5,
        min_steps: int = 30,
        window: int = 5,
        reward_gain: float = 0.05,
        length_ratio: float = 3.2,
    ) -> None:
        if rule not in _RULES:
            raise ValueError(f"update_rule is {rule!r}; use one of {', '.join(_RULES)}")
        if min(copy_every, check_every, window) < 1:
            raise ValueError(
                f"copy_every {copy_every}, check_every {check_every} and window {window} are"
                " numbers of steps; use at least 1"
            )
        self.rule, self.rate = rule, rate
        self.copy_every, self.check_every = copy_every, check_every
        self.min_steps, self.window = min_steps, window
        self.reward_gain, self.length_ratio = reward_gain, length_ratio
        self._last_copy = 0  # the initial teacher is a copy of the initial student
        self._copied_reward: float | None = None
        self._recent: list[tuple[float, float, float]] = []  # reward, mean and longest length

    def next_rate(self, step: int, rewards: np.ndarray, lengths: np.ndarray) -> float:
        """Takes in what a step sampled and returns the rate with which its update ends.

        Call it once a step. A copy is of the student after the step's update.

        Args:
          step: training step, from 1.
          rewards: of the step's rollouts. [problem, group].
          lengths: their response lengths, in tokens. [problem, group].
        """
        return _RULES[self.rule](self, step, np.asarray(rewards), np.asarray(lengths))

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers, ready for JSON; a round trip through text is exact."""
        return {
            "last_copy": self._last_copy,
            "copied_reward": self._copied_reward,
            "recent": [list(seen) for seen in self._recent],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces what is remembered by `state_dict`'s.

        Raises:
          ValueError: the state is not one that `state_dict` gives; nothing is changed.
        """
        try:
            last_copy, reward = int(state["last_copy"]), state["copied_reward"]
            reward = None if reward is None else float(reward)
            recent = [(float(r), float(mean), float(most)) for r, mean, most in state["recent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of a teacher schedule: {error!r}") from error
        self._last_copy, self._copied_reward = last_copy, reward
        self._recent = recent[-self.window :]

    def _ema(self, step: int, rewards: np.ndarray, lengths: np.ndarray) -> float:
        return self.rate

    def _frozen(self, step: int, rewards: np.ndarray, lengths: np.ndarray) -> float:
        return 0.0

    def _snapshot(self, step: int, rewards: np.ndarray, lengths: np.ndarray) -> float:
        return COPY if step % self.copy_every == 0 else 0.0

    def _gated_copy(self, step: int, rewards: np.ndarray, lengths: np.ndarray) -> float:
        seen = (float(rewards.mean()), float(lengths.mean()), float(lengths.max()))
        self._recent = [*self._recent, seen][-self.window :]
        if len(self._recent) < self.window:
            return 0.0
        of_rewards, of_means, of_longest = zip(*self._recent, strict=True)
        reward = sum(of_rewards) / self.window
        if self._copied_reward is None:
            self._copied_reward = reward
        ratio = max(of_longest) * self.window / max(sum(of_means), 1e-9)
        if (
            step % self.check_every == 0
            and step - self._last_copy >= self.min_steps
            and reward > self._copied_reward + self.reward_gain
            and ratio <= self.length_ratio
        ):
            self._last_copy, self._copied_reward = step, reward
            return COPY
        return 0.0


# The configuration's `update_rule`.
_RULES: dict[str, Callable[[TeacherSchedule, int, np.ndarray, np.ndarray], float]] = {
    "ema": TeacherSchedule._ema,
    "frozen": TeacherSchedule._frozen,
    "trust_region": TeacherSchedule._frozen,
    "snapshot": TeacherSchedule._snapshot,
    "gated_copy": TeacherSchedule._gated_copy,
}
