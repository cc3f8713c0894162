"""Llama and the models that are Llama by another name (Yi, SmolLM2, TinyLlama, DeepSeek-LLM, ...).

The trap: TensorRT-LLM's `mlp.fc` is the activated projection, Hugging Face's `gate_proj`; its `mlp.gate` is `up_proj`.
"""

from __future__ import annotations

from trtbuild.families.rules import Expect, Family, Key, Refuse, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "model.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

KEYS = {
    "hidden_size": Key(("hidden_size",), int),
    "num_hidden_layers": Key(("num_hidden_layers",), int),
    "num_attention_heads": Key(("num_attention_heads",), int),
    "num_key_value_heads": Key(("num_key_value_heads",), int, None),
    "head_size": Key(("head_dim",), int, None),
    "intermediate_size": Key(("intermediate_size",), int),
    "vocab_size": Key(("vocab_size",), int),
    "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
    "norm_epsilon": Key(("rms_norm_eps",), float, 1e-6),
    "hidden_act": Key(("hidden_act",), str, "silu"),
    "rotary_base": Key(("rope_theta",), float, 10000.0),
    "tie_word_embeddings": Key(("tie_word_embeddings",), bool, False),
}
BIASES = {
    "attn_bias": Key(("attention_bias",), bool, False),
    "mlp_bias": Key(("mlp_bias",), bool, False),
}

EMBEDDING = (
    Rule(
        "transformer.vocab_embedding.weight",
        (Source("model.embed_tokens.weight", (_V,), _H),),
        Split.EMBED,
        Stage.FIRST,
    ),
)
QKV_NAMES = tuple(f"{_IN}self_attn.{part}_proj" for part in "qkv")
ATTENTION = (
    *linear(_OUT + "attention.qkv", QKV_NAMES, (_Q, _KV, _KV), _H, Split.COLUMN, bias="attn_bias"),
    *linear(_OUT + "attention.dense", _IN + "self_attn.o_proj", (_H,), _Q, Split.ROW, bias="attn_bias"),
)
GATED_MLP = (
    *linear(_OUT + "mlp.fc", _IN + "mlp.gate_proj", (_I,), _H, Split.COLUMN, bias="mlp_bias"),
    *linear(_OUT + "mlp.gate", _IN + "mlp.up_proj", (_I,), _H, Split.COLUMN, bias="mlp_bias"),
    *linear(_OUT + "mlp.proj", _IN + "mlp.down_proj", (_H,), _I, Split.ROW, bias="mlp_bias"),
)
HEAD = (
    *norm("transformer.ln_f", "model.norm", Stage.LAST),
    Rule(
        "lm_head.weight",
        (Source("lm_head.weight", (_V,), _H, fallback="model.embed_tokens.weight"),),
        Split.VOCAB,
        Stage.LAST,
    ),
)
NORMS = (
    norm(_OUT + "input_layernorm", _IN + "input_layernorm"),
    norm(_OUT + "post_layernorm", _IN + "post_attention_layernorm"),
)
RULES = (*EMBEDDING, *NORMS[0], *ATTENTION, *NORMS[1], *GATED_MLP, *HEAD)

# Fp8 weights are let through: checkpoint/quantized_source.py says which.
QUANTIZED = Refuse("quantization_config", "the weights are quantized already; give the unquantized model")
# What both the class and create_attention_const_params of its Attention layer do as transformers does.
ROPE_TYPES = ("linear", "llama3", "yarn")
SILU = {"silu": "silu", "swish": "silu"}
CONSTANTS = {
    "position_embedding_type": "rope_gpt_neox",
    "qk_layernorm": False,
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
}

LLAMA = Family(
    name="llama",
    architectures={"LlamaForCausalLM": "LlamaForCausalLM"},
    keys={**KEYS, **BIASES},
    rules=RULES,
    constants=CONSTANTS,
    activations=SILU,
    rope_types=ROPE_TYPES,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("llama",))),
    refuses=(QUANTIZED, Refuse("sliding_window", "attention in this family always sees the whole context")),
    ignored=("*.rotary_emb.inv_freq",),
)
