"""What the learner's step costs on soft draws, as ratios to the same step on plain tokens, interleaved in one run.

    python experiments/rl/cost.py     writes results/rl_cost.json

The step: score a batch of completions, the clipped loss, backward. Plain tokens: a forward over ids, their log-probabilities.
"""
import json, platform, statistics, time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from soft_decoding import Draws, GaussianMixer, GumbelMixer, KSampleMixer, Sampling, State, Think, mean_loss, policy_loss, rescore, soft_rollout

RESULT = Path(__file__).resolve().parents[2] / "results/rl_cost.json"
ROWS, PROMPT, SOFT, ANSWER, ROUNDS = 8, 16, 48, 16, 5
ARMS = {"one token, top 50": (KSampleMixer(1), 50), "three tokens, top 50": (KSampleMixer(3), 50), "Gumbel, top 5": (GumbelMixer(.5), 5),
        "Gumbel, top 30": (GumbelMixer(.5), 30), "Gumbel, top 50": (GumbelMixer(.5), 50), "Gaussian, top 30": (GaussianMixer(), 30),
        "Gumbel, all tokens": (GumbelMixer(.5), None)}

def new_model():
    config = LlamaConfig(vocab_size=32_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
                         num_key_value_heads=6, tie_word_embeddings=True, eos_token_id=None, bos_token_id=1)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()

def drawn(model, mixer, top_k):
    "Completions of one batch."
    ids, think = torch.randint(3, 32_000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(1)), Think(max_tokens=SOFT)
    state, infos = soft_rollout(
        model, State.start(model, ids, think=think), SOFT + ANSWER, mixer=mixer, sampling=Sampling(top_k=top_k), answer_sampling=Sampling(),
        think=think, do_sample=True, generator=torch.Generator().manual_seed(2), trace_k=0, keep=("draw",))
    return Draws.from_infos(state, infos, model.get_input_embeddings())

def soft_step(model, draws, mixer, top_k):
    logps = rescore(model, draws, mixer=mixer, sampling=Sampling(top_k=top_k))
    losses, _ = policy_loss(logps, logps, torch.ones(ROWS), draws)
    mean_loss(losses, draws.acts).backward()

def plain_step(model, ids):
    "The same on ids, as any trainer for tokens does it."
    logits = model(input_ids=ids).logits[:, PROMPT - 1:-1].float()
    logps = logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]
    ratio = (logps - logps.detach()).exp()
    (-torch.minimum(ratio, ratio.clamp(.8, 1.2)).mean()).backward()

def seconds(step):
    start = time.process_time()
    step()
    return time.process_time() - start

def main():
    torch.set_num_threads(1); logging.set_verbosity_error()
    model = new_model()
    steps, ids = {}, None
    for name, (mixer, k) in ARMS.items():
        draws = drawn(model, mixer, k)
        ids = draws.input_ids if ids is None else ids
        steps[name] = lambda draws=draws, mixer=mixer, k=k: soft_step(model, draws, mixer, k)
    plain = lambda: plain_step(model, ids)
    for step in (plain, *steps.values()): step(); model.zero_grad()
    ratios = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            before = seconds(plain); model.zero_grad()
            ours = seconds(step); model.zero_grad()
            after = seconds(plain); model.zero_grad()
            ratios[name].append(ours / ((before + after) / 2))
    quartiles = {name: [round(q, 3) for q in statistics.quantiles(x, n=4)] for name, x in ratios.items()}
    record = dict(what="CPU time of the learner's step over that of plain tokens: quartiles of rounds", parameters=model.num_parameters(),
                  shape=dict(rows=ROWS, prompt=PROMPT, soft=SOFT, answer=ANSWER, vocabulary=32_000), rounds=ROUNDS, ratios=quartiles,
                  versions=dict(python=platform.python_version(), torch=torch.__version__), hardware=f"{platform.machine()}, 1 thread")
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(quartiles, indent=1))

if __name__ == "__main__": main()
