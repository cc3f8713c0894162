"""Phi-1, Phi-1.5, Phi-2: attention and MLP side by side on one norm, partial rope, a bias on everything, lm_head too.

TensorRT-LLM's class takes no kv heads, norm epsilon or rope scaling from the config, so only its own values pass.
"""

from __future__ import annotations

from trtbuild.families.gpt2 import ACTIVATIONS
from trtbuild.families.llama import EMBEDDING, HEAD, QKV_NAMES, QUANTIZED
from trtbuild.families.rules import Expect, Family, Key, Multiple, Refuse, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "model.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

DEFAULT_EPSILON = "the class builds its LayerNorms with 1e-05"
NO_ROPE_SCALING = Refuse("rope_scaling", "the class applies plain rope only")

PHI = Family(
    name="phi",
    architectures={"PhiForCausalLM": "PhiForCausalLM"},
    keys={
        "hidden_size": Key(("hidden_size",), int),
        "num_hidden_layers": Key(("num_hidden_layers",), int),
        "num_attention_heads": Key(("num_attention_heads",), int),
        "intermediate_size": Key(("intermediate_size",), int),
        "vocab_size": Key(("vocab_size",), int),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
        "hidden_act": Key(("hidden_act",), str, "gelu_new"),
        "rotary_base": Key(("rope_theta",), float, 10000.0),
        "rotary_pct": Key(("partial_rotary_factor",), float, 0.5),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, False),
    },
    rules=(
        *EMBEDDING,
        *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True),
        *linear(_OUT + "attention.qkv", QKV_NAMES, (_Q, _KV, _KV), _H, Split.COLUMN, bias=""),
        *linear(_OUT + "attention.dense", _IN + "self_attn.dense", (_H,), _Q, Split.ROW, bias=""),
        *linear(_OUT + "mlp.fc", _IN + "mlp.fc1", (_I,), _H, Split.COLUMN, bias=""),
        *linear(_OUT + "mlp.proj", _IN + "mlp.fc2", (_H,), _I, Split.ROW, bias=""),
        *norm("transformer.ln_f", "model.final_layernorm", Stage.LAST, bias=True),
        HEAD[-1],
        Rule("lm_head.bias", (Source("lm_head.bias", (_V,)),), Split.VOCAB, Stage.LAST),
    ),
    constants={
        "position_embedding_type": "rope_gpt_neox",
        "norm_epsilon": 1e-5,
        "rotary_scaling": None,
        "qk_layernorm": False,
    },
    activations=ACTIVATIONS,
    expects=(Expect("layer_norm_eps", (1e-5,), DEFAULT_EPSILON), Expect("model_type", ("phi",))),
    refuses=(QUANTIZED, NO_ROPE_SCALING, Refuse("qk_layernorm", "the class has no norms of q and k")),
    multiples=(Multiple("num_key_value_heads", "num_attention_heads", why="the class has no grouped-query attention"),),
    ignored=("*.rotary_emb.inv_freq",),
    pipeline=False,
    note="norm epsilon 1e-05 only; no rope scaling",
)
