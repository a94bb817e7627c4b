"""Make the model shipped in `soft_decoding/assets/mnns`: `python experiments/mnns_first/train.py`

A stopgap: it stands on torch and transformers alone, and is to be replaced by a call of the library's
trainer.

MNNS (minimum non-negative sum): given 4 digits 1-9, the smallest sum >= 0 over all choices of signs. Prompt
`3 1 4 2`, then three *soft* steps, then the answer token, then `<eos>`. The target of soft step t is the
distribution of the partial sum of the first t digits when every sign is a fair coin: each of the 2^t sign
paths weighs 1/2^t. What is fed at a soft step is always a mixture of input embeddings, `sum_i w_i E(i)`, with

    w = guidance_alpha * target + (1 - guidance_alpha) * softmax(logits)

`guidance_alpha` stays at 1 (teacher forcing), falls to 0, and stays there (the model lives on its own
beliefs, with gradients through all three steps). The baseline is the same architecture trained on hard
chains: the true partial sums of one sign choice that reaches the optimum, drawn afresh whenever a problem is
seen.
"""
import argparse, itertools, json, os, platform, random, time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch, tokenizers, transformers
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
DIGITS, N_SOFT, MAX_SUM = 4, 3, 36
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCAB = SPECIALS + [str(n) for n in range(-MAX_SUM, MAX_SUM + 1)]  # digits and partial sums share tokens
PAD, BOS, EOS, UNK = range(4)
ZERO = VOCAB.index("0")                                            # the id of number n is ZERO + n
SIGNS = tensor(list(itertools.product([1, -1], repeat=DIGITS)))    # (16, 4), every sign choice


@dataclass
class Config:
    n_layer: int = 2             # Transformer blocks
    n_head: int = 1              # Attention heads per block
    n_embd: int = 32             # Width
    n_inner: int = 128           # Width of the MLP
    tie: bool = False            # Share input and output embeddings?
    init: float = 0.1            # Standard deviation of the initial weights
    steps: int = 3000            # Optimizer steps
    batch_size: int = 256        # Problems per step
    lr: float = 3e-3             # Peak learning rate (AdamW; linear warm-up, then cosine to 0)
    warmup: int = 100            # Warm-up steps
    weight_decay: float = 0.01   # Of every parameter
    teacher: float = 0.3         # Share of the steps with guidance_alpha = 1
    free: float = 0.3            # Share of the steps with guidance_alpha = 0; in between it falls linearly
    heldout: int = 99            # Held-out multisets (of 495), the same for every seed
    split_seed: int = 0          # Seed of the split and of the order of `heldout.jsonl`


# ------------------------------------------------------------------------------------------------ data
class Problems:
    "Problems as tensors: prompts, soft targets, answers and the partial sums of all 16 sign choices."
    def __init__(self, digits: list[tuple[int, ...]]):
        self.digits = tensor(digits)                                             # (n, 4)
        n, steps = len(digits), N_SOFT
        self.prompts = F.pad(self.digits + ZERO, (1, 0), value=BOS)              # (n, 5)
        self.sums = (self.digits[:, None] * SIGNS).cumsum(-1)                    # (n, 16, 4)
        total = self.sums[..., -1]
        self.answers = total.masked_fill(total < 0, 99).min(-1).values           # (n,), the number itself
        self.optimal = (total == self.answers[:, None]).float()                  # (n, 16)
        ids = (self.sums[..., :steps] + ZERO).transpose(1, 2)                    # (n, 3, 16)
        weight = torch.full(ids.shape, 1 / len(SIGNS))
        self.targets = torch.zeros(n, steps, len(VOCAB)).scatter_add_(2, ids, weight)  # (n, 3, v)

    def __len__(self): return len(self.digits)

    def hard_chains(self, idx: Tensor, generator: torch.Generator) -> Tensor:
        "One-hot partial sums of one optimal sign choice per problem, drawn uniformly, `(b, 3, v)`."
        pick = torch.multinomial(self.optimal[idx], 1, generator=generator)[:, 0]
        return F.one_hot(self.sums[idx, pick, :N_SOFT] + ZERO, len(VOCAB)).float()


def split(cfg: Config, validate: bool) -> tuple[list, list]:
    "Training and evaluation problems, disjoint as multisets; `validate` evaluates on part of the training."
    rng = random.Random(cfg.split_seed)
    multisets = list(itertools.combinations_with_replacement(range(1, 10), DIGITS))
    rng.shuffle(multisets)
    held, rest = multisets[:cfg.heldout], multisets[cfg.heldout:]
    if validate: held, rest = rest[:cfg.heldout], rest[cfg.heldout:]
    expand = lambda ms: [p for m in ms for p in sorted(set(itertools.permutations(m)))]
    train, evaluation = expand(rest), expand(held)
    rng.shuffle(evaluation)
    return train, evaluation


# ----------------------------------------------------------------------------------------------- model
def make_model(cfg: Config) -> GPT2LMHeadModel:
    "A GPT-2 with everything small and no dropout."
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(VOCAB), n_positions=32, n_embd=cfg.n_embd, n_layer=cfg.n_layer, n_head=cfg.n_head,
        n_inner=cfg.n_inner, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0., initializer_range=cfg.init,
        tie_word_embeddings=cfg.tie, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD))


def make_tokenizer() -> PreTrainedTokenizerFast:
    "Whitespace-separated numbers; `<bos>` in front."
    tok = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCAB)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", model_max_length=32, clean_up_tokenization_spaces=False)


def rollout(model, prompts: Tensor, choose, last: Tensor | None = None) -> Tensor:
    """Logits of the three soft steps and the answer, `(b, 4, v)`, then of `<eos>` if the answer ids `last`
    are given. `choose(step, logits)` gives the weights `(b, v)` of the mixture fed back."""
    embedding = model.get_input_embeddings()
    table = embedding(torch.arange(len(VOCAB)))                     # every token's embedding, (v, d)
    out = model(inputs_embeds=embedding(prompts), use_cache=True, logits_to_keep=1)
    all_logits = [out.logits]
    for step in range(N_SOFT):
        mixed = (choose(step, all_logits[-1][:, -1]) @ table)[:, None]
        if step == N_SOFT - 1 and last is not None:
            mixed = torch.cat([mixed, embedding(last)[:, None]], 1)
        out = model(inputs_embeds=mixed, past_key_values=out.past_key_values, use_cache=True)
        all_logits.append(out.logits)
    return torch.cat(all_logits, 1)


def forced(model, prompts: Tensor, weights: Tensor, last: Tensor) -> Tensor:
    "The same logits in one pass when the mixtures `weights` are known, `(b, 5, v)`."
    embedding = model.get_input_embeddings()
    table = embedding(torch.arange(len(VOCAB)))
    embeds = torch.cat([embedding(prompts), weights @ table, embedding(last)[:, None]], 1)
    return model(inputs_embeds=embeds, use_cache=False).logits[:, DIGITS:]


# -------------------------------------------------------------------------------------------- training
def guidance(cfg: Config, step: int) -> float:
    "guidance_alpha: 1, then linearly to 0, then 0."
    start, end = cfg.teacher * cfg.steps, (1 - cfg.free) * cfg.steps
    return min(1., max(0., (end - step) / max(1., end - start)))


def train(cfg: Config, data: Problems, seed: int, soft: bool, log: int = 500):
    "Train one model; deterministic for its seed."
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(cfg).train()
    opt = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.99))
    cosine = lambda s: 0.5 * (1 + torch.cos(tensor(torch.pi * s / cfg.steps)).item())
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1) / cfg.warmup) * cosine(s))
    for step in range(cfg.steps):
        idx = torch.randint(len(data), (cfg.batch_size,), generator=generator)
        last = data.answers[idx] + ZERO
        steps = data.targets[idx] if soft else data.hard_chains(idx, generator)
        alpha = guidance(cfg, step) if soft else 1.
        if alpha == 1: logits = forced(model, data.prompts[idx], steps, last)
        else:
            mix = lambda t, logits: alpha * steps[:, t] + (1 - alpha) * logits.softmax(-1)
            logits = rollout(model, data.prompts[idx], mix, last)
        ends = F.one_hot(torch.stack([last, torch.full_like(last, EOS)], 1), len(VOCAB)).float()
        target = torch.cat([steps, ends], 1)                        # (b, 5, v)
        loss = -(target * logits.log_softmax(-1)).sum(-1).mean()
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); sched.step()
        if log and (step + 1) % log == 0:
            print(f"  step {step + 1} alpha {alpha:.2f} loss {loss.item():.4f}", flush=True)
    return model.eval()


# ------------------------------------------------------------------------------------------ evaluation
def full(step, logits): return logits.softmax(-1)
def top10(step, logits):
    "Softmax over the ten likeliest tokens."
    return logits.masked_fill(logits < logits.topk(10).values[:, -1:], -torch.inf).softmax(-1)
def argmax(step, logits): return F.one_hot(logits.argmax(-1), len(VOCAB)).float()


@torch.no_grad()
def evaluate(model, data: Problems) -> dict:
    "Accuracy of the three read-outs, and how the full-softmax beliefs match the open sums at each soft step."
    res = {}
    for name, choose in dict(soft_full=full, soft_top10=top10, discrete=argmax).items():
        logits = rollout(model, data.prompts, choose)
        answers = logits[:, -1].argmax(-1)
        ok = (answers == data.answers + ZERO).float()
        res[name], res[f"{name}_se_by_multiset"] = ok.mean().item(), cluster_se(data, ok)
        if name != "soft_full": continue
        end = rollout(model, data.prompts, choose, last=answers)[:, -1].argmax(-1) == EOS
        res["eos_after_answer"] = end.float().mean().item()
        probs, open_sums = logits[:, :N_SOFT].softmax(-1), data.targets > 0  # (n, 3, v)
        res["mass_on_open"] = (probs * open_sums).sum(-1).mean(0).tolist()
        rank, count = probs.argsort(-1, descending=True).argsort(-1), open_sums.sum(-1)
        recalled = (open_sums & (rank < count[..., None])).sum(-1) / count
        res["recall"] = recalled.mean(0).tolist()
        res["all_recalled"] = (recalled == 1).float().mean(0).tolist()
        res["total_variation"] = (probs - data.targets).abs().sum(-1).div(2).mean(0).tolist()
        gold = rollout(model, data.prompts, lambda step, _: data.targets[:, step])[:, -1].argmax(-1)
        res["fed_true_mixtures"] = (gold == data.answers + ZERO).float().mean().item()
    return res


def cluster_se(data: Problems, ok: Tensor) -> float:
    "Standard error of the accuracy with whole multisets as the sampling unit."
    _, group = data.digits.sort(-1).values.unique(dim=0, return_inverse=True)
    resid = torch.zeros(int(group.max()) + 1).index_add_(0, group, ok - ok.mean())
    g = len(resid)
    return ((g / (g - 1) * resid.square().sum()).sqrt() / len(ok)).item()


def rules(data: Problems, fit: Problems) -> dict:
    "Accuracy of the commonest answer, and of the commonest answer given the parity of the sum (from `fit`)."
    commonest = lambda keep: fit.answers[keep].mode().values
    parity, fit_parity = data.digits.sum(-1) % 2, fit.digits.sum(-1) % 2
    by_parity = torch.stack([commonest(fit_parity == p) for p in (0, 1)])
    acc = lambda guess: (guess == data.answers).float().mean().item()
    return dict(majority=acc(commonest(slice(None))), parity=acc(by_parity[parity]))


# --------------------------------------------------------------------------------------------- command
def ship(model, heldout: Problems, out: Path):
    "Write the model, the tokenizer and the held-out problems."
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    make_tokenizer().save_pretrained(out)
    rows = [dict(prompt=" ".join(map(str, d)), answer=str(a))
            for d, a in zip(heldout.digits.tolist(), heldout.answers.tolist())]
    (out / "heldout.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def cpu_name() -> str:
    "The processor's name, as Linux tells it."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one is shipped")
    add("--out", type=Path, default=ROOT / "soft_decoding/assets/mnns", help="folder of the model")
    add("--results", type=Path, help="record to write [results/mnns_first.json]")
    add("--no-baseline", action="store_true", help="leave the discrete baseline out")
    add("--validate", action="store_true", help="tune: hold back training multisets, write only --results")
    for k, v in asdict(Config()).items():
        parse = (lambda s: s.lower() in ("1", "true")) if isinstance(v, bool) else type(v)
        parser.add_argument(f"--{k}", type=parse, default=v)
    args = vars(parser.parse_args())
    cfg = Config(**{k: args[k] for k in asdict(Config())})

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    start = time.time()
    data, heldout = map(Problems, split(cfg, args["validate"]))
    runs = []
    for kind in ["soft"] if args["no_baseline"] else ["soft", "discrete"]:
        for seed in args["seeds"]:
            t0 = time.time()
            model = train(cfg, data, seed, soft=kind == "soft")
            seconds = round(time.time() - t0, 1)
            runs.append(dict(kind=kind, seed=seed, seconds=seconds, **evaluate(model, heldout)))
            print(json.dumps(runs[-1]), flush=True)
            if kind == "soft" and seed == args["seeds"][0] and not args["validate"]:
                ship(model, heldout, args["out"])
    multisets = lambda d: len(d.digits.sort(-1).values.unique(dim=0))
    record = dict(
        what="MNNS, 4 digits 1-9: soft chain (shipped) and discrete chain of the same architecture, "
             "on held-out multisets",
        config=asdict(cfg), parameters=sum(p.numel() for p in model.parameters()), seeds=args["seeds"],
        shipped=dict(seed=args["seeds"][0], rule="the first seed of the list, fixed before training"),
        evaluated_on="validation multisets" if args["validate"] else "held-out multisets",
        train=dict(multisets=multisets(data), problems=len(data)),
        heldout=dict(multisets=multisets(heldout), problems=len(heldout)),
        rules=rules(heldout, data), runs=runs,
        versions=dict(python=platform.python_version(), torch=torch.__version__,
                      transformers=transformers.__version__, tokenizers=tokenizers.__version__),
        hardware=dict(cpu=cpu_name(), threads=1), wall_seconds=round(time.time() - start, 1))
    print(json.dumps({k: record[k] for k in ["parameters", "train", "heldout", "rules", "wall_seconds"]}))
    results = args["results"] or (None if args["validate"] else ROOT / "results/mnns_first.json")
    if results is None: return
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__": main()
