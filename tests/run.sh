#!/usr/bin/env bash
# Runs every test group in turn and prints the seconds each took. `make test` calls it.
set -uo pipefail
cd "$(dirname "$0")/.."
export TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

names=() seconds=() failed=()
group() { # name, command...
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" || failed+=("$name")
  names+=("$name") seconds+=($((SECONDS - start)))
}
PYTEST=(.venv/bin/python -m pytest)

group install "${MAKE:-make}" --no-print-directory .venv/.test
if ((${#failed[@]} == 0)); then
  group build "${MAKE:-make}" --no-print-directory --silent wheel
  group lint "${MAKE:-make}" --no-print-directory --silent lint
  group unit "${PYTEST[@]}" tests --ignore=tests/numerics --ignore=tests/server --ignore=tests/triton_kernels \
    --ignore=tests/page
  group kernels "${PYTEST[@]}" tests/triton_kernels
  group numerics "${PYTEST[@]}" tests/numerics
  group server "${PYTEST[@]}" tests/server
  group page "${PYTEST[@]}" tests/page
fi

echo
for i in "${!names[@]}"; do printf '%-10s %4d s\n' "${names[$i]}" "${seconds[$i]}"; done
printf '%-10s %4d s\n' total "$SECONDS"
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all groups passed"
