"""Memory and hours of the paper's experiments by arithmetic, before a GPU has measured any.

    python benchmarks/first_day.py

prints the numbers that the cards in configs/ and docs/FIRST_DAY.md give as estimates. What is
counted is what the code does today: float32 state, a cache of full length from the first token on,
attention whose scores exist, the longest row of a batch deciding the shape of all. Everything is in
GB (1e9 bytes) on one of eight GPUs.
"""

import math
import pathlib

import jax

from drift_jax import config as configs
from drift_jax.models.transformer import ModelConfig, parameter_shapes
from drift_jax.prepare import published

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICES = 8
GB = 1e9

# From the config.json of each checkpoint.
MODELS = {
    "qwen3_8b": ModelConfig(151936, 4096, 12288, 36, 32, 8, 128, tie_embeddings=False),
    "qwen3_4b": ModelConfig(151936, 2560, 9728, 36, 32, 8, 128, tie_embeddings=True),
    "olmo3_7b": ModelConfig(
        100278, 4096, 11008, 32, 32, 32, 128, tie_embeddings=False, qk_norm="projection"
    ),
}

# H200 (data sheet) and the shares of it that this arithmetic takes; all of them are guesses to be
# replaced by measurements.
BANDWIDTH = 0.75 * 4.8e12  # bytes a second
MATMUL = 0.4 * 989e12  # FLOP a second in bfloat16
ATTENTION = 35e12  # FLOP a second of attention that is not fused
LINK = 350e9  # bytes a second between the GPUs of a node


def parameters(model: ModelConfig) -> int:
    """Number of parameters."""
    shapes = jax.tree.leaves(parameter_shapes(model), is_leaf=lambda node: isinstance(node, tuple))
    return sum(math.prod(shape) for shape, _ in shapes)


def cache_bytes(model: ModelConfig) -> int:
    """Keys and values of one token, in bfloat16."""
    return model.num_layers * 2 * model.num_kv_heads * model.head_dim * 2


def rows(config) -> int:
    """Rows decoded at once."""
    step = config.rollout.problems_per_step * config.rollout.group_size
    return config.rollout.max_rows or step


def longest(config) -> tuple[int, int]:
    """Longest student and teacher sequence, in tokens."""
    response = config.rollout.response_buckets[-1]
    return (
        config.rollout.prompt_buckets[-1] + response,
        config.teacher.prompt_buckets[-1] + response,
    )


def memory(model: ModelConfig, config) -> dict[str, float]:
    """What lies on one GPU; `cache` while sampling, `gradient` and `scores` while updating."""
    count = parameters(model)
    slots = config.rollout.prompt_buckets[-1] + config.rollout.max_new_tokens
    micro_rows = config.compute.micro_batch / DEVICES
    return {
        # float32 parameters, two moments of Adam, EMA teacher
        "state": 16 * count / DEVICES / GB,
        # float32 sum and that of the present micro-batch; bfloat16 copies of student and teacher
        "gradient": (8 + 4) * count / DEVICES / GB,
        "cache": rows(config) * slots * cache_bytes(model) / DEVICES / GB,
        # float32 scores of one layer's heads for the longest student, and teacher, sequence
        "student_scores": micro_rows * model.num_heads * longest(config)[0] ** 2 * 4 / GB,
        "teacher_scores": micro_rows * model.num_heads * longest(config)[1] ** 2 * 4 / GB,
        "checkpoint": 16 * count / GB,  # on disk, whole
    }


def decode_seconds(model: ModelConfig, config, tokens: int) -> tuple[float, float]:
    """Seconds to decode one turn of rows for `tokens` steps.

    Every step reads the weights and the whole cache. At worst the weights, sharded over the GPUs,
    are gathered anew for every token.
    """
    slots = config.rollout.prompt_buckets[0] + config.rollout.max_new_tokens
    embedding = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    weights = 2 * (parameters(model) - embedding)
    cache = rows(config) * slots * cache_bytes(model) / DEVICES
    step = (weights + cache) / BANDWIDTH
    return tokens * step, tokens * (step + weights * (DEVICES - 1) / DEVICES / LINK)


def update_seconds(model: ModelConfig, config, response: int, teacher_prompt: int) -> float:
    """Seconds of one update whose longest response and teacher prompt have these lengths.

    The student counts four forward passes (one, one more to recompute, and a backward pass of two),
    the teacher one; all rows are padded to the longest.
    """
    batch = config.rollout.problems_per_step * config.rollout.group_size
    student, teacher = config.rollout.prompt_buckets[0] + response, teacher_prompt + response
    matmul = 2 * parameters(model) * batch * (4 * student + teacher) / DEVICES / MATMUL
    width = model.num_heads * model.head_dim
    scores = 4 * width * model.num_layers * batch * (4 * student**2 + teacher**2)
    return matmul + scores / DEVICES / ATTENTION


def evaluation_turns(config, problems: int) -> int:
    """Turns of decoding in one evaluation, the teacher's included."""
    section = config.evaluation
    at_once = [rows(config) // samples for samples in (section.samples, section.teacher_samples)]
    return sum(math.ceil(problems / count) for count in at_once)


def hours(model: ModelConfig, config, response: int) -> tuple[float, float]:
    """Hours of a whole run if the longest answer of every batch has `response` tokens.

    Args:
      model: the sizes.
      config: of the run, with its task.
      response: a response bucket; teacher prompts, with one such answer in them, fill the next.

    Returns:
      With the weights read where they lie, and with the weights gathered for every token.
    """
    buckets = config.teacher.prompt_buckets
    needed = min(config.rollout.prompt_buckets[0] + response, buckets[-1])
    teacher_prompt = next(bucket for bucket in buckets if bucket >= needed)
    steps = config.train.steps
    batch = config.rollout.problems_per_step * config.rollout.group_size
    evaluations = 1 + steps // config.evaluation.every
    problems = published.FILES[config.task, "test"].rows
    turns = steps * math.ceil(batch / rows(config))
    turns += evaluations * evaluation_turns(config, problems)
    update = steps * update_seconds(model, config, response, teacher_prompt)
    low, high = decode_seconds(model, config, response)
    return (turns * low + update) / 3600, (turns * high + update) / 3600


def main() -> None:
    """Prints memory and hours of each experiment."""
    for name, model in MODELS.items():
        config = configs.load(f"{ROOT}/configs/{name}.py:task=biology")
        print(f"{name}: {parameters(model) / GB:.2f} B parameters")
        for part, size in memory(model, config).items():
            print(f"  {part:15} {size:6.1f} GB")
        for response in config.rollout.response_buckets:
            low, high = hours(model, config, response)
            print(f"  hours, longest answers {response:5}: {low:.0f} to {high:.0f}")


if __name__ == "__main__":
    main()
