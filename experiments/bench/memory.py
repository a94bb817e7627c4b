"""What a training step takes in memory, step by step and in one pass behind a rollout: `results/train_memory.json`.

    python experiments/bench/memory.py    about two minutes

The same measure as `soft_bench --training`, each step in a process of its own, without its times.
"""
import json, platform
from importlib.metadata import version
from pathlib import Path

from soft_decoding.bench import TRAIN_VARIANTS, train_memory

RECORD = Path(__file__).parents[2] / "results/train_memory.json"
VARIANTS = {name: TRAIN_VARIANTS[name] for name in ("sequential", "rollout, 1 pass, 4 hops")}

if __name__ == "__main__":
    found = {tokens: train_memory("12.6M", 8, tokens, VARIANTS) for tokens in (128, 256)}
    record = dict(what="bytes that a training step takes, each in a process of its own (soft_decoding.bench.train_memory)",
                  size="12.6M", batch=8, memory=found,
                  versions={name: version(name) for name in ("torch", "transformers")} | dict(python=platform.python_version()))
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(found)
