"""Soft decoding: feed a language model the mixture of tokens it believes in.

The public names below are looked up when they are first used, so that importing the package stays
quick and a missing optional dependency is an error only where it is needed.
"""
__version__ = "0.0.1"

from importlib import import_module as _import_module

_modules = dict(
    dist="TokenDist mk_proba_dist Sampling",
    soft_embed="mix_embeds SoftToken plain_mixer off_manifold norm_mixer HiddenMixer",
    rollout="forward choose soft_rollout soft_passes State Plugs StepContext StepInfo Phase Guidance",
    think="Think find_markers Switch TrendSwitch SpanFinder span_finder",
    trace="SoftTrace",
    decode="soft_decode soft_generate SoftOutput",
    train="soft_sampling_train_step GuidanceSchedule bernoulli_guidance evaluate_batch",
    trainer="SoftTrainer SoftTrainingArguments SafeTrainer SafeTrainingArguments SoftCollator Anneal encode_row encode_rows soft_targets freeze"
            " complete_checkpoints checkpoint_note",
    gumbel="GumbelMixer DirichletMixer GaussianMixer KSampleMixer MoIMixer PlainMixer Mixer gumbel_noise anneal",
    soft_beam="soft_beam_decode Cells Branch Collapse SoftBeamOutput",
    learnable_temp="LearnableSampling",
    prefix="add_think_tokens think_then_answer",
    recipes="recipe RECIPES Recipe fired CutSampling CutMixer PushMixer MultiplexMixer FixedSteps CoconutRows coconut_row"
            " ResetOptimizer",
    rl="Draws rescore policy_loss mean_loss group_advantages gae_advantages support_kl step_entropy",
    rl_trainer="SoftGRPOTrainer SoftGRPOConfig SoftPPOTrainer SoftPPOConfig RewardError",
    tasks="Problem MNNS ProsQA gsm8k svamp extract_answer check_answer encode_problem collate_problems prompt_batch"
          " word_tokenizer ChainDataset accuracy load_problems Arithmetic",
    stats="wilson pass_at_k mcnemar cluster_bootstrap sign_flip holm",
    evaluation="compare BASELINES Comparison",
    probes="probe look PROBES Probe",
    lm_eval_model="soft_lm",
    vllm="soft_engine soft_params soft_trace engine_model SoftRequest EngineRollouts",
)
_homes = {name: module for module, names in _modules.items() for name in names.split()}
__all__ = ["__version__", *_homes]


def __getattr__(name):
    if name not in _homes: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(_import_module(f".{_homes[name]}", __name__), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
