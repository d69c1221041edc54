#!/usr/bin/env bash
# Train configs/quickstart.py: DRIFT teaches a 0.15 M parameter model to call tools.
#
# Where:     any machine with Python 3.11 or newer; no GPU, no model or data download. A package
#            index is needed on the first run only. May be called from any directory.
# How long:  about 5 minutes on two cores, and a minute or two to install on the first run.
# How:       ./launch/quickstart.sh
#            WORKDIR=DIR ./launch/quickstart.sh       where the run is written; a relative DIR starts
#                                                     where you are (default: runs/quickstart in
#                                                     the repository)
#            ./launch/quickstart.sh --config.seed=1   arguments go to `python -m drift_jax.main`
#            VENV=DIR ./launch/quickstart.sh          another environment than .venv (see env.sh)
# Called again, it goes on where the run in WORKDIR stopped; a finished run ends at once.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment run

# Sized for a CPU, and its documented numbers come from one.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Compiled functions are kept, so that the next start takes seconds.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="${JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES:--1}"
# The tokenizer library would report that PyTorch is missing, and look for a hub.
export TRANSFORMERS_VERBOSITY="${TRANSFORMERS_VERBOSITY:-error}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

# -P: a file in the caller's directory must not stand in for a module.
exec "$python" -P -m drift_jax.main --config="$root/configs/quickstart.py" \
  --workdir="${WORKDIR:-$root/runs/quickstart}" "$@"
