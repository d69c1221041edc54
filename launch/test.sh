#!/usr/bin/env bash
# Lint, format, types, import contracts and tests of drift_jax.
#
# Where:     any machine with Python 3.11 or newer; no GPU, no model or data download. A package
#            index is needed on the first run only. May be called from any directory.
# How long:  under 10 minutes on two cores, of which a minute or two installs on the first run.
# How:       ./launch/test.sh                         what has to pass before a change goes in
#            ./launch/test.sh tests/test_buffer.py    arguments go to pytest
#            ./launch/test.sh -m slow                 the long tests
#            LINT=0 ./launch/test.sh                  tests alone
#            VENV=DIR ./launch/test.sh                another environment than .venv (see env.sh)
#            DRIFT_JAX_DATA=DIR ./launch/test.sh      also the tests that read the benchmark files
#            PARITY=1 ./launch/test.sh                also those against PyTorch (CPU build; see env.sh)
# What the tests run with (CPU, eight fake devices, caches) is set in tests/conftest.py.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment test
if [[ "${PARITY:-0}" != 0 ]]; then ensure_parity; fi
cd "$root"

failed=()
# Every check runs, so that one call shows all there is to mend.
check() {
  local name="$1"
  shift
  printf '\n== %s\n' "$name"
  "$@" </dev/null || failed+=("$name")
}

if [[ "${LINT:-1}" != 0 ]]; then
  check "lint" "$python" -m ruff check .
  check "format" "$python" -m ruff format --check .
  check "types" "$python" -m mypy
  check "import contracts" "$(dirname "$python")/lint-imports" --no-logo
fi
# Two workers for two cores; a file stays with one worker, which compiles its functions once.
check "tests" "$python" -m pytest -n 2 --dist loadfile "$@"

if ((${#failed[@]})); then
  printf '\nFAILED: %s\n' "${failed[*]}" >&2
  exit 1
fi
printf '\nall checks passed\n'
