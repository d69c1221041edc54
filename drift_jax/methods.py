"""The methods, each a set of config values.

DRIFT is what `config.default()` describes, so `drift` sets nothing; every other method lists what
it changes. No code looks at a method's name: a method whose values you set by hand is that method.

An experiment owns the learning rate and the length of the curriculum. So a method without a
warm-up does not set that length: it gives stage 1 the values of its stage 2. And a method carries
a learning-rate *factor* relative to DRIFT, not a rate.

    python -m drift_jax.methods
"""

import argparse
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax.config import ConfigError, Value

Values = Mapping[str, Value]


def _both_stages(values: Values) -> dict[str, Value]:
    """The same stage settings for stage 1 and stage 2: no curriculum, whatever its length."""
    stages = ("warmup", "mixed")
    return {f"{stage}.{key}": value for stage in stages for key, value in values.items()}


def _branches(
    policy: tuple[float, float],
    distill: tuple[float, float],
    *,
    use_rhythm: bool = False,
    no_teacher: str = "mask",
) -> dict[str, Value]:
    """A method without curriculum; `policy` and `distill` are weights (correct, wrong)."""
    return _both_stages(
        {
            "policy_correct": policy[0],
            "policy_wrong": policy[1],
            "distill_correct": distill[0],
            "distill_wrong": distill[1],
            "sibling": "first",
            "use_difficulty": False,
            "use_rhythm": use_rhythm,
            "no_teacher": no_teacher,
        }
    )


# As the code base that the paper used: the student's top 100, and one bin for the rest.
_TOP_100: Values = {"objective.top_k": 100, "objective.rest": "tail"}
_NO_BUFFER: Values = {"buffer.capacity": 0}

# Learning rates as published, over DRIFT's 5e-6: algorithms differ in the size of their gradients
# by orders of magnitude, so the rate is part of the algorithm.
_RATE_1E6: Values = {"optimizer.learning_rate_factor": 0.2}
_RATE_1E5: Values = {"optimizer.learning_rate_factor": 2.0}
_RATE_5E5: Values = {"optimizer.learning_rate_factor": 10.0}

_GRPO: Values = {**_branches((1, 1), (0, 0)), **_NO_BUFFER, **_RATE_1E6}
_SDPO: Values = {**_branches((0, 0), (1, 1)), **_NO_BUFFER, **_TOP_100, **_RATE_1E5}

# GRPO with advantages that the teacher reshapes token by token; the teacher is a copy of the
# student, taken every 10 steps.
_RESHAPED: Values = {
    **_branches((1, 1), (0, 0), use_rhythm=True),
    **_NO_BUFFER,
    **_RATE_1E6,
    "objective.aggregation": "token_mean",
    "rhythm.every_sign": True,
    "teacher.update_rule": "snapshot",
    "teacher.copy_every": 10,
}

METHODS: dict[str, dict[str, Value]] = {
    "drift": {},
    "drift_literal": {
        "objective.aggregation": "token_sum",
        "buffer.group_success": "positive",
        "rhythm.every_sign": True,
    },
    "drift_sdpo_stack": {**_TOP_100},
    "drift_release": {
        "difficulty.estimate": "beta",
        "difficulty.count_decay": 0.85,
        "difficulty.prior_count": 1.0,
        "difficulty.shrink_count": 8.0,
        "difficulty.bins": "soft",
        "difficulty.softness": 0.08,
        "difficulty.easy_above": 0.7,
        "difficulty.hard_below": 0.3,
        "difficulty.easy_weight": 0.05,
        "difficulty.medium_weight": 1.0,
        "difficulty.hard_weight": 0.3,
        "difficulty.easy_distill_weight": 0.35,
        "difficulty.medium_distill_weight": 0.0,
        "difficulty.hard_distill_weight": 1.0,
        "mixed.no_teacher": "unweighted",
        "buffer.capacity": 4,
        "buffer.max_problems": 50_000,
        "buffer.on_tie": "newest",
        "buffer.draw": "top",
    },
    # ---- the methods of the paper's tables, and of those it builds on
    "grpo": {**_GRPO},
    "grpo_offpolicy": {**_GRPO, "optimizer.mini_batches": 4},
    "grpo_std": {**_GRPO, "objective.scale_by_std": True},
    "grpo_lead": {**_GRPO, "objective.scale_by_std": True, "objective.advantage_weight": "lead"},
    "sdpo": {**_SDPO},
    "srpo": {
        **_branches((1, 0), (0, 1), no_teacher="policy"),
        **_NO_BUFFER,
        **_TOP_100,
        "objective.aggregation": "token_mean",
        "objective.normaliser_rows": "routed",
        "objective.distill_token_weight": "teacher_entropy",
        "objective.entropy_beta": 1.0,
    },
    "sc_sdpo": {
        **_SDPO,
        "difficulty.question_weight": "bernoulli",
        "difficulty.question_exponent": 0.5,
    },
    "distil": {
        **_SDPO,
        **_RATE_5E5,
        "objective.divergence": "forward_ce",
        "objective.credit": "future_mean",
        "teacher.rate": 0.01,
    },
    "pgpo": {**_SDPO, "optimizer.information_scale": 1.0},
    "rlep": {
        **_GRPO,
        "objective.scale_by_std": True,
        "objective.aggregation": "token_mean",
        "optimizer.mini_batches": 4,
        "buffer.capacity": 16,
        "buffer.on_tie": "newest",
        "buffer.teaches": False,
        "buffer.group_members": 2,
    },
    "cgtr": {
        **_branches((1, 1), (1, 1)),
        **_NO_BUFFER,
        **_RATE_1E5,
        "objective.top_k": 20,
        "objective.rest": "tail",
        "objective.aggregation": "token_mean",
        "teacher.update_rule": "gated_copy",
    },
    "rlsd": {
        **_RESHAPED,
        "objective.token_weight": "rlsd",
        "objective.weighted_rows": "all",
        "objective.reshape_scale": 0.5,
        "objective.reshape_decay_steps": 400,
    },
    "rlrt": {
        **_RESHAPED,
        "objective.token_weight": "rlrt",
        "objective.weighted_rows": "correct",
        "objective.reshape_scale": 0.5,
        "objective.reshape_decay_steps": 400,
    },
    "advantage_mix": {
        **_branches((1, 1), (1, 1)),
        **_NO_BUFFER,
        **_TOP_100,
        "objective.divergence": "reverse_kl",
        "objective.aggregation": "token_mean",
        "objective.policy_scale": 0.9,
        "objective.distill_scale": 0.1,
    },
    "sdpo_feedback": {**_SDPO, "teacher.feedback": "without_solution"},
    # ---- ablations of the paper's Table 3
    # No pass rate is strictly above 1 or below 0: every problem is medium, gamma = beta = 1.
    "drift_without_routing": {"difficulty.easy_above": 1.0, "difficulty.hard_below": 0.0},
    "drift_without_buffer": {**_NO_BUFFER},
    "drift_without_warmup": {
        f"warmup.{key}": value for key, value in configuration.default().mixed.items()
    },
    # ---- ablations that the paper does not have: the factors of M = 1 + beta g b
    "drift_without_rhythm": {"mixed.use_rhythm": False},
    "drift_without_bonus": {"rhythm.max_bonus": 1.0},
    "drift_gate_only": {"rhythm.bonus": "full"},
    "drift_screened_gate": {"rhythm.bonus": "step"},
    "drift_bonus_only": {"rhythm.gate": "open"},
    # ---- routing and buffer
    "drift_soft_bins": {"difficulty.bins": "soft"},
    "drift_newest_buffer": {"buffer.on_tie": "newest"},
    # ---- claims about the design that the paper states and does not test
    "drift_warmup_first": {"warmup.sibling": "first"},
    "drift_warmup_shortest": {"warmup.sibling": "shortest"},
    "drift_mixed_first": {"mixed.sibling": "first"},
    "drift_mixed_highest_entropy": {"mixed.sibling": "highest_entropy"},
    "drift_distil_correct": {"mixed.distill_correct": 1.0},
    "drift_wrong_by_grpo": {"mixed.policy_wrong": 1.0, "mixed.distill_wrong": 0.0},
    "drift_wrong_by_both": {"mixed.policy_wrong": 1.0},
    "drift_success_advantage": {"objective.advantage_over": "successes"},
}

DESCRIPTIONS: dict[str, str] = {
    "drift": "the paper's equations with our readings, divergence over the full vocabulary",
    "drift_literal": "as printed: token sums (Eqs. 5-6), r > 0 (Eq. 19), M for every advantage",
    "drift_sdpo_stack": "the divergence of the code base that the paper used: top 100 with tail",
    "drift_release": "the authors' pseudo-code (LianjiaTech/drift): decayed counts, soft bins, "
    "failures weighed too, buffer of 4, top entry first",
    "grpo": "on-policy GRPO without standard deviation and without KL, as the paper compares; "
    "rate 1e-6",
    "grpo_offpolicy": "the same in four mini-batches a step, SDPO's strong baseline; rate 1e-6",
    "grpo_std": "on-policy GRPO, advantages over the group's standard deviation; rate 1e-6",
    "grpo_lead": "GRPO-LEAD (2504.09696), its difficulty weights alone: rare outcomes count more; "
    "rate 1e-6",
    "sdpo": "SDPO (2601.20802): distil every sample that has another success, the first one "
    "teaches; rate 1e-5",
    "srpo": "SRPO (2604.02288): correct or untaught by GRPO, wrong ones distilled and weighed by "
    "exp(-teacher entropy), one token mean; rate 5e-6",
    "sc_sdpo": "SC-SDPO (2605.27765): SDPO with questions weighed by [p (1 - p)]^0.5; rate 1e-5",
    "distil": "DistIL (2606.05152): forward cross-entropy and credit for later disagreement; "
    "rate 5e-5",
    "pgpo": "PGPO (2606.03620): SDPO whose update is scaled by exp(mutual information); alpha 1, "
    "rate 1e-5",
    "rlep": "RLEP (2507.07451): GRPO with two stored successes in each group, here of this very "
    "run; rate 1e-6",
    "cgtr": "CGTR (2606.03532): GRPO plus top-20 JSD, the teacher a copy taken when rewards have "
    "risen; the paper omits lambda, here 1; rate 1e-5",
    "rlsd": "RLSD (2604.03128): GRPO whose advantages lean to tokens that the teacher prefers; "
    "rate 1e-6",
    "rlrt": "RLRT (2605.10781): the reverse, on correct samples; DRIFT's bonus descends from it; "
    "rate 1e-6 as RLSD",
    "advantage_mix": "SDPO's mixture 0.9 GRPO + 0.1 SDPO, SRPO's ablation; on-policy, where it is "
    "a sum with reverse KL; rate 5e-6 as SRPO",
    "sdpo_feedback": "SDPO that shows the grader's words where there is no solution to show "
    "(2601.20802); rate 1e-5",
    "drift_without_routing": "Table 3, reading D10: gamma = beta = 1 for all problems",
    "drift_without_buffer": "Table 3, reading S11: a group without success learns nothing",
    "drift_without_warmup": "Table 3, reading S10: stage 2 from the first step",
    "drift_without_rhythm": "no token weights: M = 1",
    "drift_without_bonus": "b = 0, so M = 1 too, with the teacher still compared",
    "drift_gate_only": "the gate without the bonus that screens it: M = 1 + beta g (B_max - 1)",
    "drift_screened_gate": "the bonus screens but does not grade: b = B_max - 1 where Eq. 9 is > 0",
    "drift_bonus_only": "the bonus without the gate: M = 1 + beta b",
    "drift_soft_bins": "the release's logistic bins at the paper's thresholds and weights",
    "drift_newest_buffer": "a full buffer prefers the newest of equal reward (reading B2)",
    "drift_warmup_first": "stage 1: the first other success teaches, as in SDPO",
    "drift_warmup_shortest": "stage 1: the shortest success teaches, not that of highest entropy",
    "drift_mixed_first": "stage 2: the first other success teaches, not the shortest",
    "drift_mixed_highest_entropy": "stage 2: the success of highest entropy teaches",
    "drift_distil_correct": "stage 2: correct samples are distilled too",
    "drift_wrong_by_grpo": "stage 2: wrong samples get the policy gradient instead of a teacher",
    "drift_wrong_by_both": "stage 2: wrong samples get both terms",
    "drift_success_advantage": "advantages over the successes of a group alone (paper 3.1: over "
    "all); with rewards of 0 and 1 they are 0, and the policy term is off",
}


def apply(config: ConfigDict, name: str) -> ConfigDict:
    """Sets the values of a method in place and returns the same `config`.

    Args:
      config: as `config.default()` makes it; apply the method before the experiment's own values.
      name: a key of `METHODS`.

    Raises:
      ConfigError: for an unknown name; names the nearest and all of them.
    """
    if name not in METHODS:
        raise ConfigError(configuration.unknown_choice_message("method", name, METHODS))
    return configuration.assign(config, {**METHODS[name], "method": name})


def table(names: Sequence[str] = ()) -> str:
    """What each method sets that differs from the defaults, as text.

    Args:
      names: the methods to show; empty for all.
    """
    default = configuration.default()
    lines = []
    for name in names or METHODS:
        lines.append(f"{name}: {DESCRIPTIONS[name]}")
        config = apply(configuration.default(), name)
        differing = [
            (field, value)
            for field, value in configuration.flatten(config).items()
            if field != "method" and value != configuration.get(default, field)
        ]
        width = max((len(field) for field, _ in differing), default=0)
        for field, value in differing:
            lines.append(f"    {field:{width}} = {value}  ({configuration.get(default, field)})")
        if not differing:
            lines.append("    the defaults")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m drift_jax.methods",
        description="Prints what each method sets; the default value stands in brackets.",
        epilog="example: python -m drift_jax.methods grpo sdpo",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to show; all if none")
    names = parser.parse_args(arguments).names
    for name in names:
        if name not in METHODS:
            parser.error(configuration.unknown_choice_message("method", name, METHODS))
    print(table(names))


if __name__ == "__main__":
    main()
