"""Graph reachability: does a model that thinks in mixtures find its way where one that thinks in tokens does not?

    python experiments/graphs/run.py --tune                 learning rates, on validation graphs; goes first
    python experiments/graphs/run.py                        every run that results/graphs.json does not hold yet
    python experiments/graphs/run.py soft discrete --seeds 0 1

README.md beside this file says what the arms are, what is asked, and what was settled before the first run.
"""
import argparse, os, platform, sys, tempfile, time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch, transformers
from transformers import GenerationConfig, Lfm2Config, Lfm2ForCausalLM, LogitsProcessorList, SuppressTokensLogitsProcessor

from soft_decoding import (
    ChainDataset, CoconutRows, HiddenMixer, ProsQA, SoftTrainer, SoftTrainingArguments, State, Think, accuracy, plain_mixer, probe,
    prompt_batch, soft_generate, soft_rollout)
from soft_decoding.recipes import FixedSteps
from soft_decoding.trainer import SoftCollator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import records  # noqa: E402
from records import known  # noqa: E402

TASK, EDGES = ProsQA(size=12, min_steps=2, max_steps=4), range(9, 14)  # Graphs, and how many edges they may have
DEEP, DEEP_EDGES = 16, range(16, 19)  # The same of larger graphs: number of nodes, and of edges
FILES = Path(os.environ.get("SOFT_DECODING_SHARED", ROOT.parent / "shared")) / "data/prosqa"
GRAPHS, HELD, PER_DEPTH, DEPTHS, MOST = 40_000, 1000, 200, (2, 3, 4, 5, 6), TASK.max_steps
WIDTH, LAYERS, HEADS, BATCH, WARMUP = 64, ("conv", "full_attention", "full_attention"), 4, 128, 150
BUDGET = 1600  # Teacher-forced steps; other arms have as many as take that time
RATES, TUNED, SEEDS = (2e-3, 4e-3, 8e-3), (100,), tuple(range(8))
PROBED, STAGE = 300, 3  # Graphs that the causal probes take; epochs of a stage of Coconut's curriculum
FORCED = dict(guidance_schedule="constant", guidance_start=1., guidance_floor=1.)
FALLING = dict(engine="parallel", passes=MOST + 1, hops=1, guidance_floor=0., guidance_warmup=.3, guidance_hold=.3)
OWN = dict(engine="parallel", passes=MOST + 1, hops=MOST, guidance_schedule="constant", guidance_start=0., guidance_floor=0., guidance_warmup=0., guidance_hold=0.)


@dataclass
class Arm:
    about: str                                # One line for tables
    kind: str                                 # Of `ChainDataset`, or "coconut"
    decoder: str                              # What it is made for
    cost: float = 1.                          # CPU time of a step, in teacher-forced ones; `--cost` measures it
    args: dict = field(default_factory=lambda: FORCED)  # Of SoftTrainingArguments
    mixer: object = plain_mixer
    rate_of: str = ""                         # Arm whose learning rate it has; "": one of its own

    @property
    def steps(self): return round(BUDGET / self.cost)


ARMS = dict(
    soft=Arm("all nodes that a walk may have reached, teacher-forced", "soft", "soft", 1.1),
    guided=Arm("one shortest path, guidance 1 to 0: mixtures fed", "hard", "soft", 1.9, args=FALLING),
    discrete=Arm("one shortest path, teacher-forced", "hard", "tokens"),
    argmax=Arm("one shortest path, the same schedule as coins: the likeliest token fed", "hard", "tokens", 1.9, args=dict(FALLING, guidance_coins=True, top_k=1), rate_of="guided"),
    coconut=Arm("Coconut: last hidden state, curriculum", "coconut", "hidden", 3.7, args=OWN, mixer=HiddenMixer()),
    pause=Arm("pause tokens fed, the labels of `soft`", "pause", "pause", 1.1, rate_of="soft"),
    none=Arm("no chain", "none", "none", .9, rate_of="discrete"),
)


# ------------------------------------------------------------------------------------------------------- problems
def asked(problem):
    "A full stop behind each edge, and the node to start from last, where the thinking begins."
    *facts, _, root, one, two, think = problem.prompt.split()
    edges = [" ".join([*facts[i:i + 2], "."]) for i in range(0, len(facts), 2)]
    return replace(problem, prompt=" ".join([*edges, "?", one, two, root, think]))


def graphs(n, seed, task=TASK, edges=EDGES):
    "So many graphs, with this number of edges."
    found, part = [], 0
    while len(found) < n:
        found += [r for r in task.generate(20, seed=10_000 * seed + part) if len(r["edges"]) in edges]
        part += 1
    return [asked(task.problem(r)) for r in found[:n]]


@cache
def training_graphs(): return graphs(GRAPHS, 0)


@cache
def held_out(validate=False): return graphs(HELD, 10 if validate else 11)


@cache
def deep_graphs(hops):
    "Larger graphs, with about as many edges whatever the hops."
    return graphs(PER_DEPTH, hops, replace(TASK, size=DEEP, min_steps=hops, max_steps=hops), DEEP_EDGES)


@cache
def file_problems(): return [asked(TASK.problem(r)) for r in TASK.load("test", FILES)]


def by_hops(problems):
    "Parts whose chains are of one length."
    lengths = sorted({len(p.chain) for p in problems})
    return {k: [p for p in problems if len(p.chain) == k] for k in lengths}


# ------------------------------------------------------------------------------------------------------- training
def make_model(seed, tokenizer):
    "A small LFM2: a short convolution, which sees the two tokens before, and two layers of attention."
    transformers.set_seed(seed)
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    model = Lfm2ForCausalLM(Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, block_auto_adjust_ff_dim=False, num_hidden_layers=len(LAYERS),
        layer_types=list(LAYERS), num_attention_heads=HEADS, num_key_value_heads=HEADS, conv_L_cache=3, max_position_embeddings=256,
        tie_word_embeddings=False, **ids))
    model.generation_config = GenerationConfig(**ids)
    return model


class Staged(CoconutRows):
    "Coconut's rows; an epoch is a fifteenth of the training, over graphs of its own, so that all stages have their turn."
    def __init__(self, problems, tokenizer, rows, **options):
        self.all = [([*map(tokenizer.convert_tokens_to_ids, p.prompt.split()[:-1])], [[i] for i in tokenizer.convert_tokens_to_ids(p.chain)],
                     [tokenizer.convert_tokens_to_ids(p.answer), tokenizer.eos_token_id]) for p in problems]
        self.rows = rows
        super().__init__([], **options)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.stage = min(self.stage, MOST)
        self.problems = [self.all[i % len(self.all)] for i in range(epoch * self.rows, (epoch + 1) * self.rows)]


@cache
def rows_of(kind): return ChainDataset(training_graphs(), TASK.tokenizer(256), kind)


def data_of(arm, tokenizer, steps):
    "What an arm trains on, and how it is put into batches."
    if arm.kind != "coconut":
        return rows_of(arm.kind), rows_of(arm.kind).collate
    markers = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    rows = BATCH * -(-steps // (STAGE * (MOST + 1)))
    data = Staged(training_graphs(), tokenizer, rows, epochs_per_stage=STAGE, markers=markers, max_stage=MOST)
    return data, SoftCollator(tokenizer.pad_token_id)


def trainer_of(name, seed, rate, steps):
    "The trainer of one run, with a new model."
    arm, tokenizer = ARMS[name], TASK.tokenizer(256)
    model, (data, collate) = make_model(seed, tokenizer), data_of(arm, tokenizer, steps)
    args = SoftTrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, seed=seed, use_cpu=True, learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=min(WARMUP, steps // 5),
        weight_decay=.01, adam_beta2=.99, per_device_train_batch_size=BATCH, dataloader_drop_last=True, save_strategy="no", logging_steps=50,
        report_to="none", disable_tqdm=True, **arm.args)
    trainer = SoftTrainer(model, args, train_dataset=data, data_collator=collate, processing_class=tokenizer, mixer=arm.mixer)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, model, tokenizer


# ------------------------------------------------------------------------------------------------------- decoding
def share(right): return round(sum(right) / len(right), 4)


def soft(model, tokenizer, problems, **options): return round(accuracy(model, tokenizer, problems, **options)["accuracy"], 4)


def forced(model, tokenizer, problems, steps=None, **options):
    "As many soft steps as there are hops (or `steps`), then the end of thinking, then the answer."
    end = [tokenizer.convert_tokens_to_ids("</think>")]
    parts = {steps: problems} if steps else by_hops(problems)
    right = [soft(model, tokenizer, part, steps=k, think=FixedSteps(k, end), **options) * len(part) for k, part in parts.items()]
    return round(sum(right) / len(problems), 4)


@torch.no_grad()
def votes(model, tokenizer, problems, n, beams=False):
    "For each problem, answers and their shares: of `n` drawn chains, or of `n` beams by their probability."
    torch.manual_seed(0)
    how = dict(num_beams=n, do_sample=False, length_penalty=0.) if beams else dict(do_sample=True, top_k=0)
    found = []
    for part in (problems[i:i + 100] for i in range(0, len(problems), 100)):
        ids = prompt_batch(part, tokenizer)
        out = model.generate(**ids, num_return_sequences=n, max_new_tokens=MOST + 3, return_dict_in_generate=True, output_scores=beams, **how)
        weights = out.sequences_scores.view(-1, n).softmax(-1).tolist() if beams else [[1 / n] * n] * len(part)
        texts = tokenizer.batch_decode(out.sequences[:, ids["input_ids"].shape[1]:], skip_special_tokens=True)
        for i, weight in enumerate(weights):
            found.append(Counter())
            for text, w in zip(texts[i * n:], weight): found[-1][text.rpartition("</think>")[2].strip()] += w
    return found


def by_tokens(model, tokenizer, problems, n, beams=False):
    "Share of problems of which the answer with most votes is right."
    found = votes(model, tokenizer, problems, n, beams)
    return share([p.check(answers.most_common(1)[0][0]) for p, answers in zip(problems, found)])


def soft_answers(model, tokenizer, problems, **options):
    "For each problem, answers and their probabilities, behind as many soft steps as hops."
    names, end, found = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), [tokenizer.convert_tokens_to_ids("</think>")], {}
    for hops, part in by_hops(problems).items():
        out = soft_generate(model, **prompt_batch(part, tokenizer), tokenizer=tokenizer, think=FixedSteps(hops, end), max_new_tokens=hops + 2,
                            return_dict_in_generate=True, output_scores=True, **options)
        for p, dist in zip(part, out.scores[-1].double().softmax(-1).tolist()): found[id(p)] = Counter(dict(zip(names, dist)))
    return [found[id(p)] for p in problems]


def calibration(answers, problems, bins=10):
    "Share right, mean confidence, expected calibration error, Brier score (0 to 2) of answers with their probabilities."
    best = [found.most_common(1)[0] for found in answers]
    right, sure = [p.answer == answer for p, (answer, _) in zip(problems, best)], [w for _, w in best]
    gaps = [0.] * bins
    for r, w in zip(right, sure): gaps[min(int(w * bins), bins - 1)] += w - r
    brier = [sum(w * w for w in found.values()) - 2 * found[p.answer] + 1 for p, found in zip(problems, answers)]
    mean = lambda x: round(sum(x) / len(problems), 4)
    return dict(right=mean(right), sure=mean(sure), ece=mean([abs(g) for g in gaps]), brier=mean(brier))


def calibrated(model, tokenizer, problems):
    "How far answers can be trusted, by decoder."
    ways = dict(soft=soft_answers(model, tokenizer, problems), greedy=soft_answers(model, tokenizer, problems, top_k=1), votes_16=votes(model, tokenizer, problems, 16))
    return {name: calibration(found, problems) for name, found in ways.items()}


def paused(model, tokenizer, problems):
    "Pause tokens, as many as there are hops."
    added = lambda p: replace(p, prompt=" ".join([p.prompt, *[tokenizer.bos_token] * len(p.chain)]))
    right = [soft(model, tokenizer, [added(p) for p in part], steps=0) * len(part) for part in by_hops(problems).values()]
    return round(sum(right) / len(problems), 4)


TOKENS = "greedy", "votes_16"  # Decoders of tokens that tuning looks at


def decoded(arm, model, tokenizer, problems, few=False):
    "Share of right answers by decoder; `few` leaves out what tuning does not ask for."
    if arm.decoder == "pause": return dict(pause=paused(model, tokenizer, problems))
    if arm.decoder == "none": return dict(none=soft(model, tokenizer, problems, steps=0))
    if arm.decoder == "hidden": return dict(hidden=forced(model, tokenizer, problems, MOST, mixer=HiddenMixer()))
    out = dict(soft=soft(model, tokenizer, problems))
    if few and arm.decoder == "soft": return out
    out |= dict(greedy=soft(model, tokenizer, problems, top_k=1), votes_16=by_tokens(model, tokenizer, problems, 16))
    return out if few else out | dict(forced=forced(model, tokenizer, problems), beams_4=by_tokens(model, tokenizer, problems, 4, beams=True))


def open_ended(tokenizer): return LogitsProcessorList([SuppressTokensLogitsProcessor([tokenizer.convert_tokens_to_ids("</think>")])])


@torch.no_grad()
def trace(model, tokenizer, problems):
    "Per number of hops and step: the share of what is fed that lies on reachable nodes, and its divergence from the walks."
    rows, go_on = [], open_ended(tokenizer)
    place = lambda dists: torch.tensor([[d.get(w, 0.) for w in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))] for d in dists]).double()
    for hops, part in by_hops(problems).items():
        prompts = prompt_batch(part, tokenizer)
        infos = soft_rollout(model, State.start(model, **prompts), hops, trace_k=0, keep=("scores",), processors=go_on)[1]
        for i, info in enumerate(infos):
            fed, true = info.scores.double().softmax(-1), place([p.soft[i] for p in part])
            kl = torch.where(true > 0, true * (true.clamp_min(1e-300).log() - fed.log()), 0.).sum(-1).mean().item()
            rows.append(dict(hops=hops, step=i + 1, mass=round((fed * (true > 0)).sum(-1).mean().item(), 4), kl=round(kl, 4),
                             entropy=round(-(fed * fed.log()).nansum(-1).mean().item(), 4), open=round((true > 0).sum(-1).double().mean().item(), 2)))
    return rows


def at_depths(model, tokenizer):
    "Larger graphs, of one size at all hops: deeper ones than were learned, too. Forced steps are kept from the end of thinking."
    out = {}
    for hops in DEPTHS:
        problems = deep_graphs(hops)
        free = dict(soft=soft(model, tokenizer, problems, steps=max(DEPTHS)), greedy=soft(model, tokenizer, problems, steps=max(DEPTHS), top_k=1))
        out[hops] = dict(free, forced=forced(model, tokenizer, problems, logits_processor=open_ended(tokenizer)), trace=trace(model, tokenizer, problems))
    return out


def probed(model, tokenizer, problems):
    "What replacements of single spans leave, by the probes of the library."
    found = probe(model, tokenizer, problems[:PROBED], dict(think=Think(max_tokens=MOST, end="</think>")), max_new_tokens=MOST + 3)
    return dict(rows=found.rows(), verdict=found.verdict())


def run(name, seed, rate, few=False):
    "Train one model and score it."
    arm, problems = ARMS[name], held_out(validate=few)
    training_graphs() if arm.kind == "coconut" else rows_of(arm.kind)  # not part of the training's time
    began = time.process_time()
    trainer, model, tokenizer = trainer_of(name, seed, rate, arm.steps)
    trainer.train()
    spent = time.process_time() - began
    losses = [round(h["loss"], 4) for h in trainer.state.log_history if "loss" in h]
    found = dict(arm=name, seed=seed, rate=rate, steps=arm.steps, cpu_seconds=round(spent, 1), losses=losses[3::4],
                 scores=decoded(arm, model.eval(), tokenizer, problems, few))
    if few or arm.decoder not in ("soft", "tokens"): return found
    ways = dict(soft={}, greedy=dict(top_k=1))
    found |= dict(trace=trace(model, tokenizer, problems), calibration=calibrated(model, tokenizer, problems), depths=at_depths(model, tokenizer),
                  file={k: soft(model, tokenizer, file_problems(), **way) for k, way in ways.items()})
    return found | (dict(probe=probed(model, tokenizer, problems)) if arm.decoder == "soft" else {})


# --------------------------------------------------------------------------------------------------------- record
def header():
    "What is the same for all runs."
    describe = lambda a: dict(about=a.about, decoder=a.decoder, cost=a.cost, steps=a.steps, args=a.args)
    config = dict(nodes=TASK.size, edges=[*EDGES], hops=[TASK.min_steps, TASK.max_steps], graphs=GRAPHS, heldout=HELD, width=WIDTH, layers=list(LAYERS), heads=HEADS, batch=BATCH,
                  warmup=WARMUP, budget=BUDGET, deep=dict(nodes=DEEP, edges=[*DEEP_EDGES], graphs=PER_DEPTH, depths=list(DEPTHS)))
    rules = dict(heldout=TASK.rules(held_out()), file=TASK.rules(file_problems()), **{f"{k} hops": TASK.rules(deep_graphs(k)) for k in DEPTHS})
    tokenizer = TASK.tokenizer(256)
    return dict(what="ProsQA, small graphs, a name per node: ways to think", arms={k: describe(a) for k, a in ARMS.items()}, config=config, rules=rules,
                vocabulary=len(tokenizer), parameters=sum(p.numel() for p in make_model(0, tokenizer).parameters()),
                versions={k: version(k) for k in ("torch", "transformers")} | dict(python=platform.python_version()),
                hardware=dict(machine=platform.machine(), threads=1), tuning=[], runs=[])


@contextmanager
def opened(path, fresh):
    "The record, in order."
    with records.opened(path, fresh) as record:
        yield record
        for part in ("tuning", "runs"): record[part].sort(key=lambda r: (list(ARMS).index(r["arm"]), r["rate"], r["seed"]))


def tuned(path, name):
    "Mean over the tuning seeds by (rate, decoder), for rates that all of them have."
    own = ARMS[ARMS[name].rate_of or name].decoder
    ways, found = TOKENS if own == "tokens" else (own,), {}
    for r in known(path, "tuning"):
        for way in ways if r["arm"] == (ARMS[name].rate_of or name) else (): found.setdefault((r["rate"], way), []).append(r["scores"][way])
    return {key: sum(x) / len(x) for key, x in found.items() if len(x) == len(TUNED)}


def wanted(found):
    "Learning rates that are still to be tried: the next one, too, where the best is at the edge."
    tried = sorted({rate for rate, _ in found})
    if left := [rate for rate in RATES if rate not in tried]: return left
    best = max(found, key=found.get)[0]
    return [2 * best] if best == tried[-1] else [best / 2] if best == tried[0] else []


def missing(path, part, *key): return not any((r["arm"], r["seed"], r["rate"]) == key for r in known(path, part))


def add(path, part, fresh, found):
    "A finished run, into the record."
    with opened(path, fresh) as record: record[part].append(found)
    print(*(found[k] for k in ("arm", "seed", "rate", "cpu_seconds", "losses", "scores")), flush=True)


def tune(path, names, fresh):
    "Learning rates, on validation graphs."
    for name in (n for n in names if not ARMS[n].rate_of):
        while left := wanted(tuned(path, name)):
            for seed in TUNED:
                if missing(path, "tuning", name, seed, left[0]): add(path, "tuning", fresh, run(name, seed, left[0], few=True))


def confirm(path, names, seeds, fresh):
    "The runs that the record lacks."
    for seed in seeds:
        for name in names:
            if wanted(found := tuned(path, name)): raise SystemExit(f"{name} is not tuned yet; run it with --tune first.")
            rate = max(found, key=found.get)[0]
            if missing(path, "runs", name, seed, rate): add(path, "runs", fresh, run(name, seed, rate))


def costs(names, steps=6):
    "CPU time of a step in teacher-forced ones: medians of interleaved runs."
    spent = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            trainer = trainer_of(name, 0, 1e-3, steps)[0]
            if ARMS[name].kind == "coconut": trainer.train_dataset.set_epoch(STAGE * 2); trainer.train_dataset.set_epoch = lambda epoch: None  # the stage in the middle
            began = time.process_time(); trainer.train(); spent[name].append((time.process_time() - began) / steps)
    middle = {name: sorted(x)[len(x) // 2] for name, x in spent.items()}
    for name, x in middle.items(): print(name, f"{x:.3f} s,", f"{x / middle['discrete']:.2f} of a teacher-forced step")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tune", action="store_true", help="try the learning rates")
    parser.add_argument("--cost", action="store_true", help="measure what a step of each arm costs")
    parser.add_argument("--record", type=Path, default=ROOT / "results/graphs.json")
    args = parser.parse_args()
    if wrong := set(args.arms) - set(ARMS): parser.error(f"unknown arm {min(wrong)}; there are {', '.join(ARMS)}.")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    names = args.arms or list(ARMS)
    if args.cost: return costs(names)
    fresh = header()
    if args.tune: tune(args.record, names, fresh)
    else: confirm(args.record, names, args.seeds, fresh)


if __name__ == "__main__": main()
