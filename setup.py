"""Metadata and dependencies of drift_jax; the tools are configured in pyproject.toml.

The ranges say what is known to work. The exact versions that the tests run with are pinned in
launch/constraints-*.txt.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "drift_jax" / "__init__.py").read_text())[1]
README = ROOT / "README.md"

setup(
    name="drift_jax",
    version=VERSION,
    description="DRIFT and the methods it is compared with, in pure JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/, launch/, tests/ and benchmarks/ stay in the repository, so be explicit.
    packages=find_packages(include=["drift_jax", "drift_jax.*"]),
    package_data={"drift_jax": ["assets/**"]},
    install_requires=[
        "jax>=0.10.0,<0.13",  # Python 3.11 gets 0.10, 3.12 gets 0.11 or 0.12
        "flax>=0.12.8,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.30,<1",  # 1.0 swaps the top-level API
        "grain>=0.2.18,<0.3",
        "huggingface_hub>=1,<3",  # prepare alone downloads, and only when asked
        "transformers>=5.17,<6",  # tokenizers and configs only: no torch at run time
        "jinja2>=3.1",  # chat templates need it, and nothing else here brings it
        "tokenizers>=0.22,<1",
        "safetensors>=0.8,<1",
        "ml_dtypes>=0.5",  # bfloat16 for numpy
        "numpy>=2.2",
        "ml_collections>=1.1,<2",
        "absl-py>=2.1",
        "etils[epath]>=1.9",
        "rich>=13.7",
        "tensorboardX>=2.6.2,<3",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.0,<0.13"],
        "tpu": ["jax[tpu]>=0.10.0,<0.13"],
        "gguf": ["gguf>=0.17"],  # prepare --model: weights that are stored in GGUF files
        "parquet": ["pyarrow>=16"],  # prepare --task=tooluse from the hub
        "notebooks": ["ipykernel>=6.29", "jupyterlab>=4", "matplotlib>=3.9", "nbclient>=0.10"],
        "report": ["matplotlib>=3.9"],  # figures of compare and report
        # PyTorch only regenerates golden logits. Its default wheels bring CUDA: on a machine
        # without a GPU install a CPU build of torch first, as PARITY=1 ./launch/test.sh does.
        "parity": ["torch>=2.6"],
        "serve": [
            "google-jetstream==0.2.2",  # `jetstream` on its own is an unrelated package
            "grpcio>=1.60",
            "prometheus-client>=0.20",
            "shortuuid",
            "tiktoken",
        ],
        "test": [
            "gguf>=0.17",
            "hypothesis>=6.100",
            "import-linter>=2.13",
            "matplotlib>=3.9",
            "mypy>=1.15",
            "pyarrow>=16",  # the tests of the extra `parquet`
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "tensorboard>=2.20",  # reads event files back
        ],
    },
)
