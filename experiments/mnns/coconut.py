"""What is fed back: the last hidden state (Coconut) or the mixture, on the sums of the shipped model.

    python experiments/mnns/coconut.py                      every arm and seed that results/coconut.json does not hold yet
    python experiments/mnns/coconut.py hidden --seeds 0 1   these
    python experiments/mnns/coconut.py hidden --tune        settings to try, on sums that are not the held-out ones

Two pairs of arms differ in what is fed and in nothing else: `hidden` and `mixture` are trained with Coconut's curriculum,
on one discrete chain per problem, drawn afresh, `pause` and `cot` beside them; `hidden_drawn` and `mixture_drawn` have a
label at every step, drawn from the open partial sums, and no curriculum. Model, data, split, batch and length of training
are those of `train.py`.
"""
import argparse, platform, tempfile, time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch, transformers

import train as mnns
import records
from records import known
from soft_decoding import (
    ChainDataset, CoconutRows, HiddenMixer, SoftTrainer, SoftTrainingArguments, accuracy, plain_mixer)
from soft_decoding.recipes import ResetOptimizer
from soft_decoding.trainer import SoftCollator

TASK, ROOT, CFG = mnns.TASK, mnns.ROOT, mnns.Config()
MARKERS, STEPS = ("<bot>", "<eot>"), TASK.digits - 1


@dataclass
class Arm:
    about: str                  # One line for tables
    fed: str                    # "hidden", "mixture", "pause" or "token": what a latent position is fed
    labels: str = "curriculum"  # "curriculum", "chain" (stage 0 throughout) or "drawn" (an open sum at every step)


ARMS = dict(
    hidden=Arm("Coconut: last hidden state, curriculum", "hidden"),
    mixture=Arm("mixture, the same curriculum", "mixture"),
    pause=Arm("pause token, the same curriculum", "pause"),
    cot=Arm("one discrete chain, written out", "token", "chain"),
    hidden_drawn=Arm("last hidden state, a drawn label at every step", "hidden", "drawn"),
    mixture_drawn=Arm("mixture, a drawn label at every step", "mixture", "drawn"),
)
SETTINGS = dict(  # Epochs of a stage, the course of the learning rate, and its peak
    curriculum=dict(epochs=12, schedule="cosine", lr=6e-3), drawn=dict(epochs=50, schedule="cosine", lr=6e-3))
SETTINGS["chain"] = SETTINGS["curriculum"]
TRIED = dict(
    curriculum=dict(epochs=[12], schedule=["constant", "cosine"], lr=[6e-3, 2e-3]),
    drawn=dict(epochs=[50], schedule=["cosine"], lr=[6e-3, 2e-3]))


class Drawn(CoconutRows):
    "Coconut's rows, over chains that are drawn anew in each epoch; the last stage has no step left."
    def __init__(self, problems, tokenizer, seed, last, **options):
        self.chains, self.last = ChainDataset(problems, tokenizer, "hard", chains=TASK.chains, seed=seed), last
        super().__init__([], **options)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.stage = min(self.stage, self.last)
        self.chains.set_epoch(epoch)
        ids = self.chains.table["input_ids"][self.chains.row]
        self.problems = [(x[:TASK.digits + 1], [[i] for i in x[TASK.digits + 1:-2]], x[-2:]) for x in ids.tolist()]

    def __len__(self): return len(self.chains)


def paused(collate):
    "Batches whose latents are fed their own id, which is the start marker."
    def changed(rows):
        batch = collate(rows)
        batch["soft_mask"] = torch.zeros_like(batch["soft_mask"])
        return batch
    return changed


def tokenizer_of(arm):
    tokenizer = TASK.tokenizer()
    if arm.labels != "drawn": tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    return tokenizer


def read_out(arm, model, tokenizer, problems, fed=None):
    "Accuracy of the decoding that the arm is trained for, or with something else fed."
    fed, between, options = fed or arm.fed, " ".join(MARKERS), {}
    if fed == "hidden": options["mixer"] = HiddenMixer()
    if fed == "token": options["top_k"] = 1
    if fed == "pause": options["steps"] = 0
    if fed == "pause": between = " ".join([*[MARKERS[0]] * (STEPS + 1), MARKERS[1]])
    if arm.labels == "drawn": return accuracy(model, tokenizer, problems, **options)
    if arm.labels == "chain" or fed == "pause":
        problems = [replace(p, prompt=f"{p.prompt} {between}") for p in problems]
    else: problems = [replace(p, prompt=f"{p.prompt} {MARKERS[0]}", end=MARKERS[1]) for p in problems]
    return accuracy(model, tokenizer, problems, **options)


def data_of(arm, problems, tokenizer, seed, epochs):
    "What an arm trains on, and how it is put into batches."
    if arm.labels == "drawn":
        data = ChainDataset(problems, tokenizer, "hard", chains=partial(TASK.chains, kind="random"), seed=seed)
        return data, data.collate
    data = Drawn(problems, tokenizer, seed, 0 if arm.labels == "chain" else STEPS, epochs_per_stage=epochs,
                 markers=tokenizer.convert_tokens_to_ids(list(MARKERS)), max_stage=STEPS)
    collate = SoftCollator(tokenizer.pad_token_id)
    return data, paused(collate) if arm.fed == "pause" else collate


def run(name, seed, train, heldout, settings):
    "Train one model and score it."
    arm, start = ARMS[name], time.process_time()
    tokenizer = tokenizer_of(arm)
    model = mnns.make_model(CFG, tokenizer, seed)
    data, collate = data_of(arm, train, tokenizer, seed, settings["epochs"])
    look = mnns.Look(100, partial(read_out, arm, model, tokenizer, heldout[:CFG.look]))
    staged = arm.labels == "curriculum"
    with tempfile.TemporaryDirectory() as folder:
        args = SoftTrainingArguments(
            folder, max_steps=CFG.long_steps, seed=seed, use_cpu=True, learning_rate=settings["lr"],
            lr_scheduler_type="constant_with_warmup" if settings["schedule"] == "constant" else "cosine",
            warmup_steps=CFG.lr_warmup, weight_decay=CFG.weight_decay, adam_beta2=.99,
            per_device_train_batch_size=CFG.batch_size, dataloader_drop_last=True, save_strategy="no", logging_steps=50,
            report_to="none", disable_tqdm=True, engine="sequential", guidance_schedule="constant", guidance_start=0.,
            guidance_floor=0., guidance_warmup=0., guidance_hold=0.)
        trainer = SoftTrainer(model, args, train_dataset=data, data_collator=collate, processing_class=tokenizer,
                              mixer=HiddenMixer() if arm.fed == "hidden" else plain_mixer,
                              callbacks=[look, *([ResetOptimizer(settings["epochs"])] if staged else [])])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [[h["step"], round(h["loss"], 4)] for h in trainer.state.log_history if "loss" in h]
    cpu = time.process_time() - start
    scores = {arm.fed: read_out(arm, model.eval(), tokenizer, heldout)}
    if arm.fed in ("hidden", "mixture"):  # what the other would make of it, and a token that says nothing
        for other in {"hidden", "mixture", "token", *(["pause"] if staged else [])} - {arm.fed}:
            scores[other] = read_out(arm, model, tokenizer, heldout, other)
    return dict(arm=name, seed=seed, cpu_seconds=round(cpu, 1), cpu_seconds_of_looks=round(look.seconds, 1),
                losses=losses, scores=scores, curve=look.curve)


def header(train, heldout):
    "What is the same for all runs."
    return dict(
        what="MNNS, 4 digits 1-9: the last hidden state fed back, and the mixture; scored on held-out multisets",
        config=dict(asdict(CFG), steps=CFG.long_steps, latents=STEPS, settings=SETTINGS),
        arms={name: asdict(arm) for name, arm in ARMS.items()},
        parameters=sum(p.numel() for p in mnns.make_model(CFG, TASK.tokenizer(), 0).parameters()),
        train=len(train), heldout=len(heldout), rules=TASK.rules(heldout, train),
        versions={k: version(k) for k in ("torch", "transformers")} | dict(python=platform.python_version()),
        hardware=dict(machine=platform.machine(), threads=1), tuning=[], runs=[])


@contextmanager
def opened(path, fresh):
    "The record, in order."
    with records.opened(path, fresh) as record:
        record["config"], record["arms"] = fresh["config"], fresh["arms"]
        yield record
        record["runs"].sort(key=lambda r: (r["seed"], list(ARMS).index(r["arm"])))


def tune(names, path, fresh):
    "Each setting once, seed 0, scored on multisets taken from the training part."
    train, heldout = TASK.split(CFG.heldout, CFG.split_seed, validate=True)
    for name in names:
        options = TRIED[ARMS[name].labels]
        for settings in (dict(zip(options, values)) for values in product(*options.values())):
            if any(r["arm"] == name and r["settings"] == settings for r in known(path, "tuning")): continue
            found = run(name, 0, train, heldout, settings)
            score = found["scores"][ARMS[name].fed]["accuracy"]
            with opened(path, fresh) as record: record["tuning"].append(dict(arm=name, settings=settings, accuracy=score))
            print(name, settings, round(score, 4), f"{found['cpu_seconds']} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--tune", action="store_true", help="try settings, on sums taken from the training part")
    parser.add_argument("--record", type=Path, default=ROOT / "results/coconut.json")
    args = parser.parse_args()
    if wrong := set(args.arms) - set(ARMS): parser.error(f"unknown arm {min(wrong)}; there are {', '.join(ARMS)}.")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    train, heldout = TASK.split(CFG.heldout, CFG.split_seed)
    fresh = header(train, heldout)
    if args.tune: return tune(args.arms or ["hidden", "hidden_drawn"], args.record, fresh)
    for seed in args.seeds:
        for name in args.arms or ARMS:
            if any((r["arm"], r["seed"]) == (name, seed) for r in known(args.record)): continue
            result = run(name, seed, train, heldout, SETTINGS[ARMS[name].labels])
            with opened(args.record, fresh) as record: record["runs"].append(result)
            print(name, seed, f"{result['cpu_seconds']} s",
                  {k: round(s["accuracy"], 4) for k, s in result["scores"].items()}, flush=True)


if __name__ == "__main__": main()
