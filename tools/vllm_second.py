"Run requests in vLLM's second runner on a CPU, through Triton's interpreter: vllm_second.py JOBS, a pickle that is replaced by what came out."
import os, pickle, sys
from pathlib import Path

os.environ |= dict(TRITON_INTERPRET='1', VLLM_USE_V2_MODEL_RUNNER='1', VLLM_ENABLE_V1_MULTIPROCESSING='0', VLLM_CPU_KVCACHE_SPACE='1',
                   VLLM_LOGGING_LEVEL='ERROR', VLLM_CPU_OMP_THREADS_BIND='nobind', TORCH_COMPILE_DISABLE='1')
sys.path.insert(0, str(Path(sys.prefix)/'standin'))  # a "cpu" entry for triton.backends, made by vllm_env.sh
import torch
from soft_decoding.vllm import rows_of, soft_engine, soft_params


def answer(model, prompts, params, options, forgetful):
    "Outputs of one engine, and for each interruption whether the request is soft and how many tokens it had said."
    llm, interrupted = soft_engine(model, dtype='float32', enforce_eager=True, max_logprobs=-1, **options), []
    core = llm.llm_engine.engine_core.engine_core
    assert 'gpu.model_runner' in str(type(core.model_executor.driver_worker.worker.model_runner).__mro__)
    preempt = core.scheduler._preempt_request
    def counted(request, *args, **kwargs):
        held = vars(request.sampling_params).get('_soft_row')
        interrupted.append((held is not None, request.num_output_tokens))
        with torch.inference_mode():
            if forgetful and held: rows_of(llm.llm_engine.vllm_config).soft[held.slot] = False
        return preempt(request, *args, **kwargs)
    core.scheduler._preempt_request = counted
    outputs = llm.generate([dict(prompt_token_ids=list(p)) for p in prompts], [soft_params(**p) for p in params], use_tqdm=False)
    kept.append(llm)  # vLLM takes its process groups down with an engine
    return outputs, interrupted


if __name__ == '__main__':
    kept, path = [], Path(sys.argv[1])
    found = [answer(**job) for job in pickle.loads(path.read_bytes())]
    path.write_bytes(pickle.dumps(found))
    os._exit(0)
