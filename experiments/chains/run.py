"""Ordinary chains: can a model learn to hold mixtures from one chain of tokens per problem, and is it worth the time?

    python experiments/chains/run.py                        every confirming run that results/chains.json does not hold yet
    python experiments/chains/run.py --tune                 learning rates, on validation problems; goes first
    python experiments/chains/run.py --again                the second confirmation, in results/chains_again.json
    python experiments/chains/run.py guided teacher --budgets 500 --data optimal --seeds 10 11
    python experiments/chains/run.py guided teacher sampled --task longer --budgets 800 --seeds 30 31 32 33 34 35 36 37

README.md beside this file says what is compared, how much time each arm has, and what was settled before the first run.
"""
import argparse, platform, random, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch, transformers

from soft_decoding import (
    MNNS, ChainDataset, GumbelMixer, KSampleMixer, SoftToken, SoftTrainer, SoftTrainingArguments, State, TokenDist, accuracy, plain_mixer,
    prompt_batch, soft_rollout)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments/mnns"))
import train as mnns  # noqa: E402: the model, its task and its settings
import records  # noqa: E402
from records import known  # noqa: E402

TUNED, SEEDS = (0, 1), tuple(range(10, 20))


@dataclass
class Setting:
    "A task, the model that learns it, and how long."
    about: str                                 # One line for tables
    task: MNNS
    config: mnns.Config
    rates: dict                                # Learning rates by budget: guided steps that take as long
    record: str                                # Name of its file
    train: int | None = None                   # Problems to learn from; None: all there are
    costs: dict = field(default_factory=dict)  # CPU time of a step, in guided steps, where it is not the arm's

    @property
    def steps(self): return self.task.digits - 1


SETTINGS = dict(
    short=Setting("MNNS, 4 digits 1-9", mnns.TASK, mnns.Config(split_seed=1), {500: (6e-3, 1.2e-2, 2.4e-2), 2000: (3e-3, 6e-3, 1.2e-2)}, "chains.json"),
    longer=Setting("MNNS, 5 numbers 1-20", MNNS(digits=5, low=1, high=20), mnns.Config(split_seed=1, n_embd=64, n_inner=256, n_head=2, heldout=1000),
                   {800: (3e-3, 6e-3, 1.2e-2), 2400: (3e-3, 6e-3, 1.2e-2)}, "chains_longer.json", 20_000, dict(teacher=.56, sampled=1.02)))
HERE = replace(SETTINGS["short"])  # The one that is run
FALLING = dict(engine="sequential", guidance_floor=0., guidance_warmup=HERE.config.warmup, guidance_hold=HERE.config.hold)
NEVER = dict(engine="sequential", guidance_schedule="constant", guidance_start=0., guidance_floor=0., guidance_warmup=0., guidance_hold=0.)


def of_another(dist, ctx=None):
    "The mixture of the row before, in the batch: of another problem."
    if dist.probs.shape[0] < 2: raise ValueError("a batch of one problem has no other.")
    ids = None if dist.ids is None else dist.ids.roll(1, 0)
    return SoftToken(TokenDist(ids, dist.probs.roll(1, 0)), dist.argmax())


@dataclass
class Arm:
    about: str                                 # One line for tables
    decoder: str
    cost: float                                # CPU time of a step, in guided steps
    args: dict = field(default_factory=dict)   # Of SoftTrainingArguments
    mixer: object = plain_mixer
    pause: bool = False                        # Pause tokens instead of the chain; labels stay
    rate_of: str = ""                          # Arm whose learning rate it has; "": one of its own
    dropout: float = 0.                        # Everywhere in the model


# Costs are what `--cost` printed
ARMS = dict(
    guided=Arm("guidance 1 to 0: mixtures fed", "soft", 1., FALLING),
    teacher=Arm("teacher-forced", "tokens", .56, mnns.FORCED),
    sampled=Arm("the same schedule as coins: sampled tokens fed", "tokens", .98, dict(FALLING, guidance_coins=True), KSampleMixer(1)),
    argmax=Arm("the same coins: the likeliest token fed", "tokens", .98, dict(FALLING, guidance_coins=True, top_k=1)),
    coins=Arm("the same coins: mixtures fed", "soft", 1.05, dict(FALLING, guidance_coins=True)),
    no_hops=Arm("guidance 1 to 0, no gradient through what is fed", "soft", .88, dict(FALLING, engine="parallel", passes=None, hops=0)),
    others=Arm("guidance 1 to 0: another problem's mixtures fed", "others", 1.04, FALLING, of_another),
    pause=Arm("pause tokens fed, the same labels", "pause", .55, mnns.FORCED, pause=True),
    never=Arm("no guidance from the start", "soft", 1.24, NEVER),
    mix=Arm("guided, `mix` instead of `clamp`", "soft", 1., dict(FALLING, guidance="mix"), rate_of="guided"),
    floor=Arm("guided, the share falls to a quarter only", "soft", 1., dict(FALLING, guidance_floor=.25), rate_of="guided"),
    cosine=Arm("guided, the share falls by a cosine", "soft", 1., dict(FALLING, guidance_schedule="cosine"), rate_of="guided"),
    entropy=Arm("guided, a tenth of the entropy added to the loss", "soft", 1., dict(FALLING, beta=.1), rate_of="guided"),
    noise=Arm("guided, Gumbel-softmax weights fed in training", "soft", 1., FALLING, GumbelMixer(.5), rate_of="guided"),
    teacher_more=Arm("teacher-forced, a fifth more steps", "tokens", .467, mnns.FORCED, rate_of="teacher"),
    decay=Arm("teacher-forced, weight decay .1", "tokens", .56, dict(mnns.FORCED, weight_decay=.1), rate_of="teacher"),
    dropout=Arm("teacher-forced, dropout .1", "tokens", .56, mnns.FORCED, rate_of="teacher", dropout=.1),
    dropout_05=Arm("teacher-forced, dropout .05", "tokens", .56, mnns.FORCED, rate_of="teacher", dropout=.05),
    dropout_02=Arm("teacher-forced, dropout .02", "tokens", .56, mnns.FORCED, rate_of="teacher", dropout=.02),
    guided_05=Arm("guided, dropout .05", "soft", 1., FALLING, rate_of="guided", dropout=.05),
    guided_02=Arm("guided, dropout .02", "soft", 1., FALLING, rate_of="guided", dropout=.02),
)


# ------------------------------------------------------------------------------------------------------- problems
def fixed(problems, kind, seed):
    "One chain per problem, the same whenever it is seen."
    rng = random.Random(f"chain {seed}")
    return [replace(p, chain=HERE.task.draw_chain(p.record["digits"], rng, kind)) for p in problems]


def dataset(arm, kind, problems, tokenizer, seed):
    "What an arm learns from: `kind` is that of the sign path, 'optimal' or 'random', and '... fresh' draws it at every visit."
    path, _, fresh = kind.partition(" ")
    if fresh: data = ChainDataset(problems, tokenizer, "hard", chains=lambda p: HERE.task.chains(p, kind=path), seed=seed)
    else: data = ChainDataset(fixed(problems, path, seed), tokenizer, "hard", seed=seed)
    if arm.pause:
        ids, soft = data.table["input_ids"], data.table["soft_mask"]
        data.table |= dict(input_ids=ids.masked_fill(soft, tokenizer.bos_token_id), soft_mask=torch.zeros_like(soft))
    return data


# ------------------------------------------------------------------------------------------------------- training
def cost_of(name): return HERE.costs.get(name, ARMS[name].cost)
def steps_of(name, budget): return round(budget / cost_of(name))


def trainer_of(arm, kind, seed, steps, rate, problems):
    "The trainer of one run, with a new model."
    tokenizer = HERE.task.tokenizer()
    model, data = mnns.make_model(HERE.config, tokenizer, seed), dataset(arm, kind, problems, tokenizer, seed)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout): part.p = arm.dropout
    args = SoftTrainingArguments(**dict(
        output_dir=tempfile.mkdtemp(), max_steps=steps, seed=seed, use_cpu=True, learning_rate=rate, lr_scheduler_type="cosine",
        warmup_steps=HERE.config.lr_warmup, weight_decay=HERE.config.weight_decay, adam_beta2=.99, per_device_train_batch_size=HERE.config.batch_size,
        dataloader_drop_last=True, save_strategy="no", logging_steps=50, report_to="none", disable_tqdm=True) | arm.args)
    trainer = SoftTrainer(model, args, train_dataset=data, data_collator=data.collate, processing_class=tokenizer, mixer=arm.mixer)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, model, tokenizer


# ------------------------------------------------------------------------------------------------------- decoding
def parts(validate=False):
    "Problems to learn from, and held-out ones."
    return HERE.task.split(HERE.config.heldout, HERE.config.split_seed, train=HERE.train, validate=validate)


def prompts_of(problems, tokenizer): return prompt_batch(problems, tokenizer)["input_ids"]


@torch.no_grad()
def answers(model, ids):
    "Distribution of the answer after a prompt and a chain, `(rows, v)`."
    return model(ids).logits[:, -1].double().softmax(-1)


@torch.no_grad()
def chains_of(model, ids, n, beams=False):
    "`n` chains per prompt and the weight of each, `(b n, t)` and `(b, n)`: drawn, or the best beams."
    torch.manual_seed(0)
    how = dict(num_beams=n, do_sample=False, length_penalty=0.) if beams else dict(do_sample=True, top_k=0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=n, max_new_tokens=HERE.steps, min_new_tokens=HERE.steps,
                         return_dict_in_generate=True, output_scores=True, **how)
    weights = out.sequences_scores.view(-1, n).softmax(-1) if beams else torch.full((len(ids), n), 1 / n)
    return out.sequences, weights


def by_chains(model, ids, n, beams=False):
    "The answer whose probability is largest on average over chains, and the one that most of them are followed by."
    sequences, weights = chains_of(model, ids, n, beams)
    each = answers(model, sequences).view(len(ids), n, -1)
    drawn = torch.multinomial(each.flatten(0, 1), 1, generator=torch.Generator().manual_seed(0)).view(len(ids), n)
    votes = torch.nn.functional.one_hot(drawn, each.shape[-1]).sum(1)
    return (weights[..., None] * each).sum(1).argmax(-1), votes.argmax(-1)


def decoders(model, tokenizer, problems, few=False):
    "Share of right answers by decoder; `few` leaves out what tuning does not ask for."
    ids, gold = prompts_of(problems, tokenizer), torch.tensor([tokenizer.convert_tokens_to_ids(p.answer) for p in problems])
    right = lambda said: round((said == gold).double().mean().item(), 4)
    out = {name: round(accuracy(model, tokenizer, problems, **options)["accuracy"], 4)
           for name, options in dict(soft={}, greedy=dict(top_k=1)).items()}
    for n in (16,) if few else (4, 16):
        mean, votes = by_chains(model, ids, n)
        out |= {f"mean_{n}": right(mean), f"votes_{n}": right(votes)}
    return out | ({} if few else dict(beams_4=right(by_chains(model, ids, 4, beams=True)[0])))


TOKENS = "greedy", "mean_16", "votes_16"  # Decoders of tokens that tuning looks at


def judged(arm, model, tokenizer, problems, few=False):
    "All decoders that an arm has."
    if arm.decoder == "pause":
        pauses = " ".join([tokenizer.bos_token] * HERE.steps)
        problems = [replace(p, prompt=f"{p.prompt} {pauses}") for p in problems]
        return dict(pause=round(accuracy(model, tokenizer, problems, steps=0)["accuracy"], 4))
    out = decoders(model, tokenizer, problems, few)
    if arm.decoder == "others": out["others"] = round(accuracy(model, tokenizer, problems, mixer=of_another)["accuracy"], 4)
    return out


def own_decoders(arm):
    "What an arm may be judged by; tuning chooses one."
    return TOKENS if arm.decoder == "tokens" else (arm.decoder,)


@torch.no_grad()
def trace(model, tokenizer, problems):
    "Per step of thinking, means over problems: what is fed beside the open sums and beside those that lead to the answer."
    state = State.start(model, prompts_of(problems, tokenizer))
    infos = soft_rollout(model, state, HERE.steps, trace_k=0, keep=("scores",))[1]
    place = lambda dists: torch.tensor([[d.get(w, 0.) for w in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))] for d in dists])
    rows = []
    for i, info in enumerate(infos):
        fed = info.scores.double().softmax(-1)
        open_sums = place([p.soft[i] for p in problems]).double()
        leading = place([step_share(HERE.task.chains(p), i) for p in problems]).double()
        kl = lambda true: torch.where(true > 0, true * (true.log() - fed.log()), 0.).sum(-1).mean().item()
        n = (open_sums > 0).sum(-1)
        held = [len(set(f.topk(int(k)).indices.tolist()) & set(t.nonzero().flatten().tolist())) / int(k) for f, t, k in zip(fed, open_sums, n)]
        rows.append(dict(kl_open=round(kl(open_sums), 4), kl_leading=round(kl(leading), 4), entropy=round(-(fed * fed.log()).nansum(-1).mean().item(), 4),
                         entropy_open=round(-(open_sums * open_sums.log()).nansum(-1).mean().item(), 4), recall=round(sum(held) / len(held), 4)))
    return rows


def step_share(chains, i):
    "Weights of the i-th sums of chains."
    total, out = sum(chains.values()), {}
    for chain, w in chains.items(): out[chain[i]] = out.get(chain[i], 0.) + w / total
    return out


def costs(model, tokenizer, problems):
    "Rows that the model runs on, and CPU milliseconds, per problem at batch 256."
    problems, ids = problems[:256], prompts_of(problems[:256], tokenizer)
    def spent(call):
        call()
        began = time.process_time(); call(); call()
        return round((time.process_time() - began) / 2 / len(problems) * 1000, 3)
    ways = dict(soft=(HERE.steps + 1, lambda: accuracy(model, tokenizer, problems)), greedy=(HERE.steps + 1, lambda: accuracy(model, tokenizer, problems, top_k=1)),
                mean_4=(4 * (HERE.steps + 1), lambda: by_chains(model, ids, 4)), mean_16=(16 * (HERE.steps + 1), lambda: by_chains(model, ids, 16)),
                beams_4=(4 * (HERE.steps + 1), lambda: by_chains(model, ids, 4, beams=True)))
    return {name: dict(passes=n, cpu_ms=spent(call)) for name, (n, call) in ways.items()}


def run(name, kind, budget, seed, rate, train, heldout, few=False):
    "Train one model and score it."
    arm, began = ARMS[name], time.process_time()
    trainer, model, tokenizer = trainer_of(arm, kind, seed, steps_of(name, budget), rate, train)
    trainer.train()
    spent = time.process_time() - began
    model.eval()
    losses = [round(h["loss"], 4) for h in trainer.state.log_history if "loss" in h]
    found = dict(arm=name, data=kind, budget=budget, seed=seed, rate=rate, steps=steps_of(name, budget), cpu_seconds=round(spent, 1),
                 loss=losses[-1] if losses else None, scores=judged(arm, model, tokenizer, heldout, few))
    if few or arm.decoder == "pause": return found
    return found | dict(trace=trace(model, tokenizer, heldout), **(dict(costs=costs(model, tokenizer, heldout)) if seed == SEEDS[0] else {}))


# --------------------------------------------------------------------------------------------------------- record
def header(train, heldout):
    "What is the same for all runs."
    describe = lambda name, arm: dict(about=arm.about, decoder=arm.decoder, cost=cost_of(name), args=arm.args)
    return dict(
        what=f"{HERE.about}, one ordinary chain per problem: ways to train, at the same CPU time",
        config=asdict(HERE.config), arms={name: describe(name, arm) for name, arm in ARMS.items()}, train=len(train), heldout=len(heldout),
        rules=HERE.task.rules(heldout, train), versions={k: version(k) for k in ("torch", "transformers")} | dict(python=platform.python_version()),
        hardware=dict(machine=platform.machine(), threads=1), tuning=[], runs=[])


@contextmanager
def opened(path, fresh):
    "The record, in order."
    with records.opened(path, fresh) as record:
        record |= dict(arms=fresh["arms"])
        yield record
        order = lambda r: (r["data"], r["budget"], list(ARMS).index(r["arm"]), r["rate"], r["seed"])
        for part in ("tuning", "looks", "runs"): record[part] = sorted(record.pop(part, []), key=order)


def tuned(path, name, kind, budget):
    "Mean over the tuning seeds of each learning rate and decoder that all of them have."
    found = {}
    for r in known(path, "tuning"):
        if (r["arm"], r["data"], r["budget"]) != (name, kind, budget): continue
        for way in own_decoders(ARMS[name]): found.setdefault((r["rate"], way), []).append(r["scores"][way])
    return {key: sum(x) / len(x) for key, x in found.items() if len(x) == len(TUNED)}


def chosen(path, name, kind, budget):
    "The learning rate and the decoder that are best together."
    found = tuned(path, ARMS[name].rate_of or name, kind, budget)
    if wanted(found, budget): raise SystemExit(f"{name} ({kind}, {budget}) is not tuned yet; run it with --tune first.")
    return max(found, key=found.get)


def decoder_at(path, name, kind, budget, rate):
    "The decoder that was best on validation problems at a learning rate; the last one where that was not tried."
    found = {way: x for (r, way), x in tuned(path, name, kind, budget).items() if r == rate}
    return max(found, key=found.get) if found else own_decoders(ARMS[name])[-1]


def wanted(found, budget):
    "Learning rates that are still to be tried: those of the budget, then the next one where the best is at the edge."
    tried = sorted({rate for rate, _ in found})
    if left := [rate for rate in HERE.rates[budget] if rate not in tried]: return left
    best = max(found, key=found.get)[0]
    return [2 * best] if best == tried[-1] else [best / 2] if best == tried[0] else []


def do(path, names, kinds, budgets, seeds, rate=None):
    "The confirming runs that the record lacks; with a rate of the user, looks, which stand apart."
    part = "runs" if rate is None else "looks"
    train, heldout = parts()
    for kind, budget, seed, name in ((k, b, s, n) for k in kinds for b in budgets for s in seeds for n in names):
        used, way = chosen(path, name, kind, budget) if rate is None else (rate, decoder_at(path, name, kind, budget, rate))
        key = (name, kind, budget, seed, used)
        if any((r["arm"], r["data"], r["budget"], r["seed"], r["rate"]) == key for r in known(path, part)): continue
        add(path, part, run(*key, train, heldout) | dict(judged_by=way))


def tune(path, names, kinds, budgets, rate=None):
    "Learning rates, or one of the user, on multisets taken from the training part."
    train, heldout = parts(validate=True)
    for kind, budget, name in ((k, b, n) for k in kinds for b in budgets for n in names):
        while left := wanted(tuned(path, name, kind, budget), budget) if rate is None else [rate]:
            for seed in TUNED:
                key = (name, kind, budget, seed, left[0])
                if any((r["arm"], r["data"], r["budget"], r["seed"], r["rate"]) == key for r in known(path, "tuning")): continue
                add(path, "tuning", run(*key, train, heldout, few=True))
            if rate is not None: break


def add(path, part, found):
    "A finished run, into the record."
    with opened(path, header(*parts())) as record: record.setdefault(part, []).append(found)
    print(*(found[k] for k in ("arm", "data", "budget", "seed", "rate", "cpu_seconds", "scores")), flush=True)


AGAIN = dict(guided=(1.2e-2, "soft"), teacher=(1.2e-2, "mean_16"), teacher_more=(1.2e-2, "mean_16"), sampled=(1.2e-2, "greedy"), coins=(1.2e-2, "soft"))  # Rate and decoder; settled before


def again(path, names, seeds, kind="optimal"):
    "The second confirmation: other seeds, another split, the safer rate."
    HERE.config.split_seed = 2
    train, heldout = parts()
    for seed in seeds:
        for name in names:
            if any((r["arm"], r["data"], r["seed"]) == (name, kind, seed) for r in known(path, "runs")): continue
            rate, way = AGAIN[name]
            add(path, "runs", run(name, kind, 500, seed, rate, train, heldout) | dict(judged_by=way))


def cost(names, steps=300, rounds=3):
    "CPU time of a step in guided ones: medians of interleaved runs."
    train, _ = parts()
    seconds = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            trainer, *_ = trainer_of(ARMS[name], "optimal", 0, steps, 6e-3, train)
            began = time.process_time(); trainer.train()
            seconds[name].append((time.process_time() - began) / steps)
    middle = {name: sorted(x)[len(x) // 2] for name, x in seconds.items()}
    print({name: (round(s / middle["guided"], 3), round(s, 4)) for name, s in middle.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--data", nargs="+", default=["optimal"], help="optimal, random; 'optimal fresh' and 'random fresh' draw a chain at every visit")
    parser.add_argument("--task", choices=SETTINGS, default="short", help="; ".join(f"{k}: {x.about}" for k, x in SETTINGS.items()))
    parser.add_argument("--budgets", type=int, nargs="+", help="guided steps that take as long: 500 or 2000; 800 or 2400 for the longer task")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the confirming runs")
    parser.add_argument("--again", type=int, nargs="*", metavar="SEED", help="the second confirmation; seeds 20 to 29 if none is given")
    parser.add_argument("--rate", type=float, help="another learning rate than the tuned one: a look, kept apart from the confirming runs; with --tune, the only one tried")
    parser.add_argument("--tune", action="store_true", help="try the learning rates")
    parser.add_argument("--cost", action="store_true", help="measure what a step of each arm costs")
    parser.add_argument("--record", type=Path, help="results/chains.json; results/chains_longer.json for the longer task")
    args = parser.parse_args()
    if wrong := set(args.arms) - set(ARMS): parser.error(f"unknown arm {min(wrong)}; there are {', '.join(ARMS)}.")
    HERE.__dict__.update(vars(SETTINGS[args.task]))
    budgets, record = args.budgets or list(HERE.rates), args.record or ROOT / "results" / HERE.record
    if wrong := set(budgets) - set(HERE.rates): parser.error(f"unknown budget {min(wrong)}; this task has {', '.join(map(str, HERE.rates))}.")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    names = args.arms or [name for name, arm in ARMS.items() if not arm.rate_of]
    if args.cost: return cost(names)
    if args.again is not None:
        for kind in args.data: again(ROOT / "results/chains_again.json", args.arms or [name for name in AGAIN if not ARMS[name].rate_of], args.again or range(20, 30), kind)
        return
    if args.tune: return tune(record, names, args.data, budgets, args.rate)
    do(record, names, args.data, budgets, args.seeds, args.rate)


if __name__ == "__main__": main()
