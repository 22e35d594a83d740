#!/usr/bin/env bash
# Runs every driver of this folder in the environment it belongs to. `make test-clients` calls it.
set -uo pipefail
cd "$(dirname "$0")/../.."
clients=$1

# Nothing here may ask the internet for a price list, a data set or a tokenizer, or report home.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 LITELLM_LOCAL_MODEL_COST_MAP=True
export LANGSMITH_TRACING=false SCHEMATHESIS_REPORT=false DO_NOT_TRACK=1 PYTHONDONTWRITEBYTECODE=1

failed=()
drive() { # environment, driver...
  local name=$1
  shift
  "$clients/$name/bin/python" -m pytest -c tests/clients/pytest.ini "${@/#/tests/clients/drive_}" || failed+=("$name")
}
drive newest openai.py anthropic.py litellm.py langchain.py lm_eval.py npm.py schemathesis.py
drive openai2 openai.py llama_index.py instructor.py

if ((${#failed[@]})); then
  echo "FAILED in: ${failed[*]}"
  exit 1
fi
echo "all clients passed"
