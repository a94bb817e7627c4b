"""How far training undoes what soft steps do to a chat model, at the same CPU time per arm.

    python ../shared/tools/real_model.py                        makes the model, once
    python experiments/text/trained.py                          every arm and seed that the record does not hold yet
    python experiments/text/trained.py guided_lora --seeds 1    these
    python experiments/text/trained.py --minutes 15             with less CPU time per run, in a record of its own
    python experiments/text/trained.py --device cuda    the same steps on a GPU; runs beside each other slow each other down
    python experiments/text/trained.py --adapters FOLDER        keeps each adapter, as FOLDER/ARM_SEED
    python experiments/text/trained.py --cost                   CPU seconds of a step, interleaved

A row is a GSM8K question in the chat template and its solution; the first 16 tokens of the reply may be soft. Every
run has as many steps as take its CPU time by `COST`, wherever it runs; each is measured on the same questions, none of
which it has seen, question by question.
"""
import argparse, os, platform, sys, tempfile, time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging

from soft_decoding import Sampling, SoftTrainer, SoftTrainingArguments, evaluate_batch, gsm8k
from soft_decoding.train import summarize

NAME = "SmolLM2-135M-Instruct, 4-bit weights"
FOLDER = Path(os.environ.get("SOFT_DECODING_REAL_MODEL", Path.home() / ".cache/soft_decoding/smollm2-135m-instruct"))
RESULTS = Path(__file__).parents[2] / "results"
sys.path.insert(0, str(RESULTS.parent / "experiments"))
from records import opened, read  # noqa: E402
SHARED = Path(os.environ.get("SOFT_DECODING_SHARED", Path(__file__).parents[3] / "shared"))
SPAN, LENGTH, BATCH, HELD_OUT = 16, 160, 4, 64  # soft tokens; longest row; rows of a step; questions that measure
PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
LORA = dict(r=8, lora_alpha=16, target_modules=PROJECTIONS)
SOFT = dict(engine="parallel", passes=2, hops=1, top_k=50, guidance_start=1., guidance_floor=0., guidance_hold=.3)
ARMS = dict(
    teacher_lora=dict(adapter="lora", learning_rate=5e-4, options=dict(guidance_schedule="constant")),
    guided_lora=dict(adapter="lora", learning_rate=5e-4, options=SOFT),
    guided_prompt=dict(adapter="prompt", learning_rate=1e-2, options=SOFT))

COST = dict(teacher_lora=4.7, guided_lora=9., guided_prompt=8.3)  # CPU seconds of a step: `--cost`
WAYS = dict(softmax=None, top_50=50)  # What a mixture holds when it is measured: all tokens, or the best 50

def adapter(kind):
    if kind == "lora": return LoraConfig(**LORA)
    return PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=16)

def rows(tokenizer, seed):
    "Rows to learn from, and the same held-out ones for every seed."
    problems = gsm8k("train", SHARED / "data/gsm8k", template="{question}")
    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0)).tolist()
    made = [row(tokenizer, problems[i]) for i in order]
    made = [r for r in made if len(r["input_ids"]) <= LENGTH]
    held_out, rest = made[:HELD_OUT], made[HELD_OUT:]
    mixed = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rest[i] for i in mixed], held_out

def row(tokenizer, problem):
    "Ids, labels on the reply, and the first tokens of the reply soft."
    chat = [dict(role="user", content=problem.prompt)]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    reply = tokenizer("\n".join([*problem.chain, f"#### {problem.answer}"]), add_special_tokens=False)["input_ids"]
    reply = [*reply, tokenizer.eos_token_id]
    soft = [0] * len(prompt) + [int(i < SPAN) for i in range(len(reply))]
    return dict(input_ids=prompt + reply, labels=[-100] * len(prompt) + reply, soft_mask=soft)

KEYS = "loss", "teacher_loss", "perplexity", "entropy", "norm_ratio", "kl_to_gold"

@torch.no_grad()
def measure(model, held_out, collate, device, top_k=None, size=8):
    "Nats per token of the reply: run freely in the span, and on true tokens; entropy and norm of what was fed; one entry per `size` questions."
    out = []
    for part in (held_out[i:i + size] for i in range(0, len(held_out), size)):
        batch = {k: v.to(device) for k, v in collate(part).items()}
        found, _ = evaluate_batch(model, batch, floor_samples=0, sampling=top_k and Sampling(top_k=top_k))
        out.append({k: v.cpu() for k, v in found.items()})
    return out

def means(found):
    "Over all questions."
    out = summarize({k: sum(f[k] for f in found) for k in found[0]})
    return {k: round(out[k], 4) for k in KEYS}

def by_question(found):
    "Free-running and teacher-forced loss, summed over the reply, and its length, per question."
    return [[round(f["loss"].item(), 3), round(f["teacher_loss"].item(), 3), int(f["targets"])] for f in found]

def make_trainer(name, seed, steps, data, tokenizer, device, **changes):
    arm = ARMS[name]
    torch.manual_seed(seed)
    args = SoftTrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=arm["learning_rate"],
        lr_scheduler_type="cosine", max_grad_norm=1., seed=seed, logging_steps=5, report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=device == "cpu", **(arm["options"] | changes))
    trainer = SoftTrainer(AutoModelForCausalLM.from_pretrained(FOLDER), args, train_dataset=data, processing_class=tokenizer,
                          peft_config=adapter(arm["adapter"]))
    trainer.remove_callback(PrinterCallback)
    return trainer

def cost(tokenizer, n=2):
    "CPU seconds of a step, half of the guidance gone."
    data, _ = rows(tokenizer, 0)
    for name in ARMS:
        half = dict(guidance_start=.5, guidance_floor=.5) if "engine" in ARMS[name]["options"] else {}
        trainer = make_trainer(name, 0, n, data, tokenizer, "cpu", **half)
        began = time.process_time()
        trainer.train()
        print(name, round((time.process_time() - began) / n, 2), flush=True)

def run(name, seed, minutes, device, path, adapters=None):
    "One run; measured before and after, with and without the filter on the mixture, question by question."
    settle()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    data, held_out = rows(tokenizer, seed)
    trainer = make_trainer(name, seed, steps := round(60 * minutes / COST[name]), data, tokenizer, device)
    look = lambda: {key: measure(trainer.soft.model.eval().to(device), held_out, trainer.data_collator, device, k, 1) for key, k in WAYS.items()}
    before = known_before(path, trainer.soft.model, look)
    began = time.time()
    trainer.train()
    spent = time.time() - began
    if adapters: trainer.soft.model.save_pretrained(adapters / f"{name}_{seed}")
    trained = sum(p.numel() for p in trainer.soft.model.parameters() if p.requires_grad)
    log = [[h["step"], round(h["loss"], 4)] for h in trainer.state.log_history if "loss" in h]
    found = dict(seed=seed, steps=steps, seconds=round(spent), device=device, parameters=trained, before=before, after=told(look()), log=log)
    print(name, seed, steps, f"{spent:.0f} s", *({k: x["means"] for k, x in found[when].items()} for when in ("before", "after")), flush=True)
    add(path, minutes, name, found)

def told(looks):
    "Means, and the losses of each question, by way."
    return {key: dict(means=means(found), questions=by_question(found)) for key, found in looks.items()}

def runs_of(path): return (read(path) or dict(runs={}))["runs"]

def known_before(path, model, look):
    "What the model does without the adapter; one look serves all runs."
    found = [r["before"] for rows in runs_of(path).values() for r in rows]
    if found: return found[0]
    with model.disable_adapter(): return told(look())

def settle(): torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()

def header(minutes):
    "What is the same for all runs."
    return dict(
        model=NAME, minutes=minutes, cost=COST, span=SPAN, length=LENGTH, batch=BATCH, held_out=HELD_OUT, arms=ARMS, ways=WAYS, runs={},
        versions={name: version(name) for name in ("torch", "transformers", "peft")} | dict(python=platform.python_version()),
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, 1 thread")

def add(path, minutes, name, found):
    "A finished run, in the place of an earlier entry of its."
    with opened(path, header(minutes)) as record:
        others = [r for r in record["runs"].get(name, []) if r["seed"] != found["seed"]]
        record["runs"][name] = sorted([*others, found], key=lambda r: r["seed"])

def main():
    options = argparse.ArgumentParser()
    options.add_argument("arms", nargs="*")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--minutes", type=float, default=60., help="CPU time of a run")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--workers", type=int, default=1, help="runs at once")
    options.add_argument("--cost", action="store_true", help="measure what a step of each arm costs")
    options.add_argument("--adapters", type=Path, help="folder to keep the adapters in")
    options.add_argument("--record", type=Path)
    given = options.parse_args()
    settle()
    if given.cost: return cost(AutoTokenizer.from_pretrained(FOLDER))
    path = given.record or RESULTS / ("text_trained.json" if given.minutes == 60 else f"text_trained_{given.minutes:g}.json")
    known = runs_of(path)
    jobs = [(name, seed, given.minutes, given.device, path, given.adapters) for seed in given.seeds for name in given.arms or ARMS
            if not any(r["seed"] == seed for r in known.get(name, []))]
    if given.workers == 1:
        for job in jobs: run(*job)
    else:
        with get_context("spawn").Pool(given.workers, maxtasksperchild=1) as pool: pool.starmap(run, jobs, chunksize=1)

if __name__ == "__main__": main()
