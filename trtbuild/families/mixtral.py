"""Mixtral 8x7B and 8x22B: Mistral's attention and a mixture of experts in every layer.

The traps: TensorRT-LLM's expert `fc` stacks w3 (up) above w1 (gate), the other way round than the dense MLP's names
suggest; the router stays float32; `hidden_act` is `swiglu`, which says that `fc` is a double one.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import ATTENTION, EMBEDDING, HEAD, KEYS, NORMS
from trtbuild.families.mistral import MISTRAL, WINDOW, Derived, attention_windows
from trtbuild.families.rules import Expect, Key, Refuse, Rule, Source
from trtbuild.layout import Axis, Split

_OUT = "transformer.layers.{i}.mlp."
_H, _E, _I = Axis.HIDDEN, Axis.EXPERTS, Axis.EXPERT_INTER
SWIGLU = {"silu": "swiglu", "swish": "swiglu"}
FUSED_EXPERTS = Refuse(
    "*.experts.*_proj",
    "experts fused into one tensor; save the model with transformers' save_pretrained, which writes one an expert",
)


def mixture(router: str, expert: str, up: str, gate: str, down: str) -> tuple[Rule, ...]:
    """Rules of the routed experts of a layer; `expert` is the source's prefix with "{i}" and "{e}"."""
    stacked = tuple(Source(f"{expert}{name}.weight", (_I,), _H) for name in (up, gate))
    return (
        Rule(_OUT + "router.weight", (Source(router, (_E,), _H),), Split.COPY, dtype="float32"),
        Rule(_OUT + "fc.weight", stacked, Split.COLUMN, experts=True),
        Rule(_OUT + "proj.weight", (Source(f"{expert}{down}.weight", (_H,), _I),), Split.ROW, experts=True),
    )


def moe_fields(hf: Dict[str, Any], names: tuple[str, ...], normalization_mode: int, shared: int = 0) -> Derived:
    """The `moe` dict of TensorRT-LLM's MoeConfig; `names` are the keys that may hold the number of experts.

    `normalization_mode` 1 renormalizes the top-k probabilities, 0 leaves them as softmax made them. `shared` is the
    intermediate size of the shared expert.
    """
    problems, sizes = [], []
    for found in (next((name for name in names if hf.get(name) is not None), names[0]), "num_experts_per_tok"):
        value = hf.get(found)
        if type(value) is not int or value < 1:
            problems.append(f"{found} is {value!r}; it must be a positive integer")
        else:
            sizes.append(value)
    if not problems and sizes[1] > sizes[0]:
        problems.append(f"num_experts_per_tok {sizes[1]} is more than the {sizes[0]} experts")
    if problems:
        return {}, problems
    moe = {"num_experts": sizes[0], "shared_expert_intermediate_size": shared, "top_k": sizes[1]}
    return {"moe": {**moe, "normalization_mode": normalization_mode, "sparse_mixer_epsilon": 0.01, "tp_mode": 0}}, []


def derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> Derived:
    """MixtralConfig renormalizes always, and slides in all layers or none."""
    moe, problems = moe_fields(hf, ("num_local_experts", "num_experts"), 1)
    windows, more = attention_windows(hf, fields, [True])
    return {**moe, **windows}, problems + more


MIXTRAL = replace(
    MISTRAL,
    name="mixtral",
    architectures={"MixtralForCausalLM": "MixtralForCausalLM"},
    keys={
        **KEYS,
        "norm_epsilon": Key(("rms_norm_eps",), float, 1e-5),
        "rotary_base": Key(("rope_theta",), float, 1e6),
    },
    rules=(
        *EMBEDDING,
        *NORMS[0],
        *ATTENTION,
        *NORMS[1],
        *mixture(
            "model.layers.{i}.block_sparse_moe.gate.weight",
            "model.layers.{i}.block_sparse_moe.experts.{e}.",
            up="w3",
            gate="w1",
            down="w2",
        ),
        *HEAD,
    ),
    activations=SWIGLU,
    derive=derive,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("mixtral",))),
    unusable=(FUSED_EXPERTS,),
    note=WINDOW,
)
