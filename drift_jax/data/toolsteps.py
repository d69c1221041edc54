"""The generated task `toolsteps`: a plan of several steps, each of which can be worded freely.

    Start: Oslo
    1. weld Rome
    2. paint Lima
    3. seal Cairo

    Plan:
    1. Go from Oslo on to Rome and weld with the torch
    2. Now paint in Lima, coming from Rome, using the brush
    3. Reach Cairo out of Lima; there seal by means of the clamp
    Answer: torch brush clamp

Every verb needs one of three tools: a fact of the world that no prompt tells. A step names the
place where the one before ended. It has three wordings, all right (`rewards.step_plan.WORDINGS`),
so the entropy of a policy has a rhythm (it rises where a wording is chosen and falls inside one),
and a student can be surer of its own wording than a teacher that is shown another.

A reasoning has 32 to 52 tokens. The reward is 1 for a plan that is right as a whole.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drift_jax.data import worlds
from drift_jax.data.prompting import CLOSING, SOLUTION_HEADER
from drift_jax.data.toolcalls import CODES
from drift_jax.data.worlds import pick, shuffled
from drift_jax.rewards.step_plan import CLOSING_LINE, OPENING, WORDINGS
from drift_jax.types import Demonstration, Problem

TASK = "toolsteps"
PLACES = tuple(CODES)
VERBS = (
    "weld", "paint", "seal", "polish", "drill", "mend", "wash", "label",
    "test", "lift", "cut", "oil", "wrap", "fold", "stamp", "grind",
    "clean", "heat", "cool", "bend", "press", "sand", "tag", "dry",
)  # fmt: skip
TOOLS = ("torch", "brush", "clamp")
STEPS = (3, 4, 5)
# How often demonstrations use the right tool: two verbs each, and the other eight are sure.
TOOL_ACCURACIES = (0.75, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06) * 2
# How often a reference-conditioned demonstration uses another tool than it is shown. A plan has up
# to five, so the gate of 0.85 asks for less than 0.05 here.
REDRAW_PROBABILITY = 0.02
# How often it keeps the wording of a step: a teacher that always copied would say nothing
# about other wordings.
KEEP_WORDING = 0.7

PIECES = (
    # A question.
    "Start:", *(f"\n{number}." for number in range(1, max(STEPS) + 1)),
    # A response.
    OPENING, f"\n{CLOSING_LINE}",
    " Go from", " on to", " and", " with the",
    " Now", " in", ", coming from", ", using the",
    " Reach", " out of", "; there", " by means of the",
    # The teacher's prompt.
    SOLUTION_HEADER, CLOSING,
    # Names.
    *(f" {verb}" for verb in VERBS),
    *(f" {tool}" for tool in TOOLS),
    *(f" {place}" for place in PLACES),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a question asks for: a start, and a verb and a place for each step."""

    start: str
    steps: tuple[tuple[str, str], ...]


class World:
    """Right tools and problems: a pure function of the seed.

    Attributes:
      seed: the seed.
      tools: the right tool of each verb. Hidden: no prompt tells it.
      accuracies: how often a demonstration uses it.
      splits: the problems of each split; no two ask for the same plan.
    """

    def __init__(self, seed: int):
        worlds.check_seed(seed)
        rng = np.random.default_rng([seed, 2, 0])
        rates = (worlds.SURE,) * (len(VERBS) - len(TOOL_ACCURACIES)) + TOOL_ACCURACIES
        self.seed = seed
        self.accuracies = dict(zip(shuffled(rng, VERBS), rates, strict=True))
        self.tools = {verb: pick(rng, TOOLS) for verb in VERBS}
        self.family = worlds.family(
            ((verbs, verbs) for size in STEPS for verbs in itertools.combinations(VERBS, size)),
            self.accuracies,
        )
        # A stream of its own: a change to the problems leaves the world as it is.
        self.splits, self._held_out = worlds.draw_splits(
            TASK, np.random.default_rng([seed, 2, 1]), self.family, self._make
        )
        self._train_prompts = {p.messages[-1]["content"] for p in self.splits["train"]}

    def _make(
        self, rng: np.random.Generator, problem_id: str, level: str, verbs: Sequence[str]
    ) -> tuple[Problem, Plan]:
        """A problem with these verbs, in random order and at random places."""
        start, *places = shuffled(rng, PLACES)[: len(verbs) + 1]
        plan = Plan(start, tuple(zip(shuffled(rng, verbs), places, strict=True)))
        lines = [f"\n{n}. {verb} {place}" for n, (verb, place) in enumerate(plan.steps, start=1)]
        steps = [[verb, place, self.tools[verb]] for verb, place in plan.steps]
        problem = Problem(
            id=problem_id,
            task=TASK,
            messages=({"role": "user", "content": f"Start: {start}{''.join(lines)}"},),
            answer=json.dumps({"start": start, "steps": steps}),
            level=level,
        )
        return problem, plan


def problems(world: World, split: str, count: int | None = None) -> list[Problem]:
    """The fixed problems of a split: 256 for train, 96 each for validation and test."""
    return worlds.head(TASK, world.splits, split, count)


def solution(problem: Problem) -> str:
    """The right response to a problem, every step in the first wording."""
    gold = json.loads(problem.answer)
    plan = Plan(gold["start"], tuple((verb, place) for verb, place, _ in gold["steps"]))
    return _write(plan, [tool for _, _, tool in gold["steps"]], [0] * len(plan.steps))


def facts(world: World, problem: Problem) -> list[str]:
    """The verbs of a problem, whose tools must be known."""
    return [verb for verb, _, _ in json.loads(problem.answer)["steps"]]


def expected_pass_rate(world: World, problem: Problem) -> float:
    """Probability that a plain demonstration solves the problem: the product of its accuracies."""
    return math.prod(world.accuracies[verb] for verb in facts(world, problem))


def demonstrations(
    world: World, rng: np.random.Generator, count: int, *, reference: bool
) -> list[Demonstration]:
    """Draws imperfect demonstrations for the warm start.

    Plain ones use the right tool of a verb with its accuracy, else one of the two others, and word
    each step at random. Reference-conditioned ones show a plan whose tools and wordings are drawn
    uniformly, and imitate it but for a tool (probability 0.02) or a wording (0.3) drawn again.

    Levels are drawn uniformly. What test and validation problems ask for is never asked here, and
    no prompt is one of the train prompts.
    """
    examples = []
    for index in range(count):
        problem, plan = _draw_new_problem(world, rng, f"{TASK}/warm_start/{index}")
        wordings = [int(rng.integers(len(WORDINGS))) for _ in plan.steps]
        shown = None
        if reference:
            tools = [pick(rng, TOOLS) for _ in plan.steps]
            shown = _write(plan, tools, wordings)
            tools = [
                pick(rng, TOOLS) if rng.random() < REDRAW_PROBABILITY else tool for tool in tools
            ]
            wordings = [
                wording if rng.random() < KEEP_WORDING else int(rng.integers(len(WORDINGS)))
                for wording in wordings
            ]
        else:
            tools = [_imperfect_tool(world, rng, verb) for verb, _ in plan.steps]
        examples.append(Demonstration(problem, shown, _write(plan, tools, wordings)))
    return examples


def _draw_new_problem(world: World, rng: np.random.Generator, name: str) -> tuple[Problem, Plan]:
    """A random problem outside the held-out splits, with no train problem's prompt."""
    level = pick(rng, tuple(worlds.BANDS))
    while True:
        problem, plan = world._make(rng, name, level, world.family.draw_any(rng, level))
        prompt = problem.messages[-1]["content"]
        if plan not in world._held_out and prompt not in world._train_prompts:
            return problem, plan


def _imperfect_tool(world: World, rng: np.random.Generator, verb: str) -> str:
    """The right tool with the verb's accuracy, else one of the two others."""
    right = world.tools[verb]
    if rng.random() < world.accuracies[verb]:
        return right
    return pick(rng, [tool for tool in TOOLS if tool != right])


def _write(plan: Plan, tools: Sequence[str], wordings: Sequence[int]) -> str:
    """The response with these tools, each step in the wording of that number."""
    lines = [OPENING]
    origin = plan.start
    for number, ((verb, place), tool, wording) in enumerate(
        zip(plan.steps, tools, wordings, strict=True), start=1
    ):
        text = WORDINGS[wording].format(origin=origin, place=place, verb=verb, tool=tool)
        lines.append(f"{number}.{text}")
        origin = place
    return "\n".join([*lines, " ".join([CLOSING_LINE, *tools])])
