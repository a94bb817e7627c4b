"""How far training undoes what soft steps do to a chat model, at the same CPU time per arm.

    python ../shared/tools/real_model.py                        makes the model, once
    python experiments/text/trained.py                          every arm and seed that the record does not hold yet
    python experiments/text/trained.py guided_lora --seeds 1    these
    python experiments/text/trained.py --minutes 10             with less CPU time per run, in a record of its own

A row is a GSM8K question in the chat template and its solution; the first 16 tokens of the reply may be soft. Every
run has as many steps as fill its CPU time; each is measured on the same questions, none of which it has seen.
"""
import argparse, json, os, platform, tempfile, time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging

from soft_decoding import SoftTrainer, SoftTrainingArguments, evaluate_batch, gsm8k
from soft_decoding.train import summarize

NAME = "SmolLM2-135M-Instruct, 4-bit weights"
FOLDER = Path(os.environ.get("SOFT_DECODING_REAL_MODEL", Path.home() / ".cache/soft_decoding/smollm2-135m-instruct"))
RESULTS = Path(__file__).parents[2] / "results"
SPAN, LENGTH, BATCH, HELD_OUT = 16, 160, 4, 64  # soft tokens; longest row; rows of a step; questions that measure
PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
LORA = dict(r=8, lora_alpha=16, target_modules=PROJECTIONS)
SOFT = dict(engine="parallel", passes=2, hops=1, top_k=50, guidance_start=1., guidance_floor=0., guidance_hold=.3)
ARMS = dict(
    teacher_lora=dict(adapter="lora", learning_rate=5e-4, options=dict(guidance_schedule="constant")),
    guided_lora=dict(adapter="lora", learning_rate=5e-4, options=SOFT),
    guided_prompt=dict(adapter="prompt", learning_rate=1e-2, options=SOFT))

def adapter(kind):
    if kind == "lora": return LoraConfig(**LORA)
    return PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=16)

def rows(tokenizer, seed):
    "Rows to learn from, and the same held-out ones for every seed."
    problems = gsm8k("train", Path(__file__).parents[3] / "shared/data/gsm8k", template="{question}")
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

@torch.no_grad()
def measure(model, held_out, collate):
    "Nats per token of the reply: run freely in the span, and on true tokens; entropy and norm of what was fed."
    sums, parts = None, [held_out[i:i + 8] for i in range(0, len(held_out), 8)]
    for part in parts:
        found, _ = evaluate_batch(model, collate(part), floor_samples=0)
        sums = found if sums is None else {k: sums[k] + found[k] for k in sums}
    out = summarize(sums)
    return {k: round(out[k], 4) for k in ("loss", "teacher_loss", "perplexity", "entropy", "norm_ratio", "kl_to_gold")}

def step_seconds(make, n=2):
    "CPU seconds of a step without the truth, from a run that is thrown away."
    trainer = make(n, guidance_start=0., guidance_floor=0.)
    began = time.process_time()
    trainer.train()
    return (time.process_time() - began) / n

def run(tokenizer, arm, seed, minutes):
    "One run: as many steps as fill the CPU time; measured before and after."
    data, held_out = rows(tokenizer, seed)
    def make(steps, **changes):
        torch.manual_seed(seed)
        args = SoftTrainingArguments(
            tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=arm["learning_rate"],
            lr_scheduler_type="cosine", max_grad_norm=1., seed=seed, logging_steps=5, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=True, **(arm["options"] | (changes if "engine" in arm["options"] else {})))
        trainer = SoftTrainer(AutoModelForCausalLM.from_pretrained(FOLDER), args, train_dataset=data,
                              processing_class=tokenizer, peft_config=adapter(arm["adapter"]))
        trainer.remove_callback(PrinterCallback)
        return trainer
    trainer = make(steps := max(1, int(60 * minutes / step_seconds(make))))
    before = measure(trainer.soft.model, held_out, trainer.data_collator)
    began = time.process_time()
    trainer.train()
    spent = time.process_time() - began
    trained = sum(p.numel() for p in trainer.soft.model.parameters() if p.requires_grad)
    log = [[h["step"], round(h["loss"], 4)] for h in trainer.state.log_history if "loss" in h]
    after = measure(trainer.soft.model.eval(), held_out, trainer.data_collator)
    return dict(seed=seed, steps=steps, cpu_seconds=round(spent), parameters=trained, before=before, after=after, log=log)

def main():
    options = argparse.ArgumentParser()
    options.add_argument("arms", nargs="*")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--minutes", type=float, default=60., help="CPU time of a run")
    given = options.parse_args()
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    path = RESULTS / ("text_trained.json" if given.minutes == 60 else f"text_trained_{given.minutes:g}.json")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    record = json.loads(path.read_text()) if path.exists() else dict(
        model=NAME, minutes=given.minutes, span=SPAN, length=LENGTH, batch=BATCH, held_out=HELD_OUT, arms=ARMS, runs={},
        versions={name: version(name) for name in ("torch", "transformers", "peft")} | dict(python=platform.python_version()),
        hardware=f"{platform.machine()}, 1 thread")
    for seed in given.seeds:
        for name in given.arms or ARMS:
            if any(r["seed"] == seed for r in record["runs"].get(name, [])): continue
            found = run(tokenizer, ARMS[name], seed, given.minutes)
            print(name, seed, found["steps"], found["before"], found["after"], flush=True)
            record["runs"].setdefault(name, []).append(found)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(record, indent=1) + "\n")
            part.replace(path)

if __name__ == "__main__": main()
