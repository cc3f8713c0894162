"""Llama and the models that are Llama by another name (Yi, SmolLM2, TinyLlama, DeepSeek-LLM, ...).

The trap: TensorRT-LLM's `mlp.fc` is the activated projection, Hugging Face's `gate_proj`; its `mlp.gate` is `up_proj`.
"""

from __future__ import annotations

from trtbuild.families.rules import Expect, Family, Key, Refuse, Rule, Source
from trtbuild.layout import Axis, Split, Stage

_IN = "model.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

KEYS = {
    "hidden_size": Key(("hidden_size",), int),
    "num_layers": Key(("num_hidden_layers",), int),
    "num_heads": Key(("num_attention_heads",), int),
    "num_kv_heads": Key(("num_key_value_heads",), int, None),
    "head_size": Key(("head_dim",), int, None),
    "intermediate_size": Key(("intermediate_size",), int),
    "vocab_size": Key(("vocab_size",), int),
    "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
    "norm_epsilon": Key(("rms_norm_eps",), float, 1e-6),
    "hidden_act": Key(("hidden_act",), str, "silu"),
    "rotary_base": Key(("rope_theta",), float, 10000.0),
    "tied_embeddings": Key(("tie_word_embeddings",), bool, False),
    "attn_bias": Key(("attention_bias",), bool, False),
    "mlp_bias": Key(("mlp_bias",), bool, False),
}

RULES = (
    Rule(
        "transformer.vocab_embedding.weight",
        (Source("model.embed_tokens.weight", (_V,), _H),),
        Split.EMBED,
        Stage.FIRST,
    ),
    Rule(_OUT + "input_layernorm.weight", (Source(_IN + "input_layernorm.weight", (_H,)),), Split.COPY),
    Rule(
        _OUT + "attention.qkv.weight",
        (
            Source(_IN + "self_attn.q_proj.weight", (_Q,), _H),
            Source(_IN + "self_attn.k_proj.weight", (_KV,), _H),
            Source(_IN + "self_attn.v_proj.weight", (_KV,), _H),
        ),
        Split.COLUMN,
    ),
    Rule(
        _OUT + "attention.qkv.bias",
        (
            Source(_IN + "self_attn.q_proj.bias", (_Q,)),
            Source(_IN + "self_attn.k_proj.bias", (_KV,)),
            Source(_IN + "self_attn.v_proj.bias", (_KV,)),
        ),
        Split.COLUMN,
        when="attn_bias",
    ),
    Rule(_OUT + "attention.dense.weight", (Source(_IN + "self_attn.o_proj.weight", (_H,), _Q),), Split.ROW),
    Rule(_OUT + "attention.dense.bias", (Source(_IN + "self_attn.o_proj.bias", (_H,)),), Split.ROW, when="attn_bias"),
    Rule(_OUT + "post_layernorm.weight", (Source(_IN + "post_attention_layernorm.weight", (_H,)),), Split.COPY),
    Rule(_OUT + "mlp.fc.weight", (Source(_IN + "mlp.gate_proj.weight", (_I,), _H),), Split.COLUMN),
    Rule(_OUT + "mlp.fc.bias", (Source(_IN + "mlp.gate_proj.bias", (_I,)),), Split.COLUMN, when="mlp_bias"),
    Rule(_OUT + "mlp.gate.weight", (Source(_IN + "mlp.up_proj.weight", (_I,), _H),), Split.COLUMN),
    Rule(_OUT + "mlp.gate.bias", (Source(_IN + "mlp.up_proj.bias", (_I,)),), Split.COLUMN, when="mlp_bias"),
    Rule(_OUT + "mlp.proj.weight", (Source(_IN + "mlp.down_proj.weight", (_H,), _I),), Split.ROW),
    Rule(_OUT + "mlp.proj.bias", (Source(_IN + "mlp.down_proj.bias", (_H,)),), Split.ROW, when="mlp_bias"),
    Rule("transformer.ln_f.weight", (Source("model.norm.weight", (_H,)),), Split.COPY, Stage.LAST),
    Rule(
        "lm_head.weight",
        (Source("lm_head.weight", (_V,), _H, fallback="model.embed_tokens.weight"),),
        Split.VOCAB,
        Stage.LAST,
    ),
)

LLAMA = Family(
    name="llama",
    architectures={"LlamaForCausalLM": "LlamaForCausalLM"},
    keys=KEYS,
    rules=RULES,
    position_embedding_type="rope_gpt_neox",
    activations={"silu": "silu", "swish": "silu"},
    rope_types=("linear", "llama3"),
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("llama",))),
    refuses=(
        Refuse("quantization_config", "the weights are quantized already; give the unquantized model"),
        Refuse("sliding_window", "attention in this family always sees the whole context"),
    ),
    ignored=("*.rotary_emb.inv_freq",),
    config_fields={
        "attn_bias": "attn_bias",
        "mlp_bias": "mlp_bias",
        "rotary_base": "rotary_base",
        "rotary_scaling": "rotary_scaling",
        "tie_word_embeddings": "tied_embeddings",
    },
    config_constants={
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "remove_duplicated_kv_heads": False,
    },
)
