"""Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini: Llama with fused projections, long rope and partial rope.

Hugging Face's gate_up_proj is [gate; up]; TensorRT-LLM's `mlp.fc` for swiglu is [up; gate], cut half by half. Upstream
cuts after the swap, so that its ranks hold up only or gate only: we write cat(up[r], gate[r]), which is what the class
multiplies (checkpoint format 2.6).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtbuild.families.llama import EMBEDDING, HEAD, KEYS, NORMS, QUANTIZED
from trtbuild.families.mistral import WINDOW, attention_windows
from trtbuild.families.rules import Expect, Family, Key, Refuse, linear
from trtbuild.layout import Axis, Split

_IN = "model.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER

RULES = (
    *EMBEDDING,
    *NORMS[0],
    *linear(_OUT + "attention.qkv", _IN + "self_attn.qkv_proj", (_Q, _KV, _KV), _H, Split.COLUMN),
    *linear(_OUT + "attention.dense", _IN + "self_attn.o_proj", (_H,), _Q, Split.ROW),
    *NORMS[1],
    *linear(_OUT + "mlp.fc", _IN + "mlp.gate_up_proj", (_I, _I), _H, Split.COLUMN, order=(1, 0)),
    *linear(_OUT + "mlp.proj", _IN + "mlp.down_proj", (_H,), _I, Split.ROW),
    *HEAD,
)


def _derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    updates, problems = attention_windows(hf, fields, [True])
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    if fields["head_size"] * heads != hidden:
        problems.append(f"head_dim is {fields['head_size']}; the class has only hidden_size {hidden} / {heads} heads")
    rope = hf.get("rope_scaling")
    if isinstance(rope, Dict) and (rope.get("rope_type") or rope.get("type")) in ("longrope", "su"):
        longrope, found = _long_rope(hf, rope, fields)
        updates, problems = {**updates, **longrope}, problems + found
    return updates, problems


def _long_rope(hf: Dict[str, Any], rope: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of long rope: the class turns it on where it finds them, and takes the magnitude from the two lengths."""
    problems = []
    original = hf.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    if type(original) is not int or original < 1:
        problems.append(f"original_max_position_embeddings is {original!r}; long rope needs a positive integer")
    count = int(fields["head_size"] * fields["rotary_pct"]) // 2
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if not isinstance(factors, list) or not all(type(f) in (int, float) and f > 0 for f in factors):
            problems.append(f"rope_scaling: {name} is {_short(factors)}; it must be a list of positive numbers")
        elif len(factors) != count:
            problems.append(f"rope_scaling: {name} has {len(factors)} numbers; half of the rotary dims is {count}")
    problems += [
        f"rope_scaling: {name} is {rope[name]!r}; the class computes it from the two lengths"
        for name in ("attention_factor", "short_mscale", "long_mscale")
        if rope.get(name) is not None
    ]
    updates = {
        "position_embedding_type": "long_rope",
        "original_max_position_embeddings": original,
        "longrope_scaling_short_factors": rope.get("short_factor"),
        "longrope_scaling_long_factors": rope.get("long_factor"),
    }
    return updates, problems


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:37] + "..."


PHI3 = Family(
    name="phi3",
    architectures={"Phi3ForCausalLM": "Phi3ForCausalLM"},
    keys={
        **KEYS,
        "max_position_embeddings": Key(("max_position_embeddings",), int, 4096),
        "norm_epsilon": Key(("rms_norm_eps",), float, 1e-5),
        "rotary_pct": Key(("partial_rotary_factor",), float, 1.0),
    },
    rules=RULES,
    constants={"position_embedding_type": "rope_gpt_neox", "rotary_scaling": None, "qk_layernorm": False},
    derive=_derive,
    activations={"silu": "swiglu", "swish": "swiglu"},
    rope_types=("longrope", "su"),
    expects=(Expect("full_attn_mod", (1,)), Expect("model_type", ("phi3",))),
    refuses=(
        QUANTIZED,
        *(Refuse(name, "the class has no biases") for name in ("attention_bias", "mlp_bias", "lm_head_bias")),
    ),
    ignored=("*.rotary_emb.inv_freq",),
    pipeline=False,
    note=WINDOW,
)
