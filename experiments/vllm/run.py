"What soft rows cost inside vLLM, on a CPU: python experiments/vllm/run.py, in an environment of tools/vllm_env.sh."
import os, time
os.environ |= dict(VLLM_ENABLE_V1_MULTIPROCESSING='0', VLLM_CPU_KVCACHE_SPACE='1', VLLM_LOGGING_LEVEL='ERROR', VLLM_CPU_OMP_THREADS_BIND='nobind',
                   TORCH_COMPILE_DISABLE='1', OMP_NUM_THREADS='1')
import json, platform
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
import torch, transformers, vllm
from vllm import LLM
from soft_decoding import Think, soft_generate
from soft_decoding.bench import bench_model, bench_ratios, bench_rounds
from soft_decoding.vllm import soft_engine, soft_params

PROMPT, BASE = 16, 'generate of transformers, greedy'


def variants(model, soft, plain, prompts, n, k):
    "Name -> what to time, and what it is compared with."
    ids = torch.tensor(prompts)
    fixed = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
    ask = lambda llm, **options: lambda: llm.generate(
        [dict(prompt_token_ids=p) for p in prompts],
        soft_params(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False, **options), use_tqdm=False)
    with_mask = dict(attention_mask=torch.ones_like(ids))
    return {BASE: (lambda: model.generate(ids, **with_mask, **fixed), BASE),
            'soft_generate': (lambda: soft_generate(model, ids, top_k=k, max_new_tokens=n, pad_token_id=0), BASE),
            'vLLM, plain': (ask(plain), BASE),
            'vLLM, soft': (ask(soft, soft_steps=n, soft_top_k=k, logprobs=None), BASE),
            'vLLM, soft with beliefs': (ask(soft, soft_steps=n, soft_top_k=k), BASE)}


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('--size', default='25M', help='of soft_bench')
    parser.add_argument('--tokens', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--top_k', type=int, default=10)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 16, 64])
    parser.add_argument('--out', default=str(Path(__file__).parents[2]/'results/bench_vllm.json'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, cells = bench_model(args.size), []
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = dict(dtype='float32', enforce_eager=True, skip_tokenizer_init=True, max_model_len=256, max_num_seqs=max(args.batches))
        soft, plain = soft_engine(folder, **options), LLM(folder, enable_prefix_caching=False, **options)
        for batch in args.batches:
            g = torch.Generator().manual_seed(batch)
            prompts = torch.randint(1, model.config.vocab_size, (batch, PROMPT), generator=g).tolist()
            runs = variants(model, soft, plain, prompts, args.tokens, args.top_k)
            timed = bench_rounds(runs, args.rounds)
            ratios = bench_ratios(timed, {name: base for name, (_, base) in runs.items()})
            over_plain = bench_ratios(timed, {name: 'vLLM, plain' for name in runs if 'soft' in name})
            cells.append(dict(batch=batch, ratios=ratios, over_plain=over_plain, seconds=timed))
            print(batch, {name: round(r['median'], 3) for name, r in ratios.items()}, flush=True)
    names = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    record = dict(date=time.strftime('%Y-%m-%d'), command=f'python experiments/vllm/run.py --tokens {args.tokens} --rounds {args.rounds}',
                  config={k: v for k, v in vars(args).items() if k != 'out'},
                  clock='seconds of this process', prompt=PROMPT,
                  versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, vllm=vllm.__version__),
                  hardware=dict(cpu=names[0], cores=os.cpu_count(), threads=torch.get_num_threads()), runner='V1', cells=cells)
    Path(args.out).write_text(json.dumps(record, indent=1) + '\n')
    os._exit(0)


if __name__ == '__main__': main()
