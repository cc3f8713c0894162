"""GPT-2: learned positions, Conv1D weights that lie as [in, out], embeddings tied.

Also what the rest of TensorRT-LLM's GPT group (GPT-BigCode, StarCoder2) shares. Its gelu strings all mean one function,
the tanh form; Hugging Face's `gelu` is the erf form. Upstream accepts that difference, and so do we.
"""

from __future__ import annotations

from typing import Any

from trtbuild.families.llama import QUANTIZED
from trtbuild.families.rules import Expect, Family, Key, Refuse, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "transformer.h.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

GELU = {name: name for name in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")}
ACTIVATIONS = {**GELU, "relu": "relu", "silu": "silu", "swish": "silu", "relu2": "squared-relu"}

KEYS = {
    "hidden_size": Key(("n_embd", "hidden_size"), int),
    "num_hidden_layers": Key(("n_layer", "num_hidden_layers"), int),
    "num_attention_heads": Key(("n_head", "num_attention_heads"), int),
    "intermediate_size": Key(("n_inner",), int, None),
    "vocab_size": Key(("vocab_size",), int),
    "max_position_embeddings": Key(("n_positions", "max_position_embeddings"), int, 1024),
    "norm_epsilon": Key(("layer_norm_epsilon",), float, 1e-5),
    "hidden_act": Key(("activation_function",), str, "gelu_new"),
    "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
}
GPT_CONSTANTS = {
    "q_scaling": 1.0,
    "embedding_scale": None,
    "apply_query_key_layer_scaling": False,
    "inner_layernorm": False,
    "norm_before_bmm1": False,
    "qk_layernorm": False,
}
CONSTANTS = {
    **GPT_CONSTANTS,
    "position_embedding_type": "learned_absolute",
    "bias": True,
    "rotary_pct": 1.0,
    "rotary_base": 10000.0,
    "rotary_scaling": None,
}


def rules(*, grouped: bool, transposed: bool) -> tuple[Rule, ...]:
    """GPT-2's tensors; `transposed`: linears are Conv1D; `grouped`: q, k, v lie by kv head."""
    kind: dict[str, Any] = {"transposed": transposed}
    qkv = (_Q, _KV, _KV)
    return (
        Rule(
            "transformer.vocab_embedding.weight",
            (Source("transformer.wte.weight", (_V,), _H),),
            Split.EMBED,
            Stage.FIRST,
        ),
        Rule(
            "transformer.position_embedding.weight",
            (Source("transformer.wpe.weight", (Axis.POSITIONS,), _H),),
            Split.EMBED,
            Stage.FIRST,
        ),
        *norm(_OUT + "input_layernorm", _IN + "ln_1", bias=True),
        *linear(_OUT + "attention.qkv", _IN + "attn.c_attn", qkv, _H, Split.COLUMN, bias="", grouped=grouped, **kind),
        *linear(_OUT + "attention.dense", _IN + "attn.c_proj", (_H,), _Q, Split.ROW, bias="", **kind),
        *norm(_OUT + "post_layernorm", _IN + "ln_2", bias=True),
        *linear(_OUT + "mlp.fc", _IN + "mlp.c_fc", (_I,), _H, Split.COLUMN, bias="", **kind),
        *linear(_OUT + "mlp.proj", _IN + "mlp.c_proj", (_H,), _I, Split.ROW, bias="", **kind),
        *norm("transformer.ln_f", "transformer.ln_f", Stage.LAST, bias=True),
        Rule(
            "lm_head.weight",
            (Source("lm_head.weight", (_V,), _H, fallback="transformer.wte.weight"),),
            Split.VOCAB,
            Stage.LAST,
        ),
    )


ATTENTION_REFUSES = (QUANTIZED, Refuse("add_cross_attention", "the class has no cross-attention"))
UNSCALED = Expect("scale_attn_weights", (True,), "the class always divides by the square root of the head size")

GPT2 = Family(
    name="gpt2",
    architectures={"GPT2LMHeadModel": "GPT2LMHeadModel"},
    keys=KEYS,
    rules=rules(grouped=False, transposed=True),
    constants={**CONSTANTS, "gpt_variant": "gpt2"},
    activations=ACTIVATIONS,
    expects=(UNSCALED, Expect("model_type", ("gpt2",))),
    refuses=(
        *ATTENTION_REFUSES,
        Refuse("scale_attn_by_inverse_layer_idx", "the class does not scale attention by the layer"),
    ),
    # Causal masks; files of the hub may leave out the prefix.
    ignored=("*.attn.bias", "*.attn.masked_bias"),
    prefixes=(("transformer.", ""),),
)
