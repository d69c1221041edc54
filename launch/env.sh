# Environment functions shared by launch/*.sh. Sourced, never run.
#
#   ensure_environment run|test   find or make a virtual environment, install drift_jax into it
#                                 (with the extra `test`) unless that was done before, and set
#                                 $python to its interpreter
#   ensure_parity                 add PyTorch, as a CPU build, to that environment where there is one
#
# Which environment: the folder that VENV names, else the active virtual environment, else .venv
# in the repository. PYTHON names the interpreter that a new environment is made from.
# shellcheck shell=bash

root="$(unset CDPATH && cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "$*" >&2; }
refuse() { say "$(basename "$0"): $*"; exit 2; }

# True where the interpreter starts (a version manager's stub may not) and is new enough.
is_python_311() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_python_311 "$PYTHON" || refuse "PYTHON=$PYTHON does not start or is older than Python 3.11"
    printf '%s\n' "$PYTHON"
    return
  fi
  # 3.11 and 3.12 first: the pinned versions were resolved for them.
  for candidate in python3.11 python3.12 python3 python3.13 python3.14 python; do
    if is_python_311 "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  refuse "no Python 3.11 or newer found on PATH; install one, or name it: PYTHON=/path/to/python3.11"
}

make_venv() {
  local folder="$1" base
  # Only an empty folder or an environment may be overwritten, never somebody's files.
  if [[ -e "$folder" && ! -e "$folder/pyvenv.cfg" && -n "$(ls -A "$folder" 2>&1)" ]]; then
    refuse "$folder exists and is not a virtual environment; name another folder with VENV="
  fi
  base="$(find_python)"
  say "making $folder with $("$base" --version 2>&1 </dev/null)"
  if "$base" -m venv --clear "$folder" >&2; then return; fi
  # Debian's Python comes without ensurepip; uv needs none.
  if uv --version >/dev/null 2>&1; then
    uv venv --quiet --clear --python "$base" "$folder" && return
  fi
  refuse "$base cannot make a virtual environment; install its venv module (Debian:" \
    "apt-get install python3-venv) or uv, or name an environment with VENV="
}

# The pinned versions for this interpreter, where there are any. An environment that came with its
# own jax keeps what it has (it may be built for a GPU): only what is missing is installed there.
constraints_file() {
  local venv="$1" version file
  version="$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])' </dev/null)"
  file="$root/launch/constraints-py$version.txt"
  if [[ ! -e "$venv/.drift_jax-pinned" ]]; then
    say "$venv came with its own jax: its versions stay as they are"
  elif [[ ! -e "$file" ]]; then
    say "no versions are pinned for $("$python" --version): taking the newest that setup.py allows"
  else
    printf '%s\n' "$file"
  fi
}

has_jax() {
  "$python" -c 'import importlib.metadata as m; m.version("jax")' >/dev/null 2>&1 </dev/null
}

# Prints the uv to use: the environment's, one on PATH, or a newly installed one. It is about six
# times as fast as pip, so it is worth having; prints nothing where it cannot be had.
find_uv() {
  local bin
  bin="$(dirname "$python")"
  if [[ -x "$bin/uv" ]]; then
    printf '%s\n' "$bin/uv"
  elif uv --version >/dev/null 2>&1 </dev/null; then
    printf 'uv\n'
  elif "$python" -m pip install --quiet uv >&2 </dev/null; then
    printf '%s\n' "$bin/uv"
  fi
}

install() {
  local venv="$1" target="$2" uv file constraints=()
  file="$(constraints_file "$venv")"
  [[ -z "$file" ]] || constraints=(--constraint "$file")
  cd "$root" || exit
  uv="$(find_uv)"
  if [[ -n "$uv" ]]; then
    "$uv" pip install --quiet --python "$python" ${constraints[@]+"${constraints[@]}"} \
      --editable "$target" >&2 </dev/null && return
    say "uv did not manage; trying pip, which may be set up for another package index"
  fi
  # An environment that uv made, or one whose making was cut short, has no pip.
  "$python" -m pip --version >/dev/null 2>&1 </dev/null ||
    "$python" -m ensurepip >/dev/null 2>&1 </dev/null || true
  "$python" -m pip install --quiet ${constraints[@]+"${constraints[@]}"} \
    --editable "$target" >&2 </dev/null ||
    refuse "the installation failed (see above); it needs a package index and about 1 GB of disk"
}

# True where this very checkout is what the environment imports.
imports_this_checkout() {
  "$python" -P -c 'import sys, pathlib, drift_jax
sys.exit(pathlib.Path(drift_jax.__file__).resolve().parent.parent != pathlib.Path(sys.argv[1]))' \
    "$root" >/dev/null 2>&1 </dev/null
}

ensure_environment() {
  local extra="$1" venv key stamp
  if [[ -n "${VENV:-}" ]]; then
    venv="$VENV"
    case "$venv" in /*) ;; *) venv="$PWD/$venv" ;; esac
  elif [[ -n "${VIRTUAL_ENV:-}" ]]; then
    venv="$VIRTUAL_ENV"
    say "using the active environment $venv"
  else
    venv="$root/.venv"
  fi
  python="$venv/bin/python"
  if ! "$python" -c '' >/dev/null 2>&1 </dev/null; then make_venv "$venv"; fi
  is_python_311 "$python" ||
    refuse "$venv has $("$python" --version 2>&1); drift_jax needs Python 3.11 or newer"

  # The stamp of an installation holds what it depends on. The test extra includes all that a run
  # needs, so its stamp serves both.
  key="$(cd "$root" && cat setup.py drift_jax/__init__.py launch/constraints-*.txt | cksum) $root"
  for stamp in "$venv/.drift_jax-test" "$venv/.drift_jax-$extra"; do
    if [[ -e "$stamp" && "$(cat "$stamp")" == "$key" ]] && imports_this_checkout; then return; fi
  done
  say "installing drift_jax into $venv (about a minute on a fresh machine)"
  rm -f "$venv/.drift_jax-test" "$venv/.drift_jax-run"
  has_jax || touch "$venv/.drift_jax-pinned"
  if [[ "$extra" == run ]]; then (install "$venv" .); else (install "$venv" ".[$extra]"); fi
  printf '%s\n' "$key" > "$venv/.drift_jax-$extra"
}

# What the extra `parity` installs, to the version: an open requirement, and uv with any, would take
# PyTorch's CUDA build with gigabytes of nvidia-* packages. `+cpu` names a build that has none; only
# macOS spells it without.
parity_packages=(torch==2.13.0+cpu networkx==3.6.1 sympy==1.14.0 mpmath==1.3.0)
if [[ "$(uname -s)" == Darwin ]]; then parity_packages[0]=torch==2.13.0; fi

# A machine whose package index has no such build goes without: the tests that need it skip and say
# so. PyTorch's own CPU index can be named with PIP_EXTRA_INDEX_URL.
ensure_parity() {
  local file constraints=()
  if "$python" -c 'import importlib.metadata as m; m.version("torch")' >/dev/null 2>&1 </dev/null
  then return; fi
  file="$(constraints_file "$(dirname "$(dirname "$python")")")"
  [[ -z "$file" ]] || constraints=(--constraint "$file")
  "$python" -m pip --version >/dev/null 2>&1 </dev/null ||
    "$python" -m ensurepip >/dev/null 2>&1 </dev/null || true
  say "installing ${parity_packages[0]} (200 MB, 0.8 GB of disk)"
  "$python" -m pip install --quiet ${constraints[@]+"${constraints[@]}"} \
    "${parity_packages[@]}" >&2 </dev/null ||
    say "no ${parity_packages[0]} to be had here: the tests against it will be skipped"
}
