"""Difficulty routing: how strongly a problem's correct samples are reinforced (DRIFT section 3.2).

Host side, numpy only. The pass rate of a problem is smoothed over its visits (Eqs. 7-8), compared
with two thresholds, and turned into the weights u and v of the objective (Eq. 4) for every sample.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from drift_jax.types import Routes


def smooth_pass_rate(past: float | None, now: float, *, decay: float = 0.5) -> float:
    """Pass rate smoothed over the visits of a problem (DRIFT Eq. 8).

        r = decay * r_past + (1 - decay) * r_now

    Args:
      past: r_past, smoothed pass rate after the previous visit; None on the first visit, where r
        is r_now itself: unbiased, and no prior has to be invented.
      now: r_now, share of correct samples in the group just drawn (DRIFT Eq. 7).
      decay: alpha, weight of the past, in [0, 1].

    Returns:
      The smoothed pass rate, never outside the interval between `past` and `now`: rounding is
      clipped away, because a rate that stays exactly on a threshold must stay in its bin.
    """
    if past is None:
        return float(now)
    mixed = decay * past + (1 - decay) * now
    return float(min(max(mixed, min(past, now)), max(past, now)))


class PassRates:
    """The smoothed pass rate of every problem seen so far (DRIFT Eqs. 7-8).

    The decay acts per visit of a problem, not per step: Eq. 8 knows no time. Warm-up steps count.

    Args:
      decay: alpha of Eq. 8, weight of the past, in [0, 1]. 0 forgets everything but the last visit.
    """

    def __init__(self, decay: float = 0.5) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"pass_rate_decay is {decay}; use a value in [0, 1]")
        self.decay = decay
        self._rates: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of problems seen so far."""
        return len(self._rates)

    def update(self, problem_ids: Iterable[str], rates: Iterable[float] | np.ndarray) -> np.ndarray:
        """Takes in one visit of each problem and returns the smoothed rates.

        Args:
          problem_ids: persistent ids, `task/split/idx`. [problem]. A problem that occurs twice is
            visited twice, in order.
          rates: r_now of this visit, share of correct samples in the group. [problem], in [0, 1].

        Returns:
          r, this visit included. float64 [problem].

        Raises:
          ValueError: the lengths differ, or a rate lies outside [0, 1].
        """
        ids, now = list(problem_ids), np.asarray(rates, dtype=np.float64)
        if now.shape != (len(ids),):
            raise ValueError(f"got rates of shape {now.shape} for {len(ids)} ids; pass one each")
        if not np.all((now >= 0) & (now <= 1)):
            raise ValueError(f"got pass rates {now.tolist()!r:.80}; pass shares in [0, 1]")
        smoothed = np.empty(len(ids))
        for row, problem_id in enumerate(ids):
            past = self._rates.get(problem_id)
            smoothed[row] = smooth_pass_rate(past, now[row], decay=self.decay)
            self._rates[problem_id] = float(smoothed[row])
        return smoothed

    def state_dict(self) -> dict[str, Any]:
        """All rates, ready for JSON; a round trip through text is exact."""
        return {"rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces all rates by those of `state_dict`.

        Raises:
          ValueError: the state is not one that `state_dict` gives; the rates are left untouched.
        """
        rates = state.get("rates")
        if not isinstance(rates, Mapping):
            raise ValueError(f"state has the keys {sorted(state)}; expected 'rates' of pass rates")
        for problem_id, rate in rates.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
                raise ValueError(f"pass rate of {problem_id!r} is {rate!r}; expected one in [0, 1]")
        self._rates = {str(problem_id): float(rate) for problem_id, rate in rates.items()}


def route(
    pass_rate: np.ndarray,
    rewards: np.ndarray,
    *,
    easy_above: float = 0.8,
    hard_below: float = 0.2,
    easy_weight: float = 0.5,
    medium_weight: float = 1.0,
    hard_weight: float = 0.0,
    success_threshold: float = 0.5,
) -> Routes:
    """Bins problems by pass rate and samples by correctness (DRIFT sections 3.1 and 3.2).

    Easy and hard are strict inequalities, r > easy_above and r < hard_below, compared exactly; a
    rate on a threshold is medium. `easy_above=1, hard_below=0` makes every problem medium.

    Args:
      pass_rate: smoothed pass rate r. [problem], in [0, 1].
      rewards: rewards of this step. [problem, group]; compared in float64.
      easy_above: r_easy.
      hard_below: r_hard, at most `easy_above`.
      easy_weight, medium_weight, hard_weight: gamma of each bin.
      success_threshold: theta_r; a sample is correct when its reward reaches it.

    Returns:
      `Routes` with gamma as float64 [problem], the medium bin as bool [problem] and correctness as
      bool [problem, group].

    Raises:
      ValueError: shapes do not fit, a pass rate lies outside [0, 1], thresholds out of order.
    """
    rates = _pass_rates(pass_rate, easy_above, hard_below)
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or len(rewards) != len(rates):
        raise ValueError(
            f"got rewards of shape {rewards.shape} for {len(rates)} problems; pass [problem, group]"
        )
    is_easy, is_hard = rates > easy_above, rates < hard_below
    weights = np.where(is_easy, easy_weight, np.where(is_hard, hard_weight, medium_weight))
    return Routes(weights, ~is_easy & ~is_hard, rewards >= success_threshold)


def bin_fractions(
    pass_rate: np.ndarray, easy_above: float = 0.8, hard_below: float = 0.2
) -> tuple[float, float, float]:
    """Shares of (easy, medium, hard) problems, with the bins of `route`; they sum to 1.

    Args:
      pass_rate: smoothed pass rate r. [problem], at least one, in [0, 1].
      easy_above: r_easy.
      hard_below: r_hard, at most `easy_above`.
    """
    rates = _pass_rates(pass_rate, easy_above, hard_below)
    if not rates.size:
        raise ValueError("got no pass rates; pass those of at least one problem")
    easy, hard = int(np.sum(rates > easy_above)), int(np.sum(rates < hard_below))
    return easy / rates.size, (rates.size - easy - hard) / rates.size, hard / rates.size


def branch_weights(
    routes: Routes,
    has_teacher: np.ndarray,
    *,
    policy_correct: float,
    policy_wrong: float,
    distill_correct: float,
    distill_wrong: float,
    no_teacher: str = "mask",
    use_difficulty: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of both terms of the objective for every sample (u_i and v_i; DRIFT Eq. 4).

    The four numbers say how much of each term a correct and a wrong sample gets, so that every
    method is a setting: (policy_correct, policy_wrong, distill_correct, distill_wrong) is
    (1, 0, 0, 1) in DRIFT's mixed stage, (0, 0, 1, 1) in its warm-up and in SDPO, (1, 1, 0, 0) in
    GRPO, and (1, 0, 0, 1) with no_teacher="policy" and without difficulty in SRPO.

    Args:
      routes: bins and correctness of this step.
      has_teacher: whether a teacher was found for the sample. bool [problem, group]. Without one
        the distillation weight is 0.
      policy_correct, policy_wrong: weight of the policy-gradient term.
      distill_correct, distill_wrong: weight of the distillation term.
      no_teacher: what a wrong sample without a teacher gets instead: "mask" is nothing, "policy"
        is policy weight 1.
      use_difficulty: multiply the policy weight of *correct* samples by gamma. Wrong samples are
        never weighted by difficulty, as Eq. 4 has it.

    Returns:
      (policy_weight, distill_weight), float32 [problem, group] each.
    """
    if no_teacher not in ("mask", "policy"):
        raise ValueError(f"no_teacher is {no_teacher!r}; use 'mask' or 'policy'")
    has_teacher = _like(routes.is_correct, has_teacher, "has_teacher").astype(bool)
    gamma = routes.routing_weight[:, None] if use_difficulty else 1.0
    without_teacher = 1.0 if no_teacher == "policy" else policy_wrong
    policy = np.where(
        routes.is_correct,
        policy_correct * gamma,
        np.where(has_teacher, policy_wrong, without_teacher),
    )
    distill = np.where(routes.is_correct, distill_correct, distill_wrong) * has_teacher
    return policy.astype(np.float32), distill.astype(np.float32)


def gate_rows(
    routes: Routes, has_teacher: np.ndarray, advantages: np.ndarray, *, every_sign: bool = False
) -> np.ndarray:
    """The samples whose tokens may weigh more than 1 (beta_i; DRIFT Eq. 16).

    A correct sample of a medium problem that has a teacher to compare with. For all others
    M is 1, and no teacher pass is needed on the policy branch.

    Args:
      routes: bins and correctness of this step.
      has_teacher: whether a teacher was found for the sample. bool [problem, group].
      advantages: A_i. [problem, group].
      every_sign: also samples whose advantage is not positive. With dense rewards a correct
        sample can have A < 0; to amplify a push *down* is not what a bonus means, so the default
        leaves those at 1. With rewards of 0 and 1 nothing changes.

    Returns:
      bool [problem, group].
    """
    has_teacher = _like(routes.is_correct, has_teacher, "has_teacher").astype(bool)
    positive = _like(routes.is_correct, advantages, "advantages") > 0
    return routes.is_correct & routes.is_medium[:, None] & has_teacher & (positive | every_sign)


def _pass_rates(pass_rate: np.ndarray, easy_above: float, hard_below: float) -> np.ndarray:
    """The pass rates as float64 [problem], checked together with the thresholds."""
    if not hard_below <= easy_above:
        raise ValueError(
            f"hard_below {hard_below} is above easy_above {easy_above}; the bins must not overlap"
        )
    rates = np.asarray(pass_rate, dtype=np.float64)
    if rates.ndim != 1 or not np.all((rates >= 0) & (rates <= 1)):
        raise ValueError(f"got pass rates {rates.tolist()!r:.80}; pass [problem] values in [0, 1]")
    return rates


def _like(expected: np.ndarray, got: np.ndarray, name: str) -> np.ndarray:
    got = np.asarray(got)
    if got.shape != expected.shape:
        raise ValueError(
            f"{name} has shape {got.shape}; pass that of the rewards, {expected.shape}"
        )
    return got
