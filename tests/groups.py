"""Groups made by hand, one a kind of problem, and what a method decides about them."""

import numpy as np

from drift_jax import assemble, methods, replay
from drift_jax import config as configs
from drift_jax.buffer import SuccessBuffer
from drift_jax.decision import Decision, decide
from drift_jax.difficulty import PassRates
from drift_jax.grading import Answers
from drift_jax.memory import Memory, draws

GROUP = 4
REWARDS = {
    "easy": [1, 1, 1, 1],  # pass rate 1: gamma 1/2
    "medium": [1, 0, 1, 0],  # pass rate 1/2: gamma 1
    "single": [0, 1, 0, 0],  # pass rate 1/4, medium; the only success has nobody to learn from
    "hard": [0, 0, 1, 1],  # pass rate 1/2 now but 0.1 in all: gamma 0 (see `remembered`)
    "known": [0, 0, 0, 0],  # all wrong, with an entry in the buffer
    "unknown": [0, 0, 0, 0],  # all wrong, never solved
}
PROBLEMS = list(REWARDS)
ENTROPIES = np.array([0.4, 0.1, 0.2, 0.3])
LENGTHS = np.array([9, 7, 5, 5])


def answers(rewards: dict[str, list[float]]) -> Answers:
    """Graded groups; the text of a rollout names its problem and its index."""
    shape = (len(rewards), GROUP)
    texts = [[f"{problem} {i}" for i in range(GROUP)] for problem in rewards]
    return Answers(
        responses=texts,
        rewards=np.array(list(rewards.values()), np.float64),
        predictions=texts,
        well_formed=np.ones(shape, bool),
        lengths=np.broadcast_to(LENGTHS, shape),
        entropies=np.broadcast_to(ENTROPIES, shape),
        finished=np.ones(shape, bool),
    )


def remembered() -> Memory:
    """The hard problem failed before, the known one was solved once."""
    memory = Memory(PassRates(0.8), SuccessBuffer(3))
    memory.pass_rates.update(["hard"], [0.0])
    memory.buffer.add("known", "solved before", 1.0, step=1)
    return memory


def decided(
    method: str = "drift",
    stage: str = "mixed",
    *,
    rewards: dict[str, list[float]] = REWARDS,
    memory: Memory | None = None,
    advantages: np.ndarray | None = None,
    buffer_enabled: bool = True,
    joined: replay.Replayed | None = None,
    graded: Answers | None = None,
    **changes,
) -> Decision:
    """The decision of a method's stage; `changes` are config values, `a__b` for a.b."""
    config = methods.apply(configs.default(), method)
    configs.assign(config, {name.replace("__", "."): value for name, value in changes.items()})
    graded = answers(rewards) if graded is None else graded
    joined = replay.nothing(len(rewards), 0) if joined is None else joined
    return decide(
        list(rewards),
        graded,
        joined,
        assemble.advantages(config, graded, joined) if advantages is None else advantages,
        remembered() if memory is None else memory,
        step=7,
        stage=dict(zip(("warmup", "mixed"), assemble.stages(config), strict=True))[stage],
        rules=assemble.rules(config),
        buffer_enabled=buffer_enabled,
        rng_for=draws(0, 7),
    )


def table(values: np.ndarray) -> dict[str, list[float]]:
    return {
        problem: np.asarray(row, float).tolist()
        for problem, row in zip(PROBLEMS, values, strict=True)
    }
