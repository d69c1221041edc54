"""What every test runs with: eight fake CPU devices, a compilation cache, fixed random examples.

jax reads its settings when it is imported, so they are set here, before any test module is; a
value that is already in the environment wins. Processes that a test starts inherit them.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
# Most of the suite's time is compilation, and many processes compile the same functions.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# No test talks to a model hub, and none needs to hear that PyTorch is missing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples on every run and every machine; no deadline, since the first example compiles.
settings.register_profile("drift_jax", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("drift_jax")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of benchmark files that DRIFT_JAX_DATA names; the test is skipped without it."""
    value = os.environ.get("DRIFT_JAX_DATA")
    if not value:
        pytest.skip("needs the benchmark files: set DRIFT_JAX_DATA to the folder that holds them")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"DRIFT_JAX_DATA={value} is not a folder; name the one of the benchmark files")
    return folder
