"""A frozen base that thinks in tokens, and small adapters that switch it to soft thinking.

    python experiments/prefix/run.py                  what results/prefix.json does not hold yet
    python experiments/prefix/run.py --tune 0.03 0.1  losses at these learning rates, in half the steps; no problem is held out for it
"""
import argparse, json, platform, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch, transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from peft import (
    LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TrainableTokensConfig, get_peft_model)

from soft_decoding import (
    ChainDataset, SoftTrainer, SoftTrainingArguments, Think, accuracy, add_think_tokens, prompt_batch, think_then_answer)

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "experiments/mnns"))
import train as mnns  # how the shipped model and the discrete one beside it are trained
import records
from records import known

TASK, BASE = mnns.TASK, replace(mnns.Config(), batch_size=128, every=10 ** 6)
STEPS, BATCH, VIRTUAL, RANK = 300, 64, 8, 4
MARKERS = "<think>", "</think>"


# -------------------------------------------------------------------------------------------------- adapters
def lora(**more):
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM", **more)

VIRTUALS = dict(num_virtual_tokens=VIRTUAL, task_type="CAUSAL_LM")
ARMS = dict(
    markers=("think tokens", lambda ids: TrainableTokensConfig(token_indices=ids, task_type="CAUSAL_LM")),
    prompt=("prompt tuning", lambda ids: PromptTuningConfig(**VIRTUALS)),
    p_tuning=("p-tuning", lambda ids: PromptEncoderConfig(**VIRTUALS, encoder_hidden_size=32)),
    prefix=("prefix tuning", lambda ids: PrefixTuningConfig(**VIRTUALS)),
    lora=("LoRA", lambda ids: lora()),
    markers_lora=("think tokens and LoRA", lambda ids: lora(trainable_token_indices=ids)),
    front_lora=("a marker before the prompt, and LoRA", lambda ids: lora(trainable_token_indices=ids)),
)
RATES = dict(markers=.3, prompt=.3, p_tuning=.03, prefix=.1, lora=.03, markers_lora=.03, front_lora=.03)  # At the peak; see the README


def make_model(cfg, tokenizer, seed):
    "A Llama of the shipped model's size: rotary positions, for a marker or a prompt moves all that follows."
    transformers.set_seed(seed)
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=cfg.n_embd, intermediate_size=cfg.n_inner, num_hidden_layers=cfg.n_layer,
        num_attention_heads=cfg.n_head, max_position_embeddings=64, initializer_range=cfg.init, **special))
    model.generation_config = GenerationConfig(**special)
    return model


mnns.make_model = make_model  # that its runs are ours


def marked(problems):
    "The same problems, thought between markers."
    return [replace(p, prompt=f"{p.prompt} {MARKERS[0]}", end=MARKERS[1]) for p in problems]


def in_front(problems):
    "The same problems after a marker, so that nothing comes between prompt and chain."
    return [replace(p, prompt=f"{MARKERS[0]} {p.prompt}") for p in problems]


class Rows(ChainDataset):
    "Soft chains; a closing marker is fed, and never asked."
    def __init__(self, problems, tokenizer):
        super().__init__(problems, tokenizer, "soft")
        self.table["labels"][self.table["labels"] == tokenizer.convert_tokens_to_ids(MARKERS[1])] = -100


# ------------------------------------------------------------------------------------------------------ runs
def fit(model, tokenizer, data, rate, seed, steps):
    "Train what is not frozen, share 1 to 0, two passes and one hop; the last mean loss."
    with tempfile.TemporaryDirectory() as folder:
        args = SoftTrainingArguments(
            folder, max_steps=steps, seed=seed, use_cpu=True, learning_rate=rate, lr_scheduler_type="cosine",
            warmup_steps=30, weight_decay=0., adam_beta2=.99, per_device_train_batch_size=BATCH, passes=2, hops=1,
            dataloader_drop_last=True, save_strategy="no", logging_steps=50, report_to="none", disable_tqdm=True,
            guidance_floor=0., guidance_warmup=.3, guidance_hold=.3)
        trainer = SoftTrainer(model, args, train_dataset=data, data_collator=data.collate, processing_class=tokenizer)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]


def answered_bare(model, tokenizer, problems):
    "Accuracy where the adapter thinks, and the base answers."
    end, n = problems[0].end or None, TASK.digits - 1
    prompts = prompt_batch(problems, tokenizer)
    with torch.no_grad():
        out = think_then_answer(model, **prompts, think=Think(max_tokens=n, end=end), tokenizer=tokenizer,
                                max_new_tokens=n + 1 + (end is not None), trace_k=0, eos_token_id=tokenizer.eos_token_id)
    said = tokenizer.batch_decode(out.sequences[:, -1:])
    return sum(p.check(text) for p, text in zip(problems, said)) / len(problems)


def run(arm, seed, base, train, heldout, rate=None):
    "One adapter on a copy of the base, trained and scored; at a `rate` to try, the loss alone."
    start, tokenizer = time.process_time(), TASK.tokenizer()
    model = make_model(BASE, tokenizer, seed)
    model.load_state_dict(base)
    about, config = ARMS[arm]
    ids = add_think_tokens(model, tokenizer, *MARKERS) if arm.startswith(("markers", "front")) else None
    if arm.startswith("markers"): train, heldout = marked(train), marked(heldout)
    if arm.startswith("front"): train, heldout = in_front(train), in_front(heldout)
    torch.manual_seed(seed)
    model = get_peft_model(model, config(ids))
    loss = fit(model, tokenizer, Rows(train, tokenizer), rate or RATES[arm], seed, STEPS // 2 if rate else STEPS)
    if rate: return dict(arm=arm, rate=rate, loss=loss)
    model.eval()
    scores = dict(soft=accuracy(model, tokenizer, heldout)["accuracy"],
                  discrete=accuracy(model, tokenizer, heldout, top_k=1)["accuracy"],
                  answered_bare=answered_bare(model, tokenizer, heldout))
    return dict(arm=arm, seed=seed, parameters=model.get_nb_trainable_parameters()[0], loss=loss, scores=scores,
                cpu_seconds=round(time.process_time() - start, 1))


def base_of(seed, train, heldout, folder):
    "The base of a seed, made once: trained on one discrete chain per problem, as `discrete_long` of experiments/mnns."
    if (file := folder / f"base-{seed}.pt").exists(): return torch.load(file)
    start, data = time.process_time(), mnns.dataset("optimal", train, TASK.tokenizer())
    model, record = mnns.run(BASE, "discrete_long", seed, data, heldout)
    scores = dict(soft=record["scores"]["soft"]["accuracy"], discrete=record["scores"]["optimal"]["accuracy"])
    made = model.state_dict(), dict(arm="base", seed=seed, parameters=sum(p.numel() for p in model.parameters()),
                                    scores=scores, cpu_seconds=round(time.process_time() - start, 1))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(made, file)
    return made


# ---------------------------------------------------------------------------------------------------- record
def header(train, heldout):
    return dict(
        what="MNNS, 4 digits 1-9: a frozen base that thinks in tokens, and adapters that are trained to think softly",
        config=dict(base_steps=BASE.long_steps, steps=STEPS, batch_size=BATCH, virtual_tokens=VIRTUAL, rank=RANK,
                    rates=RATES, share="1 to 0, linear, 30 % of the steps at either end", passes=2, hops=1),
        arms=dict(base="base, all of it", **{k: about for k, (about, _) in ARMS.items()}),
        train=len(train), heldout=len(heldout), rules=TASK.rules(heldout, train),
        versions={k: version(k) for k in ("torch", "transformers", "peft")},
        hardware=dict(machine=platform.machine(), threads=1), runs=[])


@contextmanager
def opened(path, fresh):
    "The record, in order."
    with records.opened(path, fresh) as record:
        yield record
        record["runs"].sort(key=lambda r: (r["seed"], list(record["arms"]).index(r["arm"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--record", type=Path, default=ROOT / "results/prefix.json")
    parser.add_argument("--tune", type=float, nargs="+", help="learning rates to try")
    parser.add_argument("--bases", type=Path, default=Path(tempfile.gettempdir()) / "prefix-bases", help="where bases are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    train, heldout = TASK.split(BASE.heldout, BASE.split_seed)
    for seed in args.seeds:
        done = [] if args.tune else known(args.record)
        todo = [arm for arm in args.arms if not any((r["arm"], r["seed"]) == (arm, seed) for r in done)]
        if not todo: continue
        base, first = base_of(seed, train, heldout, args.bases)
        print(json.dumps(first), flush=True)
        if not args.tune and not any((r["arm"], r["seed"]) == ("base", seed) for r in done):
            with opened(args.record, header(train, heldout)) as record: record["runs"].append(first)
        for arm in todo:
            for rate in args.tune or [None]:
                result = run(arm, seed, base, train, heldout, rate)
                print(json.dumps(result), flush=True)
                if args.tune: continue
                with opened(args.record, header(train, heldout)) as record: record["runs"].append(result)


if __name__ == "__main__": main()
