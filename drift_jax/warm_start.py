"""Supervised warm start of a base policy, on plain and reference-conditioned demonstrations.

    python -m drift_jax.warm_start --config=configs/quickstart.py:base --workdir=runs/base

Plain demonstrations teach the task's form and set the pass rate that training starts from.
Reference-conditioned ones show a solution in the prompt and imitate it; they teach the model to
read a sibling, without which a self-teacher has nothing to say. The two losses are logged apart,
and the last lines say whether the teacher can teach. The result is a checkpoint folder, DIR/model.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drift_jax import assemble, batching, command, examination, models, optimizer, sharding, update
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data import generated, prompting
from drift_jax.types import Rollouts

Example = tuple[np.ndarray, np.ndarray]  # prompt and response, token ids


def train(config: Any, workdir: str) -> None:
    """Runs `warm_start.steps` optimizer steps and saves `workdir`/model."""
    folder = command.check_writable(workdir) / "model"
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another --workdir, nothing is overwritten")
    tokenizer = assemble.open_tokenizer(config)
    draw = demonstrations(config, tokenizer)
    mesh = assemble.make_mesh(config)
    model, params = assemble.open_model(config, tokenizer, mesh)
    state, step_once = supervised_step(config, model, params, mesh)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for step in range(1, config.warm_start.steps + 1):
        rng = np.random.default_rng([config.seed, step])
        reference = bool(rng.random() < config.warm_start.reference_fraction)
        batch = supervised_batch(config, draw(rng, reference), reference=reference)
        state, metrics, _ = step_once(state, sharding.put_batch(mesh, batch, axis=1))
        losses[reference].append(-float(metrics["actor/log_prob_mean"]))
        if step % 100 == 0 or step == config.warm_start.steps:
            plain, shown = (np.mean(losses[kind][-50:] or np.nan) for kind in (False, True))
            print(
                f"step {step}/{config.warm_start.steps}  nats a token: plain {plain:.4f}, "
                f"with a reference {shown:.4f}",
                flush=True,
            )
    models.save(str(folder), model, state.trainable, tokenizer=tokenizer)
    gate = examination.measure_gate(config, model, state.trainable, tokenizer, mesh)
    print(f"{gate}\nsaved {folder}")


def demonstrations(
    config: Any, tokenizer: Any
) -> Callable[[np.random.Generator, bool], list[Example]]:
    """A function that draws a batch of demonstrations, plain or reference-conditioned.

    Raises:
      ConfigError: for a task that has none.
    """
    if config.task not in generated.TASKS:
        known = ", ".join(generated.TASKS)
        raise ConfigError(f"task {config.task!r} has no demonstrations; those that have: {known}")
    source = generated.demonstrations(config.task, config.data.world_seed)
    stop = prompting.stop_tokens(tokenizer)[:1]

    def draw(rng: np.random.Generator, reference: bool) -> list[Example]:
        section = config.warm_start
        count = section.reference_batch if reference else section.plain_batch
        examples = []
        for shown in source(rng, count, reference):
            prompt = (
                prompting.render(tokenizer, shown.problem)
                if shown.reference is None
                else prompting.render_teacher(
                    tokenizer,
                    shown.problem,
                    shown.reference,
                    max_tokens=config.teacher.max_prompt_tokens,
                )
            )
            text = tokenizer.encode(shown.response, add_special_tokens=False)
            examples.append((prompt, np.array([*text, *stop], np.int32)))
        return examples

    return draw


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
        gate=np.zeros(ones.shape, bool),
        prompt_buckets=config.teacher.prompt_buckets
        if reference
        else config.rollout.prompt_buckets,
        teacher_buckets=(),
        response_buckets=config.rollout.response_buckets,
        micro_batch=0,
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
        teacher_rate=0.0,
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
