"""Supervised warm start of a base policy, on plain and reference-conditioned demonstrations.

    python -m drift_jax.warm_start --config=configs/quickstart.py:base --workdir=runs/base
    python -m drift_jax.warm_start --config=configs/smollm2_135m.py:task=tooluse --workdir=runs/form

Plain demonstrations teach the task's form and set the pass rate that training starts from.
Reference-conditioned ones show a solution in the prompt and imitate it; they teach the model to
read a sibling, without which a self-teacher has nothing to say. The two losses are logged apart,
and the last lines say whether the teacher can teach. The result is a checkpoint folder, DIR/model,
for --config.model.path of a training run. `drift_jax.data.demonstrations` says what is imitated.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drift_jax import assemble, batching, command, examination, models, optimizer, sharding, update
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data import demonstrations as sources
from drift_jax.data import prompting, toolcalls
from drift_jax.types import Rollouts

Example = tuple[np.ndarray, np.ndarray]  # prompt and response, token ids


def train(config: Any, workdir: str) -> None:
    """Runs `warm_start.steps` optimizer steps and saves `workdir`/model."""
    folder = command.check_writable(workdir) / "model"
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another --workdir, nothing is overwritten")
    tokenizer = assemble.open_tokenizer(config)
    check_batches(config)
    draw = demonstrations(config, tokenizer)
    mesh = assemble.make_mesh(config)
    model, params = assemble.open_model(config, tokenizer, mesh)
    state, step_once = supervised_step(config, model, params, mesh)
    losses: dict[bool, list[float]] = {False: [], True: []}
    steps = config.warm_start.steps
    every, window = max(1, steps // 30), max(1, steps // 60)  # lines, and what each averages over
    for step in range(1, steps + 1):
        rng = np.random.default_rng([config.seed, step])
        reference = bool(rng.random() < config.warm_start.reference_fraction)
        batch = supervised_batch(config, draw(rng, reference), reference=reference)
        state, metrics, _ = step_once(state, sharding.put_batch(mesh, batch, axis=1), 0.0)
        losses[reference].append(-float(metrics["actor/log_prob_mean"]))
        if step % every == 0 or step == steps:
            seen = {"plain": losses[False], "with a reference": losses[True]}
            means = (f"{name} {np.mean(kept[-window:]):.4f}" for name, kept in seen.items() if kept)
            print(f"step {step}/{steps}  nats a token: {', '.join(means)}", flush=True)
    models.save(str(folder), model, state.trainable, tokenizer=tokenizer)
    print(f"saved {folder}", flush=True)
    with assemble.open_grader(config) as grader:
        gate = examination.measure_gate(config, model, state.trainable, tokenizer, mesh, grader)
    print(gate or "no gate: it needs validation problems; set data.validation_fraction")


def demonstrations(
    config: Any, tokenizer: Any
) -> Callable[[np.random.Generator, bool], list[Example]]:
    """A function that draws a batch of demonstrations, plain or reference-conditioned.

    Raises:
      ConfigError: for a task that has none.
    """
    draw_texts = open_demonstrations(config, tokenizer)
    stop = prompting.stop_tokens(tokenizer)[:1]

    def draw(rng: np.random.Generator, reference: bool) -> list[Example]:
        section = config.warm_start
        count = section.reference_batch if reference else section.plain_batch
        examples = []
        for shown in draw_texts(rng, count, reference=reference):
            problem = shown.problem
            if config.data.instructions:
                problem = toolcalls.with_instructions(problem)
            prompt = (
                prompting.render(tokenizer, problem, thinking=config.data.thinking)
                if shown.reference is None
                else prompting.render_teacher(
                    tokenizer,
                    problem,
                    shown.reference,
                    max_tokens=config.teacher.max_prompt_tokens,
                    thinking=config.data.thinking,
                    remove_thinking=config.teacher.remove_thinking,
                )
            )
            text = tokenizer.encode(shown.response, add_special_tokens=False)
            examples.append((prompt, np.array([*text, *stop], np.int32)))
        return examples

    return draw


def open_demonstrations(config: Any, tokenizer: Any) -> sources.Draw:
    """Where the demonstrations of the configured task come from.

    A solution that does not fit into rollout.max_new_tokens is left out: the policy could not write
    it later.

    Raises:
      ConfigError: for a task without readable problems, or without a usable solution.
    """
    if sources.is_generated(config.task):
        return sources.of_generated(config.task, config.data.world_seed)
    problems, _ = assemble.open_problems(config, tokenizer, "train")
    limit = config.rollout.max_new_tokens
    texts = [sources.solution(problem) for problem in problems]
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts]
    fitting = [p for p, length in zip(problems, lengths, strict=True) if length <= limit]
    if not fitting:
        raise ConfigError(
            f"no gold solution of {config.task} fits into rollout.max_new_tokens {limit}; the "
            f"shortest has {min(lengths)} tokens"
        )
    with assemble.boundary():
        return sources.of_problems(fitting)


def check_batches(config: Any) -> None:
    """Raises ConfigError unless both kinds of batches divide into micro-batches."""
    rows = config.compute.micro_batch
    for name in ("plain_batch", "reference_batch"):
        if rows and config.warm_start[name] % rows:
            raise ConfigError(
                f"compute.micro_batch {rows} does not divide warm_start.{name} "
                f"{config.warm_start[name]}; use a multiple of {rows}, or compute.micro_batch=0"
            )


def supervised_batch(config: Any, examples: list[Example], *, reference: bool) -> batching.Batch:
    """Demonstrations as samples of advantage 1: their policy gradient is maximum likelihood."""
    time = max(len(response) for _, response in examples)
    tokens = np.zeros((len(examples), time), np.int32)
    mask = np.zeros((len(examples), time), bool)
    for row, (_, response) in enumerate(examples):
        tokens[row, : len(response)], mask[row, : len(response)] = response, True
    zeros = np.zeros(tokens.shape, np.float32)
    ones = np.ones((len(examples), 1), np.float32)
    return batching.make(
        [prompt for prompt, _ in examples],
        Rollouts(
            tokens, mask, log_probs=zeros, entropies=zeros, finished=np.ones(len(examples), bool)
        ),
        None,
        advantages=ones,
        policy_weight=ones,
        distill_weight=0 * ones,
        gate=0 * ones,
        prompt_buckets=config.teacher.prompt_buckets
        if reference
        else config.rollout.prompt_buckets,
        teacher_buckets=(),
        response_buckets=config.rollout.response_buckets,
        micro_batch=config.compute.micro_batch,
    )


def supervised_step(
    config: Any, model: models.ModelConfig, params: models.transformer.Params, mesh: Mesh
) -> tuple[update.TrainState, update.UpdateFunction]:
    """First state and update function: the token mean of the log-likelihood, cosine rate."""
    section = config.warm_start
    transform = optimizer.direction(
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=section.weight_decay, clip_norm=section.clip_norm
    )
    state = assemble.place_state(transform, params, mesh, model)
    step_once = update.make_update(
        model=model,
        settings=update.LossSettings(aggregation="token_mean"),
        compute=assemble.compute(config),
        optimizer=transform,
        learning_rate=lambda step: optimizer.learning_rate(
            step,
            peak=section.learning_rate,
            warmup_steps=section.warmup_steps,
            total_steps=section.steps,
            final_fraction=section.final_fraction,
        ),
        placement=assemble.placement(state),
    )
    return state, step_once


def main(config: Any) -> None:
    """Checks the flags and trains."""
    configs.validate(config, device_count=jax.device_count())
    if command.WORKDIR.value is None:
        raise ConfigError(f"--workdir is missing; for example: {command.example(__doc__ or '')}")
    train(config, command.WORKDIR.value)


if __name__ == "__main__":
    command.run(main, __doc__ or "")
