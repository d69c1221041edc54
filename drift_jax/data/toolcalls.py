"""The generated task `toolcalls`: tool use with argument formats that only the reward can teach.

A question names what to do and where; the response calls the right functions with JSON arguments.

    API: book_flight(origin, venue); rent_car(pickup)
    Question: book a flight: venue Oslo, origin Paris; rent a car: pickup Rome

    Thought: I need two calls.
    Action: book_flight
    Action Input: {"origin": "city PAR", "venue": "area Oslo"}
    Action: rent_car
    Action Input: {"pickup": "place ROM"}

Every parameter wants its value in one of three formats (`city`, `place`, `area`), and half of the
parameters want the city's code instead of its name. Both are facts of the world that no prompt
tells. The reward is 1 for exactly the right calls, in any order, and 0 otherwise.

How hard a problem is, is set by demonstrations: those of the warm start use the right format of a
parameter with a known probability between 0.9 and 0.07, so the product over a problem's arguments
is the pass rate that a base policy starts from (`expected_pass_rate`).

With the task's own tokenizer a piece of text (a name, a value, a stretch of scaffolding) is one
token; see `toolcalls_tokenizer`. Any other reads the same text, and a model that has had no warm
start needs `with_instructions`: nothing in a bare question says what a response looks like.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drift_jax.types import Demonstration, Problem

PARAMETERS = (
    "origin", "destination", "stopover", "pickup", "dropoff", "venue", "branch", "depot",
    "station", "harbor", "warehouse", "lounge", "clinic", "garage", "market", "campus",
)  # fmt: skip
# Each function with the words in which a question asks for it.
INTENTS = {
    "book_flight": "book a flight",
    "rent_car": "rent a car",
    "ship_parcel": "ship a parcel",
    "reserve_hotel": "reserve a hotel",
    "order_taxi": "order a taxi",
    "plan_route": "plan a route",
    "check_weather": "check the weather",
    "hire_guide": "hire a guide",
    "track_cargo": "track the cargo",
    "schedule_visit": "schedule a visit",
    "find_parking": "find a parking space",
    "buy_ticket": "buy a ticket",
    "call_courier": "call a courier",
    "store_luggage": "store the luggage",
    "reserve_table": "reserve a table",
    "arrange_meeting": "arrange a meeting",
    "quote_freight": "quote the freight",
    "send_crew": "send a crew",
    "charter_boat": "charter a boat",
    "refuel_truck": "refuel the truck",
}
# Each city with the code that a look-up parameter wants instead of the name.
CODES = {
    "Paris": "PAR", "Oslo": "OSL", "Rome": "ROM", "Tokyo": "TYO",
    "Cairo": "CAI", "Lima": "LIM", "Delhi": "DEL", "Berlin": "BER",
    "Madrid": "MAD", "Vienna": "VIE", "Boston": "BOS", "Seoul": "SEL",
    "Lagos": "LOS", "Dublin": "DUB", "Athens": "ATH", "Quito": "UIO",
}  # fmt: skip
FORMATS = ("city", "place", "area")
THOUGHTS = {1: "Thought: I need one call.", 2: "Thought: I need two calls."}
LEVELS = ("easy", "medium", "hard")
# Says everything but the facts of the world: a blind guess of one argument is right in one of six.
INSTRUCTIONS = (
    "Call the functions that the question asks for, each once and with all of its parameters. "
    "Answer in this form and with nothing else:\n\n"
    "Thought: I need one call.\n"
    "Action: name of the function\n"
    'Action Input: {"parameter": "value"}\n\n'
    "For two calls, write the Action and Action Input lines once for each. A value is two words: "
    f"first {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, then the city's name or its code. Each "
    "parameter wants one of these words and either the name or the code, the same in every "
    "question; you are not told which. For example, with the parameter gate and the city Paris, "
    '{"gate": "city Paris"} and {"gate": "area PAR"} are two of the six values that may be right. '
    f"The codes: {', '.join(f'{city} {code}' for city, code in CODES.items())}."
)
SPLIT_SIZES = {"train": 256, "validation": 96, "test": 96}

# How often demonstrations use the right format: two parameters each.
FORMAT_ACCURACIES = (0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.15, 0.07)
RARE_BELOW = 0.3  # parameters under this accuracy are rare and get a one-argument function each
# Functions by number of arguments.
FUNCTIONS_OF_SIZE = {1: 10, 2: 5, 3: 5}
HARD_ARGUMENTS = range(3, 6)  # of a hard problem, over its two calls
REDRAW_PROBABILITY = 0.05  # per format, in the targets of reference-conditioned demonstrations


@dataclass(frozen=True)
class Call:
    """One call that a question asks for: a function, and a city for each of its parameters."""

    function: str
    cities: tuple[tuple[str, str], ...]  # (parameter, city) in signature order


class World:
    """Signatures, hidden formats and problems: a pure function of the seed.

    Every success must be findable, or no method could learn it. So for every seed, by construction:

    * each of the six rare parameters (right in at most one demonstration of four) is the only
      argument of a function of its own, so its format is met alone, at its own accuracy;
    * no parameter is unused: all sixteen appear in the functions of two or three arguments;
    * each one-argument function has problems in every split, eight or nine of them in train.

    Attributes:
      seed: the seed.
      signatures: parameters of each function, in order.
      formats: the one right format of each parameter. Hidden: no prompt tells it.
      lookups: parameters that want the city's code instead of its name.
      accuracies: how often a demonstration uses the right format of each parameter.
      functions: the functions that one problem may ask for, by level.
      splits: the problems of each split. No two problems ask for the same calls, within a split or
        across splits.
    """

    def __init__(self, seed: int):
        if seed < 0:
            raise ValueError(f"world seed {seed} is negative; use 0 or more")
        rng = np.random.default_rng([seed, 0])
        self.seed = seed
        self.accuracies = dict(zip(_shuffled(rng, PARAMETERS), FORMAT_ACCURACIES * 2, strict=True))
        self.formats = {parameter: str(rng.choice(FORMATS)) for parameter in PARAMETERS}
        self.lookups = frozenset(_shuffled(rng, PARAMETERS)[: len(PARAMETERS) // 2])
        self.signatures = _draw_signatures(rng, self.accuracies)
        self.functions = _function_choices(self.signatures)
        # A stream of its own: a change to the problems leaves the world as it is.
        self.splits, self._held_out = _draw_splits(self, np.random.default_rng([seed, 1]))
        self._train_prompts = {problem.messages[-1]["content"] for problem in self.splits["train"]}


def problems(world: World, split: str, count: int | None = None) -> list[Problem]:
    """The fixed problems of a split: 256 for train, 96 each for validation and test.

    Levels come in turn (easy, medium, hard), so that the first `count` are balanced as well.

    Raises:
      ValueError: for an unknown split, or a count that it does not have.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"toolcalls has no split {split!r}; it has {', '.join(SPLIT_SIZES)}")
    size = SPLIT_SIZES[split]
    count = size if count is None else count
    if not 0 < count <= size:
        raise ValueError(f"asked for {count} toolcalls {split} problems; take 1 to {size}")
    return world.splits[split][:count]


def with_instructions(problem: Problem) -> Problem:
    """The same problem with a system turn that says what a response looks like.

    The packaged model needs none, and its tokenizer has no words for it.
    """
    turn = {"role": "system", "content": INSTRUCTIONS}
    return dataclasses.replace(problem, messages=(turn, *problem.messages))


def solution(problem: Problem) -> str:
    """The right response to a problem, as text without the end token."""
    calls = json.loads(problem.answer)
    return _response([(call["Action"], json.loads(call["Action_Input"])) for call in calls])


def expected_pass_rate(world: World, problem: Problem) -> float:
    """Probability that a plain demonstration solves the problem: the product of its accuracies."""
    calls = json.loads(problem.answer)
    arguments = [parameter for call in calls for parameter in json.loads(call["Action_Input"])]
    return float(np.prod([world.accuracies[parameter] for parameter in arguments]))


def demonstrations(
    world: World, rng: np.random.Generator, count: int, *, reference: bool
) -> list[Demonstration]:
    """Draws imperfect demonstrations for the warm start.

    Plain ones write the right format of a parameter with its accuracy, else one of the two wrong
    ones. Reference-conditioned ones show a solution whose formats are drawn uniformly, and imitate
    it but for a format redrawn now and then (probability 0.05): what the weights know does not
    help, so the policy learns to read the solution in its context, as a self-teacher must.

    Levels are drawn uniformly. What test and validation problems ask for is never asked here, in
    any wording, and no prompt is one of the train prompts.
    """
    examples = []
    for index in range(count):
        problem, calls = _draw_new_problem(world, rng, f"toolcalls/warm_start/{index}")
        shown = None
        if reference:
            formats = [_pick(rng, FORMATS) for _ in _parameters(calls)]
            shown = _response(_write(world, calls, formats))
            redrawn = rng.random(len(formats)) < REDRAW_PROBABILITY
            formats = [
                _pick(rng, FORMATS) if redraw else word
                for word, redraw in zip(formats, redrawn, strict=True)
            ]
        else:
            formats = [_imperfect_format(world, rng, name) for name in _parameters(calls)]
        examples.append(Demonstration(problem, shown, _response(_write(world, calls, formats))))
    return examples


# ---- drawing a world ---------------------------------------------------------------------------


def _draw_signatures(
    rng: np.random.Generator, accuracies: dict[str, float]
) -> dict[str, tuple[str, ...]]:
    """Parameters of each function; `World` says what holds by construction."""
    rare = [parameter for parameter in PARAMETERS if accuracies[parameter] < RARE_BELOW]
    common = [parameter for parameter in PARAMETERS if parameter not in rare]
    alone = (rare + _shuffled(rng, common))[: FUNCTIONS_OF_SIZE[1]]
    signatures = [(parameter,) for parameter in alone]
    # Deal all parameters out once, then again as far as needed. The first round ends with a
    # function (5 x 2 + 2 x 3 = 16), so no function gets a parameter twice.
    dealt = iter(_shuffled(rng, PARAMETERS) + _shuffled(rng, PARAMETERS))
    for size in (2, 3):
        for _ in range(FUNCTIONS_OF_SIZE[size]):
            signatures.append(tuple(itertools.islice(dealt, size)))
    names = _shuffled(rng, tuple(INTENTS))
    drawn = dict(zip(names, signatures, strict=True))
    return {name: drawn[name] for name in INTENTS}


def _function_choices(signatures: dict[str, tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]]:
    """Easy: a call with one argument. Medium: one with two or three. Hard: two calls."""
    sizes = {name: len(signature) for name, signature in signatures.items()}
    return {
        "easy": [(name,) for name in signatures if sizes[name] == 1],
        "medium": [(name,) for name in signatures if sizes[name] > 1],
        "hard": [
            (first, second)
            for first, second in itertools.permutations(signatures, 2)
            if sizes[first] + sizes[second] in HARD_ARGUMENTS
        ],
    }


def _draw_splits(
    world: World, rng: np.random.Generator
) -> tuple[dict[str, list[Problem]], set[frozenset[Call]]]:
    """The problems of each split, and the questions of test and validation, which stay held out."""
    # Functions in turn rather than at random: every split meets every parameter, and the rare
    # ones alone. The turns go on from split to split, so the 160 questions with one argument
    # (10 functions x 16 cities) are enough for the 150 easy problems.
    turns = {
        level: itertools.cycle(_shuffled(rng, choices))
        for level, choices in world.functions.items()
    }
    taken: set[frozenset[Call]] = set()
    held_out: set[frozenset[Call]] = set()
    splits: dict[str, list[Problem]] = {}
    for split in ("test", "validation", "train"):
        splits[split] = []
        for index in range(SPLIT_SIZES[split]):
            level = LEVELS[index % len(LEVELS)]
            functions = next(turns[level])
            calls = _draw_calls(world, rng, functions)
            while frozenset(calls) in taken:
                calls = _draw_calls(world, rng, functions)
            taken.add(frozenset(calls))
            name = f"toolcalls/{split}/{index}"
            splits[split].append(_make_problem(world, rng, name, level, calls))
        if split != "train":
            held_out |= taken
    return splits, held_out


def _draw_new_problem(
    world: World, rng: np.random.Generator, name: str
) -> tuple[Problem, tuple[Call, ...]]:
    """A random problem outside the held-out splits, with no train problem's prompt."""
    # Drawn before anything is turned down: held-out questions are more than a third of the easy
    # ones, and levels and functions are to come equally often all the same.
    level = _pick(rng, LEVELS)
    functions = _pick(rng, world.functions[level])
    while True:
        calls = _draw_calls(world, rng, functions)
        if frozenset(calls) in world._held_out:
            continue
        problem = _make_problem(world, rng, name, level, calls)
        if problem.messages[-1]["content"] not in world._train_prompts:
            return problem, calls


def _draw_calls(
    world: World, rng: np.random.Generator, functions: Sequence[str]
) -> tuple[Call, ...]:
    """These functions, with a random city for every parameter."""
    cities = tuple(CODES)
    return tuple(
        Call(name, tuple((parameter, _pick(rng, cities)) for parameter in world.signatures[name]))
        for name in functions
    )


def _imperfect_format(world: World, rng: np.random.Generator, parameter: str) -> str:
    """The right format with the parameter's accuracy, else one of the two wrong ones."""
    right = world.formats[parameter]
    if rng.random() < world.accuracies[parameter]:
        return right
    return _pick(rng, [word for word in FORMATS if word != right])


# ---- writing it down ---------------------------------------------------------------------------


def _make_problem(
    world: World, rng: np.random.Generator, problem_id: str, level: str, calls: Sequence[Call]
) -> Problem:
    """The question about these calls, with its answer."""
    right = _write(world, calls, [world.formats[parameter] for parameter in _parameters(calls)])
    answer = [{"Action": name, "Action_Input": json.dumps(inputs)} for name, inputs in right]
    return Problem(
        id=problem_id,
        task="toolcalls",
        messages=({"role": "user", "content": _prompt(world, rng, calls)},),
        answer=json.dumps(answer),
        level=level,
    )


def _prompt(world: World, rng: np.random.Generator, calls: Sequence[Call]) -> str:
    """The user turn: the functions at hand in random order, then what is asked for."""
    offered = [call.function for call in calls]
    if len(calls) == 1:
        # One function that is not wanted; with two calls the prompt is long enough.
        offered.append(_pick(rng, [name for name in INTENTS if name not in offered]))
    api = "; ".join(
        f"{name}({', '.join(world.signatures[name])})" for name in _shuffled(rng, offered)
    )
    question = "; ".join(
        f"{INTENTS[call.function]}: "
        + ", ".join(f"{parameter} {city}" for parameter, city in _shuffled(rng, call.cities))
        for call in calls
    )
    return f"API: {api}\nQuestion: {question}"


def _parameters(calls: Sequence[Call]) -> list[str]:
    """The parameter of each argument, in the order in which a response fills them."""
    return [parameter for call in calls for parameter, _ in call.cities]


def _write(
    world: World, calls: Sequence[Call], formats: Sequence[str]
) -> list[tuple[str, dict[str, str]]]:
    """Each call's function and JSON arguments, with one format for each argument."""
    words = iter(formats)
    written = []
    for call in calls:
        arguments = {
            parameter: f"{next(words)} {CODES[city] if parameter in world.lookups else city}"
            for parameter, city in call.cities
        }
        written.append((call.function, arguments))
    return written


def _response(calls: Sequence[tuple[str, dict[str, str]]]) -> str:
    """Thought, then an action and its input for each call."""
    actions = (
        f"\nAction: {function}\nAction Input: {json.dumps(arguments)}"
        for function, arguments in calls
    )
    return THOUGHTS[len(calls)] + "".join(actions)


def _pick(rng: np.random.Generator, options: Sequence):
    """One of the options, uniformly. Unlike `rng.choice`, it leaves their type alone."""
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, items: Sequence) -> list:
    """The items in random order."""
    return [items[index] for index in rng.permutation(len(items))]
