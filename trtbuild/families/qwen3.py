"""Qwen3: Qwen2 without biases, with a norm over each head of q and k.

The trap: heads x `head_dim` is not the hidden size in most of the sizes.
"""

from __future__ import annotations

from dataclasses import replace

from trtbuild.families.llama import EMBEDDING, GATED_MLP, HEAD, NORMS, QUANTIZED
from trtbuild.families.qwen2 import ATTENTION, CONSTANTS, DENSE, QWEN2, QWEN_KEYS
from trtbuild.families.rules import Expect, Key, Refuse, Rule, Source
from trtbuild.layout import Axis, Split

QK_NORMS = tuple(
    Rule(
        f"transformer.layers.{{i}}.attention.{part}_layernorm.weight",
        (Source(f"model.layers.{{i}}.self_attn.{part}_norm.weight", (Axis.HEAD_SIZE,)),),
        Split.COPY,
    )
    for part in "qk"
)
# 128 is what Qwen3Config means by an absent head_dim; Qwen3MoeConfig means hidden_size / heads.
QWEN3_KEYS = {**QWEN_KEYS, "head_size": Key(("head_dim",), int, 128)}
QK = {"attn_bias": False, "qk_layernorm": True}
NO_BIAS = Refuse("attention_bias", "TensorRT-LLM's class has no bias on attention.dense")
NOTE = "TensorRT-LLM's norms of q and k use epsilon 1e-5, not the model's"

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    architectures={"Qwen3ForCausalLM": "Qwen3ForCausalLM"},
    keys=QWEN3_KEYS,
    rules=(*EMBEDDING, *NORMS[0], *ATTENTION, *QK_NORMS, *NORMS[1], *GATED_MLP, *HEAD),
    constants={**CONSTANTS, **DENSE, **QK, "qwen_type": "qwen3"},
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("qwen3",))),
    refuses=(QUANTIZED, NO_BIAS),
    note=NOTE,
)
