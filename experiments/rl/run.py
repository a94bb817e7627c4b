"""Reinforcement learning on soft tokens and on plain ones, from one model that was taught discrete chains.

    python experiments/rl/run.py                 what results/rl.json does not hold yet, seeds 0 to 7
    python experiments/rl/run.py --tune          learning rates, on validation problems (seeds 100 and 101; --seeds for others)
    python experiments/rl/run.py gumbel --seeds 0
    python experiments/rl/run.py --starts        from models that were taught otherwise, seeds 0 and 1, in results/rl_starts.json
    python experiments/rl/run.py --published     the published setting of the means of three, likewise

MNNS with four numbers of 1 to 20: no rule scores high. Every seed teaches a model of its own, discretely; each arm goes on
from it. Test problems share no multiset with the others; tuning leaves them alone.
"""
import argparse, platform, sys, tempfile, time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch, transformers
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback

from soft_decoding import (
    MNNS, ChainDataset, GumbelMixer, KSampleMixer, SoftGRPOConfig, SoftGRPOTrainer, SoftPPOConfig, SoftPPOTrainer, SoftTrainer,
    SoftTrainingArguments, accuracy, plain_mixer)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
from records import known, opened, read, write  # noqa: E402

TASK, WIDTH, SFT_STEPS, HELD = MNNS(digits=4, low=1, high=20), 32, 2000, 800
RL_STEPS, PROMPTS, COMPLETIONS = 250, 32, 8  # updates; prompts of each; completions of a prompt
RATES = dict(sft=(1e-3, 3e-3, 6e-3, 1e-2, 2e-2), rejection=(1e-3, 3e-3, 6e-3), grpo=(3e-4, 1e-3, 3e-3), ppo=(3e-4, 1e-3, 3e-3, 6e-3))
MORE = dict(gumbel=(1e-4,))  # where the best one was the smallest
GRPO = dict(top_k=None, temperature=1.)
ARMS = dict(
    more_sft=dict(kind="sft"), more_sft_006=dict(kind="sft", rate=6e-3), rejection=dict(kind="rejection"),
    tokens=dict(kind="grpo", mixer=lambda: KSampleMixer(1), options=GRPO),
    tokens_x3=dict(kind="grpo", mixer=lambda: KSampleMixer(1), options=GRPO | dict(num_generations=3 * COMPLETIONS)),
    k_sample=dict(kind="grpo", mixer=lambda: KSampleMixer(3), options=GRPO),
    gumbel=dict(kind="grpo", mixer=lambda: GumbelMixer(.5), options=GRPO | dict(top_k=5)),
    ppo=dict(kind="ppo", mixer=lambda: KSampleMixer(1), options=GRPO | dict(num_generations=1, vf_coef=.5)))



@dataclass
class Start:
    "What the model is taught before rewards."
    about: str                            # One line for tables
    task: MNNS = field(default_factory=lambda: TASK)
    labels: str = "hard"                  # One optimal chain, drawn at every visit; "soft": all open sums
    args: dict = field(default_factory=lambda: FORCED)  # Of SoftTrainingArguments
    mixer: object = plain_mixer

FORCED = dict(guidance_schedule="constant", guidance_floor=1.)
FALLING = dict(engine="sequential", guidance_floor=0., guidance_warmup=.3, guidance_hold=.3)
WIDER = MNNS(digits=5, low=1, high=50)
STARTS = dict(
    discrete=Start("chains, teacher-forced"),
    guided=Start("chains, guidance 1 to 0", args=FALLING),
    soft=Start("soft labels, teacher-forced", labels="soft"),
    soft_gumbel=Start("soft labels, guidance 1 to 0, Gumbel weights fed", labels="soft", args=FALLING | dict(top_k=5), mixer=GumbelMixer(.5)),
    soft_k_sample=Start("soft labels, guidance 1 to 0, means of three fed", labels="soft", args=FALLING, mixer=KSampleMixer(3)),
    wider=Start("5 of 1-50: soft labels, teacher-forced", WIDER, "soft"),
    wider_gumbel=Start("5 of 1-50: soft labels, guidance 1 to 0, Gumbel weights fed", WIDER, "soft", FALLING | dict(top_k=5), GumbelMixer(.5)))


class RootMixer(KSampleMixer):
    "Means of `k` tokens whose ratio of probabilities is taken to the power 1/k."
    def log_prob(self, *args, **kwargs): return super().log_prob(*args, **kwargs) / self.k


# 100 epochs of 800 problems, 16 at a time; logits divided by three in rollouts and scores
PUBLISHED = dict(kind="grpo", updates=5000, prompts=16, problems=800, constant=True)
HEATED = GRPO | dict(temperature=3., epsilon=.1, scale_rewards=True)
PUBLISHED_ARMS = dict(
    published_tokens=dict(PUBLISHED, mixer=lambda: KSampleMixer(1), options=HEATED | dict(temperature=1.)),
    published_k_sample=dict(PUBLISHED, mixer=lambda: RootMixer(3), options=HEATED),
    heated_k_sample=dict(kind="grpo", mixer=lambda: KSampleMixer(3), options=GRPO | dict(temperature=3.)))  # the rest as in `ARMS`
PUBLISHED_RATES = dict(published_tokens=(5e-6, 3e-4), published_k_sample=(5e-6, 3e-4), heated_k_sample=(1e-3,))

def rates_of(name): return (*MORE.get(name, ()), *RATES[ARMS[name]["kind"]])

@lru_cache
def parts(start, validate):
    return STARTS[start].task.split(HELD, 0, train=20_000, validate=validate)

def new_model(tokenizer, seed):
    transformers.set_seed(seed)
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=WIDTH, n_layer=1, n_head=1, n_inner=4 * WIDTH, resid_pdrop=0.,
        embd_pdrop=0., attn_pdrop=0., initializer_range=.1, tie_word_embeddings=False, **ids))

@lru_cache
def lessons(start, validate):
    "Training problems with soft labels, or with chains that end in the answer, drawn afresh at every visit."
    task, labels = STARTS[start].task, STARTS[start].labels
    chains = dict(chains=task.chains) if labels == "hard" else {}
    return ChainDataset(parts(start, validate)[0], task.tokenizer(), labels, **chains)

def taught(model, tokenizer, data, seed, steps, rate, warmup=50, start=STARTS["discrete"]):
    "Supervised training."
    data.seed = seed
    args = SoftTrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=256, learning_rate=rate, lr_scheduler_type="cosine",
        warmup_steps=warmup, adam_beta2=.99, weight_decay=.01, seed=seed, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        logging_steps=100, **start.args)
    trainer = SoftTrainer(model, args, train_dataset=data, data_collator=data.collate, processing_class=tokenizer, mixer=start.mixer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()

@lru_cache(maxsize=2)
def base(seed, validate, start="discrete"):
    "The model that all arms of a seed go on from, its weights and its CPU time."
    tokenizer, data = STARTS[start].task.tokenizer(), lessons(start, validate)
    began = time.process_time()
    model = taught(new_model(tokenizer, seed), tokenizer, data, seed, SFT_STEPS, 6e-3, start=STARTS[start])
    return {k: v.clone() for k, v in model.state_dict().items()}, time.process_time() - began

def rows(problems): return [dict(prompt=p.prompt, answer=p.answer) for p in problems]

def right(completions, answer, **kwargs):
    "1 where the last number is the answer."
    return [float(c.split()[-1:] == [a]) for c, a in zip(completions, answer)]

def rl_trainer(arm, model, tokenizer, seed, rate, problems, steps=RL_STEPS):
    kind = SoftPPOTrainer if arm["kind"] == "ppo" else SoftGRPOTrainer
    config = SoftPPOConfig if arm["kind"] == "ppo" else SoftGRPOConfig
    digits = len(problems[0].record["digits"])
    options, prompts = arm["options"] | dict(think_tokens=digits - 1, max_completion_length=digits), arm.get("prompts", PROMPTS)
    n = options.setdefault("num_generations", COMPLETIONS)
    batch = prompts * n if arm["kind"] == "grpo" else prompts * COMPLETIONS  # PPO: as many completions
    schedule = dict(lr_scheduler_type="constant") if arm.get("constant") else dict(lr_scheduler_type="cosine", warmup_steps=20)
    args = config(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate, seed=seed, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=max(20, steps // 12), **schedule, **options)
    made = kind(model, right, args, train_dataset=rows(problems), processing_class=tokenizer, mixer=arm["mixer"]())
    made.remove_callback(PrinterCallback)
    return made

def sampled(arm, model, tokenizer, problems, n=8):
    "Which of `n` draws by the arm's own sampler are right, `(problems, n)`."
    made = rl_trainer(arm, model, tokenizer, 0, 1e-3, problems, steps=1)
    wanted = [row for row in rows(problems) for _ in range(n)]
    state, infos = made.complete(made.soft, wanted, -1)
    said = tokenizer.batch_decode(state.input_ids[:, -len(infos):], skip_special_tokens=True)
    return torch.tensor(right(said, [row["answer"] for row in wanted])).view(-1, n), said

def majority(said, problems, n, of):
    "The answer that the first `of` of `n` draws name most often, the earliest of equals."
    good = 0
    for i, p in enumerate(problems):
        votes = [x.split()[-1] if x.split() else "" for x in said[n * i:n * i + of]]
        good += max(votes, key=votes.count) == p.answer
    return good / len(problems)

def scores(arm, model, tokenizer, problems):
    own = arm if "mixer" in arm else ARMS["tokens"]
    hits, said = sampled(own, model.eval(), tokenizer, problems)
    share = lambda x: round(float(x), 4)
    return dict(
        own=share(hits.mean()), pass_8=share(hits.amax(-1).mean()), majority_3=share(majority(said, problems, 8, 3)),
        majority_8=share(majority(said, problems, 8, 8)), greedy=share(accuracy(model, tokenizer, problems, top_k=1)["accuracy"]),
        mixture=share(accuracy(model, tokenizer, problems)["accuracy"]))

def rejection(model, tokenizer, seed, rate, train, seconds):
    "Draw chains, keep those that end in the answer, and learn from them; three rounds in the same time as RL."
    began, rounds, kept = time.process_time(), 3, 0
    rng = torch.Generator().manual_seed(seed)
    for i in range(rounds):
        problems = [train[j] for j in torch.randperm(len(train), generator=rng)[:4000].tolist()]
        hits, said = sampled(ARMS["tokens"], model.eval(), tokenizer, problems, n=4)
        table = {}
        for k, (text, hit) in enumerate(zip(said, hits.flatten().tolist())):
            if hit and len(chain := text.split()) == TASK.digits: table.setdefault(problems[k // 4].prompt, Counter())[tuple(chain[:-1])] += 1
        mine = [p for p in problems if p.prompt in table]
        kept += len(mine)
        data = ChainDataset(mine, tokenizer, "hard", chains=lambda p, *kind, **options: table[p.prompt])
        left = max(1., seconds * (i + 1) / rounds - (time.process_time() - began))
        steps = max(1, int(left / STEP_SECONDS[0]))
        model = taught(model, tokenizer, data, seed + i, steps, rate, 0)
    return model, kept

STEP_SECONDS = [.025]  # CPU time of a supervised step; measured with every base model

def run(name, seed, rate, validate=False, seconds=None, start="discrete"):
    "One arm of one seed."
    arm, tokenizer = (ARMS | PUBLISHED_ARMS)[name], STARTS[start].task.tokenizer()
    weights, cost = base(seed, validate, start)
    STEP_SECONDS[0] = cost / SFT_STEPS
    model, (train, held) = new_model(tokenizer, seed), parts(start, validate)
    model.load_state_dict(weights)
    began, more = time.process_time(), {}
    if arm["kind"] == "sft":
        model = taught(model, tokenizer, lessons(start, validate), seed + 1000, int(seconds / STEP_SECONDS[0]), rate, 0, STARTS[start])
    elif arm["kind"] == "rejection": model, more["kept"] = rejection(model, tokenizer, seed, rate, train, seconds)
    else:
        trainer = rl_trainer(arm, model, tokenizer, seed, rate, train[:arm.get("problems")], arm.get("updates", RL_STEPS))
        trainer.train()
        logs = [h for h in trainer.state.log_history if "reward" in h]
        keys = ("reward", "entropy", "entropy_soft", "frac_reward_zero_std", "clip_fraction_soft", "explained_variance")
        more["log"] = [[h["step"], *(round(h[k], 4) if k in h else None for k in keys)] for h in logs]
    spent = time.process_time() - began
    return dict(arm=name, seed=seed, rate=rate, cpu_seconds=round(spent, 1), base_cpu_seconds=round(cost, 1),
                scores=scores(arm, model, tokenizer, held), **more)

def before(seed, start="discrete", arms=()):
    "The model that the arms go on from; by the samplers of some of them, too."
    tokenizer, held = STARTS[start].task.tokenizer(), parts(start, False)[1]
    model = new_model(tokenizer, seed)
    model.load_state_dict(base(seed, False, start)[0])
    drawn = {name: round(float(sampled((ARMS | PUBLISHED_ARMS)[name], model.eval(), tokenizer, held)[0].mean()), 4) for name in arms}
    return dict(arm="base", seed=seed, scores=scores({}, model, tokenizer, held), **(dict(drawn=drawn) if arms else {}))

def rule_rewards():
    "What the two rules would earn on the training problems, and the share of groups without variance when training starts."
    train, held = parts("discrete", False)
    return dict(test=TASK.rules(held, train), training=TASK.rules(train, train))

def header():
    return dict(what="MNNS, 4 numbers of 1-20: reinforcement learning after discrete supervised training", rules=rule_rewards(),
                settings=dict(width=WIDTH, layers=1, heads=1, sft_steps=SFT_STEPS, rl_steps=RL_STEPS, prompts=PROMPTS, completions=COMPLETIONS,
                              rates=RATES, test_problems=HELD), tuned={}, tuning=[], runs=[],
                versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
                hardware=f"{platform.machine()}, 1 thread")

def tune(path, record, seconds, seeds):
    "Three rates per arm on validation problems; the best mean of the arm's own sampler."
    for seed in seeds:
        for name in ARMS:
            if name in ("tokens_x3", "more_sft_006"): continue  # as `tokens`; with a rate of its own
            for rate in rates_of(name):
                if any((r["arm"], r["seed"], r["rate"]) == (name, seed, rate) for r in record["tuning"]): continue
                record["tuning"].append(run(name, seed, rate, validate=True, seconds=seconds))
                write(path, record)
                print("tune", name, seed, rate, record["tuning"][-1]["scores"], record["tuning"][-1]["cpu_seconds"], flush=True)
    for name in ARMS.keys() - {"tokens_x3", "more_sft_006"}:
        mean = lambda rate: sum(r["scores"]["own"] for r in record["tuning"] if (r["arm"], r["rate"]) == (name, rate))
        record["tuned"][name] = max(rates_of(name), key=mean)
    record["tuned"]["tokens_x3"] = record["tuned"]["tokens"]
    write(path, record)

LOOKED = dict(k_sample=(3e-4, 1e-3), gumbel=(3e-4, 1e-3), more_sft=(6e-3,))  # Arms and learning rates of the looks

def looks(path, seeds, seconds, starts, arms):
    "Arms from some starts, into a record of their own."
    first = dict(what="MNNS: rewards after other ways to teach, and as published", runs=[],
                 starts={k: dict(about=s.about, digits=s.task.digits, high=s.task.high, rules=s.task.rules(*reversed(parts(k, False)))) for k, s in STARTS.items()},
                 published={k: v for k, v in PUBLISHED.items() if k != "kind"},
                 versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
                 hardware=f"{platform.machine()}, 1 thread")
    for seed in seeds:
        for start in starts:
            for name, rate in [("base", None), *((name, rate) for name, rates in arms.items() for rate in rates)]:
                if any((r["start"], r["arm"], r["seed"], r.get("rate")) == (start, name, seed, rate) for r in known(path)): continue
                drawn = tuple(arm for arm in arms if arm != "more_sft")
                made = before(seed, start, drawn) if name == "base" else run(name, seed, rate, seconds=seconds, start=start)
                with opened(path, first) as record: record["runs"].append(dict(start=start, **made))
                print(start, name, seed, rate, made["scores"], made.get("cpu_seconds"), made.get("drawn"), flush=True)

def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("arms", nargs="*")
    options.add_argument("--seeds", type=int, nargs="+")
    options.add_argument("--seconds", type=float, default=28., help="CPU time of the supervised arms; that of the longest other one")
    options.add_argument("--record", type=Path, default=ROOT / "results/rl.json")
    options.add_argument("--tune", action="store_true")
    options.add_argument("--starts", nargs="*", choices=STARTS, metavar="START", help=f"from models taught otherwise: {', '.join(STARTS)}; all but the first if none is given")
    options.add_argument("--published", action="store_true", help="the published setting of the means of three, and tokens in the same one")
    given = options.parse_args()
    torch.set_num_threads(1); transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
    beside = given.record.with_name("rl_starts.json")
    if given.published: return looks(beside, given.seeds or [0, 1], given.seconds, ["discrete"], PUBLISHED_RATES)
    if given.starts is not None: return looks(beside, given.seeds or [0, 1], given.seconds, given.starts or list(STARTS)[1:], LOOKED)
    record = read(given.record) or header()
    if given.tune: return tune(given.record, record, given.seconds, given.seeds or [100, 101])
    for seed in given.seeds or range(8):
        for name in ["base", *(given.arms or ARMS)]:
            if any((r["arm"], r["seed"]) == (name, seed) for r in record["runs"]): continue
            made = before(seed) if name == "base" else run(name, seed, ARMS[name].get("rate") or record["tuned"][name], seconds=given.seconds)
            record["runs"].append(made)
            write(given.record, record)
            print(name, seed, made["scores"], made.get("cpu_seconds"), flush=True)

if __name__ == "__main__": main()
