"One model type after another: soft decoding against oracles that call neither this library nor `generate`."
import copy
import inspect
import traceback
from functools import lru_cache, partial

import torch
from torch import tensor
from torch.nn.functional import one_hot
from transformers import GenerationConfig, StaticCache

import tiny
from soft_decoding import State, soft_beam_decode, soft_generate
from soft_decoding.rollout import forward

STEPS, NEW = 12, tensor([[21, 22, 23]] * 3)  # steps of a run, and the ids of a second turn
BOUNDS = {torch.float32: 5e-5, torch.float64: 1e-9}  # of the largest logit: rounding, amplified by the layers
MASK = tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])
IDS = torch.randint(3, 90, MASK.shape, generator=torch.Generator().manual_seed(1)) * MASK
CACHES = "cache", "past_key_values", "cache_params", "state", "mems"


# Oracles. Each maps weights over the vocabulary `(b, s, v)`, fed after the prompt, to logits `(s, b, v)`: by
# the whole history at every step, uncached; step by step through the model's own cache; or a static one.

def embed(model, weights):
    "Weights `(b, t, v)` times each table that the model looks tokens up in."
    tokens, weights = looked_up(model)[None], weights.to(model.dtype)
    inputs = dict(inputs_embeds=weights @ model.get_input_embeddings()(tokens)[0])
    if width := getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        second = next(m for name, m in model.named_modules() if name.endswith("embed_tokens_per_layer"))
        inputs["per_layer_inputs"] = (weights @ second(tokens)[0]).unflatten(-1, (-1, width))
    return inputs

@lru_cache(maxsize=4)
def looked_up(model):
    "The row that the model looks up for each id `(v,)`: not always its own, where an id stands for an image."
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(): model(input_ids=torch.arange(tiny.VOCAB)[:, None], use_cache=False)
    hook.remove()
    return seen[0].flatten()

def known(model, **inputs):
    "Those of the inputs that the model takes."
    return {k: v for k, v in inputs.items() if k in inspect.signature(model.forward).parameters}

def positions(mask): return (mask.cumsum(-1) - 1).clamp_min(0)

def longer(mask, length): return torch.cat([mask, mask.new_ones(len(mask), length - mask.shape[1])], 1)

def whole(model, history, length):
    "Logits of all positions, from the whole history."
    mask = longer(MASK, length)
    where = known(model, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return model(**history, **where).logits

def of_ids(model, ids): return whole(model, dict(input_ids=ids), ids.shape[1])

def full(model, weights):
    weights = torch.cat([one_hot(IDS, tiny.VOCAB).to(weights.dtype), weights], 1)
    steps = range(IDS.shape[1], weights.shape[1])
    return torch.stack([whole(model, embed(model, weights[:, :t]), t)[:, -1] for t in steps])

def by_steps(model, feed, past=None, steps=STEPS):
    "Logits `(s, b, v)` through the model's own cache; `feed(step, logits)` gives the next inputs."
    name = next((n for n in CACHES if n in inspect.signature(model.forward).parameters), None)
    inputs, mask, logits, past = dict(input_ids=IDS), MASK, [], {} if past is None else {name: past}
    for step in range(steps):
        last = positions(mask) if step == 0 else positions(mask)[:, -1:]
        out = model(**inputs, **past, **known(model, attention_mask=mask, position_ids=last, use_cache=True))
        past = {name: next(out[k] for k in CACHES if dict.get(out, k) is not None)}
        logits.append(out.logits[:, -1])
        inputs, mask = feed(step, logits[-1]), longer(mask, mask.shape[1] + 1)
    return torch.stack(logits)

def cached(model, weights, past=None):
    return by_steps(model, lambda step, logits: embed(model, weights[:, step:step + 1]), past)

def fixed_cache(model):
    return StaticCache(model.config.get_text_config(), max_cache_len=IDS.shape[1] + STEPS - 1)

def fixed(model, weights): return cached(model, weights, fixed_cache(model))


# The same for tokens: greedy decoding, plain or `varied`, where a row takes no token twice

def best(logits, ids, varied):
    logits = logits[:, :tiny.VOCAB]
    if varied: logits = logits.scatter(1, ids, -torch.inf)
    return logits.argmax(-1)[:, None]

def tokens_full(model, varied=False, ids=IDS, steps=STEPS):
    start = ids.shape[1]
    for _ in range(steps): ids = torch.cat([ids, best(of_ids(model, ids)[:, -1], ids, varied)], 1)
    return ids[:, start:]

def tokens_cached(model, varied=False, past=None):
    ids = [IDS]
    def feed(step, logits):
        ids.append(best(logits, torch.cat(ids, 1), varied))
        return dict(input_ids=ids[-1])
    by_steps(model, feed, past)
    return torch.cat(ids[1:], 1)

def tokens_fixed(model, varied=False): return tokens_cached(model, varied, fixed_cache(model))

ORACLES = dict(full=(tokens_full, full), cached=(tokens_cached, cached), fixed=(tokens_fixed, fixed))


# The library

def soft(model, steps=STEPS, **options):
    return soft_generate(model, IDS, MASK, max_new_tokens=steps, output_logits=True, **options)

def new_tokens(out): return out.sequences[:, IDS.shape[1]:]

def logits_of(out): return torch.stack(out.logits)

def weights_of(out):
    "What a run fed, over the vocabulary: `(b, s, v)`."
    return torch.stack([step.dist.to_dense(tiny.VOCAB) for step in out.trace], 1)

def apart(a, b):
    "The largest difference, in units of the largest logit."
    b = b[..., :a.shape[-1]]
    return ((a - b).abs().max() / b.abs().max()).item()

def attempt(check, *args):
    "What a check finds; or that it was refused by the library, or how it failed."
    try: return check(*args)
    except Exception as error: return describe(error)

def describe(error):
    "An error in a line; `refused` where the library itself names what it does not do."
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = "soft_decoding" in frame.filename and isinstance(error, (ValueError, NotImplementedError))
    text = " ".join(str(error).split())
    if ours and "\n" not in str(error): return f"refused: {text}"
    place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return f"failed: {type(error).__name__}: {text[:200]} ({place})"


# A row of the matrix

def examine(model_type):
    "The outcome for a type, its reason or its numbers, and the columns beside it."
    try: model = tiny.tiny_model(model_type)
    except Exception as error: return dict(outcome="unbuilt", reason=describe(error))
    row, options, first = dict(model=type(model).__name__), {}, knock(model, model_type)
    if first and not knock(model, model_type, use_cache=False): first, options = None, dict(use_cache=False)
    named = first and first.startswith("refused")
    if named: return dict(row, outcome="refused", reason=first.removeprefix("refused: "))
    if first and model_type in tiny.DECODERS: return dict(row, outcome="wrong", reason=first)
    try: model, seed, distinct = lively(model_type)
    except Exception as error: return dict(row, outcome="unbuilt", reason=describe(error))
    found, model = in_the_right_dtype(model, options)
    dtype = str(model.dtype).removeprefix("torch.")
    row |= dict(seed=seed, distinct=distinct, options=options, dtype=dtype, **found)
    return row | (columns(model, options, found["oracle"]) if "oracle" in found else {})

def knock(model, model_type, **options):
    "What a first call is answered with; None: it works. Codebooks of music have a row each."
    books = getattr(model.config, "num_codebooks", 1) if model_type in tiny.DECODERS else 1
    ids, mask = IDS.repeat(books, 1), MASK.repeat(books, 1)
    return attempt(lambda: soft_generate(model, ids, mask, max_new_tokens=3, **options) and None)

def lively(model_type, seeds=range(4), enough=6):
    "The first model with enough different tokens in each greedy row (or the best), its seed, and how many."
    found = []
    for seed in seeds:
        model = tiny.tiny_model(model_type, seed)
        with torch.no_grad(): found.append((min(len(row.unique()) for row in tokens_full(model)), seed))
        if found[-1][0] >= enough: break
    distinct, seed = max(found, key=lambda pair: pair[0])
    return tiny.tiny_model(model_type, seed), seed, distinct

def in_the_right_dtype(model, options):
    "The outcome in float64 where a family computes in it, else in float32; and the model in that dtype."
    if computes_in_float64(model): model = model.double()
    found = compare(model, options)
    if found.get("oracle") == "full" or model.dtype == torch.float64: return found, model
    double = copy.deepcopy(model).double()  # is it rounding, amplified, or a difference of its own?
    again = attempt(compare, double, options)
    return (again, double) if isinstance(again, dict) and again.get("oracle") == "full" else (found, model)

def computes_in_float64(model):
    "Whether the answer to a step of 1e-11 is linear, which nothing rounded to float32 could be."
    inputs, double = one_hot(IDS, tiny.VOCAB).double(), model.double()
    step = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = lambda x: whole(double, embed(double, x), x.shape[1])[:, -1]
    try:
        with torch.no_grad(): y = [answer(inputs + k * 1e-11 * step) for k in (0, 1, 2)]
    except Exception: return False  # it mixes dtypes
    finally: model.float()
    once, twice = y[1] - y[0], y[2] - y[0]
    return bool((twice - 2 * once).abs().max() < .01 * twice.abs().max())

def compare(model, options):
    "Tokens and mixtures, against one oracle after another."
    ask = lambda **kwargs: soft(model, **kwargs, **options)
    try: ours, run = [new_tokens(ask(top_k=1, no_repeat_ngram_size=n)) for n in (0, 1)], ask(top_k=5)
    except Exception as error: return dict(outcome="wrong", reason=describe(error))
    found = dict(top_mass=round(run.trace.probs.amax(-1).mean().item(), 3))
    for oracle in ("full", "cached"):
        gap = attempt(against, model, run, oracle)
        same = [attempt(same_tokens, model, ours[varied], oracle, varied) for varied in (False, True)]
        found |= {f"gap_{oracle}": gap, f"tokens_{oracle}": same}
        if same != [True, True] or not within(model, gap): continue
        return dict(outcome="exact", oracle=oracle, gap=gap, **found)
    return dict(outcome="wrong", reason="it differs from both oracles", **found)

@torch.no_grad()
def against(model, run, oracle): return apart(logits_of(run), ORACLES[oracle][1](model, weights_of(run)))

@torch.no_grad()
def same_tokens(model, tokens, oracle, varied=False): return ORACLES[oracle][0](model, varied).equal(tokens)

def within(model, gap): return isinstance(gap, float) and gap < BOUNDS[model.dtype]


# The columns: each is the gap to an oracle, or says why there is none

def columns(model, options, oracle):
    "What else holds."
    run = soft(model, top_k=5, **options)
    checks = dict(static=static, no_cache=no_cache,
                  everywhere=partial(everywhere, run), reorder=partial(reorder, run),
                  turn=partial(turn, oracle), grad=partial(grad, oracle, options), writes=writes)
    return {name: attempt(check, model) for name, check in checks.items()}

def static(model):
    "With a cache of fixed size: tokens and logits; if no oracle agrees, whether plain `generate` does."
    options, found = dict(cache_implementation="static"), {}
    greedy, run = soft(model, top_k=1, **options), soft(model, top_k=5, **options)
    tokens = new_tokens(greedy)
    for oracle in ("full", "cached", "fixed"):
        gap, same = attempt(against, model, run, oracle), attempt(same_tokens, model, tokens, oracle)
        if same is True and within(model, gap): return WORDS[oracle].format(gap) if oracle in WORDS else gap
        found[oracle] = [same, gap]
    own = model.generate(IDS, attention_mask=MASK, do_sample=False, max_new_tokens=STEPS, output_logits=True,
                         return_dict_in_generate=True, **options)
    gap = apart(logits_of(greedy), logits_of(own))
    if not own.sequences.equal(greedy.sequences) or not within(model, gap): return f"wrong: {found}"
    return f"{gap:.0e}, as in transformers' generate"

WORDS = dict(cached="{:.0e}, as with the model's own cache",
             fixed="{:.0e}, as with the model's own static cache")

def no_cache(model): return against(model, soft(model, top_k=5, use_cache=False), "full")

@torch.no_grad()
def everywhere(run, model):
    "All positions at once, as in training, against one plain run on the ids."
    ids, mask = run.sequences, longer(MASK, run.sequences.shape[1])
    ours, reference = forward(model, State.everywhere(model, ids, mask))[0], of_ids(model, ids)
    if ours.shape[1] < ids.shape[1]: return f"wrong: logits of {ours.shape[1]} position, not of all"
    return max(apart(ours[i][mask[i] == 1], reference[i][mask[i] == 1]) for i in range(len(ids)))

def reorder(run, model):
    "Soft beams run; rows that change places in the middle, cache and all, go on as they would have."
    model.generate(IDS, attention_mask=MASK, custom_generate=soft_beam_decode, num_beams=2, max_new_tokens=3)
    order, half = tensor([2, 0, 1]), STEPS // 2
    state = soft(model, half, top_k=5).state.reorder(order)
    rest = soft_generate(model, state=state, replay=run.trace.rows(order), max_new_tokens=half,
                         output_logits=True)
    return apart(logits_of(rest), logits_of(run)[half:, order])

def turn(oracle, model):
    "Four tokens, three appended ones, four more tokens: as greedy decoding from the longer prompt."
    first = soft(model, 4, top_k=1)
    out = soft_generate(model, NEW, state=first.state, top_k=1, max_new_tokens=4).sequences
    with torch.no_grad(): rest = tokens_full(model, ids=torch.cat([first.sequences, NEW], 1), steps=4)
    if out[:, -4:].equal(rest): return 0.
    return "wrong: other tokens" if oracle == "full" else "transformers' two passes differ"

def grad(oracle, options, model):
    "The gradient of the last logits, through two mixtures, in the embedding; if refused, without the cache."
    found = attempt(gradient_gap, oracle, options, model)
    if not isinstance(found, str): return found
    return f"{found} It is {attempt(gradient_gap, 'full', dict(use_cache=False), model)}."

def gradient_gap(oracle, options, model):
    run, weight = soft(model, 3, top_k=5, grad=True, **options), model.get_input_embeddings().weight
    direction = torch.randn(tiny.VOCAB, generator=torch.Generator().manual_seed(2))[:run.logits[-1].shape[-1]]
    of = lambda logits: torch.autograd.grad((logits[:, :len(direction)] * direction).sum(), weight)[0]
    return apart(of(run.logits[-1]), of(mixing(model, oracle)))

def mixing(model, oracle, steps=3):
    "The last logits of a free run that mixes the five best, with the graph."
    feed = lambda step, logits: embed(model, five_best(logits))
    if oracle == "cached": return by_steps(model, feed, steps=steps)[-1]
    weights = one_hot(IDS, tiny.VOCAB).to(model.dtype)
    for _ in range(steps):
        logits = whole(model, embed(model, weights), weights.shape[1])[:, -1]
        weights = torch.cat([weights, five_best(logits)], 1)
    return logits

def five_best(logits):
    "Their softmax over the vocabulary `(b, 1, v)`."
    logits = logits[:, :tiny.VOCAB]
    return logits.masked_fill(logits < logits.topk(5).values[:, -1:], -torch.inf).softmax(-1)[:, None]

@torch.no_grad()
def writes(model):
    "Whether the model changes the vectors that it is given."
    inputs = embed(model, one_hot(IDS, tiny.VOCAB))
    before = inputs["inputs_embeds"].clone()
    model(**inputs, **known(model, attention_mask=MASK, position_ids=positions(MASK)))
    return not before.equal(inputs["inputs_embeds"])
