#!/usr/bin/env bash
# Run the cells of nbs/14_vllm.ipynb that need vLLM: tools/vllm_check.sh [FOLDER]
# FOLDER is an environment of tools/vllm_env.sh; without one, a new one is made, and removed afterwards.
# Where vLLM cannot be installed this says so, and is no failure.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:-}
if [ -z "$env" ]; then
  scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT; env=$scratch/env
  timeout 1500 tools/vllm_env.sh "$env" || { echo "skipped: vLLM cannot be installed here"; exit 0; }
fi
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-${scratch:-$env}/cache}
PATH=$env/bin:$PATH timeout 1500 nbdev_test --path nbs/14_vllm.ipynb --flags vllm --n_workers 0
