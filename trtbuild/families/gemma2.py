"""Gemma 2: Gemma with norms after attention and MLP too, capped logits, and a window in every other layer.

The trap: Hugging Face's `post_attention_layernorm` is again `post_layernorm`, but now of the attention's output;
the norm before the MLP is `pre_feedforward_layernorm`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.gemma import CAUSAL, CONSTANTS, GEMMA, GEMMA_KEYS, NOTE, plus_one
from trtbuild.families.llama import ATTENTION, EMBEDDING, GATED_MLP, HEAD, NORMS, QUANTIZED
from trtbuild.families.mistral import WINDOW, Derived, attention_windows, sliding_layers
from trtbuild.families.rules import Expect, Key, norm

# hidden_activation `gelu` means the exact form here, which TensorRT-LLM does not have.
TANH = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh"}
FEEDFORWARD_NORMS = tuple(
    norm(f"transformer.layers.{{i}}.{name}", f"model.layers.{{i}}.{name}")[0]
    for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm")
)
GEMMA2_KEYS = {**GEMMA_KEYS, "query_pre_attn_scalar": Key(("query_pre_attn_scalar",), int, 256)}


def softcap(hf: Dict[str, Any], name: str, default: float | None) -> Derived:
    """A cap of logits: null means none, and only an absent key means the default."""
    value = hf.get(name, default)
    if value is not None and (type(value) not in (int, float) or value <= 0):
        return {}, [f"{name} is {value!r}; it must be a positive number or null"]
    return {name: value}, []


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """The caps, and the windows of the even layers."""
    updates, problems = softcap(hf, "final_logit_softcapping", 30.0)
    attention, more = softcap(hf, "attn_logit_softcapping", 50.0)
    slides, wrong = sliding_layers(hf, fields, [layer % 2 == 0 for layer in range(fields["num_hidden_layers"])])
    windows, worse = attention_windows(hf, fields, slides, default=4096)
    return {**updates, **attention, **windows}, problems + more + wrong + worse


GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    architectures={"Gemma2ForCausalLM": "Gemma2ForCausalLM"},
    keys=GEMMA2_KEYS,
    rules=plus_one((*EMBEDDING, *NORMS[0], *ATTENTION, *NORMS[1], *FEEDFORWARD_NORMS, *GATED_MLP, *HEAD)),
    constants={**CONSTANTS, "inter_layernorms": True},
    activations=TANH,
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("gemma2",))),
    refuses=(QUANTIZED, CAUSAL),
    note=f"{NOTE}; {WINDOW}",
)
