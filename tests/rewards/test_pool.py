"""A user's reward function in processes: order, failures, time-outs, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drift_jax.rewards import Score
from drift_jax.rewards.pool import RewardPool

ROOT = Path(__file__).resolve().parent.parent.parent

# What a response makes the function do. A real one hangs and crashes for worse reasons.
REWARDS = """
import math, os, re, signal, subprocess, sys, time
import numpy as np
from drift_jax.types import Score

def score(response, answer):
    word, _, rest = response.partition(" ")
    if word == "sleep":
        time.sleep(float(rest))
        return 0.25
    if word == "hang":
        while True:
            time.sleep(1)
    if word == "backtrack":  # seconds double with each letter, and the interpreter's lock is held
        re.match("(a+)+$", "a" * 40 + "b")
    if word == "raise":
        raise LookupError("no such\\nthing")
    if word == "quit":
        sys.exit("bye")
    if word == "crash":
        os._exit(3)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "child":
        return float(subprocess.Popen(["sleep", "1000"]).pid)
    if word == "pid":
        return float(os.getpid())
    if word == "return":
        return eval(rest)
    if word == "print":
        print("x" * 100_000)
        print("y", file=sys.stderr)
    if word == "read":
        return float(len(sys.stdin.read()))
    return 0.5 * (answer in response) + len(response) / 1e7

def modules(response, answer):
    return float(response in sys.modules)
"""


def write(folder: Path, text: str = REWARDS, name: str = "rewards.py") -> str:
    """A file with a function; returns how a user names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return f"{folder / name}:score"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with RewardPool(write(tmp_path_factory.mktemp("pool")), workers=2, timeout=60.0) as opened:
        yield opened


def alive(pid: float) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def ends(pid: float) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


# ---- scores -------------------------------------------------------------------------------------


def test_scores_come_in_the_order_of_the_responses_whoever_is_slow(pool):
    responses = ["sleep 0.3", *(f"right {'x' * n}" for n in range(20)), "sleep 0.1", "wrong"]
    scores = pool.score([(response, "right") for response in responses])
    expected = [
        0.25 if r.startswith("sleep") else 0.5 * ("right" in r) + len(r) / 1e7 for r in responses
    ]
    assert [score.reward for score in scores] == expected
    assert [score.prediction for score in scores] == [r.strip() for r in responses]
    assert not any(score.failed for score in scores)
    assert pool.score([]) == []


def test_a_number_becomes_a_score_and_a_score_stays_what_it_is(pool):
    numbers = {"1": 1.0, "True": 1.0, "0.25": 0.25, "np.float32(0.5)": 0.5, "np.array(2)": 2.0}
    for text, reward in numbers.items():
        [score] = pool.score([(f"return {text}", "")])
        assert score == Score(reward, f"return {text}", True, "")
    [score] = pool.score([("return Score(0.75, 'B', False, 'why')", "")])
    assert score == Score(0.75, "B", False, "why")


def test_rewards_outside_the_unit_interval_are_kept(pool):
    scores = pool.score([("return -1", ""), ("return 12.5", "")])
    assert [(score.reward, score.failed) for score in scores] == [(-1.0, False), (12.5, False)]


def test_any_text_arrives_as_it_is(pool):
    texts = ["", "\n\n", '"\\', "é漢😀", "\ud800", "\x00", "right" + "x" * 3_000_000]
    scores = pool.score([(text, "right") for text in texts])
    assert [score.reward for score in scores] == [
        0.5 * ("right" in text) + len(text) / 1e7 for text in texts
    ]


def test_what_a_function_prints_or_reads_disturbs_nothing(pool, capfd):
    scores = pool.score([("print", "right"), ("read", ""), ("right", "right")])
    assert [round(score.reward, 3) for score in scores] == [0, 0, 0.5]
    assert "xxx" not in capfd.readouterr().out


def test_workers_do_not_load_jax_and_import_only_what_is_named(tmp_path):
    write(tmp_path, "raise RuntimeError('imported without being asked')", "answer.py")
    with RewardPool(f"{write(tmp_path)[: -len('score')]}modules", workers=1) as opened:
        loaded = [s.reward for s in opened.score([("jax", ""), ("answer", ""), ("numpy", "")])]
    assert loaded == [0, 0, 1]


def test_a_file_may_import_its_neighbours_and_hides_no_installed_package(tmp_path):
    write(tmp_path, "def double(x): return 2 * x", "helper.py")
    write(tmp_path, "raise RuntimeError('not the numpy that is meant')", "numpy.py")
    name = write(
        tmp_path, "import helper, numpy\ndef score(r, a): return helper.double(numpy.ones(1)[0])"
    )
    with RewardPool(name, workers=1) as opened:
        assert opened.score([("", "")])[0].reward == 2


def test_a_function_may_be_named_by_its_module(tmp_path, monkeypatch):
    write(tmp_path / "mine", "def score(r, a): return 0.125", "graders.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with RewardPool("mine.graders:score", workers=1) as opened:
        assert opened.score([("", "")])[0].reward == 0.125


# ---- failures -----------------------------------------------------------------------------------

FAILURES = {
    "raise": "LookupError: no such thing (rewards.py, line 17)",
    "quit": "SystemExit: bye (rewards.py, line 19)",
    "crash": "it ended its process",
    "killed": "it ended its process",
    "return None": "returned None, expected a number or a drift_jax.types.Score",
    "return '0.5'": "returned '0.5', expected a number",
    "return [1.0]": "returned [1.0], expected a number",
    "return float('nan')": "returned a reward of nan, expected a finite number",
    "return Score(math.inf, '', True, '')": "returned a reward of inf",
}


def test_a_call_that_fails_has_reward_0_and_says_why_and_the_others_go_on(pool):
    pairs = [(text, "right") for failing in FAILURES for text in (failing, "right")]
    for _ in range(2):  # workers that died were replaced
        scores = pool.score(pairs)
        for (response, _), score in zip(pairs, scores, strict=True):
            if response == "right":
                assert not score.failed and score.reward > 0.5
            else:
                assert score.failed and (score.reward, score.well_formed) == (0.0, False)
                assert score.feedback.startswith("the reward function failed: ")
                assert FAILURES[response] in score.feedback
                assert "\n" not in score.feedback


@pytest.mark.parametrize("kind", ["hang", "backtrack"])
def test_a_call_that_hangs_is_killed_after_its_time(tmp_path, kind):
    with RewardPool(write(tmp_path), workers=2, timeout=1.5) as opened:
        pairs = [("right", "right"), (kind, ""), ("right", "right"), ("right", "right")]
        scores = opened.score(pairs)
        assert [score.failed for score in scores] == [False, True, False, False]
        assert "a call took longer than 1.5 s" in scores[1].feedback
        assert opened.score(pairs[:1])[0].reward > 0.5


def test_all_workers_may_die_at_once(pool):
    before = {score.reward for score in pool.score([("pid", "")] * 8)}
    assert all(score.failed for score in pool.score([("crash", "")] * 6))
    after = {score.reward for score in pool.score([("pid", "")] * 8)}
    assert after and not before & after


def test_a_worker_that_dies_between_two_calls_costs_no_response(pool):
    pids = {score.reward for score in pool.score([("pid", "")] * 8)}
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
        assert ends(pid)
    assert not any(score.failed for score in pool.score([("right", "right")] * 8))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_run_does_not_end_its_workers(pool, number):
    pids = {score.reward for score in pool.score([("pid", "")] * 8)}
    for pid in pids:
        os.kill(int(pid), number)
    again = pool.score([("pid", "")] * 8)
    assert {score.reward for score in again} <= pids and not any(s.failed for s in again)


# ---- what cannot be called ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "'score'; write file.py:function or module:function"),
        ("rewards.py", "write file.py:function"),
        ("rewards.py:", "write file.py:function"),
        (":score", "write file.py:function"),
        ("rewards.py:no such", "write file.py:function"),
        ("absent.py:score", "absent.py does not exist"),
        ("no_such_module:score", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_function", "json has no function 'no_function'"),
        ("constant.py:score", "has no function 'score'"),
        ("syntax.py:score", r"SyntaxError: .*\(syntax.py, line 2\)"),
        ("fails.py:score", r"KeyError: 'here' \(fails.py, line 3\)"),
        ("dies.py:score", "it ended its process"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_in_one_line(
    tmp_path, monkeypatch, name, message
):
    write(tmp_path, "score = 3", "constant.py")
    write(tmp_path, "x = 1\ndef score(:\n", "syntax.py")
    write(tmp_path, "def score(r, a):\n    return 0\n{}['here']", "fails.py")
    write(tmp_path, "import os\nos._exit(1)", "dies.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        RewardPool(name)
    assert "\n" not in str(error.value)


# ---- nothing is left behind ---------------------------------------------------------------------


def test_closing_kills_the_workers_and_what_they_started(tmp_path):
    opened = RewardPool(write(tmp_path), workers=1)
    pids = [score.reward for score in opened.score([("pid", ""), ("child", "")])]
    assert all(map(alive, pids))
    opened.close()
    assert all(map(ends, pids))
    opened.close()


def test_a_pool_that_is_forgotten_is_closed(tmp_path):
    opened = RewardPool(write(tmp_path), workers=1)
    pid = opened.score([("pid", "")])[0].reward
    del opened
    assert ends(pid)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("raise ValueError('in the loop')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_a_process_ends_at_once_and_its_workers_with_it(tmp_path, ending, code):
    script = (
        "import os, signal\nfrom drift_jax.rewards.pool import RewardPool\n"
        f"pool = RewardPool({write(tmp_path)!r}, workers=1)\n"
        "print(int(pool.score([('pid', '')])[0].reward), flush=True)\n"
        f"{ending}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == code, run.stderr
    assert ends(int(run.stdout))


def test_a_worker_in_an_endless_call_ends_when_its_pool_was_killed(tmp_path):
    script = (
        "import os, threading, time\nfrom drift_jax.rewards.pool import RewardPool\n"
        f"pool = RewardPool({write(tmp_path)!r}, workers=1, timeout=0.5)\n"
        "print(int(pool.score([('pid', '')])[0].reward), flush=True)\n"
        "pool._workers[0].ask(0, ('backtrack', ''), 60)\ntime.sleep(0.2)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ends(int(run.stdout)), "the worker goes on for ever"
