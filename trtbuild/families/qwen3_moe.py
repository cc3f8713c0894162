"""Qwen3-MoE (30B-A3B, 235B-A22B): Qwen3's attention and routed experts in every layer, no shared one.

The trap: `norm_topk_prob` is true here, which is normalization_mode 1; upstream's converter writes 0.
"""

from __future__ import annotations

from dataclasses import replace

from trtbuild.families.llama import EMBEDDING, HEAD, NORMS
from trtbuild.families.mixtral import FUSED_EXPERTS, SWIGLU
from trtbuild.families.qwen2 import ATTENTION
from trtbuild.families.qwen2_moe import EVERY_LAYER, EXPERTS, MOE_CONSTANTS, MOE_KEYS, QWEN2_MOE, derive
from trtbuild.families.qwen3 import NOTE, QK, QK_NORMS, QWEN3
from trtbuild.families.rules import Expect

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": "Qwen3MoeForCausalLM"},
    keys=MOE_KEYS,
    rules=(*EMBEDDING, *NORMS[0], *ATTENTION, *QK_NORMS, *NORMS[1], *EXPERTS, *HEAD),
    activations=SWIGLU,
    constants={**MOE_CONSTANTS, **QK, "moe_shared_expert_intermediate_size": 0, "qwen_type": "qwen3_moe"},
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("qwen3_moe",)), *EVERY_LAYER),
    unusable=(FUSED_EXPERTS,),
    note=f"{QWEN2_MOE.note}; upstream verified only its PyTorch backend; {NOTE}",
)
