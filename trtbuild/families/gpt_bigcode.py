"""GPT-BigCode (StarCoder): GPT-2 with plain linears and one kv head.

Without `multi_query` Hugging Face lays q, k, v out by head, not as q; k; v like GPT-2 (its GPTBigCodeAttention); with
one kv head both layouts are the same rows, so `grouped` describes either.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.gpt2 import ATTENTION_REFUSES, CONSTANTS, GPT2, KEYS, UNSCALED, rules
from trtbuild.families.rules import Expect, Key


def _heads(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    one = hf.get("multi_query") in (None, True)
    return {"num_key_value_heads": 1 if one else fields["num_attention_heads"]}, []


GPT_BIGCODE = replace(
    GPT2,
    name="gpt_bigcode",
    architectures={"GPTBigCodeForCausalLM": "GPTBigCodeForCausalLM"},
    keys={**KEYS, "hidden_act": Key(("activation_function",), str, "gelu_pytorch_tanh")},
    rules=rules(grouped=True, transposed=False),
    constants={**CONSTANTS, "gpt_variant": "starcoder"},
    derive=_heads,
    expects=(UNSCALED, Expect("multi_query", (True, False)), Expect("model_type", ("gpt_bigcode",))),
    refuses=ATTENTION_REFUSES,
)
