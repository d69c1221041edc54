"""The setting of the DRIFT paper's experiments; `configs/` has one file for each of its models.

Most of it is `config.default()`. Here stands what a run on eight GPUs adds, the same for every
model, so that the experiment files differ in the model and in what its size asks for.
"""

from collections.abc import Mapping
from typing import Any

from drift_jax import config as configuration
from drift_jax import methods
from drift_jax.config import Value

SETTING: Mapping[str, Value] = {
    "data.path": "data",
    "model.remat": "full",
    # One row a GPU. The attention of this size is not fused: at the longest lengths the scores of
    # a single teacher row take 109 GB (docs/PLAN.md).
    "compute.micro_batch": 8,
    # With 16 samples each these are 256 rows, as many as a training step decodes.
    "evaluation.problems_per_batch": 16,
    "evaluation.every": 5,
    "checkpoint.every": 20,
}

# What a task changes. The generated one says what an answer looks like, since a released model has
# had no warm start on it, and its answers are short: two calls with their arguments.
TASKS: Mapping[str, Mapping[str, Value]] = {
    "toolcalls": {
        "data.instructions": True,
        "data.max_prompt_tokens": 1024,
        "rollout.max_new_tokens": 512,
        "rollout.prompt_buckets": (512, 1024),
        "rollout.response_buckets": (128, 512),
        "teacher.max_prompt_tokens": 2048,
        "teacher.prompt_buckets": (1024, 2048),
    },
}

# `runlocal`: the same run in seconds on a CPU, the packaged base model on generated problems.
LOCAL: Mapping[str, Value] = {
    "task": "toolcalls",
    "data.instructions": False,  # that model knows the form, and its tokenizer no other words
    "data.max_prompt_tokens": 48,
    "model.path": "quickstart_base",
    "model.compute_dtype": "float32",
    "rollout.problems_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_rows": 0,
    "rollout.max_new_tokens": 28,
    "rollout.segment_steps": 8,
    "rollout.row_buckets": (8,),
    "rollout.cache_buckets": (64,),
    "rollout.prompt_buckets": (48,),
    "rollout.response_buckets": (28,),
    "teacher.max_prompt_tokens": 96,
    "teacher.prompt_buckets": (96,),
    "compute.micro_batch": 8,
    "curriculum.warmup_steps": 2,
    "train.steps": 4,
    "evaluation.every": 2,
    "evaluation.samples": 2,
    "evaluation.teacher_samples": 2,
    "evaluation.max_problems": 8,
    "evaluation.problems_per_batch": 8,
    "checkpoint.every": 2,
    "logging.samples_every": 2,
    "logging.samples_token_detail_fraction": 0.5,
}


def experiment(arg: str, values: Mapping[str, Value]) -> Any:
    """The configuration of an experiment file: default < method < setting < task < `values`.

    Args:
      arg: text after the colon of `--config=FILE:ARG`: task, method, seed, runlocal.
      values: what the file itself sets, by dotted name.

    Raises:
      ConfigError: for an unknown argument, method or field.
    """
    given = configuration.parse_arg(
        arg, {"task": "tooluse", "method": "drift", "seed": 0, "runlocal": False}
    )
    config = methods.apply(configuration.default(), given["method"])
    chosen = {"task": given["task"], "seed": given["seed"]}
    of_task = TASKS.get(given["task"], {})
    local = LOCAL if given["runlocal"] else {}
    return configuration.assign(config, {**SETTING, **chosen, **of_task, **values, **local})
