"""DRIFT teaches a small model to call tools, on a laptop's CPU.

What:      the whole algorithm of the paper on generated tool-call problems (task `toolcalls`):
           256 training problems, 96 held-out ones, a Qwen3-type model of 0.15 M parameters that
           comes with the package. The readings of config.py stay; only model, data, batch,
           learning rate and warm-up differ from the paper's setting.
Steps:     160, 10 epochs of 16 steps; the buffer can act from step 17, stage 2 starts at step 33.
Time:      1 to 5 minutes on two cores (estimate).
Command:   python -m drift_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
Arguments: task=toolcalls, method=drift, world=0, seed=0, for example
           --config=configs/quickstart.py:method=grpo,seed=2
           Another world needs a base of its own, about 6 CPU-minutes:
           python -m drift_jax.warm_start --config=configs/quickstart.py:base,world=1
           --workdir=runs/base1, then --config=configs/quickstart.py:world=1
           --config.model.path=runs/base1/model
"""

from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax import methods


def get_config(arg: str = "") -> ConfigDict:
    """default < method < this file; the command line comes last."""
    given = configuration.parse_arg(
        arg, {"task": "toolcalls", "method": "drift", "world": 0, "seed": 0, "base": False}
    )
    config = methods.apply(configuration.default(), given["method"])
    config.task = given["task"]
    config.seed = given["seed"]
    config.data.world_seed = given["world"]

    config.model.path = "quickstart_base"
    config.model.init = "random" if given["base"] else "checkpoint"
    config.model.compute_dtype = "float32"  # bfloat16 is no faster on a CPU

    config.data.max_prompt_tokens = 40
    config.teacher.max_prompt_tokens = 64
    config.rollout.problems_per_step = 16
    config.rollout.max_new_tokens = 28
    config.rollout.segment_steps = 28
    config.rollout.row_buckets = ()  # 28 tokens are over before smaller batches pay
    config.rollout.cache_buckets = ()
    config.rollout.prompt_buckets = (40,)
    config.rollout.response_buckets = (28,)
    config.teacher.prompt_buckets = (64,)

    config.curriculum.warmup_epochs = 2.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b2 = 0.99  # a run of 160 steps is too short for 0.999
    config.optimizer.weight_decay = 0.0

    config.train.steps = 160
    config.evaluation.every = 40
    config.evaluation.samples = 8
    config.evaluation.problems_per_batch = 96
    config.checkpoint.every = 40
    config.logging.samples_every = 20
    return config
