"""The paper's main setting: Qwen3-8B on the five benchmarks (Tables 1 and 3, Figures 3 to 6).

What:      arXiv 2606.30345v1 as far as it is written, our readings where it is silent.
Steps:     400 ("more than 400"), 32 problems x 8 rollouts, prompts to 2048 and responses to 8192
           tokens. Tool Use has 126 steps an epoch: each problem is seen 3.2 times, and the buffer
           can act from step 127. Biology has 14: 28.6 times, from step 15. Stage 2 from step 51.
Score:     published mean@16 of DRIFT: tool use 79.2 (base model 57.5), biology 74.4, chemistry
           82.0, material 81.4, physics 80.5.
Time:      10 to 14 hours on 8 x H200 (estimate; no GPU has run it yet).
Before:    python -m drift_jax.prepare --task=tooluse --out=data
           and the weights of Qwen/Qwen3-8B in models/Qwen3-8B
Command:   python -m drift_jax.main --config=configs/qwen3_8b.py:task=tooluse,method=drift
Arguments: task=tooluse (biology, chemistry, material, physics, toolcalls), method=drift, seed=0;
           runlocal shrinks everything to seconds on a CPU, with the packaged base model and
           generated problems, through the same code: --config=configs/qwen3_8b.py:runlocal
"""

from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax import methods


def get_config(arg: str = "") -> ConfigDict:
    """default < method < this file; the command line comes last."""
    given = configuration.parse_arg(
        arg, {"task": "tooluse", "method": "drift", "seed": 0, "runlocal": False}
    )
    config = methods.apply(configuration.default(), given["method"])
    config.task = given["task"]
    config.seed = given["seed"]

    # The rest of the paper's setting is config.default().
    config.data.path = "data"
    config.model.path = "models/Qwen3-8B"
    config.model.remat = "full"
    config.compute.micro_batch = 32
    config.evaluation.every = 5
    config.checkpoint.every = 20
    if given["runlocal"]:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """The same run in seconds on a CPU: the packaged base model on generated problems."""
    config.task = "toolcalls"
    config.data.max_prompt_tokens = 48

    config.model.path = "quickstart_base"
    config.model.compute_dtype = "float32"

    config.rollout.problems_per_step = 4
    config.rollout.group_size = 4
    config.rollout.max_new_tokens = 28
    config.rollout.segment_steps = 8
    config.rollout.row_buckets = (8,)
    config.rollout.cache_buckets = (64,)
    config.rollout.prompt_buckets = (48,)
    config.rollout.response_buckets = (28,)
    config.teacher.max_prompt_tokens = 96
    config.teacher.prompt_buckets = (96,)
    config.compute.micro_batch = 8

    config.curriculum.warmup_steps = 2
    config.train.steps = 4
    config.evaluation.every = 2
    config.evaluation.samples = 2
    config.evaluation.teacher_samples = 2
    config.evaluation.max_problems = 8
    config.evaluation.problems_per_batch = 8
    config.checkpoint.every = 2
    config.logging.samples_every = 2
    config.logging.samples_token_detail_fraction = 0.5
