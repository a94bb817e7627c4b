"A tiny random model of any causal language model type that the installed transformers knows."
import copy
import dataclasses

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model type -> class
VOCAB = 101

SIZES = {  # name of a field: its value in a tiny model; a field whose default is None or 0 stays as it is
    name: value for value, names in {
        1: """n_shared_experts num_shared_experts moe_num_shared_experts num_dense_layers
            first_k_dense_replace num_nextn_predict_layers attn_layer_offset topk_group""",
        2: """num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups
            linear_num_key_heads num_experts_per_tok num_experts_per_token moe_k moe_topk n_group
            kv_n_heads moe_top_k num_expert_group n_groups num_layers_per_stack n_mamba_heads
            altup_num_inputs o_groups mamba_n_groups mamba_ngroups decoder_layers encoder_layers
            num_decoder_layers num_encoder_layers attn_layer_period hc_mult hc_count
            expert_layer_period full_attention_interval layer_group_size depth num_global_layers
            num_hidden_layers n_layer n_layers num_layers num_blocks""",
        4: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
            num_experts encoder_attention_heads num_decoder_attention_heads
            num_encoder_attention_heads n_routed_experts num_local_experts moe_num_experts
            swa_num_attention_heads linear_num_heads linear_num_value_heads zero_expert_num
            laurel_rank adapter_rank gated_norm_rank loop_gate_rank d_rel conf_num_attention_heads
            index_topk rotary_dim hc_lowrank rel_extent conf_num_hidden_layers""",
        6: """sliding_window sliding_window_size attention_window_size local_attention window_size
            keep_window_size local_attention_window_len""",
        8: """head_dim swa_head_dim global_head_dim kv_channels d_kv d_head dim_head
            attention_head_size v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim
            linear_head_dim linear_key_head_dim linear_value_head_dim attention_head_dim
            hidden_size_per_layer_input query_pre_attn_scalar state_size mamba_d_state
            ssm_state_size mamba_d_head mamba_head_dim mamba_headdim mamba_dt_rank time_step_rank
            mamba_num_heads mamba_n_heads chunk_size mamba_chunk_size shape_embed_dim
            pronunciation_embed_dim num_mel_bins num_quantizers image_size patch_size block_size
            attention_chunk_size ngram_vocab_size_base num_centroids""",
        16: """moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size q_lora_rank
            kv_lora_rank shared_experts_intermediate_size shared_intermediate_size
            moe_shared_expert_intermediate_size o_lora_rank router_hidden_size shape_vocab_size
            pronunciation_vocab_size index_n_heads qk_head_dim ple_embed_dim max_source_positions""",
        32: """hidden_size d_model n_embd emb_dim embedding_dim word_embed_proj_dim embedding_size
            lru_width attention_hidden_size input_embedding_size output_embedding_size
            hidden_size_global backbone_hidden_size input_size out_hidden_size embed_dim
            projection_dim""",
        64: """intermediate_size n_inner d_inner dim_ff dff ffn_dim decoder_ffn_dim encoder_ffn_dim
            ffn_hidden_size feed_forward_size intermediate_size_mlp dense_intermediate_size d_ff
            mlp_dim""",
        96: """max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length
            max_target_positions original_max_position_embeddings""",
        VOCAB: """vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size
            audio_vocab_size""",
    }.items() for name in names.split()}
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")


def tiny_config(model_type, **options):
    "A tiny config of a type."
    model_type = DECODERS.get(model_type, model_type)
    return shrink(CONFIG_MAPPING[model_type], **{**OVERRIDES.get(model_type, {}), **options})

# The classes of these take the config of their decoder.
DECODERS = dict(musicgen="musicgen_decoder", musicgen_melody="musicgen_melody_decoder")

def shrink(config_class, **options):
    "A config of the class whose sizes are tiny; lists with an entry per layer keep one of each kind."
    default = options.pop("default", None) or _default(config_class, options)
    fields = {f.name: vars(default).get(f.name) for f in dataclasses.fields(config_class)}
    depth = next((n for name in DEPTHS if (n := vars(default).get(name))), None)
    always = dict(head_dim=8, num_key_value_heads=4 if "kv_lora_rank" in fields else 2)
    small, lists = {}, {}
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            small[name] = shrink(type(value), default=value, **options.pop(name, {}))
        elif name in always: small[name] = always[name]
        elif name in SIZES and value and not isinstance(value, bool): small[name] = SIZES[name]
        elif isinstance(value, list) and len(value) == depth and depth > 2: lists[name] = value
        elif name.endswith(("_token_id", "_token_index")) and value is not None: small[name] = VOCAB - 1
    small |= one_of_each(lists, small) | (dict(is_decoder=True) if "is_decoder" in fields else {})
    return config_class(**{**small, **{k: v for k, v in TOKENS.items() if k in fields}, **options})

def _default(config_class, options):
    "The defaults of a class; of some they are not valid without the options."
    try: return config_class()
    except Exception: return config_class(**copy.deepcopy(options))

TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=None, tie_word_embeddings=False)

def one_of_each(lists, small):
    "Lists with an entry per layer, cut to as many layers as have different entries."
    lists = lists if all(map(_hashable, lists.values())) else {}
    columns = list(dict.fromkeys(zip(*lists.values())))
    columns += columns[-1:] * (2 - len(columns))
    depth = {name: len(columns) for name in DEPTHS if name in small} if columns else {}
    return {**{name: [c[i] for c in columns] for i, name in enumerate(lists) if columns}, **depth}

def _hashable(values): return all(isinstance(v, (str, int, float)) for v in values)

KINDS = ["sliding_attention", "full_attention"]
ROPES = {kind: dict(rope_type="default", rope_theta=1e4) for kind in KINDS}
GEMMA_3N = dict(  # the last two layers use the keys and values of the first two
    num_hidden_layers=4, layer_types=2 * KINDS, num_kv_shared_layers=2, activation_sparsity_pattern=4 * [0.],
    intermediate_size=64)
GEMMA_4 = dict(num_hidden_layers=4, layer_types=2 * KINDS, num_kv_shared_layers=2)
QWEN_4 = dict(indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
              indexer_compress_ratio=2)
DOTS_3 = {f"swa_{name}": value for name, value in dict(
    num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, head_dim=16,
    qk_nope_head_dim=8, v_head_dim=8, qk_rope_head_dim=8).items()}
OVERRIDES = {  # what a type needs beyond the sizes
    "bamba": dict(attn_layer_indices=[1]),
    "blt": dict(encoder_hash_byte_group_vocab=50),
    "cohere_compass_text": dict(layer_types=KINDS, rope_parameters=ROPES),
    "dbrx": dict(attn_config=dict(rope_theta=1e4, clip_qkv=8.)),  # its default lacks a field that it reads
    "deepseek_v2": dict(num_experts_per_tok=2),
    "dots3_note": dict(text_config=DOTS_3, vision_config=dict(adapter_in_dim=32, adapter_out_dim=32),
                       audio_config=dict(adapter_input_size=32, adapter_out_dim=32)),
    "dots3_note_text": DOTS_3,
    "dory": dict(num_hidden_layers=4, layer_types=2 * KINDS, n_input_layers=1, n_recurrent_layers=2,
                 n_output_layers=1),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1),
    "falcon_h1": dict(mamba_d_ssm=64),
    "gemma3n": dict(text_config=GEMMA_3N), "gemma3n_text": GEMMA_3N,
    "gemma4": dict(text_config=GEMMA_4), "gemma4_text": GEMMA_4,
    "gemma4_assistant": dict(text_config=dict(
        model_type="gemma4_text", hidden_size_per_layer_input=0, vocab_size_per_layer_input=0)),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"]),
    "hrm_text": dict(num_hidden_layers=8, num_layers_per_stack=1),
    "laguna": dict(num_attention_heads_per_layer=[4, 4]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "mamba2": dict(num_heads=8),
    "qwen4_exp": dict(text_config=QWEN_4), "qwen4_exp_text": QWEN_4,
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(attn_layers=["local", "local"], axial_pos_embds=False, local_attn_chunk_length=4),
    "xlstm": dict(hidden_size=128, embedding_dim=128, num_heads=2),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(attention_hidden_size=64, attention_head_dim=16),
    "zaya": dict(num_experts_per_tok=1),
}


def tiny_model(model_type, seed=0, **options):
    "A tiny random model of a type, without an end-of-text token, so that every run has its full length."
    config = tiny_config(model_type, **options)
    torch.manual_seed(seed)
    build = AutoModelForCausalLM.from_config
    if model_type in DECODERS: build = getattr(transformers, TYPES[model_type])
    with torch.device("meta"): size = sum(p.numel() for p in build(config).parameters())
    if size > 5e6: raise ValueError(f"{size} parameters are not tiny: {config}")
    model = spread(build(config), seed).float().eval()
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1)  # nothing forced or suppressed
    return model

def spread(model, seed):
    "Redraw the weights, so that a row says many different things: gain 2 in the layers, unit embeddings."
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape, scale: torch.randn(shape, generator=generator) * scale
    table, head = (getattr(module, "weight", None) for module in (
        model.get_input_embeddings(), model.get_output_embeddings()))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(p.shape, 2 / p.shape[-1]**.5) if p.dim() > 1 else p + draw(p.shape, .2))
        if table is not None: table.copy_(draw(table.shape, 1))
        if head is not None: head.copy_(draw(head.shape, 2 / head.shape[-1]**.5))
    return model
