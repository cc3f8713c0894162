"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, routed experts and a gated shared expert in every layer.

The trap: `intermediate_size` is of the dense layers, which these models have none of; TensorRT-LLM's class makes every
layer a mixture. The 1.x class looks for the shared expert inside `mlp` (0.x: beside it).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import EMBEDDING, HEAD, NORMS
from trtbuild.families.mistral import Derived, attention_windows, sliding_layers
from trtbuild.families.mixtral import FUSED_EXPERTS, SWIGLU, mixture, moe_fields
from trtbuild.families.qwen2 import ATTENTION, CONSTANTS, QWEN2, QWEN_KEYS
from trtbuild.families.rules import Expect, Key, Rule, Source
from trtbuild.layout import Axis, Split

_IN = "model.layers.{i}.mlp."
_OUT = "transformer.layers.{i}.mlp."
_H, _S = Axis.HIDDEN, Axis.SHARED_INTER

EXPERTS = mixture(_IN + "gate.weight", _IN + "experts.{e}.", up="up_proj", gate="gate_proj", down="down_proj")
SHARED_EXPERT = (
    Rule(
        _OUT + "shared_expert.fc.weight",
        tuple(Source(f"{_IN}shared_expert.{name}.weight", (_S,), _H) for name in ("up_proj", "gate_proj")),
        Split.COLUMN,
    ),
    Rule(
        _OUT + "shared_expert.proj.weight",
        (Source(_IN + "shared_expert.down_proj.weight", (_H,), _S),),
        Split.ROW,
    ),
    Rule(
        _OUT + "shared_expert_gate.weight",
        (Source(_IN + "shared_expert_gate.weight", (Axis.ONE,), _H),),
        Split.COPY,
    ),
)
MOE_KEYS = {**QWEN_KEYS, "moe_intermediate_size": Key(("moe_intermediate_size",), int)}
MOE_CONSTANTS = {**CONSTANTS, "mlp_only_layers": [], "decoder_sparse_step": 1}
_EVERY_LAYER = "TensorRT-LLM makes every layer a mixture of experts"
EVERY_LAYER = (Expect("mlp_only_layers", ([],), _EVERY_LAYER), Expect("decoder_sparse_step", (1,), _EVERY_LAYER))


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """The routing by `norm_topk_prob`; sliding layers only where `layer_types` names them."""
    normalized = hf.get("norm_topk_prob", False)
    shared = fields["moe_shared_expert_intermediate_size"]
    moe, problems = moe_fields(hf, ("num_experts", "num_local_experts"), int(bool(normalized)), shared)
    if normalized not in (True, False, None):
        problems.append(f"norm_topk_prob is {normalized!r}; it must be true or false")
    windows: dict[str, Any] = {}
    if hf.get("use_sliding_window") and hf.get("layer_types") is None:
        problems.append(
            "use_sliding_window is set without layer_types, and releases of transformers slide other layers"
        )
    elif hf.get("use_sliding_window"):
        slides, wrong = sliding_layers(hf, fields, [])
        windows, more = attention_windows(hf, fields, slides, default=4096)
        problems += wrong + more
    return {**moe, **windows}, problems


QWEN2_MOE = replace(
    QWEN2,
    name="qwen2_moe",
    architectures={"Qwen2MoeForCausalLM": "Qwen2MoeForCausalLM"},
    keys={
        **MOE_KEYS,
        "moe_shared_expert_intermediate_size": Key(("shared_expert_intermediate_size",), int),
        "attn_bias": Key(("qkv_bias",), bool, True),
    },
    rules=(*EMBEDDING, *NORMS[0], *ATTENTION, *NORMS[1], *EXPERTS, *SHARED_EXPERT, *HEAD),
    activations=SWIGLU,
    constants={**MOE_CONSTANTS, "qwen_type": "qwen2_moe"},
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("qwen2_moe",)), *EVERY_LAYER),
    unusable=(FUSED_EXPERTS,),
    note="every layer must be a mixture of experts",
)
