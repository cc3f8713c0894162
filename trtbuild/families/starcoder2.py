"""StarCoder2: rope, grouped-query attention, LayerNorms, a plain MLP, biases by `use_bias`; TensorRT-LLM's GPT class.

The class knows no sliding window: TensorRT-LLM takes it at run time, from `max_attention_window`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtbuild.families.gpt2 import GELU, GPT_CONSTANTS
from trtbuild.families.llama import EMBEDDING, HEAD, QKV_NAMES, QUANTIZED
from trtbuild.families.mistral import WINDOW, Derived, attention_windows
from trtbuild.families.rules import Expect, Family, Key, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "model.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER

RULES = (
    *EMBEDDING,
    *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True),
    *linear(_OUT + "attention.qkv", QKV_NAMES, (_Q, _KV, _KV), _H, Split.COLUMN, bias="bias"),
    *linear(_OUT + "attention.dense", _IN + "self_attn.o_proj", (_H,), _Q, Split.ROW, bias="bias"),
    *norm(_OUT + "post_layernorm", _IN + "post_attention_layernorm", bias=True),
    *linear(_OUT + "mlp.fc", _IN + "mlp.c_fc", (_I,), _H, Split.COLUMN, bias="bias"),
    *linear(_OUT + "mlp.proj", _IN + "mlp.c_proj", (_H,), _I, Split.ROW, bias="bias"),
    *norm("transformer.ln_f", "model.norm", Stage.LAST, bias=True),
    HEAD[-1],
)


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """All layers slide, or none."""
    return attention_windows(hf, fields, [True])


STARCODER2 = Family(
    name="starcoder2",
    architectures={"Starcoder2ForCausalLM": "Starcoder2ForCausalLM"},
    keys={
        "hidden_size": Key(("hidden_size",), int),
        "num_hidden_layers": Key(("num_hidden_layers",), int),
        "num_attention_heads": Key(("num_attention_heads",), int),
        "num_key_value_heads": Key(("num_key_value_heads",), int, 2),
        "head_size": Key(("head_dim",), int, None),
        "intermediate_size": Key(("intermediate_size",), int),
        "vocab_size": Key(("vocab_size",), int),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 4096),
        "norm_epsilon": Key(("norm_epsilon",), float, 1e-5),
        "hidden_act": Key(("hidden_act",), str, "gelu_pytorch_tanh"),
        "rotary_base": Key(("rope_theta",), float, 10000.0),
        "bias": Key(("use_bias",), bool, True),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    },
    rules=RULES,
    constants={
        **GPT_CONSTANTS,
        "gpt_variant": "starcoder2",
        "position_embedding_type": "rope_gpt_neox",
        "rotary_pct": 1.0,
    },
    derive=derive,
    # Upstream's string for this family; every gelu spelling is the tanh form there.
    activations=dict.fromkeys(GELU, "gelu"),
    rope_types=("linear",),
    expects=(
        Expect("partial_rotary_factor", (1, 1.0)),
        Expect("norm_type", ("layer_norm",)),
        Expect("mlp_type", ("default",)),
        Expect("model_type", ("starcoder2",)),
    ),
    refuses=(QUANTIZED,),
    ignored=("*.rotary_emb.inv_freq",),
    note=WINDOW,
)
