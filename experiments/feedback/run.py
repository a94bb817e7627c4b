"""Feedback or supervision: models with the same soft labels, which are fed different things while they think.

    python experiments/feedback/run.py                 every run that results/feedback.json does not hold yet
    python experiments/feedback/run.py --tune          learning rates, on validation problems; goes first
    python experiments/feedback/run.py own pause --size wide --seeds 0 1

README.md beside this file says what is fed to whom, and what was settled before the first run.
"""
import argparse, platform, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch, transformers
from torch import Tensor

from soft_decoding import MNNS, ChainDataset, SoftToken, Think, TokenDist, accuracy, mix_embeds, plain_mixer, probe, prompt_batch
from soft_decoding.train import made_batch, training_loss

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments/mnns"))
import train as mnns  # noqa: E402: the model
import records  # noqa: E402
from records import known  # noqa: E402

TUNED, SEEDS = (100, 101), tuple(range(8))
RATES = 3e-3, 6e-3, 1.2e-2
PROBED = 300  # Held-out problems that the causal probes take


@dataclass
class Size:
    "A range of numbers, and the model that learns it."
    task: MNNS
    config: mnns.Config
    train: int = 20_000  # Problems to learn from


def config(width, heads, steps): return mnns.Config(n_embd=width, n_inner=4 * width, n_head=heads, steps=steps, heldout=1000, split_seed=1)


SIZES = dict(narrow=Size(MNNS(digits=4, low=1, high=20), config(32, 1, 1500)), wide=Size(MNNS(digits=5, low=1, high=20), config(64, 2, 2400)))
ARMS = dict(
    own="the mixture",
    drawn="one token, drawn from the mixture",
    others="another problem's mixture",
    scrambled="the mixture's weights, on tokens drawn at random",
    single="mixtures that one pass over pause tokens predicts",
    pause="pause tokens",
    none="nothing: no thinking, no labels of it",
)


# ----------------------------------------------------------------------------------------------------- what is fed
def drawn(dist):
    ids = dist.probs.flatten(0, -2).multinomial(1).view(*dist.probs.shape[:-1], 1)
    return TokenDist.one_hot((ids if dist.ids is None else dist.ids.gather(-1, ids))[..., 0], dist.probs.dtype)


def of_another(dist): return TokenDist(None if dist.ids is None else dist.ids.roll(1, 0), dist.probs.roll(1, 0))


def scrambled(dist, size):
    return TokenDist(torch.rand(*dist.probs.shape[:-1], size).argsort(-1)[..., :dist.probs.shape[-1]], dist.probs)


def feeds(tokenizer): return dict(own=lambda dist: dist, drawn=drawn, others=of_another, scrambled=lambda dist: scrambled(dist, len(tokenizer)))


def mixer_of(feed):
    "What feeds this in decoding; the read-out is that of the mixture."
    if feed is None: return plain_mixer
    return lambda dist, ctx=None: SoftToken(feed(dist), dist.argmax())


def run_on(model, ids, at, fed=None):
    "Logits `(b, t, v)` with vectors `fed` `(b, s, d)` at the positions `at`; None: the tokens themselves."
    embeds = model.get_input_embeddings()(ids)
    if fed is not None: embeds = embeds.index_copy(1, at, fed.to(embeds.dtype))
    return model(inputs_embeds=embeds, use_cache=False).logits


def predicted(model, logits, at):
    "The mixtures that are predicted for the positions `at`, as vectors `(b, s, d)`."
    return mix_embeds(TokenDist(None, logits[:, at - 1].softmax(-1)), model.get_input_embeddings())


class FedTrainer(transformers.Trainer):
    "The loss of the soft labels, with what the arm is fed at the positions of thinking."
    def __init__(self, *args, arm, feeds, pause, **kwargs): super().__init__(*args, **kwargs); self.arm, self.feeds, self.pause = arm, feeds, pause

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = made_batch(inputs)
        at = batch.soft_mask[0].nonzero()[:, 0]  # the same in all rows
        if self.arm in self.feeds:
            fed = mix_embeds(self.feeds[self.arm](batch.target_dists[:, at]), model.get_input_embeddings())
            return training_loss(model, run_on(model, batch.input_ids, at, fed), batch)
        ids = batch.input_ids.index_fill(1, at, self.pause)
        first = run_on(model, ids, at)
        if self.arm != "single": return training_loss(model, first, batch)
        second = run_on(model, ids, at, predicted(model, first, at))
        return (training_loss(model, first, batch) + training_loss(model, second, batch)) / 2


def trained(name, size, seed, rate, problems):
    "A model of one arm."
    cfg, tokenizer = SIZES[size].config, SIZES[size].task.tokenizer()
    model = mnns.make_model(cfg, tokenizer, seed)
    data = ChainDataset(problems, tokenizer, "none" if name == "none" else "soft")
    args = transformers.TrainingArguments(
        tempfile.mkdtemp(), max_steps=cfg.steps, seed=seed, use_cpu=True, learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=cfg.lr_warmup,
        weight_decay=cfg.weight_decay, adam_beta2=.99, per_device_train_batch_size=cfg.batch_size, dataloader_drop_last=True, save_strategy="no",
        logging_steps=50, report_to="none", disable_tqdm=True, remove_unused_columns=False)
    trainer = FedTrainer(model, args, train_dataset=data, data_collator=data.collate, arm=name, feeds=feeds(tokenizer), pause=tokenizer.bos_token_id)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    return model.eval(), tokenizer, round(losses[-1], 4)


# ------------------------------------------------------------------------------------------------------- decoding
def paused(problems, tokenizer, steps): return [replace(p, prompt=" ".join([p.prompt, *[tokenizer.bos_token] * steps])) for p in problems]


@torch.no_grad()
def by_single(model, tokenizer, problems, steps):
    "Right answers after one pass over pause tokens and one over what it predicted."
    ids = prompt_batch(paused(problems, tokenizer, steps), tokenizer)["input_ids"]
    at = torch.arange(ids.shape[1] - steps, ids.shape[1])
    said = run_on(model, ids, at, predicted(model, run_on(model, ids, at), at))[:, -1].argmax(-1)
    gold = torch.tensor([tokenizer.convert_tokens_to_ids(p.answer) for p in problems])
    return (said == gold).double().mean().item()


def decoded(how, model, tokenizer, problems):
    "Share of right answers when this is fed in decoding."
    steps = len(problems[0].chain)
    torch.manual_seed(0)  # of what is drawn
    if how == "single": return by_single(model, tokenizer, problems, steps)
    if how == "none": return accuracy(model, tokenizer, problems, steps=0)["accuracy"]
    if how == "pause": return accuracy(model, tokenizer, paused(problems, tokenizer, steps), steps=0)["accuracy"]
    return accuracy(model, tokenizer, problems, mixer=mixer_of(feeds(tokenizer)[how]))["accuracy"]


def probed(model, tokenizer, problems):
    "What replacements of single spans leave, by the probes of the library."
    found = probe(model, tokenizer, problems[:PROBED], dict(think=Think(max_tokens=len(problems[0].chain))), max_new_tokens=8)
    return dict(rows=found.rows(), verdict=found.verdict())


def run(name, size, seed, rate, train, heldout, few=False):
    "Train one model and score it."
    began = time.process_time()
    model, tokenizer, loss = trained(name, size, seed, rate, train)
    spent = time.process_time() - began
    scores = {how: round(decoded(how, model, tokenizer, heldout), 4) for how in ([name] if few else ARMS)}
    found = dict(arm=name, size=size, seed=seed, rate=rate, cpu_seconds=round(spent, 1), loss=loss, scores=scores)
    return found if few or name != "own" else found | dict(probe=probed(model, tokenizer, heldout))


# --------------------------------------------------------------------------------------------------------- record
def parts(size, validate=False):
    "Problems to learn from, and held-out ones."
    s = SIZES[size]
    return s.task.split(s.config.heldout, s.config.split_seed, train=s.train, validate=validate)


def header():
    "What is the same for all runs."
    def of(size):
        train, heldout = parts(size)
        tokenizer = SIZES[size].task.tokenizer()
        return dict(about=f"{SIZES[size].task.digits} numbers from 1 to {SIZES[size].task.high}", config=asdict(SIZES[size].config), train=len(train), heldout=len(heldout),
                    rules=SIZES[size].task.rules(heldout, train), vocabulary=len(tokenizer),
                    parameters=sum(p.numel() for p in mnns.make_model(SIZES[size].config, tokenizer, 0).parameters()))
    return dict(what="MNNS, soft labels: what is fed while a model thinks, in training and in decoding", arms=ARMS, sizes={s: of(s) for s in SIZES},
                versions={k: version(k) for k in ("torch", "transformers")} | dict(python=platform.python_version()),
                hardware=dict(machine=platform.machine(), threads=1), tuning=[], runs=[])


@contextmanager
def opened(path, fresh):
    "The record, in order."
    with records.opened(path, fresh, same=("sizes",)) as record:
        yield record
        for part in ("tuning", "runs"): record[part].sort(key=lambda r: (r["size"], list(ARMS).index(r["arm"]), r["rate"], r["seed"]))


def tuned(path, name, size):
    "Mean over the tuning seeds of each learning rate that all of them have."
    found = {}
    for r in known(path, "tuning"):
        if (r["arm"], r["size"]) == (name, size): found.setdefault(r["rate"], []).append(r["scores"][name])
    return {rate: sum(x) / len(x) for rate, x in found.items() if len(x) == len(TUNED)}


def wanted(found):
    "Learning rates that are still to be tried: the next one, too, where the best is at the edge."
    tried = sorted(found)
    if left := [rate for rate in RATES if rate not in tried]: return left
    best = max(found, key=found.get)
    return [2 * best] if best == tried[-1] else [best / 2] if best == tried[0] else []


def missing(path, part, *key): return not any((r["arm"], r["size"], r["seed"], r["rate"]) == key for r in known(path, part))


def add(path, part, fresh, found):
    "A finished run, into the record."
    with opened(path, fresh) as record: record[part].append(found)
    print(*(found[k] for k in ("arm", "size", "seed", "rate", "cpu_seconds", "loss", "scores")), flush=True)


def tune(path, names, size, fresh):
    "Learning rates, on numbers taken from the training part."
    train, heldout = parts(size, validate=True)
    for name in names:
        while left := wanted(tuned(path, name, size)):
            for seed in TUNED:
                if missing(path, "tuning", name, size, seed, left[0]): add(path, "tuning", fresh, run(name, size, seed, left[0], train, heldout, few=True))


def confirm(path, names, size, seeds, fresh):
    "The runs that the record lacks."
    train, heldout = parts(size)
    for seed in seeds:
        for name in names:
            if wanted(found := tuned(path, name, size)): raise SystemExit(f"{name} ({size}) is not tuned yet; run it with --tune first.")
            rate = max(found, key=found.get)
            if missing(path, "runs", name, size, seed, rate): add(path, "runs", fresh, run(name, size, seed, rate, train, heldout))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--size", choices=SIZES, default="narrow", help="narrow: 1 to 20, width 32; wide: five of 1 to 20, width 64")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tune", action="store_true", help="try the learning rates")
    parser.add_argument("--record", type=Path, default=ROOT / "results/feedback.json")
    args = parser.parse_args()
    if wrong := set(args.arms) - set(ARMS): parser.error(f"unknown arm {min(wrong)}; there are {', '.join(ARMS)}.")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    names, fresh = args.arms or list(ARMS), header()
    if args.tune: tune(args.record, names, args.size, fresh)
    else: confirm(args.record, names, args.size, args.seeds, fresh)


if __name__ == "__main__": main()
