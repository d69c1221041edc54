"""The instrument: methods compared on generated tasks, over many worlds and seeds, on a CPU.

What:      a run of one method in one world of a generated task; docs/INSTRUMENT.md says what the
           tasks measure, which worlds count, and what was measured. Model, learning rate, batch
           and warm-up are the quickstart's; only the lengths differ from task to task.
Steps:     160, 10 epochs of 16 steps.
Time:      2 to 6 minutes a run on two cores (estimate); CPU-seconds are in docs/INSTRUMENT.md.
Command:   python -m drift_jax.main
           --config=configs/instrument.py:task=toolsteps,world=1,base=runs/toolsteps1/model
           The base policy of a world is made first; without base= the model is random:
           python -m drift_jax.warm_start --config=configs/instrument.py:task=toolsteps,world=1
           --workdir=runs/toolsteps1
Arguments: task=toolsteps (toolcalls, toolcalls_graded, lookup), method=drift, world=0, seed=0,
           base=FOLDER; without a base the model is random, which is what a warm start needs.
"""

from pathlib import Path

from ml_collections import ConfigDict

from drift_jax import config as configuration
from drift_jax.config import ConfigError, Value

QUICKSTART = Path(__file__).with_name("quickstart.py")


def _lengths(prompt: int, response: int, teacher: int) -> dict[str, Value]:
    """Longest prompt, response and teacher prompt, each with one bucket."""
    return {
        "data.max_prompt_tokens": prompt,
        "rollout.prompt_buckets": (prompt,),
        "rollout.max_new_tokens": response,
        "rollout.segment_steps": response,
        "rollout.response_buckets": (response,),
        "teacher.max_prompt_tokens": teacher,
        "teacher.prompt_buckets": (teacher,),
    }


TASKS: dict[str, dict[str, Value]] = {
    "toolcalls": {},
    "toolcalls_graded": {"difficulty.success_threshold": 0.85},
    "toolsteps": {**_lengths(20, 54, 74), "warm_start.steps": 1500},
    # Little has to be learned from references here, and much about the table.
    "lookup": {**_lengths(24, 26, 50), "warm_start.reference_fraction": 0.4},
}


def get_config(arg: str = "") -> ConfigDict:
    """quickstart < the task's values; the command line comes last."""
    given = configuration.parse_arg(
        arg, {"task": "toolsteps", "method": "drift", "world": 0, "seed": 0, "base": ""}
    )
    task, base = given.pop("task"), given.pop("base")
    if task not in TASKS:
        raise ConfigError(configuration.unknown_choice_message("task", task, TASKS))
    rest = ",".join(f"{name}={value}" for name, value in given.items())
    config = configuration.load(f"{QUICKSTART}:task={task},{rest}")
    # The methods' factors suit models of billions of parameters; here all learn at one rate.
    config.optimizer.learning_rate_factor = 1.0
    config.objective.top_k = 0  # SDPO's 100 is more than these vocabularies have
    config.model.init = "checkpoint" if base else "random"
    config.model.path = base or config.model.path
    return configuration.assign(config, TASKS[task])
