"""Every published method by name, in the chat model as it is and after LoRA: what 16 steps do to the gold texts.

    python experiments/text/trained.py teacher_lora guided_lora --minutes 15 --seeds 1 --adapters FOLDER    makes the adapters
    python experiments/text/recipes.py                               the model as it is
    python experiments/text/recipes.py guided=FOLDER/guided_lora_1   with an adapter, under the name "guided"
    python experiments/text/recipes.py --again                       CoT2 and its controls, on 136 questions that the others did not see

The measure is that of `untrained.py`: nats per token of the gold solution and of the gold answer, behind the steps. `results/text_recipes.json`
is written after every method, so a run that was stopped goes on.
"""
import json, os, platform, sys, time
from importlib.metadata import version
from pathlib import Path

AGAIN = "--again" in sys.argv
os.environ.setdefault("SIZES", "200 16 0 0" if AGAIN else "64 16 0 0")  # Questions; rows at a time; no whole replies
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from soft_decoding import RECIPES
from untrained import BATCH, FOLDER, NAME, QUESTIONS, chat, default, prefilled, problems, scores

RECORD = Path(__file__).parents[2] / f"results/text_recipes{'_again' * AGAIN}.json"
STEPS = 16
CHANGES = {"thinkrouter": dict(tau=.5), "soft-tokens": dict(sigma=None), "cot2": dict(steps=STEPS), "coconut": dict(latents=STEPS, end=None),
           "soft-thinking": dict(scaled=True), "stochastic-dirichlet": dict(scaled=True), "swireasoning": dict(scaled=True)}
CONTROLS = dict(greedy_0=dict(greedy=True, steps=0), greedy=dict(greedy=True, steps=STEPS), sampled=dict(sampled=True, steps=STEPS), mixture=default(steps=STEPS))
LOOKS = dict(one_hot=dict(draws=1, temperature=3., steps=STEPS), noise=dict(draws=3, temperature=100., steps=STEPS))  # not settled before: is it the mean of three, or the heat?
NAMES = ["cot2"] if AGAIN else list(RECIPES)  # the one that was ahead of greedy tokens
ARMS = CONTROLS | {name: dict(recipe=name, steps=STEPS, changes=CHANGES.get(name, {})) for name in NAMES}
if AGAIN: ARMS |= LOOKS

def questions():
    "The first 32 of each set in their drawn order; asked again, those from there on."
    sets = {}
    for p in problems(): sets.setdefault(p[0], []).append(p)
    return [p for rows in sets.values() for p in (rows[32:] if AGAIN else rows)]

def load(adapter):
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    if adapter: model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()

def begin():
    return dict(model=NAME, questions=QUESTIONS, batch=BATCH, steps=STEPS, arms=ARMS, models={},
                versions={name: version(name) for name in ("torch", "transformers", "peft")} | dict(python=platform.python_version()),
                hardware=f"{platform.machine()}, 1 thread")

def write(record):
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record, separators=(",", ":")).replace('{"data"', '\n{"data"') + "\n")
    part.replace(RECORD)

def run(name, adapter=None):
    "All methods on one model."
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER, padding_side="left"), load(adapter)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else begin()
    if record["questions"] != QUESTIONS: raise SystemExit(f"{RECORD} has {record['questions']} questions, not {QUESTIONS}; move it away first.")
    found = record["models"].setdefault(name, {})
    asked = sorted(questions(), key=lambda x: len(x[2].prompt))  # rows of one length waste no pads
    batches = [asked[i:i + BATCH] for i in range(0, len(asked), BATCH)]
    begun = [prefilled(model, chat(tokenizer, batch)) for batch in batches]
    for arm in [arm for arm in ARMS if arm not in found]:
        start = time.process_time()
        found[arm] = [row for batch, state in zip(batches, begun) for row in scores(model, tokenizer, ARMS[arm], batch, state)]
        mean = {key: round(sum(row[key] for row in found[arm]) / len(found[arm]), 3) for key in ("solution", "answer")}
        print(name, arm, mean, round(time.process_time() - start, 1), flush=True)
        write(record)

if __name__ == "__main__":
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    for given in [x for x in sys.argv[1:] if x != "--again"] or ["as it is"]: run(*given.split("=", 1))
