"""From a configuration to the parts that the commands share: each section unpacked in one place."""

import contextlib
import importlib.resources
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from drift_jax import batching, checkpoint, difficulty, models, optimizer, replay, sharding, update
from drift_jax import config as configs
from drift_jax.buffer import SuccessBuffer
from drift_jax.config import ConfigError
from drift_jax.data import generated, prompting, source
from drift_jax.decayed_counts import DecayedCounts
from drift_jax.decision import Decision, Rules, Stage
from drift_jax.difficulty import PassRates
from drift_jax.grading import Answers, Grader
from drift_jax.losses.divergence import Divergence
from drift_jax.losses.policy_gradient import group_advantages
from drift_jax.memory import Memory, draws
from drift_jax.models import transformer
from drift_jax.models.transformer import ModelConfig, Params
from drift_jax.replay import Replayed
from drift_jax.rewards.pool import RewardPool
from drift_jax.sampling import Sampler
from drift_jax.teacher_schedule import TeacherSchedule
from drift_jax.types import Problem, Rollouts

PACKAGED_MODELS = ("quickstart_base",)


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """Turns what a reader says of a file into bad input: one line and exit code 2."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def model_folder(config: Any) -> pathlib.Path:
    """Where the weights and the tokenizer lie; a packaged model is named without a folder.

    Raises:
      ConfigError: if there is nothing, with the command that brings it.
    """
    if config.model.path in PACKAGED_MODELS:
        return pathlib.Path(
            str(importlib.resources.files("drift_jax") / "assets" / config.model.path)
        )
    folder = pathlib.Path(config.model.path)
    if not folder.is_dir():
        from drift_jax.prepare import checkpoints  # its readers are for those who have no folder

        name = folder.name.lower()
        short = (known for known in checkpoints.known_models() if name.startswith(known))
        raise ConfigError(
            f"model.path {str(folder)!r} is not a folder; fill it with "
            f"`python -m drift_jax.prepare --model={next(short, name)} --out={folder}`, "
            "or name the folder of a Hugging Face checkpoint"
        )
    return folder


def open_tokenizer(config: Any) -> Any:
    """The tokenizer of the model; that of the generated task when its model starts from nothing."""
    if config.model.init == "random" and config.task in generated.TASKS:
        return generated.build_tokenizer(config.task)
    with boundary():
        return prompting.load_tokenizer(model_folder(config))


def open_problems(config: Any, tokenizer: Any, split: str) -> tuple[list[Problem], int]:
    """The problems of a split whose prompts fit, and how many were dropped as too long."""
    with boundary():
        problems = source.load_task(
            config.task,
            split,
            path=config.data.path,
            world_seed=config.data.world_seed,
            instructions=config.data.instructions,
            validation_fraction=config.data.validation_fraction,
            own=bool(config.data.rewards),
        )
        return prompting.drop_long(
            problems, tokenizer, config.data.max_prompt_tokens, thinking=config.data.thinking
        )


def open_grader(config: Any) -> Grader:
    """The task's own verifier, or the user's reward function in its pool of processes.

    Raises:
      ConfigError: if there is no such function.
    """
    section = config.data
    if not section.rewards:
        return Grader()
    with boundary():
        return Grader(
            RewardPool(
                section.rewards, workers=section.reward_workers, timeout=section.reward_timeout
            )
        )


def check_teacher_prompts(config: Any, tokenizer: Any, problems: Sequence[Problem]) -> None:
    """Raises ConfigError if the longest problem leaves no room in the teacher's prompt."""
    if configs.needs_teacher(config):
        with boundary():
            prompting.render_teacher(
                tokenizer,
                max(problems, key=lambda problem: len(problem.messages[-1]["content"])),
                demonstration="",
                feedback=None if config.teacher.feedback == "none" else "",
                max_tokens=config.teacher.max_prompt_tokens,
                thinking=config.data.thinking,
            )


def make_mesh(config: Any) -> Mesh:
    """The device mesh of the `mesh` section."""
    return sharding.make_mesh(
        data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
    )


def open_model(config: Any, tokenizer: Any, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Sizes and float32 parameters on the mesh, from the checkpoint or at random."""
    if config.model.init == "checkpoint":
        with boundary():
            return models.load(str(model_folder(config)), mesh=mesh)
    model = ModelConfig(vocab_size=len(tokenizer), **config.model.preset)
    shardings = parameter_shardings(model, mesh)
    create = jax.jit(transformer.init, static_argnums=0, out_shardings=shardings)
    return model, create(model, jax.random.key(config.seed))


def describe_base(params: Params) -> dict[str, Any]:
    """What identifies base weights, and how many of them a token is multiplied with.

    An untied embedding is looked up, not multiplied with.
    """
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    if "lm_head" in sizes:
        del sizes["embed_tokens"]
    return {"fingerprint": checkpoint.fingerprint(params), "parameters": sum(sizes.values())}


def compute_dtype(config: Any) -> jnp.dtype | None:
    """None (keep float32 parameters as they are) or bfloat16."""
    return (
        None if config.model.compute_dtype == "float32" else jnp.dtype(config.model.compute_dtype)
    )


def make_sampler(config: Any, model: ModelConfig, mesh: Mesh, *, teacher: bool = False) -> Sampler:
    """The sampler; with `teacher`, for prompts that show a solution."""
    section = config.rollout
    rows = section.max_rows or section.problems_per_step * section.group_size
    return Sampler(
        model,
        prompt_buckets=config.teacher.prompt_buckets if teacher else section.prompt_buckets,
        # The largest batch is a bucket too: a call with fewer rollouts needs no shape of its own.
        row_buckets=(*section.row_buckets, rows),
        cache_buckets=section.cache_buckets,
        max_rows=rows,
        segment_steps=section.segment_steps,
        dtype=compute_dtype(config),
        mesh=mesh,
    )


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """The direction of a step, from the `optimizer` section."""
    section = config.optimizer
    return optimizer.direction(
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        information_scale=section.information_scale,
        information_max=section.information_max,
        information_floor=section.information_floor,
    )


def loss_settings(config: Any) -> update.LossSettings:
    """The constants of the loss, from the `objective` and `rhythm` sections."""
    section, rhythm = config.objective, config.rhythm
    return update.LossSettings(
        divergence=Divergence(
            section.divergence,
            section.alpha,
            section.top_k,
            section.rest,
            section.support,
            section.pointwise_cap,
        ),
        clip_low=section.clip_low,
        clip_high=section.clip_high,
        dual_clip=section.dual_clip or None,
        aggregation=section.aggregation,
        policy_scale=section.policy_scale,
        distill_scale=section.distill_scale,
        token_weight=section.token_weight,
        reshape_scale=section.reshape_scale,
        reshape_decay_steps=section.reshape_decay_steps,
        reshape_clip=section.reshape_clip,
        distill_token_weight=section.distill_token_weight,
        entropy_beta=section.entropy_beta,
        credit=section.credit,
        distill_ratio_cap=section.distill_ratio_cap,
        sampler_correction_cap=section.sampler_correction_cap,
        trust_region=trust_region(config),
        gate=rhythm.gate,
        bonus=rhythm.bonus,
        window=rhythm.window,
        gate_sharpness=rhythm.gate_sharpness,
        structure_scale=rhythm.structure_scale,
        min_multiplier=rhythm.min_multiplier,
        max_multiplier=rhythm.max_multiplier,
        margin=rhythm.margin,
        bonus_temperature=rhythm.bonus_temperature,
        max_bonus=rhythm.max_bonus,
    )


def compute(config: Any) -> update.Compute:
    """How the numbers are computed, from the `model` and `compute` sections."""
    return update.Compute(
        dtype=compute_dtype(config),
        remat=config.model.remat == "full",
        vocab_chunk=config.compute.vocab_chunk,
    )


def learning_rate(config: Any) -> Callable[[jax.Array], jax.Array]:
    """Rate at a training step: linear warm-up, then constant."""

    def rate(step: jax.Array) -> jax.Array:
        return optimizer.learning_rate(
            step,
            peak=configs.learning_rate(config),
            warmup_steps=config.optimizer.warmup_steps,
            zero_first_step=config.optimizer.zero_first_step,
        )

    return rate


def make_update(config: Any, model: ModelConfig, state: update.TrainState) -> update.UpdateFunction:
    """The jitted update step of a training run, which leaves the state where it lies.

    Raises:
      ConfigError: if objective.top_k is more than the vocabulary.
    """
    if config.objective.top_k > model.vocab_size:
        raise ConfigError(
            f"objective.top_k is {config.objective.top_k}, more than the {model.vocab_size} tokens"
            " of the vocabulary; use 0 for all of them"
        )
    return update.make_update(
        model=model,
        settings=loss_settings(config),
        compute=compute(config),
        optimizer=make_optimizer(config),
        learning_rate=learning_rate(config),
        mini_batches=config.optimizer.mini_batches,
        placement=placement(state),
    )


def trust_region(config: Any) -> float:
    """Share of the current student in the teacher's logits."""
    return config.teacher.rate if config.teacher.update_rule == "trust_region" else 0.0


def rows_at_once(config: Any, rows: int) -> int:
    """Rows of a micro-batch, which never reaches over the end of a mini-batch."""
    mini_batch = rows // config.optimizer.mini_batches
    return min(config.compute.micro_batch or mini_batch, mini_batch)


def placement(state: update.TrainState) -> update.TrainState:
    """Where each array of a state lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def open_state(config: Any, params: Params, mesh: Mesh, model: ModelConfig) -> update.TrainState:
    """The train state before the first step; it takes the parameters over."""
    return place_state(make_optimizer(config), params, mesh, model)


def place_state(
    transform: optax.GradientTransformation, params: Params, mesh: Mesh, model: ModelConfig
) -> update.TrainState:
    """A state made inside one jit, so that every leaf is on the mesh, laid out like its parameter.

    The parameters are donated: they must not be used afterwards.
    """

    def create(params: Params) -> update.TrainState:
        return update.init_state(params, transform)

    places = placement(abstract_state(transform, mesh, model))
    return jax.jit(create, out_shardings=places, donate_argnums=0)(params)


def state_template(config: Any, mesh: Mesh, model: ModelConfig) -> update.TrainState:
    """Shapes, dtypes and places of a run's train state: what a checkpoint is read into."""
    return abstract_state(make_optimizer(config), mesh, model)


def abstract_state(
    transform: optax.GradientTransformation, mesh: Mesh, model: ModelConfig
) -> update.TrainState:
    """A train state without its arrays; optimizer and teacher lie like the parameters."""
    like_parameters = parameter_shardings(model, mesh)
    everywhere = sharding.replicated(mesh)
    state = jax.eval_shape(
        lambda key: update.init_state(transformer.init(model, key), transform), jax.random.key(0)
    )
    places = update.TrainState(
        step=everywhere,
        trainable=like_parameters,
        frozen={},
        optimizer=optax.tree_map_params(
            transform,
            lambda _, placed: placed,
            state.optimizer,
            like_parameters,
            transform_non_params=lambda _: everywhere,
        ),
        teacher=like_parameters,
        skipped=everywhere,
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        places,
    )


def parameter_shardings(model: ModelConfig, mesh: Mesh) -> Params:
    """Where each parameter lies on the mesh."""
    return jax.tree.map(
        lambda leaf: sharding.named(mesh, *leaf),
        transformer.parameter_shapes(model),
        is_leaf=lambda node: isinstance(node, tuple),
    )


def make_memory(config: Any, *, warmup_steps: int = 0) -> Memory:
    """Empty pass rates and success buffer, and a teacher that is still the initial model."""
    return Memory(
        _ESTIMATES[config.difficulty.estimate](config.difficulty),
        SuccessBuffer(
            config.buffer.capacity,
            config.buffer.on_tie,
            draw=config.buffer.draw,
            max_problems=config.buffer.max_problems,
        ),
        schedule=TeacherSchedule(
            config.teacher.update_rule,
            rate=config.teacher.rate,
            copy_every=config.teacher.copy_every,
            check_every=config.teacher.check_every,
            min_steps=config.teacher.min_steps,
            window=config.teacher.window,
            reward_gain=config.teacher.reward_gain,
            length_ratio=config.teacher.length_ratio,
        ),
        reset_every=config.difficulty.reset_every,
        reset_after=warmup_steps,
    )


# The configuration's `estimate` of a pass rate, from its section.
_ESTIMATES: dict[str, Callable[[Any], PassRates | DecayedCounts]] = {
    "smoothed": lambda section: PassRates(section.pass_rate_decay),
    "beta": lambda section: DecayedCounts(
        section.count_decay, section.prior_count, section.shrink_count
    ),
}


def stages(config: Any) -> tuple[Stage, Stage]:
    """Stage 1 (warm-up) and stage 2 (mixed)."""
    return Stage(**config.warmup), Stage(**config.mixed)


def rules(config: Any) -> Rules:
    """What holds in both stages."""
    section = config.difficulty
    return Rules(
        easy_above=section.easy_above,
        hard_below=section.hard_below,
        easy_weight=section.easy_weight,
        medium_weight=section.medium_weight,
        hard_weight=section.hard_weight,
        success_threshold=section.success_threshold,
        reward_tolerance=config.teacher.reward_tolerance,
        fallback_above={"threshold": None, "positive": 0.0}[config.buffer.group_success],
        every_sign=config.rhythm.every_sign,
        easy_distill_weight=section.easy_distill_weight,
        medium_distill_weight=section.medium_distill_weight,
        hard_distill_weight=section.hard_distill_weight,
        bins=section.bins,
        softness=section.softness,
        question_weight=section.question_weight,
        question_exponent=section.question_exponent,
        feedback=config.teacher.feedback,
        weighted_rows=config.objective.weighted_rows,
        normaliser_rows=config.objective.normaliser_rows,
    )


REPLAY = 1  # the purpose of a buffer draw that joins a group, see `memory.draws`


def replayed(
    config: Any, tokenizer: Any, buffer: SuccessBuffer, ids: Sequence[str], step: int, usable: bool
) -> Replayed:
    """Stored successes that join the groups of a step (RLEP); empty places while not `usable`."""
    if not usable:
        return replay.nothing(len(ids), config.buffer.group_members)
    return replay.draw(
        ids,
        buffer,
        members=config.buffer.group_members,
        max_tokens=config.rollout.max_new_tokens,
        encode=lambda text: prompting.encode_response(tokenizer, text),
        rng_for=draws(config.seed, step, REPLAY),
    )


def advantages(config: Any, answers: Answers, joined: Replayed) -> np.ndarray:
    """A over the members of each group, or over its successes alone, weighed. [problem, member]"""
    rewards, counted = joined.joined_rewards(answers.rewards)
    successes = rewards >= config.difficulty.success_threshold
    if config.objective.advantage_over == "successes":
        counted &= successes
    values = np.asarray(
        group_advantages(
            rewards,
            scale_by_std=config.objective.scale_by_std,
            counted=None if counted.all() else counted,
        )
    )
    fresh = successes[:, : answers.rewards.shape[1]]
    return values * _ADVANTAGE_WEIGHTS[config.objective.advantage_weight](values, fresh)


# The configuration's `advantage_weight`: (advantages, which rollouts succeeded) -> factors.
_ADVANTAGE_WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | float]] = {
    "none": lambda values, correct: 1.0,
    "lead": difficulty.lead_weights,
}


def make_batch(
    config: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    prompts: Sequence[np.ndarray],
    rollouts: Rollouts,
    decision: Decision,
) -> batching.Batch:
    """The step's samples with their teachers' contexts, padded and split into micro-batches."""
    joined = decision.replayed.joined(rollouts)
    return batching.make(
        prompts,
        joined,
        _teacher_prompts(config, tokenizer, problems, decision),
        advantages=decision.advantages,
        policy_weight=decision.policy_weight,
        distill_weight=decision.distill_weight,
        gate=decision.gate,
        policy_rows=decision.policy_rows,
        distill_rows=decision.distill_rows,
        fresh=decision.fresh,
        prompt_buckets=config.rollout.prompt_buckets,
        teacher_buckets=config.teacher.prompt_buckets,
        response_buckets=config.rollout.response_buckets,
        micro_batch=rows_at_once(config, len(joined.tokens)),
    )


def _teacher_prompts(
    config: Any, tokenizer: Any, problems: Sequence[Problem], decision: Decision
) -> list[np.ndarray | None] | None:
    """The teacher's prompt of every member that needs one; None where no teacher is ever run."""
    if not configs.needs_teacher(config):
        return None
    rendered: dict[tuple[int, str | None, str | None], np.ndarray] = {}
    prompts: list[np.ndarray | None] = []
    for (row, column), wanted in np.ndenumerate(decision.needs_teacher):
        if not wanted:
            prompts.append(None)
            continue
        shown = decision.choice.text[row][column], decision.choice.feedback[row][column]
        if (row, *shown) not in rendered:  # a sibling teaches several samples
            rendered[row, *shown] = prompting.render_teacher(
                tokenizer,
                problems[row],
                shown[0],
                feedback=shown[1],
                max_tokens=config.teacher.max_prompt_tokens,
                thinking=config.data.thinking,
                remove_thinking=config.teacher.remove_thinking,
            )
        prompts.append(rendered[row, *shown])
    return prompts
