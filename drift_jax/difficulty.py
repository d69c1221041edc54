"""Difficulty routing: how strongly a problem's correct samples are reinforced (DRIFT section 3.2).

Host side, numpy only. The pass rate of a problem is smoothed over its visits (Eqs. 7-8), compared
with two thresholds, and turned into the weights u and v of the objective (Eq. 4) for every sample.
"""

from collections.abc import Callable, Iterable, Mapping
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

    def visit(self, problem_ids: Iterable[str], is_correct: np.ndarray, *, step: int) -> np.ndarray:
        """`update` with the share of correct samples of each group (Eq. 7); Eq. 8 knows no step.

        Args:
          problem_ids: persistent ids. [problem].
          is_correct: which rollouts succeeded. bool [problem, group].
          step: training step; other estimates need it.
        """
        return self.update(problem_ids, np.asarray(is_correct, bool).mean(axis=1))

    def clear(self) -> None:
        """Forgets all problems."""
        self._rates.clear()

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
            raise ValueError(
                f"pass rates have the keys {sorted(state)}, expected 'rates'"
                " (difficulty.estimate=smoothed); keep the estimate of the run, or start a new one"
            )
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
    easy_distill_weight: float = 1.0,
    medium_distill_weight: float = 1.0,
    hard_distill_weight: float = 1.0,
    bins: str = "strict",
    softness: float = 0.08,
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
      easy_distill_weight, medium_distill_weight, hard_distill_weight: what multiplies the
        distillation of a failure in each bin; 1 in the paper.
      bins, softness: as in `bin_shares`. With soft bins the weights are those of the bins by share
        of the problem, and `is_medium` is the share of medium.

    Returns:
      `Routes` with gamma and the weight of failures as float64 [problem], the medium bin as bool
      [problem] (soft: float64) and correctness as bool [problem, group].

    Raises:
      ValueError: shapes do not fit, a pass rate lies outside [0, 1], thresholds out of order.
    """
    shares = bin_shares(
        pass_rate, easy_above=easy_above, hard_below=hard_below, bins=bins, softness=softness
    )
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or len(rewards) != len(shares):
        raise ValueError(
            f"got rewards of shape {rewards.shape} for {len(shares)} problems; pass [problem,"
            " group]"
        )
    medium = shares[:, 1]
    return Routes(
        routing_weight=shares @ np.array([easy_weight, medium_weight, hard_weight]),
        is_medium=medium == 1 if bins == "strict" else medium,
        is_correct=rewards >= success_threshold,
        failure_weight=shares
        @ np.array([easy_distill_weight, medium_distill_weight, hard_distill_weight]),
    )


def bin_shares(
    pass_rate: np.ndarray,
    *,
    easy_above: float = 0.8,
    hard_below: float = 0.2,
    bins: str = "strict",
    softness: float = 0.08,
) -> np.ndarray:
    """How far each problem is easy, medium and hard; the three shares sum to 1.

    "strict" puts a problem into one bin, as the paper does. "soft" are the gates of the authors'
    release, with s the logistic function:

        hard = s((hard_below - r) / softness),   easy = s((r - easy_above) / softness),
        medium = (1 - hard) (1 - easy),          all divided by their sum

    Args:
      pass_rate: r. [problem], in [0, 1].
      easy_above: r_easy.
      hard_below: r_hard, at most `easy_above`.
      bins: "strict" or "soft".
      softness: width of the soft edges, in units of pass rate, above 0.

    Returns:
      float64 [problem, 3]: easy, medium, hard.
    """
    rates = _pass_rates(pass_rate, easy_above, hard_below)
    if bins not in _BINS:
        raise ValueError(f"bins is {bins!r}; use one of {', '.join(_BINS)}")
    easy, hard = _BINS[bins](rates - easy_above, hard_below - rates, softness)
    medium = (1 - easy) * (1 - hard)
    shares = np.stack([easy, medium, hard], axis=1)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _strict(over: np.ndarray, under: np.ndarray, softness: float) -> tuple[np.ndarray, np.ndarray]:
    return (over > 0).astype(np.float64), (under > 0).astype(np.float64)


def _soft(over: np.ndarray, under: np.ndarray, softness: float) -> tuple[np.ndarray, np.ndarray]:
    # The logistic function by tanh, which cannot overflow.
    return (1 + np.tanh(over / softness / 2)) / 2, (1 + np.tanh(under / softness / 2)) / 2


# The configuration's `bins`: (r - easy_above, hard_below - r, softness) -> (easy, hard).
_BINS: dict[str, Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]] = {
    "strict": _strict,
    "soft": _soft,
}


def bin_fractions(
    pass_rate: np.ndarray,
    easy_above: float = 0.8,
    hard_below: float = 0.2,
    *,
    bins: str = "strict",
    softness: float = 0.08,
) -> tuple[float, float, float]:
    """Shares of (easy, medium, hard) problems, with the bins of `route`; they sum to 1.

    Args:
      pass_rate: smoothed pass rate r. [problem], at least one, in [0, 1].
      easy_above: r_easy.
      hard_below: r_hard, at most `easy_above`.
      bins, softness: as in `bin_shares`; with soft bins these are mean shares.
    """
    shares = bin_shares(
        pass_rate, easy_above=easy_above, hard_below=hard_below, bins=bins, softness=softness
    )
    if not len(shares):
        raise ValueError("got no pass rates; pass those of at least one problem")
    easy, medium, hard = shares.mean(axis=0).tolist()
    return easy, medium, hard


def bernoulli_weights(is_correct: np.ndarray, *, exponent: float = 0.5) -> np.ndarray:
    """Weight of each question by how undecided its group is (SC-SDPO, arXiv 2605.27765).

        w = [p (1 - p)] ^ exponent,  divided by the mean of w over the questions with 0 < p < 1

    with p the share of successes of this very group, not smoothed. Questions that all or none
    solved get 0; a batch without a mixed group has no weight at all. The mean is over the whole
    step, so the weights of the mixed questions average to 1.

    Args:
      is_correct: which rollouts succeeded. bool [problem, group].
      exponent: 1/2 gives the standard deviation of a group's rewards, 0 weighs all mixed
        questions alike.

    Returns:
      float64 [problem].
    """
    rate = np.asarray(is_correct, bool).mean(axis=1)
    mixed = (rate > 0) & (rate < 1)
    weights = np.where(mixed, rate * (1 - rate), 1.0) ** exponent * mixed
    return weights / (weights[mixed].mean() if mixed.any() else 1.0)


def lead_weights(advantages: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Weight of each advantage by difficulty (GRPO-LEAD, arXiv 2504.09696).

        w(q) = 0.4 + 1.1 / (1 + exp(10 (q - 0.75))),   q = p where A > 0, 1 - p elsewhere

    with p the share of successes of this very group: rare successes and rare failures count most.

    Args:
      advantages: A. [problem, member].
      is_correct: which rollouts succeeded. bool [problem, group].

    Returns:
      float64 [problem, member], from 0.4 to 1.5.
    """
    rate = np.asarray(is_correct, bool).mean(axis=1, keepdims=True)
    share = np.where(np.asarray(advantages) > 0, rate, 1 - rate)
    return 0.4 + 1.1 / (1 + np.exp(10 * (share - 0.75)))


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
      no_teacher: what a sample without a teacher gets. "mask": a wrong one keeps `policy_wrong`
        (0 in DRIFT: nothing). "policy": a wrong one gets policy weight 1. "unweighted": that, and
        a correct one its policy weight without gamma, as in the authors' release.
      use_difficulty: multiply the policy weight of correct samples by gamma, and the distillation
        weight of wrong ones by the failure weight (1 in Eq. 4).

    Returns:
      (policy_weight, distill_weight), float32 [problem, group] each.
    """
    if no_teacher not in _NO_TEACHER:
        raise ValueError(f"no_teacher is {no_teacher!r}; use one of {', '.join(_NO_TEACHER)}")
    has_teacher = _like(routes.is_correct, has_teacher, "has_teacher").astype(bool)
    gamma = routes.routing_weight[:, None] if use_difficulty else 1.0
    failure = np.reshape(routes.failure_weight, (-1, 1)) if use_difficulty else 1.0
    lonely_correct, lonely_wrong = _NO_TEACHER[no_teacher](gamma, policy_wrong)
    policy = np.where(
        routes.is_correct,
        policy_correct * np.where(has_teacher, gamma, lonely_correct),
        np.where(has_teacher, policy_wrong, lonely_wrong),
    )
    distill = np.where(routes.is_correct, distill_correct, distill_wrong * failure) * has_teacher
    return policy.astype(np.float32), distill.astype(np.float32)


# The configuration's `no_teacher`: (gamma, policy_wrong) -> what stands in their places in a
# sample without a teacher.
_NO_TEACHER: dict[str, Callable[[Any, float], tuple[Any, float]]] = {
    "mask": lambda gamma, policy_wrong: (gamma, policy_wrong),
    "policy": lambda gamma, policy_wrong: (gamma, 1.0),
    "unweighted": lambda gamma, policy_wrong: (1.0, 1.0),
}


def gate_rows(
    routes: Routes,
    has_teacher: np.ndarray,
    advantages: np.ndarray,
    *,
    every_sign: bool = False,
    rows: str = "medium_correct",
) -> np.ndarray:
    """How far the tokens of each sample may weigh more or less than 1 (beta_i; DRIFT Eq. 16).

    In DRIFT 1 for a correct sample of a medium problem that has a teacher to compare with, else
    0. Where it is 0 M is 1, and no teacher pass is needed on the policy branch.

    Args:
      routes: bins and correctness of this step.
      has_teacher: whether a teacher was found for the sample. bool [problem, group].
      advantages: A_i. [problem, group].
      every_sign: also samples whose advantage is not positive. With dense rewards a correct
        sample can have A < 0; to amplify a push *down* is not what a bonus means, so the default
        leaves those at 1. With rewards of 0 and 1 nothing changes.
      rows: which samples with a teacher: "medium_correct" as above, by share where bins are soft;
        "correct", whatever the difficulty; or "all".

    Returns:
      float32 [problem, group], from 0 to 1.
    """
    if rows not in _GATED_ROWS:
        raise ValueError(f"rows is {rows!r}; use one of {', '.join(_GATED_ROWS)}")
    has_teacher = _like(routes.is_correct, has_teacher, "has_teacher").astype(bool)
    positive = _like(routes.is_correct, advantages, "advantages") > 0
    share = _GATED_ROWS[rows](routes)
    return np.where(has_teacher & (positive | every_sign), share, 0).astype(np.float32)


# The configuration's `weighted_rows`: how far a sample with a teacher is gated.
_GATED_ROWS: dict[str, Callable[[Routes], np.ndarray]] = {
    "medium_correct": lambda routes: routes.is_correct * routes.is_medium[:, None],
    "correct": lambda routes: routes.is_correct,
    "all": lambda routes: np.ones(routes.is_correct.shape),
}


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
