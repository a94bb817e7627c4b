"""Graph reachability: does a model that thinks in mixtures find its way where one that thinks in tokens does not?

    python experiments/graphs/run.py                    every arm and seed that results/graphs.json does not hold yet
    python experiments/graphs/run.py --tune             learning rates, one seed, on the file of validation problems; goes first
    python experiments/graphs/run.py soft --seeds 0 1 --workers 2 --device cuda

Graphs of 28 nodes made by the recipe of ProsQA are the training data; the score is on its real test file (500 problems).
README.md beside this file says what the arms are. The time limit `--seconds` stops before a run that would not end in time.
"""
import argparse, os, platform, sys, tempfile, time
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch, transformers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback

from soft_decoding import ChainDataset, KSampleMixer, ProsQA, SoftTrainer, SoftTrainingArguments, accuracy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
from records import opened  # noqa: E402

TASK = ProsQA(form="pairs", size=28, min_steps=3, max_steps=6)
FILES = Path(os.environ.get("SOFT_DECODING_SHARED", ROOT.parent / "shared")) / "data/prosqa"
GRAPHS, CHUNKS, WIDTH, LAYERS, HEADS, BATCH, STEPS, WARMUP = 20_000, 20, 32, 4, 4, 256, 3000, 200
RATES = 1e-3, 3e-3, 6e-3
FORCED = dict(guidance_schedule="constant", guidance_start=1., guidance_floor=1.)
FALLING = dict(engine="parallel", passes=2, hops=1, guidance_floor=0., guidance_warmup=.3, guidance_hold=.3)


@dataclass
class Arm:
    about: str                                # One line for tables
    kind: str                                 # Of `ChainDataset`
    decoder: str                              # What it is made for: "soft", "greedy" or "pause"
    args: dict = field(default_factory=dict)  # Of SoftTrainingArguments


ARMS = dict(
    soft=Arm("soft labels, teacher-forced", "soft", "soft", FORCED),
    soft_guided=Arm("soft labels, guidance 1 to 0", "soft", "soft", FALLING),
    guided=Arm("one shortest path, guidance 1 to 0", "hard", "soft", FALLING),
    discrete=Arm("one shortest path, teacher-forced", "hard", "greedy", FORCED),
    pause=Arm("soft labels, pause tokens fed", "pause", "pause", FORCED),
    none=Arm("no chain", "none", "none", FORCED),
)


# ------------------------------------------------------------------------------------------------------- problems
def chunk(i, n): return [TASK.problem(r) for r in TASK.generate(n, seed=1000 + i)]


def training_problems(graphs, processes):
    "Problems, made in parallel; the same ones for any number of processes."
    with get_context("fork").Pool(processes) as pool:
        return [p for part in pool.map(partial(chunk, n=graphs // CHUNKS), range(CHUNKS)) for p in part]


def file_problems(split): return [TASK.problem(r) for r in TASK.load(split, FILES)]


# ------------------------------------------------------------------------------------------------------- training
def make_model(seed, tokenizer, width):
    "A GPT-2 without dropout."
    transformers.set_seed(seed)
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=192, n_embd=width, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.,
        initializer_range=.05, tie_word_embeddings=False, **ids))
    model.generation_config = GenerationConfig(**ids)
    return model


def scores(arm, model, tokenizer, problems):
    "Share of right answers: by the arm's own decoder and by others."
    if arm.kind == "pause":
        def paused(p): return replace(p, prompt=" ".join([p.prompt, *[tokenizer.bos_token] * len(p.chain)]))
        lengths = sorted({len(p.chain) for p in problems})  # pauses as many as there are steps, batch by batch
        parts = [[paused(p) for p in problems if len(p.chain) == n] for n in lengths]
        right = [accuracy(model, tokenizer, part, steps=0)["accuracy"] * len(part) for part in parts]
        return dict(pause=round(sum(right) / len(problems), 4))
    if arm.kind == "none": return dict(none=round(accuracy(model, tokenizer, problems, steps=0)["accuracy"], 4))
    ways = dict(soft={}, greedy=dict(top_k=1))
    return {name: round(accuracy(model, tokenizer, problems, **way)["accuracy"], 4) for name, way in ways.items()}


class Look(TrainerCallback):
    "Scores on validation problems every so many steps, printed, too."
    def __init__(self, name, every, score): self.name, self.every, self.score, self.curve, self.began = name, every, score, [], time.time()
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every: return
        self.curve.append([state.global_step, self.score()])
        loss = next((h["loss"] for h in reversed(state.log_history) if "loss" in h), None)
        print(*self.name, *self.curve[-1], loss, f"{time.time() - self.began:.0f} s", flush=True)


def run(name, seed, rate, data, valid, test, options):
    "Train one model and score it."
    arm, tokenizer, began = ARMS[name], TASK.tokenizer(), time.time()
    model = make_model(seed, tokenizer, options.width)
    look = Look((name, seed, rate), max(1, options.steps // 6), lambda: scores(arm, model.eval(), tokenizer, valid[:150]))
    args = SoftTrainingArguments(
        tempfile.mkdtemp(), max_steps=options.steps, seed=seed, use_cpu=options.device == "cpu", learning_rate=rate,
        lr_scheduler_type="cosine", warmup_steps=min(WARMUP, options.steps // 5), weight_decay=.01, adam_beta2=.99,
        per_device_train_batch_size=BATCH, dataloader_drop_last=True, save_strategy="no", logging_steps=max(1, options.steps // 30), report_to="none",
        disable_tqdm=True, **arm.args)
    trainer = SoftTrainer(model, args, train_dataset=data, data_collator=data.collate, processing_class=tokenizer, callbacks=[look])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds, losses = time.time() - began, [round(h["loss"], 4) for h in trainer.state.log_history if "loss" in h]
    model.eval()
    found = dict(arm=name, seed=seed, rate=rate, steps=options.steps, width=options.width, seconds=round(seconds, 1), device=options.device,
                 losses=losses, curve=look.curve, valid=scores(arm, model, tokenizer, valid))
    return found if options.tune else found | dict(test=scores(arm, model, tokenizer, test))


# --------------------------------------------------------------------------------------------------------- record
def header(valid, test, graphs):
    "What is the same for all runs."
    return dict(what="ProsQA, a name per node: ways to train, scored on the real test file", arms={k: dict(about=a.about, decoder=a.decoder, args=a.args) for k, a in ARMS.items()},
                model=dict(layers=LAYERS, heads=HEADS), graphs=graphs, batch=BATCH, warmup=WARMUP,
                rules=dict(valid=TASK.rules(valid), test=TASK.rules(test)), valid=len(valid), test=len(test),
                versions={k: version(k) for k in ("torch", "transformers")} | dict(python=platform.python_version()), tuning=[], runs=[])


def best_rate(record, name, options):
    "The learning rate that is best on validation problems."
    found = {r["rate"]: r["valid"][ARMS[name].decoder] for r in record["tuning"] if (r["arm"], r["width"], r["steps"]) == (name, options.width, options.steps)}
    return max(found, key=found.get) if found else None


def jobs(options, record):
    "What is to be done, the cheap arms first."
    part, seeds = ("tuning", [100]) if options.tune else ("runs", options.seeds)
    done = {(r["arm"], r["seed"], r["rate"], r["width"], r["steps"]) for r in record[part]}
    for seed in seeds:
        for name in options.arms or ARMS:
            rates = options.rates or RATES if options.tune else [best_rate(record, name, options)]
            if None in rates: raise SystemExit(f"{name} is not tuned yet at width {options.width} and {options.steps} steps; run it with --tune first.")
            yield from ((name, seed, rate) for rate in rates if (name, seed, rate, options.width, options.steps) not in done)


def work(job, index, options, sets, valid, test):
    "One run, in a process of its own."
    if time.time() + options.margin > options.until: return
    torch.set_num_threads(1); transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    name, seed, rate = job
    found = run(name, seed, rate, sets[ARMS[name].kind], valid, test, options)
    with opened(options.record, {}) as record: record["tuning" if options.tune else "runs"].append(found)
    print(name, seed, rate, f"{found['seconds']} s", found["valid"], found.get("test", ""), flush=True)


def spread(todo, options, *rest):
    "At most so many processes at once, each of which lives for one run: a broken one takes no other with it."
    fork, running = get_context("fork"), []
    for i, job in enumerate(todo):
        while sum(p.is_alive() for p in running) >= options.workers: time.sleep(.2)
        running.append(fork.Process(target=work, args=(job, i, options, *rest)))
        running[-1].start()
    for p in running: p.join(max(1., options.until + 20 - time.time()))
    for p in running: p.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    add("--tune", action="store_true"); add("--seeds", type=int, nargs="+", default=list(range(8))); add("--rates", type=float, nargs="+")
    add("--steps", type=int, default=STEPS); add("--width", type=int, default=WIDTH); add("--graphs", type=int, default=GRAPHS)
    add("--device", default="cpu", choices=["cpu", "cuda"]); add("--workers", type=int, default=1)
    add("--seconds", type=float, default=1e9, help="end after so long"); add("--margin", type=float, default=0., help="seconds that a run takes: none is begun later")
    add("--record", type=Path, default=ROOT / "results/graphs.json")
    options = parser.parse_args()
    if wrong := set(options.arms) - set(ARMS): parser.error(f"unknown arm {min(wrong)}; there are {', '.join(ARMS)}.")
    options.until = time.time() + options.seconds
    valid, test, train = file_problems("valid"), file_problems("test"), training_problems(options.graphs, os.cpu_count())
    kinds = {ARMS[name].kind for name in options.arms or ARMS}
    sets = {kind: ChainDataset(train, TASK.tokenizer(192), kind) for kind in kinds}
    print(f"{len(train)} graphs, {options.seconds - (options.until - time.time()):.0f} s", flush=True)
    with opened(options.record, header(valid, test, options.graphs)) as record: pass
    spread(list(jobs(options, record)), options, sets, valid, test)


if __name__ == "__main__": main()
