"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v only.

The trap: `sliding_window` is in every config, and means nothing unless `use_sliding_window` is true.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import EMBEDDING, GATED_MLP, HEAD, KEYS, LLAMA, NORMS, QKV_NAMES, QUANTIZED
from trtbuild.families.mistral import WINDOW, Derived, attention_windows, sliding_layers
from trtbuild.families.rules import Expect, Key, linear
from trtbuild.layout import Axis, Split

_OUT = "transformer.layers.{i}."
_H, _Q, _KV = Axis.HIDDEN, Axis.Q, Axis.KV

ATTENTION = (
    *linear(_OUT + "attention.qkv", QKV_NAMES, (_Q, _KV, _KV), _H, Split.COLUMN, bias="attn_bias"),
    *linear(_OUT + "attention.dense", "model.layers.{i}.self_attn.o_proj", (_H,), _Q, Split.ROW),
)
QWEN_KEYS = {
    **KEYS,
    "max_position_embeddings": Key(("max_position_embeddings",), int, 32768),
    # Only for log-n attention, but the class reads the attribute always; 8192 is upstream's value.
    "seq_length": Key(("seq_length",), int, 8192),
}
CONSTANTS = {
    "position_embedding_type": "rope_gpt_neox",
    "qk_layernorm": False,
    "disable_weight_only_quant_plugin": False,
    "mlp_bias": False,
    "use_logn_attn": False,
}
DENSE = {"moe_intermediate_size": 0, "moe_shared_expert_intermediate_size": 0}


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """Layers from `max_window_layers` on slide, where `use_sliding_window` asks for it."""
    if not hf.get("use_sliding_window"):
        return {}, []
    first = hf.get("max_window_layers", 28)
    if type(first) is not int:
        return {}, [f"max_window_layers is {first!r}; it must be an integer"]
    slides, problems = sliding_layers(hf, fields, [layer >= first for layer in range(fields["num_hidden_layers"])])
    windows, more = attention_windows(hf, fields, slides, default=4096)
    return windows, problems + more


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    architectures={"Qwen2ForCausalLM": "Qwen2ForCausalLM"},
    keys=QWEN_KEYS,
    rules=(*EMBEDDING, *NORMS[0], *ATTENTION, *NORMS[1], *GATED_MLP, *HEAD),
    constants={**CONSTANTS, **DENSE, "attn_bias": True, "qwen_type": "qwen2"},
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("qwen2",))),
    refuses=(QUANTIZED,),
    note=WINDOW,
)
