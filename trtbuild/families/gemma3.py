"""Gemma 3: Gemma 2 with norms over q and k, local layers that rotate by another base, and no cap on attention.

The traps: TensorRT-LLM decides by `_sliding_window_pattern` alone which layers are local, so `layer_types` must say the
same; and it applies one `rotary_scaling` to both bases, where Hugging Face scales the global layers only.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.gemma import CAUSAL, NOTE, plus_one
from trtbuild.families.gemma2 import FEEDFORWARD_NORMS, GEMMA2, GEMMA2_KEYS, softcap
from trtbuild.families.llama import ATTENTION, EMBEDDING, GATED_MLP, HEAD, NORMS, QUANTIZED
from trtbuild.families.mistral import Derived, sliding_layers
from trtbuild.families.qwen3 import NOTE as QK_NOTE
from trtbuild.families.qwen3 import QK_NORMS
from trtbuild.families.rules import Expect, Key, Refuse

_SCALED = "TensorRT-LLM would scale the local layers too, which the model does not"


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """The pattern of local and global layers under both names that 1.x releases read, and the cap of the logits."""
    updates, problems = softcap(hf, "final_logit_softcapping", None)
    pattern, layers = fields["_sliding_window_pattern"], fields["num_hidden_layers"]
    slides, wrong = sliding_layers(hf, fields, [(layer + 1) % pattern != 0 for layer in range(layers)])
    if hf.get("layer_types") is not None and not wrong:
        # The number beside `layer_types` is not read by transformers, and need not be theirs.
        if False in slides:
            pattern = slides.index(False) + 1
        elif pattern <= layers:
            pattern = layers + 1
        if slides != [(layer + 1) % pattern != 0 for layer in range(layers)]:
            wrong.append("layer_types must be full_attention in every n-th layer and sliding_attention in the others")
    local = (hf.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        problems.append(f"the rope_type of sliding_attention is {local['rope_type']!r}; supported: default")
    return {**updates, "_sliding_window_pattern": pattern, "sliding_window_pattern": pattern}, problems + wrong


GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    architectures={
        "Gemma3ForCausalLM": "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    },
    # The text part of the multi-modal files leaves out what is Gemma3TextConfig's default.
    keys={
        **GEMMA2_KEYS,
        "num_attention_heads": Key(("num_attention_heads",), int, 8),
        "num_key_value_heads": Key(("num_key_value_heads",), int, 4),
        "vocab_size": Key(("vocab_size",), int, 262208),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 131072),
        "rotary_base": Key(("rope_theta",), float, 1e6),
        "rope_local_base_freq": Key(("rope_local_base_freq",), float, 10000.0),
        "sliding_window": Key(("sliding_window",), int, 4096),
        "_sliding_window_pattern": Key(("sliding_window_pattern", "_sliding_window_pattern"), int, 6),
    },
    rules=plus_one((*EMBEDDING, *NORMS[0], *ATTENTION, *QK_NORMS, *NORMS[1], *FEEDFORWARD_NORMS, *GATED_MLP, *HEAD)),
    constants={**GEMMA2.constants, "qk_layernorm": True, "rotary_scaling": None},
    derive=derive,
    rope_types=(),
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("gemma3_text", "gemma3"))),
    refuses=(
        QUANTIZED,
        CAUSAL,
        Refuse("attn_logit_softcapping", "TensorRT-LLM caps attention only in Gemma 2"),
        Refuse("rope_scaling", _SCALED),
    ),
    prefixes=(("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
    ignored=("*.rotary_emb.inv_freq", "vision_tower.*", "multi_modal_projector.*"),
    note=f"text part; not with rope scaling, which 4B and larger have; {NOTE}; {QK_NOTE}",
)
