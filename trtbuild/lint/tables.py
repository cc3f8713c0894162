"""Words and fields that TensorRT-LLM 1.2 knows (checkpoint format 1.2 to 1.8). PURE data, keyed by its own strings."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARCHITECTURES = _words(
    """
    LlamaForCausalLM MistralForCausalLM MixtralForCausalLM ArcticForCausalLM ExaoneForCausalLM InternLMForCausalLM
    InternLM2ForCausalLM SkyworkForCausalLM GraniteForCausalLM GraniteMoeForCausalLM LlavaLlamaModel QWenLMHeadModel
    QWenForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2ForSequenceClassification
    Qwen2VLForConditionalGeneration Qwen2VLModel Qwen3ForCausalLM Qwen3MoeForCausalLM GemmaForCausalLM
    Gemma2ForCausalLM Gemma3ForCausalLM RecurrentGemmaForCausalLM GPT2LMHeadModel GPT2LMHeadCustomModel
    GPTBigCodeForCausalLM Starcoder2ForCausalLM GPTForCausalLM JAISLMHeadModel NemotronForCausalLM
    NemotronNASForCausalLM DeciLMForCausalLM GPTJForCausalLM GPTNeoXForCausalLM PhiForCausalLM Phi3ForCausalLM
    Phi3VForCausalLM Phi3SmallForCausalLM PhiMoEForCausalLM Phi4MMForCausalLM FalconForCausalLM RWForCausalLM
    BloomForCausalLM OPTForCausalLM MPTForCausalLM BaichuanForCausalLM BaiChuanForCausalLM ChatGLMForCausalLM
    ChatGLMModel GLMModel DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM DbrxForCausalLM
    Grok1ModelForCausalLM CohereForCausalLM CogVLMForCausalLM MambaForCausalLM MLLaMAForConditionalGeneration
    MllamaForConditionalGeneration MLLaMAModel LlavaNextForConditionalGeneration EncoderModel DecoderModel
    WhisperEncoder MedusaForCausalLm MedusaForCausalLM EagleForCausalLM ReDrafterForCausalLM ReDrafterForLLaMALM
    ReDrafterForQWenLM BertModel BertForQuestionAnswering BertForSequenceClassification RobertaModel
    RobertaForQuestionAnswering RobertaForSequenceClassification DiT FluxPipeline SD3Transformer2DModel STDiT3
    """
)
"""MODEL_MAP: what `architecture` may be."""

ACTIVATIONS = _words(
    """
    relu tanh gelu gelu_new gelu_fast gelu_pytorch_tanh openai-gelu geglu gegelu identity silu softplus squared-relu
    swiglu fast-swiglu
    """
)
POSITION_TYPES = _words(
    """learned_absolute rope_gptj rope_gpt_neox long_rope alibi alibi_with_scale relative chatglm mrope yarn"""
)
SPELLED = {"swish": "silu", "relu2": "squared-relu", "quick_gelu": "", "gelu_10": ""}
"""Hugging Face's activation names -> TensorRT-LLM's, empty where it has none."""

MAPPING_KEYS = _words("world_size tp_size pp_size cp_size moe_tp_size moe_ep_size gpus_per_node")
MAPPING_LATER = _words(
    """
    rank cp_config pp_partition moe_cluster_size attn_tp_size attn_cp_size enable_attention_dp
    enable_lm_head_tp_in_adp
    """
)
"""Known to some releases only, or set per rank on load."""

QUANT_KEYS = _words(
    """
    quant_algo kv_cache_quant_algo group_size has_zero_point pre_quant_scale smoothquant_val clamp_val
    use_meta_recipe exclude_modules mamba_ssm_cache_dtype
    """
)
PLUGIN_SQ = tuple(
    f"W8A8_SQ_{name}_PLUGIN"
    for name in (
        "PER_TENSOR",
        "PER_CHANNEL_PER_TOKEN",
        "PER_CHANNEL_PER_TENSOR",
        "PER_TENSOR_PER_TOKEN",
    )
)
CHECKED_ALGOS = (
    *("W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "W8A16_GPTQ", "FP8", "FP8_PER_CHANNEL_PER_TOKEN"),
    *("W8A8_SQ_PER_CHANNEL", *PLUGIN_SQ, "MIXED_PRECISION", "NO_QUANT"),
)
LAYER_ALGOS = ("", *(algo for algo in CHECKED_ALGOS if algo != "MIXED_PRECISION" and algo not in PLUGIN_SQ))
"""What one layer of MIXED_PRECISION may have."""
UNCHECKED_ALGOS = (
    *("W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL", "FP8_BLOCK_SCALES", "INT8", "NVFP4", "W4A8_NVFP4_FP8"),
    *("W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8", "W4A16_MXFP4"),
)
ALGO_HINTS = {
    "FP8_ROWWISE": "the rowwise algorithm is named FP8_PER_CHANNEL_PER_TOKEN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN": "there it ends in _PLUGIN",
    "INT8_WO": "weight-only int8 is named W8A16",
    "INT4_AWQ": "AWQ is named W4A16_AWQ",
}
KV_ALGOS = ("INT8", "FP8")

BUFFERS = ("*embed_positions*", "*rotary_inv_freq*", "*rotary_emb.inv_freq")
"""Tables that upstream writes for some families and computes again on load."""

REQUIRED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("QWenForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM"), ("qwen_type",)),
    **dict.fromkeys(("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"), ("qwen_type", "head_size")),
    "Gemma2ForCausalLM": ("query_pre_attn_scalar", "head_size"),
    # Gemma 3's own fields are taken only where all of them are there.
    "Gemma3ForCausalLM": (
        *("query_pre_attn_scalar", "head_size", "rope_local_base_freq", "sliding_window"),
        *("sliding_window_pattern", "_sliding_window_pattern"),
    ),
    "GemmaForCausalLM": ("head_size",),
    "GPTNeoXForCausalLM": ("rotary_pct", "rotary_emb_base"),
    "FalconForCausalLM": ("bias", "parallel_attention", "new_decoder_architecture"),
    "BertModel": ("type_vocab_size",),
    "RobertaModel": ("type_vocab_size",),
}
"""Fields whose absence is an assertion or an AttributeError in the class."""
READ_LATER: dict[str, tuple[str, ...]] = {
    "Phi3ForCausalLM": ("rotary_pct",),
    **dict.fromkeys(("Qwen2ForCausalLM", "Qwen2MoeForCausalLM"), ("seq_length",)),
}
"""Fields that 1.x reads and 0.14 did not write."""

LONG_ROPE = ("original_max_position_embeddings", "longrope_scaling_short_factors", "longrope_scaling_long_factors")
"""Fields of position_embedding_type long_rope."""
MEANING: dict[str, tuple[object, str]] = {
    "mlp_only_layers": ([], "TensorRT-LLM's class makes every layer a mixture of experts."),
    "decoder_sparse_step": (1, "TensorRT-LLM's class makes every layer a mixture of experts."),
    "use_parallel_residual": (True, "TensorRT-LLM's class always adds attention and MLP in parallel."),
}
"""Fields that the class stores but does not honour: value that is right, why."""

RENAMED = ((".shared_expert.", ".mlp.shared_expert."), (".shared_expert_gate.", ".mlp.shared_expert_gate."))
"""Part of a tensor name in 0.14 -> in 1.x."""

MAX_LAYERS, MAX_WORLD, MAX_EXPERTS, MAX_JOBS = 4096, 4096, 4096, 4_000_000
"""Beyond any model: what config.json says is then a mistake, and not worth hours of arithmetic."""
