"""What soft steps do to a chat model that was never trained on mixtures, over GSM8K and SVAMP questions.

    python ../shared/tools/real_model.py                    makes the model, once
    python experiments/text/untrained.py                    the arms that the record does not hold yet
    python experiments/text/untrained.py default greedy_16  these arms

Per question: nats per token of the gold solution, and of the gold answer, after k steps at the beginning of the
reply; how far a reply of 128 tokens is from the greedy one; entropy, effective support and norm of what was fed.
"""
import copy, json, os, platform, sys, time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from soft_decoding import (
    GumbelMixer, KSampleMixer, Sampling, State, Switch, Think, check_answer, fired, gsm8k, norm_mixer, plain_mixer, recipe, soft_generate,
    soft_rollout, svamp)
from soft_decoding.cache import cache_name, cache_of

NAME = "SmolLM2-135M-Instruct, 4-bit weights"
FOLDER = Path(os.environ.get("SOFT_DECODING_REAL_MODEL", Path.home() / ".cache/soft_decoding/smollm2-135m-instruct"))
RECORD = Path(__file__).parents[2] / "results/text_untrained.json"
QUESTIONS, BATCH, LONG, NEW = (int(x) for x in os.environ.get("SIZES", "200 16 32 128").split())  # questions; rows at a time; of them with whole replies; their tokens
CUE, GAP = "The answer is ", "\n\n"

def default(**changes): return dict(dict(temperature=1., top_k=10, top_p=None, min_p=None, mixer="plain", steps=16), **changes)

ARMS = {f"greedy_{k}": dict(greedy=True, steps=k) for k in (0, 4, 16, 64)} | dict(
    sampled_16=dict(sampled=True, steps=16), default=default(), temperature_03=default(temperature=.3),
    temperature_06=default(temperature=.6), top_k_3=default(top_k=3), top_k_off=default(top_k=None), min_p_01=default(min_p=.1),
    norm=default(mixer="norm"), gumbel=default(mixer="gumbel"), steps_4=default(steps=4), steps_64=default(steps=64),
    uncertain=default(switch="above"), confident=default(switch="below"))
ARMS |= {name: dict(recipe=recipe, steps=16, changes=changes) for name, recipe, changes in (
    ("soft_thinking", "soft-thinking", dict(scaled=True)), ("stochastic_gumbel", "stochastic-gumbel", {}),
    ("mixture_of_inputs", "mixture-of-inputs", {}), ("swireasoning", "swireasoning", dict(scaled=True)), ("selar", "selar", {}))}
THRESHOLD = 2.5  # Nats: about the mean entropy of the default's soft steps
SPANLESS = "mixture-of-inputs", "selar", "cot2", "coconut"  # Methods that take no span
MIXERS = dict(plain=plain_mixer, norm=norm_mixer, gumbel=GumbelMixer(.5))

def plugs(arm, tokenizer):
    "The arguments of a rollout; its first steps are a span, for the model has no markers."
    span = Think(max_tokens=0 if arm.get("greedy") or arm.get("sampled") else arm["steps"])
    if "recipe" in arm:
        own = {} if arm["recipe"] in SPANLESS else dict(think=span)
        return dict(recipe(arm["recipe"], tokenizer, **own, **arm["changes"]))
    if "draws" in arm: return dict(think=span, sampling=Sampling(arm["temperature"]), mixer=KSampleMixer(arm["draws"]))
    if arm.get("greedy"): return dict(think=span, sampling=Sampling(0.))
    if arm.get("sampled"): return dict(think=span, sampling=Sampling(1., 10), do_sample=True)
    if "switch" in arm: span = Switch(THRESHOLD, arm["switch"], think=span)
    filters = {name: arm[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    return dict(think=span, sampling=Sampling(**filters), mixer=MIXERS[arm["mixer"]])

def problems():
    "As many questions of each set, the same every time; and their gold texts."
    data, order = Path(__file__).parents[3] / "shared/data", torch.Generator().manual_seed(0)
    sets = dict(gsm8k=gsm8k("test", data / "gsm8k", template="{question}"), svamp=svamp(data / "svamp", template="{question}"))
    picked = {name: torch.randperm(len(all_of), generator=order)[:QUESTIONS // 2].tolist() for name, all_of in sets.items()}
    return [(name, i, sets[name][i]) for name, where in picked.items() for i in where]

def chat(tokenizer, batch):
    rows = [[dict(role="user", content=p.prompt)] for _, _, p in batch]
    return tokenizer.apply_chat_template(rows, return_tensors="pt", padding=True, add_generation_prompt=True, return_dict=True)

@torch.no_grad()
def prefilled(model, inputs):
    "A state at the prompt whose cache holds all but the last token."
    state = State.start(model, inputs["input_ids"], inputs["attention_mask"])
    positions = state.model_kwargs["position_ids"][:, :-1]
    out = model(input_ids=inputs["input_ids"][:, :-1], attention_mask=inputs["attention_mask"][:, :-1],
                position_ids=positions, logits_to_keep=1)
    state.model_kwargs[cache_name(model)] = cache_of(out)
    return state

@torch.no_grad()
def nats(model, tokenizer, state, texts):
    "Mean nats per token of the second text of each pair, behind the first one and all that the state was fed."
    state = copy.deepcopy(state)
    ids = [tuple(tokenizer(t, add_special_tokens=False)["input_ids"] for t in pair) for pair in texts]
    rows = [torch.tensor(a + b) for a, b in ids]
    labels = [torch.tensor([-100] * len(a) + b) for a, b in ids]
    pad = lambda x, value: nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=value)
    rows, labels = pad(rows, tokenizer.pad_token_id), pad(labels, -100)
    embedding, mask = model.get_input_embeddings(), state.model_kwargs["attention_mask"]
    last = state.input_ids[:, -1]
    pending = (embedding(last) if state.soft is None else state.soft.to_embeds(embedding))[:, None]
    seen = mask.shape[1] - 1  # all but the pending one
    embeds = torch.cat([pending, embedding(rows)], 1)
    mask = nn.functional.pad(mask[:, :seen], (0, embeds.shape[1]), value=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, seen:]
    logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions,
                   past_key_values=cache_of(state.model_kwargs)).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return (loss.sum(-1) / (labels != -100).sum(-1)).tolist()

def scores(model, tokenizer, arm, batch, begun):
    "Gold solution and gold answer after the steps, for the rows of a batch."
    state, steps = copy.deepcopy(begun), arm["steps"]
    options = plugs(arm, tokenizer)
    options.pop("stop_while_thinking", None)  # nothing stops a row here
    state = State.begin(state.input_ids, state.model_kwargs, options.get("think"))
    generators = [torch.Generator().manual_seed(1000 * i + len(name)) for name, i, _ in batch]
    infos = []
    if steps: state, infos = soft_rollout(model, state, steps, generator=generators, trace_k=0, **options)
    gap = GAP if steps else ""
    solution = nats(model, tokenizer, state, [(gap, "\n".join(p.chain)) for _, _, p in batch])
    answer = nats(model, tokenizer, state, [(gap + CUE, f"{p.answer}") for _, _, p in batch])
    return [dict(data=name, index=i, solution=round(s, 5), answer=round(a, 5))
            for (name, i, _), s, a in zip(batch, solution, answer)]

def replies(model, tokenizer, arm, batch):
    "Whole replies: the ids that were read out; and per soft step entropy, effective support and norm of what was fed."
    inputs = chat(tokenizer, batch)
    generators = [torch.Generator().manual_seed(1000 * i + len(name)) for name, i, _ in batch]
    options = plugs(arm, tokenizer)
    traced = dict(trace_k=0) if "greedy" in arm else dict(trace_k=16, trace_embeds=True)  # the norm is that of all that was fed
    out = soft_generate(model, **inputs, **options, generator=generators, max_new_tokens=NEW, tokenizer=tokenizer, **traced)
    ids = out.sequences[:, inputs["input_ids"].shape[1]:].tolist()
    rows = [dict(data=name, index=i, ids=row, right=check_answer(tokenizer.decode(row, skip_special_tokens=True), p.answer))
            for (name, i, p), row in zip(batch, ids)]
    if out.trace is None: return rows
    fed(out, rows)
    for name, values in fired(out, options.get("think")).items():
        for row, value in zip(rows, values): row.setdefault(name, value)
    return rows

def fed(out, rows):
    "Means over a row's soft steps, and what the policy counted."
    trace, soft = out.trace, out.trace.is_soft.float()  # (s, b)
    mean = lambda x: ((x * soft).sum(0) / soft.sum(0).clamp_min(1)).tolist()
    support = torch.special.entr(trace.probs).sum(-1).exp()  # of the best 16
    columns = dict(entropy=mean(trace.entropy), support=mean(support), norm_ratio=mean(trace.norm_ratio),
                   soft=soft.sum(0).tolist())
    for n, row in enumerate(rows): row.update({name: round(values[n], 4) for name, values in columns.items()})

def write(record):
    "After every arm, one line per row."
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record, separators=(",", ":")).replace('{"data"', '\n{"data"') + "\n")
    part.replace(RECORD)

def begin(tokenizer):
    return dict(model=NAME, questions=QUESTIONS, batch=BATCH, whole_replies=LONG, new_tokens=NEW, cue=CUE, gap=GAP, arms={},
                versions={name: version(name) for name in ("torch", "transformers")} | dict(python=platform.python_version()),
                hardware=f"{platform.machine()}, 1 thread")

def main(names):
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER, padding_side="left"), AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else begin(tokenizer)
    asked = problems()
    by_length = sorted(asked, key=lambda x: len(x[2].prompt))  # rows of one length waste no pads
    cut = lambda rows: [rows[i:i + BATCH] for i in range(0, len(rows), BATCH)]
    half = LONG // 2
    batches, long = cut(by_length), cut(sorted(asked[:half] + asked[QUESTIONS // 2:][:half], key=lambda x: len(x[2].prompt)))
    begun = [prefilled(model, chat(tokenizer, batch)) for batch in batches]
    for name in [name for name in names or ARMS if name not in record["arms"]]:
        start = time.process_time()
        rows = [row for batch, state in zip(batches, begun) for row in scores(model, tokenizer, ARMS[name], batch, state)]
        whole = [row for batch in (batches if name == "greedy_0" else long) for row in replies(model, tokenizer, ARMS[name], batch)]
        record["arms"][name] = dict(setting=ARMS[name], rows=rows, replies=whole, cpu_seconds=round(time.process_time() - start, 1))
        mean = {key: round(sum(row[key] for row in rows) / len(rows), 3) for key in ("solution", "answer")}
        print(name, mean, record["arms"][name]["cpu_seconds"], flush=True)
        write(record)

if __name__ == "__main__": main(sys.argv[1:])
