"""What a run remembers: successes in the stage's order, state through JSON, buffer draws."""

import json

import numpy as np
import pytest

from drift_jax.buffer import SuccessBuffer
from drift_jax.decayed_counts import DecayedCounts
from drift_jax.difficulty import PassRates
from drift_jax.grading import Answers
from drift_jax.memory import Memory, draws
from drift_jax.teacher_schedule import TeacherSchedule

# Three successes and a failure: the first has the highest entropy, the third is the shortest.
REWARDS, ENTROPIES, LENGTHS = [1.0, 1.0, 1.0, 0.0], [0.9, 0.5, 0.1, 2.0], [8, 7, 3, 1]


def answers(texts=("a", "b", "c", "d"), rewards=REWARDS) -> Answers:
    """One group of four."""
    return Answers(
        responses=[list(texts)],
        rewards=np.array([rewards], np.float64),
        predictions=[list(texts)],
        well_formed=np.ones((1, 4), bool),
        lengths=np.array([LENGTHS]),
        entropies=np.array([ENTROPIES]),
        finished=np.ones((1, 4), bool),
    )


def memory(capacity: int = 3, on_tie: str = "keep") -> Memory:
    return Memory(PassRates(0.5), SuccessBuffer(capacity, on_tie=on_tie))


def keep(into: Memory, graded: Answers, *, sibling: str = "shortest", step: int = 1) -> int:
    return into.keep_successes(["p"], graded, step=step, sibling=sibling, success_threshold=0.5)


def stored(of: Memory) -> list[str]:
    return [entry.response for entry in of.buffer.entries("p")]


@pytest.mark.parametrize(
    "sibling, order", [("highest_entropy", "abc"), ("shortest", "cba"), ("first", "abc")]
)
def test_successes_are_offered_in_the_order_of_the_stages_preference(sibling, order):
    # A full buffer keeps what came first, so a smaller one shows the order.
    for capacity in (1, 2, 3):
        kept = memory(capacity)
        assert keep(kept, answers(), sibling=sibling) == capacity
        assert stored(kept) == list(order[:capacity])


def test_a_higher_reward_goes_before_the_stages_preference():
    kept = memory(1)
    keep(kept, answers(rewards=[0.6, 1.0, 0.6, 0.0]), sibling="highest_entropy")
    assert stored(kept) == ["b"]


def test_failures_are_never_kept():
    kept = memory()
    assert keep(kept, answers(rewards=[0.0, 0.4, 0.0, 0.49])) == 0
    assert stored(kept) == [] and kept.buffer.problem_count == 0


def test_an_entry_knows_its_step_length_and_entropy():
    kept = memory(1)
    keep(kept, answers(), step=17)
    [entry] = kept.buffer.entries("p")
    assert (entry.response, entry.reward, entry.step) == ("c", 1.0, 17)
    assert (entry.token_length, entry.entropy) == (3, 0.1)


def test_each_problem_gets_the_successes_of_its_own_group():
    two = answers()
    two = Answers(
        responses=[["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        rewards=np.array([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]),
        **{
            name: np.repeat(getattr(two, name), 2, axis=0)
            for name in ("well_formed", "lengths", "entropies", "finished")
        },
        predictions=two.predictions * 2,
    )
    kept = memory()
    kept.keep_successes(["p", "q"], two, step=1, sibling="shortest", success_threshold=0.5)
    assert [entry.response for entry in kept.buffer.entries("p")] == ["a"]
    assert [entry.response for entry in kept.buffer.entries("q")] == ["h"]


def test_a_full_buffer_takes_nothing_of_equal_reward_unless_ties_go_to_the_newest():
    later = answers(texts=("e", "f", "g", "h"))
    for on_tie, expected, count in (("keep", "cba", 0), ("newest", "gfe", 3)):
        kept = memory(on_tie=on_tie)
        keep(kept, answers())
        assert keep(kept, later, step=2) == count
        assert stored(kept) == list(expected)


def test_the_state_survives_a_round_trip_through_json():
    source = memory()
    keep(source, answers(texts=("ä\n", '"{', "\u2028", "d")))
    source.pass_rates.update(["p", "q"], [1 / 3, 0.1])
    source.pass_rates.update(["p"], [2 / 3])
    source.tokens_total = 2**40 + 1
    text = json.dumps(source.state_dict())
    restored = memory()
    restored.load_state_dict(json.loads(text))
    assert json.dumps(restored.state_dict()) == text
    assert restored.tokens_total == 2**40 + 1
    assert restored.buffer.entries("p") == source.buffer.entries("p")
    # And both go on alike, to the last bit.
    for one in (source, restored):
        keep(one, answers(rewards=[0.0, 1.0, 0.0, 0.0]), step=2)
    update = [one.pass_rates.update(["p", "q"], [0.7, 0.7]) for one in (source, restored)]
    np.testing.assert_array_equal(*update)
    assert source.state_dict() == restored.state_dict()


def test_the_state_is_a_copy_that_later_steps_do_not_touch():
    source = memory()
    keep(source, answers())
    state = source.state_dict()
    text = json.dumps(state)
    keep(source, answers(texts=("e", "f", "g", "h"), rewards=[2.0] * 4), step=2)
    source.pass_rates.update(["p"], [1.0])
    source.tokens_total += 5
    assert json.dumps(state) == text


def everything() -> Memory:
    """A memory all of whose parts remember something."""
    schedule = TeacherSchedule(
        "gated_copy", check_every=1, min_steps=2, window=2, reward_gain=0.0, length_ratio=9.0
    )
    buffer = SuccessBuffer(2, "newest", draw="top", max_problems=1)
    return Memory(DecayedCounts(), buffer, schedule=schedule, reset_every=3, reset_after=2)


def live(of: Memory, steps: range) -> list:
    """What a run would decide in these steps."""
    made = []
    for step in steps:
        rng = np.random.default_rng(step)
        rewards = (rng.random((1, 4)) < 0.6).astype(float)
        graded = answers(texts=[f"{step} {i}" for i in range(4)], rewards=rewards[0])
        rate = of.visit(["p"], rewards > 0.5, step=step).tolist()
        keep(of, graded, step=step)
        drawn = of.buffer.sample("p", draws(0, step)("p"))
        made.append([rate, drawn, of.schedule.next_rate(step, rewards, graded.lengths)])
    return made


@pytest.mark.parametrize("stop", range(10))
def test_a_run_that_is_resumed_at_any_step_makes_the_same_decisions(stop):
    straight = live(everything(), range(1, 11))
    assert {rate for _, _, rate in straight} == {0.0, 1.0}
    first, second = everything(), everything()
    before = live(first, range(1, stop + 1))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + live(second, range(stop + 1, 11)) == straight
    assert json.dumps(first.state_dict()) != json.dumps(second.state_dict()) or stop == 10


def test_pass_rates_are_forgotten_every_so_many_steps_after_the_warm_up():
    for kept in (everything(), Memory(PassRates(), SuccessBuffer(), reset_every=3, reset_after=2)):
        sizes = []
        for step in range(1, 12):
            kept.visit([f"p{step}"], np.ones((1, 4), bool), step=step)
            sizes.append(len(kept.pass_rates))
        assert sizes == [1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 1]  # steps 5, 8 and 11 begin anew
    kept = memory()
    for step in range(1, 12):
        kept.visit([f"p{step}"], np.ones((1, 4), bool), step=step)
    assert len(kept.pass_rates) == 11


def test_a_state_from_before_there_were_schedules_is_read():
    old = memory()
    keep(old, answers())
    state = old.state_dict()
    del state["schedule"]
    restored = memory()
    restored.load_state_dict(state)
    assert restored.state_dict() == old.state_dict()


def test_a_state_of_another_estimate_is_refused_in_one_line_that_names_the_setting():
    counted = Memory(DecayedCounts(), SuccessBuffer())
    for one, other, word in ((counted, memory(), "smoothed"), (memory(), counted, "beta")):
        with pytest.raises(ValueError, match=f"difficulty.estimate={word}") as error:
            other.load_state_dict(one.state_dict())
        assert "\n" not in str(error.value)


# ---- draws --------------------------------------------------------------------------------------


def first(seed: int, step: int, problem_id: str) -> float:
    return float(draws(seed, step)(problem_id).random())


def test_draws_depend_on_exactly_the_seed_the_step_and_the_problem():
    base = first(0, 1, "task/train/1")
    assert base == first(0, 1, "task/train/1")
    others = [first(1, 1, "task/train/1"), first(0, 2, "task/train/1"), first(0, 1, "task/train/2")]
    assert len({base, *others}) == 4


def test_draws_do_not_depend_on_what_was_drawn_before():
    rng_for = draws(3, 5)
    rng_for("q").random(100)
    rng_for("p").random(7)
    assert float(rng_for("p").random()) == first(3, 5, "p")


def test_draws_are_the_same_in_every_process():
    # Golden: a hash that is salted per process would change them, and a resumed run with them.
    assert draws(0, 1)("toolcalls/train/0").integers(1000, size=5).tolist() == [
        302,
        813,
        380,
        374,
        878,
    ]


def test_every_entry_of_the_buffer_is_drawn_equally_often():
    kept = memory()
    keep(kept, answers())
    drawn = [kept.buffer.sample("p", draws(0, step)("p")).response for step in range(600)]
    counts = [drawn.count(text) for text in "abc"]
    assert sum(counts) == 600 and min(counts) > 160


def test_the_best_validation_score_is_kept_through_json_and_equal_ones_count():
    kept = memory()
    assert [kept.is_best(value) for value in (0.2, 0.1, 0.2, 0.4, 0.3)] == [1, 0, 1, 1, 0]
    restored = memory()
    restored.load_state_dict(json.loads(json.dumps(kept.state_dict())))
    assert not restored.is_best(0.39) and restored.is_best(0.4)
    fresh = memory()
    fresh.load_state_dict(json.loads(json.dumps(memory().state_dict())))
    assert fresh.is_best(-1.0)
