#!/usr/bin/env bash
# Resolve setup.py again and write launch/constraints-py3*.txt, the versions that the tests run with.
#
# Where:     any machine with `uv` on PATH and a package index.
# How long:  ten seconds.
# How:       ./launch/pin.sh, after a change of a requirement; then run the tests on both Pythons.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# pin VERSION [REQUIREMENT...]: the requirements narrow what is resolved for that Python.
pin() {
  local version="$1"
  local file="launch/constraints-py${version/./}.txt"
  shift
  {
    printf '# What launch/*.sh install on Python %s. Written by launch/pin.sh: edit that.\n' "$version"
    printf '%s\n' "$@" |
      uv pip compile --quiet setup.py --extra test --python-version "$version" \
        --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --constraint -
  } > "$file.new"
  mv "$file.new" "$file"
  printf '%s: %s packages\n' "$file" "$(grep -c == "$file")"
}

pin 3.11
# The versions of a current GPU image, not the newest.
pin 3.12 jax==0.11.2 transformers==5.17.0 tokenizers==0.23.2 numpy==2.5.2
