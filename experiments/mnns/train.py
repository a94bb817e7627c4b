"""Train the model in `soft_decoding/assets/mnns`, or compare ways to train it.

    python experiments/mnns/train.py             the shipped model, about a minute of one core
    python experiments/mnns/train.py --compare   every variant and seed that results/mnns.json does not hold yet
"""
import argparse, json, os, platform, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch, transformers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, TrainerCallback

from soft_decoding import MNNS, ChainDataset, Guidance, SoftTrainer, SoftTrainingArguments, accuracy, collate_problems

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import records  # noqa: E402
from records import known  # noqa: E402

TASK = MNNS(digits=4, low=1, high=9)


@dataclass
class Config:
    n_layer: int = 2             # Transformer blocks
    n_head: int = 1              # Attention heads per block
    n_embd: int = 32             # Width
    n_inner: int = 128           # Width of the MLP
    init: float = .1             # Standard deviation of the initial weights
    steps: int = 500             # Optimizer steps of the compared runs
    long_steps: int = 1000       # Optimizer steps of the shipped model, and of those beside it
    batch_size: int = 256        # Problems per step
    lr: float = 6e-3             # Peak learning rate (AdamW; linear warm-up, then cosine to 0)
    lr_warmup: int = 50          # Warm-up steps
    weight_decay: float = .01    # Of matrices and embeddings
    warmup: float = .3           # Part of the steps with all the guidance, where a schedule is used
    hold: float = .3             # Part of the steps at its floor of 0
    every: int = 25              # Steps between two looks at held-out problems
    look: int = 400              # How many held-out problems these looks take
    heldout: int = 99            # Held-out multisets (of 495), the same for every seed
    split_seed: int = 0          # Seed of the split


@dataclass
class Variant:
    about: str                                 # One line for tables
    kind: str = "soft"                         # "soft", "optimal", "serial", "pause" or "none": the chains
    args: dict = field(default_factory=dict)   # Of SoftTrainingArguments
    scheduled: bool = False                    # Guidance falls from 1 to 0, between `warmup` and `hold`
    long: bool = False                         # `long_steps` instead of `steps`
    stretch: float = 1.                        # Times so many


EXACT, FREE = dict(engine="sequential"), dict(guidance_schedule="constant", guidance_warmup=0., guidance_hold=0.)
FORCED = dict(guidance_schedule="constant", guidance_start=1., guidance_floor=1.)
VARIANTS = dict(
    teacher=Variant("soft targets, teacher-forced", args=FORCED),
    linear=Variant("guidance 1 to 0, linear", args=EXACT, scheduled=True),
    discrete=Variant("one discrete chain, drawn afresh", "optimal", FORCED),
    cosine=Variant("guidance 1 to 0, cosine", args=dict(EXACT, guidance_schedule="cosine"), scheduled=True),
    inverse_sigmoid=Variant("guidance 1 to 0, inverse sigmoid", args=dict(EXACT, guidance_schedule="inverse_sigmoid"),
                            scheduled=True),
    constant=Variant("guidance 1/2 throughout", args=dict(EXACT, **FREE, guidance_start=.5, guidance_floor=.5)),
    coins=Variant("a coin per token, share 1 to 0, linear", args=dict(EXACT, guidance_coins=True), scheduled=True),
    few=Variant("linear, parallel: 2 passes, 1 hop", args=dict(engine="parallel", passes=2, hops=1), scheduled=True),
    three=Variant("linear, parallel: 3 passes, 2 hops", args=dict(engine="parallel", passes=3, hops=2), scheduled=True),
    pause=Variant("soft labels, pause tokens fed", "pause", FORCED),
    none=Variant("no chain", "none", FORCED),
    serial=Variant("all open sums, one after another", "serial", FORCED),
    free=Variant("no guidance", args=dict(EXACT, **FREE, guidance_start=0., guidance_floor=0.)),
    full=Variant("linear, parallel: exact values, all hops", args=dict(engine="parallel", passes=None, hops=None),
                 scheduled=True),
    shipped=Variant("linear, longer", args=EXACT, scheduled=True, long=True),
    teacher_long=Variant("soft targets, teacher-forced, longer", args=FORCED, long=True),
    discrete_long=Variant("one discrete chain, longer", "optimal", FORCED, long=True),
    pause_long=Variant("soft labels, pause tokens fed, longer", "pause", FORCED, long=True),
    none_long=Variant("no chain, longer", "none", FORCED, long=True),
    discrete_equal=Variant("one discrete chain, for the processor time of the shipped model", "optimal", FORCED, long=True, stretch=2.15),
    teacher_equal=Variant("soft targets, teacher-forced, for the processor time of the shipped model", args=FORCED, long=True, stretch=1.6),
)


# ------------------------------------------------------------------------------------------- problems and model
def serialised(p):
    "All open partial sums of each step as one long discrete chain, a sum as often as sign choices lead to it."
    steps = TASK.counts(p.record["digits"])[:-1]
    return replace(p, chain=[str(s) for c in steps for s in sorted(c.elements())], soft=None)


def dataset(kind, problems, tokenizer):
    "What a variant trains on."
    if kind == "optimal": return ChainDataset(problems, tokenizer, "hard", chains=TASK.chains)
    if kind == "serial": return ChainDataset([serialised(p) for p in problems], tokenizer, "hard")
    return ChainDataset(problems, tokenizer, kind)


def make_model(cfg, tokenizer, seed):
    "A GPT-2 with everything small and no dropout."
    transformers.set_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=cfg.n_embd, n_layer=cfg.n_layer, n_head=cfg.n_head,
        n_inner=cfg.n_inner, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0., initializer_range=cfg.init,
        tie_word_embeddings=False, activation_function="gelu_pytorch_tanh", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    model.generation_config = GenerationConfig(**{f"{k}_token_id": getattr(tokenizer, f"{k}_token_id")
                                                  for k in ("bos", "eos", "pad")})
    return model


# ---------------------------------------------------------------------------------------------------- decoding
def read_out(kind, model, tokenizer, problems):
    "Accuracy of the decoding that this kind of chain is made for."
    if kind == "pause":
        pauses = " ".join([tokenizer.bos_token] * (TASK.digits - 1))
        problems = [replace(p, prompt=f"{p.prompt} {pauses}") for p in problems]
    if kind == "serial": problems = [serialised(p) for p in problems]
    options = dict(soft={}, optimal=dict(top_k=1), serial=dict(top_k=1), pause=dict(steps=0), none=dict(steps=0))
    return accuracy(model, tokenizer, problems, **options[kind])


def evaluate(kind, model, tokenizer, problems):
    "All that is recorded of a trained model."
    out = {kind: read_out(kind, model, tokenizer, problems)}
    if kind != "soft": return out | ({"soft": accuracy(model, tokenizer, problems)} if kind == "optimal" else {})
    batch, n = collate_problems(problems, tokenizer), len(problems)
    true = batch["target_dists"].map(lambda x: x[batch["soft_mask"]].view(n, TASK.digits - 1, -1))
    fed = accuracy(model, tokenizer, problems, batch_size=n, guidance=Guidance(true))
    return out | dict(greedy=accuracy(model, tokenizer, problems, top_k=1),
                      top_10=accuracy(model, tokenizer, problems, top_k=10), fed_true_mixtures=fed)


class Look(TrainerCallback):
    "Accuracy on some held-out problems every so many steps."
    def __init__(self, every, score): self.every, self.score, self.curve, self.seconds = every, score, [], 0.

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every: return
        start = time.process_time()
        self.curve.append([state.global_step, round(self.score()["accuracy"], 4)])
        self.seconds += time.process_time() - start


# ---------------------------------------------------------------------------------------------------- training
def arguments(cfg, name, seed, folder):
    "The training arguments of a variant."
    v = VARIANTS[name]
    schedule = dict(guidance_floor=0., guidance_warmup=cfg.warmup, guidance_hold=cfg.hold) if v.scheduled else {}
    return SoftTrainingArguments(
        output_dir=folder, max_steps=round(v.stretch * (cfg.long_steps if v.long else cfg.steps)), seed=seed, use_cpu=True,
        learning_rate=cfg.lr, lr_scheduler_type="cosine", warmup_steps=cfg.lr_warmup,
        weight_decay=cfg.weight_decay, adam_beta2=.99, per_device_train_batch_size=cfg.batch_size,
        dataloader_drop_last=True, save_strategy="no", logging_steps=50, report_to="none", disable_tqdm=True,
        **{**schedule, **v.args})


def run(cfg, name, seed, data, heldout):
    "Train one model and score it."
    v, tokenizer, start = VARIANTS[name], TASK.tokenizer(), time.process_time()
    model = make_model(cfg, tokenizer, seed)
    look = Look(cfg.every, partial(read_out, v.kind, model, tokenizer, heldout[:cfg.look]))
    data.seed = seed  # of drawn chains
    with tempfile.TemporaryDirectory() as folder:
        trainer = SoftTrainer(model, arguments(cfg, name, seed, folder), train_dataset=data, data_collator=data.collate,
                              processing_class=tokenizer, callbacks=[look])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    cpu = time.process_time() - start
    record = dict(variant=name, seed=seed, cpu_seconds=round(cpu, 1), cpu_seconds_of_looks=round(look.seconds, 1),
                  loss=logs[-1]["loss"], teacher_loss=logs[-1].get("teacher_loss"),
                  scores=evaluate(v.kind, model.eval(), tokenizer, heldout), curve=look.curve)
    return model, record


def ship(model, heldout, out):
    "Write the model, the tokenizer and the held-out problems."
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    TASK.tokenizer().save_pretrained(out)
    rows = [json.dumps(dict(prompt=p.prompt, answer=p.answer)) + "\n" for p in heldout]
    (out / "heldout.jsonl").write_text("".join(rows))


# ------------------------------------------------------------------------------------------------------ record
def header(cfg, train, heldout):
    "What is the same for all runs."
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine()) if os.path.exists("/proc/cpuinfo") else platform.machine()
    count = lambda problems: dict(multisets=len({p.group for p in problems}), problems=len(problems))
    return dict(
        what="MNNS, 4 digits 1-9: ways to train a soft chain, scored on held-out multisets",
        config=asdict(cfg), variants={name: asdict(v) for name, v in VARIANTS.items()},
        parameters=sum(p.numel() for p in make_model(cfg, TASK.tokenizer(), 0).parameters()),
        train=count(train), heldout=count(heldout), rules=TASK.rules(heldout, train),
        versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
        hardware=dict(cpu=cpu, threads=1), runs=[])


@contextmanager
def opened(path, cfg, train, heldout):
    "The record, with the variants of today."
    with records.opened(path, fresh := header(cfg, train, heldout)) as record:
        record["variants"] = fresh["variants"]
        yield record


def compare(cfg, path, variants, seeds, train, heldout):
    "Run what the record does not hold yet, one variant after another."
    for name in variants:
        data = dataset(VARIANTS[name].kind, train, TASK.tokenizer())
        for seed in seeds:
            if any((r["variant"], r["seed"]) == (name, seed) for r in known(path)): continue
            _, result = run(cfg, name, seed, data, heldout)
            with opened(path, cfg, train, heldout) as record: record["runs"].append(result)
            print(name, seed, f"{result['cpu_seconds']} s", {k: round(s["accuracy"], 4) for k, s in result["scores"].items()},
                  flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--compare", action="store_true", help="run the variants that the record does not hold yet")
    add("--seeds", type=int, nargs="+", default=list(range(8)), help="with --compare")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="with --compare", metavar="NAME")
    add("--record", type=Path, default=ROOT / "results/mnns.json", help="with --compare: where to write")
    add("--out", type=Path, default=ROOT / "soft_decoding/assets/mnns", help="folder of the shipped model")
    add("--validate", action="store_true", help="tune: leave the held-out problems alone, hold out others")
    for k, value in asdict(Config()).items(): add(f"--{k}", type=type(value), default=value)
    args = vars(parser.parse_args())
    cfg = Config(**{k: args[k] for k in asdict(Config())})
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    train, heldout = TASK.split(cfg.heldout, cfg.split_seed, validate=args["validate"])
    if args["compare"]: return compare(cfg, args["record"], args["variants"], args["seeds"], train, heldout)
    model, result = run(cfg, "shipped", 0, dataset("soft", train, TASK.tokenizer()), heldout)
    print(json.dumps({k: result[k] for k in ("cpu_seconds", "scores")}, indent=1))
    if not args["validate"]: ship(model, heldout, args["out"])


if __name__ == "__main__": main()
