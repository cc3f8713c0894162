"""Mistral (7B, Nemo, Small): Llama with a sliding window, which TensorRT-LLM takes when it runs.

The trap: `head_dim` is not hidden_size / heads in Nemo and Small.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import CONSTANTS, KEYS, LLAMA, QUANTIZED
from trtbuild.families.rules import Expect

Derived = tuple[dict[str, Any], list[str]]
WINDOW = "TensorRT-LLM takes the sliding window when it runs (max_attention_window)"
_KINDS = ("full_attention", "sliding_attention")


def attention_windows(
    hf: Dict[str, Any], fields: Dict[str, Any], slides: Sequence[bool], default: int | None = None
) -> Derived:
    """`max_attention_window` of a model of which the layers that `slides` names see `sliding_window` tokens.

    TensorRT-LLM's KvCacheConfig repeats the list over the layers, so one period of it is enough; without a window that
    is shorter than the context there is none. `default` is the window of a config that does not speak of it.
    """
    window, full = hf.get("sliding_window", default), fields["max_position_embeddings"]
    if not window or not any(slides):
        return {}, []
    if type(window) is not int or window < 0:
        return {}, [f"sliding_window is {window!r}; it must be a positive integer"]
    if window >= full:
        return {}, []
    sizes = [window if slide else full for slide in slides]
    period = next(n for n in range(1, len(sizes) + 1) if all(size == sizes[i % n] for i, size in enumerate(sizes)))
    return {"max_attention_window": sizes[:period]}, []


def sliding_layers(
    hf: Dict[str, Any], fields: Dict[str, Any], otherwise: Sequence[bool]
) -> tuple[list[bool], list[str]]:
    """Which layers slide: by `layer_types` of newer configs, else `otherwise`."""
    types, layers = hf.get("layer_types"), fields["num_hidden_layers"]
    if types is None:
        return list(otherwise), []
    if not isinstance(types, list) or any(kind not in _KINDS for kind in types) or len(types) != layers:
        shown = sorted({str(kind) for kind in types}) if isinstance(types, list) else types
        count = f" for {len(types)} layers" if isinstance(types, list) else ""
        return [], [f"layer_types is {shown}{count}; it must be {' or '.join(_KINDS)} for each of {layers} layers"]
    return [kind == "sliding_attention" for kind in types], []


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """All layers slide; a config without the key means 4096 (MistralConfig)."""
    return attention_windows(hf, fields, [True], default=4096)


MISTRAL = replace(
    LLAMA,
    name="mistral",
    architectures={"MistralForCausalLM": "MistralForCausalLM"},
    keys=KEYS,
    constants={**CONSTANTS, "attn_bias": False, "mlp_bias": False},
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("mistral",))),
    refuses=(QUANTIZED,),
    note=WINDOW,
)
