"""A tiny random model of every dense decoder family, made with transformers; weights so large that every part shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCAB = 131  # a prime, so no number of ranks divides it
WINDOW = 11
POSITIONS = 96
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_KV = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": POSITIONS}
_FALCON = {**_SIZES, "ffn_hidden_size": 160}
_GEMMA = {**_KV, "vocab_size": 132, "head_dim": 16}  # TensorRT-LLM's class shards the table, so ranks must divide it
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "final_logit_softcapping": 3.0}
_TWELVE = {"hidden_size": 96, "num_attention_heads": 12}  # alibi slopes of a head count that is no power of two
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 5.0, 7.0],
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}


@dataclass(frozen=True)
class Case:
    """`kind` is the model_type of transformers; `pipeline`: whether TensorRT-LLM's class can be cut into stages."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    pipeline: bool = True


CASES: dict[str, Case] = {
    "llama": Case("llama", {**_KV, "attention_bias": True, "mlp_bias": True}),
    "mistral": Case("mistral", {**_KV, "sliding_window": WINDOW, "head_dim": 12}),
    "qwen2": Case("qwen2", {**_KV, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen2 yarn": Case("qwen2", {**_KV, "rope_parameters": _YARN}),
    "qwen3": Case("qwen3", {**_KV, "head_dim": 16}),
    "gemma": Case("gemma", {**_GEMMA, "num_key_value_heads": 1}),
    "gemma2": Case("gemma2", {**_GEMMA2, "attn_logit_softcapping": 2.0}),
    "gemma3": Case("gemma3_text", {**_GEMMA2, "sliding_window_pattern": 2, "rope_local_base_freq": 500.0}),
    "phi": Case("phi", {**_SIZES, "intermediate_size": 96, "partial_rotary_factor": 0.5}, pipeline=False),
    "phi3": Case("phi3", {**_KV, "partial_rotary_factor": 0.75, "sliding_window": WINDOW}, pipeline=False),
    "phi3 long rope": Case(
        "phi3", {**_KV, "original_max_position_embeddings": 32, "rope_parameters": _LONG}, pipeline=False
    ),
    "gpt2": Case("gpt2", _GPT2),
    "gpt_bigcode": Case("gpt_bigcode", {**_GPT2, "multi_query": True}),
    "gpt_bigcode heads": Case("gpt_bigcode", {**_GPT2, "multi_query": False}),
    "starcoder2": Case("starcoder2", {**_KV, "sliding_window": WINDOW}),
    "starcoder2 no bias": Case("starcoder2", {**_KV, "sliding_window": None, "use_bias": False}),
    "falcon": Case("falcon", _FALCON),
    "falcon bias": Case("falcon", {**_FALCON, "bias": True}),
    "falcon new": Case("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon one norm": Case(
        "falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
    ),
    "falcon alibi": Case("falcon", {**_FALCON, **_TWELVE, "alibi": True}),
    "falcon sequential": Case(
        "falcon", {**_FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}
    ),
    "gpt_neox": Case("gpt_neox", {**_SIZES, "intermediate_size": 256, "rotary_pct": 0.25}, pipeline=False),
    "bloom": Case("bloom", {**_SIZES, **_TWELVE, "n_layer": 3, "n_head": 12}, pipeline=False),
    "opt": Case("opt", {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64}, pipeline=False),
}


def make_model(case: Case, folder: Path) -> Any:
    """Save the model of a case as a Hugging Face folder, and return it, float32 and ready to run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.kind, **case.config)).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(0, 0.15)
            else:
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return model
