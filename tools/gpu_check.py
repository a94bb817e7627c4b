"Check soft decoding on a GPU: python tools/gpu_check.py [--out results/gpu_check.json]. Every check is a line; none stops the rest."
import json, sys, time, warnings
from argparse import ArgumentParser
from pathlib import Path

import torch
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from soft_decoding import GumbelMixer, Guidance, Sampling, Think, soft_generate
from soft_decoding.bench import bench_model
from soft_decoding.dist import top_k_logits

DEVICE, CHECKS = "cuda", []
SHORT = dict(dtype=torch.float32, tolerance=1e-2, max_new_tokens=6)  # a free run amplifies rounding


def check(f):
    CHECKS.append(f)
    return f


def tiny(dtype=torch.float64, device=None):
    "A random model; the same on every device."
    config = LlamaConfig(vocab_size=9000, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                         tie_word_embeddings=True, initializer_range=.1, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device=device or DEVICE, dtype=dtype).eval()


def prompt(rows=3, device=None, size=9000):
    "Ids and mask of a batch whose first row is padded on the left."
    ids = torch.randint(1, size, (rows, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = 0, 0
    return ids.to(device or DEVICE), mask.to(device or DEVICE)


def run(model, device=None, **options):
    "A short run with a trace."
    ids, mask = prompt(device=device)
    seed = options.pop("seed", None)
    if seed is not None: options["generator"] = torch.Generator(device or DEVICE).manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return soft_generate(model, ids, mask, **dict(dict(max_new_tokens=16, top_k=10, pad_token_id=0), **options))


def same(a, b, tolerance=1e-6):
    "Tokens, beliefs and think states of two runs agree."
    move = lambda x: x.cpu()
    assert torch.equal(move(a.sequences), move(b.sequences)), (a.sequences.tolist(), b.sequences.tolist())
    for name in ("ids", "probs", "entropy", "phase", "is_soft", "complete", "token"):
        assert_close(move(getattr(a.trace, name)), move(getattr(b.trace, name)), rtol=tolerance, atol=tolerance, msg=name)
    for name in a.state.think_state: assert_close(move(a.state.think_state[name]), move(b.state.think_state[name]))


def both(part, tolerance=1e-6, dtype=torch.float64, **options):
    "Eager and compiled, twice: the second run replays what the first has recorded."
    from transformers import CompileConfig
    model = tiny(dtype)
    eager = run(model, **options)
    fixed = dict(cache_implementation="static")
    if part == "step": fixed["compile_config"] = CompileConfig()
    torch._dynamo.reset(); torch._dynamo.utils.counters.clear()
    for _ in range(2):
        ran = run(model, **fixed, **options)
        assert ran.state.compiled.part == part, ran.state.compiled
        same(eager, ran, tolerance)
    found = torch._dynamo.utils.counters
    return dict(graphs=found["stats"].get("unique_graphs"), skips=found["inductor"].get("cudagraph_skips", 0))


@check
def best_of_equals():
    "The best k on the GPU are those of the CPU, ties included."
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 20000, generator=g).to(dtype)
        x[0] = x[0].round()
        for k in (1, 10, 50):
            for here, there in zip(top_k_logits(x, k), top_k_logits(x.to(DEVICE), k)): assert torch.equal(here, there.cpu()), (dtype, k)


@check
def as_on_a_cpu():
    "A run in float64, with and without a think span, is that of the CPU."
    here, there = tiny(device="cpu"), tiny()
    for options in (dict(), dict(top_k=None), dict(think=Think(end=[7, 9], max_tokens=4)), dict(top_p=.8, min_p=.01)):
        same(run(here, device="cpu", **options), run(there, **options))


@check
def one_hot_is_greedy():
    "In bfloat16, with the vocabulary of a real model: all mass on one token is greedy decoding."
    model = bench_model("108M", "bfloat16", DEVICE)
    ids, mask = prompt(4, size=151_000)
    kwargs = dict(attention_mask=mask, max_new_tokens=48, pad_token_id=0)
    greedy = model.generate(ids, do_sample=False, **kwargs)
    for options in (dict(top_k=1), dict(temperature=0.)):
        ours = soft_generate(model, ids, return_dict_in_generate=False, **options, **kwargs)
        assert torch.equal(greedy, ours), (greedy != ours).nonzero().tolist()[:4]


@check
def one_hot_is_greedy_compiled():
    "The same, both with the model compiled: two graphs round in their own way, so where they part it must be nearly a tie."
    model = bench_model("108M", "bfloat16", DEVICE)
    ids, mask = prompt(4, size=151_000)
    kwargs = dict(attention_mask=mask, max_new_tokens=48, pad_token_id=0, cache_implementation="static")
    greedy = model.generate(ids, do_sample=False, **kwargs)
    ours = soft_generate(model, ids, return_dict_in_generate=False, top_k=1, **kwargs)
    parted = {}
    for row in range(len(ids)):
        if torch.equal(greedy[row], ours[row]): continue
        at = int((greedy[row] != ours[row]).nonzero()[0])
        keep = mask[row].nonzero()[0, 0].item()
        logits = model(greedy[row:row + 1, keep:at]).logits[0, -1].float()
        one, other = logits[greedy[row, at]].item(), logits[ours[row, at]].item()
        parted[row] = [at - ids.shape[1], one, other]
        assert abs(one - other) <= 8 * 2 ** -8 * abs(logits.max().item()), parted  # a few roundings of bfloat16
    return parted


@check
def model_compiled(): return both("forward")

@check
def model_compiled_think(): return both("forward", think=Think(end=[7, 9], max_tokens=4))

@check
def model_compiled_plugs():
    "A mixer that draws, a processor that looks back, and drawn read-outs."
    return both("forward", mixer=GumbelMixer(), repetition_penalty=1.3, do_sample=True, seed=3)

@check
def step_compiled(): return both("step", **SHORT)

@check
def step_compiled_float64():
    "Also with a best k, which torch 2.11 did not compile in float64: the model alone was compiled then."
    return both("step")

@check
def step_compiled_all(): return both("step", top_k=None)

@check
def step_compiled_think(): return both("step", think=Think(end=[7, 9], max_tokens=2), **SHORT)

@check
def step_compiled_ends():
    "Rows that finish at different steps."
    model = tiny()
    ends = sorted(set(run(model, max_new_tokens=6).sequences[:, -3].tolist()))
    return both("step", eos_token_id=ends, **SHORT)


@check
def waits():
    "How often a step waits for the device: eager with nothing to watch, with an end of text, with a think span; compiled."
    from transformers import CompileConfig
    model, out = tiny(torch.float32), {}
    static = dict(cache_implementation="static")
    kinds = dict(plain={}, ends=dict(eos_token_id=[1]), think=dict(think=Think(end=[7, 9], max_tokens=4)), all=dict(top_k=None),
                 mass=dict(top_k=None, sampling=Sampling(.3, mass=.9)), guided=dict(guidance=Guidance(torch.full((3, 64), 5, device=DEVICE), .5)), model=static, step=dict(static, compile_config=CompileConfig()))
    for name, options in kinds.items():
        counts = []
        for tokens in (8, 24):
            run(model, max_new_tokens=tokens, **options)  # compile, fill caches
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    ids, mask = prompt()
                    soft_generate(model, ids, mask, **dict(dict(max_new_tokens=tokens, top_k=10, pad_token_id=0), **options))
            finally: torch.cuda.set_sync_debug_mode("default")
            counts.append(sum("synchroniz" in str(w.message) for w in seen))
        out[name] = (counts[1] - counts[0]) / 16
    return out


def main(out):
    "Run all checks, and write what they say after each."
    record = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__, checks={})
    import transformers
    record["transformers"] = transformers.__version__
    for f in CHECKS:
        start = time.perf_counter()
        try: said = dict(ok=True, found=f())
        except Exception as e: said = dict(ok=False, error=f"{type(e).__name__}: {str(e).strip()[:1500]}")
        said["seconds"] = round(time.perf_counter() - start, 1)
        record["checks"][f.__name__] = said
        print("ok    " if said["ok"] else "FAILED", f.__name__, said.get("found") or said.get("error", ""), f"{said['seconds']} s", flush=True)
        if out: Path(out).write_text(json.dumps(record, indent=1) + "\n")
    return all(said["ok"] for said in record["checks"].values())


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="write the record to this file, as JSON")
    sys.exit(not main(parser.parse_args().out))
