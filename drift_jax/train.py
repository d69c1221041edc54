"""The training loop: Figure 2 of the DRIFT paper as one page of calls.

Every decision on the host is a function of the seed, the step and what was sampled, so a run that
was stopped goes on to the same bits. Stages and methods differ in numbers, never in a branch here.
"""

from typing import Any

import jax

from drift_jax import assemble, buffer, examination, longest, sharding, summary
from drift_jax import config as configs
from drift_jax.checkpoint import Fork
from drift_jax.data import prompting
from drift_jax.data.source import ProblemStream
from drift_jax.decision import decide
from drift_jax.grading import grade
from drift_jax.memory import draws
from drift_jax.reporting import Reporter
from drift_jax.sampling import random_streams
from drift_jax.workdir import WorkDir


def train(config: Any, workdir: str, fork: Fork | None = None) -> bool:
    """Trains (and evaluates on the way) from where `workdir` stopped to `train.steps`.

    Returns whether it got there; False after a request to stop (SIGTERM).
    """
    # ---- problems, model, sampler, update
    grader = assemble.open_grader(config)
    tokenizer = assemble.open_tokenizer(config)
    stop_tokens = prompting.stop_tokens(tokenizer)
    problems, dropped = assemble.open_problems(config, tokenizer, "train")
    configs.validate(config, device_count=jax.device_count(), problem_count=len(problems))
    assemble.check_teacher_prompts(config, tokenizer, problems)
    stream = ProblemStream(problems, config.seed, config.rollout.problems_per_step)
    warmup_steps = configs.warmup_length(config, stream.steps_per_epoch)
    warmup, mixed = assemble.stages(config)
    rules = assemble.rules(config)
    mesh = assemble.make_mesh(config)
    model, params = assemble.open_model(config, tokenizer, mesh)
    sampler = assemble.make_sampler(config, model, mesh)
    exam = examination.examination(config, model, tokenizer, mesh, grader)

    # ---- state: that of the newest checkpoint, of a fork, or a fresh one
    run = WorkDir(workdir, config, fingerprint=stream.fingerprint, base=params, fork=fork)
    memory = assemble.make_memory(config, warmup_steps=warmup_steps)
    state, start = run.restore(assemble.open_state(config, params, mesh, model), memory)
    del params  # they live on in the state
    update_step = longest.make_update(config, mesh, model, state)
    with grader, Reporter(config, run, exam, memory, start=start, dropped=dropped) as report:
        report.compiled(examination.precompile(config, sampler, exam, state.trainable))
        if start == 0:
            gate = examination.measure_gate(config, model, state.trainable, tokenizer, mesh, grader)
            report.begin(state, gate)
        for step in range(start + 1, config.train.steps + 1):
            stage = warmup if step <= warmup_steps else mixed

            # ---- rollouts and rewards: y ~ pi_old, r
            with report.clock("rollout"):
                asked = stream[step]
                ids = [problem.id for problem in asked]
                prompts = [
                    prompting.render(tokenizer, problem, thinking=config.data.thinking)
                    for problem in asked
                ]
                rollouts = sampler.generate(
                    state.trainable,
                    prompts,
                    group_size=config.rollout.group_size,
                    max_new_tokens=config.rollout.max_new_tokens,
                    temperature=config.rollout.temperature,
                    top_p=config.rollout.top_p,
                    top_k=config.rollout.top_k,
                    stop_tokens=stop_tokens,
                    stream=random_streams(config.seed, step, ids),
                )
            with report.clock("reward"):
                answers = grade(tokenizer, asked, rollouts, grader)

            # ---- A (Eq. 1), pass rates, routes, teachers (sections 3.1, 3.2), the buffer (3.4)
            with report.clock("decide"):
                usable = buffer.is_usable(
                    step,
                    steps_per_epoch=stream.steps_per_epoch,
                    fill_epochs=config.buffer.fill_epochs,
                    fill_steps=config.buffer.fill_steps,
                ) and (step > warmup_steps or config.buffer.use_in_warmup)
                replayed = assemble.replayed(config, tokenizer, memory.buffer, ids, step, usable)
                decision = decide(
                    ids,
                    answers,
                    replayed,
                    assemble.advantages(config, answers, replayed),
                    memory,
                    step=step,
                    stage=stage,
                    rules=rules,
                    buffer_enabled=usable and config.buffer.teaches,
                    rng_for=draws(config.seed, step),
                )
                kept = memory.keep_successes(
                    ids,
                    answers,
                    step=step,
                    sibling=stage.sibling,
                    success_threshold=rules.success_threshold,
                )

            # ---- one update of the mixed objective (Eqs. 2-6, 9-16), and of the self-teacher
            with report.clock("update"):
                batch = assemble.make_batch(config, tokenizer, asked, prompts, rollouts, decision)
                rate = memory.schedule.next_rate(step, answers.rewards, answers.lengths)
                placed = sharding.put_batch(mesh, batch, axis=1)
                state, numbers, details = update_step(state, placed, rate)
                numbers = jax.device_get(numbers)
            numbers |= summary.work_metrics(ids, prompts, batch) | summary.schedule_metrics(rate)
            numbers |= {"train/epoch": stream.epoch(step), "train/stage": 1 + (step > warmup_steps)}

            if report.step(step, state, asked, rollouts, answers, decision, kept, numbers, details):
                return False
        report.end()
    return True
