"""Every causal language model type that the installed transformers knows, each in a process of its own.

    python experiments/families/run.py                     what the record does not hold yet
    python experiments/families/run.py llama gpt2 --again  these types, also if it does
"""
import json
import os
import platform
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from select import select
from signal import SIGKILL

import torch
from transformers.utils import logging

import matrix
import tiny

VERSIONS = "torch", "transformers"

def in_a_fork(check, seconds):
    "What `check()` returns, from a process of its own; a crash, or too long a run, is an outcome, too."
    read, write = os.pipe()
    if (pid := os.fork()) == 0: answer(check, write)
    os.close(write)
    in_time = select([read], [], [], seconds)[0]
    if not in_time: os.kill(pid, SIGKILL)
    with os.fdopen(read, "rb") as pipe: found = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if found: return json.loads(found)
    reason = f"it ended with status {status}" if in_time else f"no answer in {seconds} s"
    return dict(outcome="wrong", reason=reason)

def answer(check, write):
    "Of the child: what was found goes into the pipe."
    with os.fdopen(write, "wb") as pipe:
        try: found = check()
        except BaseException as error: found = dict(outcome="wrong", reason=matrix.describe(error))
        pipe.write(json.dumps(found).encode())
    os._exit(0)

def row(model_type, seconds):
    "The outcome for a type, how long it took, and the config that it had."
    start = time.time()
    found, config = in_a_fork(lambda: matrix.examine(model_type), seconds), tiny.OVERRIDES.get(model_type, {})
    return dict(found, config=config, seconds=round(time.time() - start, 1))

def conditions():
    return dict(versions={name: version(name) for name in VERSIONS} | dict(python=platform.python_version()),
                hardware=f"{platform.machine()}, {torch.get_num_threads()} thread",
                steps=matrix.STEPS,
                bounds={str(dtype).removeprefix("torch."): bound for dtype, bound in matrix.BOUNDS.items()})

def write(path, record):
    "One line per type, in alphabetical order; a stop in between loses nothing."
    lines = [f"  {json.dumps(t)}: {json.dumps(found)}" for t, found in sorted(record["types"].items())]
    head = json.dumps({k: v for k, v in record.items() if k != "types"}, indent=1)[:-2]
    new = path.with_suffix(".new")
    new.write_text(head + ',\n "types": {\n' + ",\n".join(lines) + "\n }\n}\n")
    new.replace(path)

def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; none: all")
    parser.add_argument("--record", type=Path, default=Path(__file__).parents[2] / "results/families.json")
    parser.add_argument("--again", action="store_true", help="also what the record holds")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of a type")
    args = parser.parse_args()
    record = json.loads(args.record.read_text()) if args.record.exists() else dict(types={})
    if record["types"] and record["versions"] != conditions()["versions"]:
        sys.exit(f"{args.record} was made with {record['versions']}; give another --record, or remove it.")
    record = dict(conditions(), types={t: r for t, r in record["types"].items() if t in tiny.TYPES})
    matrix.examine("llama")  # what every process would have to import
    for model_type in args.types or tiny.TYPES:
        if model_type in record["types"] and not args.again: continue
        record["types"][model_type] = found = row(model_type, args.seconds)
        print(f"{model_type}: {found['outcome']} {found.get('gap', found.get('reason', ''))}", flush=True)
        write(args.record, record)
    print(dict(Counter(found["outcome"] for found in record["types"].values())))

if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    main()
