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


# As the code base that the paper used: the student's top 100, and one bin for the rest.
_TOP_100: Values = {"objective.top_k": 100, "objective.rest": "tail"}
_NO_BUFFER: Values = {"buffer.capacity": 0}

METHODS: dict[str, dict[str, Value]] = {
    "drift": {},
    "drift_literal": {
        "objective.aggregation": "token_sum",
        "buffer.group_success": "positive",
        "rhythm.every_sign": True,
    },
    "drift_sdpo_stack": {**_TOP_100},
    "grpo": {
        **_both_stages(
            {
                "policy_correct": 1.0,
                "policy_wrong": 1.0,
                "distill_correct": 0.0,
                "distill_wrong": 0.0,
                "use_difficulty": False,
                "use_rhythm": False,
            }
        ),
        **_NO_BUFFER,
        "optimizer.learning_rate_factor": 0.2,
    },
    "sdpo": {
        **_both_stages(
            {
                "policy_correct": 0.0,
                "policy_wrong": 0.0,
                "distill_correct": 1.0,
                "distill_wrong": 1.0,
                "sibling": "first",
                "use_difficulty": False,
                "use_rhythm": False,
            }
        ),
        **_NO_BUFFER,
        **_TOP_100,
        "optimizer.learning_rate_factor": 2.0,
    },
    # No pass rate is strictly above 1 or below 0: every problem is medium, gamma = beta = 1.
    "drift_without_routing": {"difficulty.easy_above": 1.0, "difficulty.hard_below": 0.0},
    "drift_without_buffer": {**_NO_BUFFER},
    "drift_without_warmup": {
        f"warmup.{key}": value for key, value in configuration.default().mixed.items()
    },
    "drift_without_rhythm": {"mixed.use_rhythm": False},
}

DESCRIPTIONS: dict[str, str] = {
    "drift": "the paper's equations with our readings, divergence over the full vocabulary",
    "drift_literal": "as printed: token sums (Eqs. 5-6), r > 0 (Eq. 19), M for every advantage",
    "drift_sdpo_stack": "the divergence of the code base that the paper used: top 100 with tail",
    "grpo": "on-policy GRPO without standard deviation and without KL, as the paper compares",
    "sdpo": "SDPO: distil every sample that has another success, the first one teaches",
    "drift_without_routing": "Table 3, reading D10: gamma = beta = 1 for all problems",
    "drift_without_buffer": "Table 3, reading S11: a group without success learns nothing",
    "drift_without_warmup": "Table 3, reading S10: stage 2 from the first step",
    "drift_without_rhythm": "token weights 1; an ablation that the paper does not have",
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
