"""The mixture-of-experts block of a layer: its sizes on one rank, its operations and its weights. PURE.

Every rank routes every token, so all agree. A *pair* is a token with one of its experts that this rank holds; pairs
are ordered by expert, then by token, and the expert operations work on their rows [P, width]. Experts that other ranks
hold, and the other shares of a cut expert, come with the all-reduce of PART.

Format: checkpoint format 1.8, 2.2, 2.4 and 3.1. The router is float32 [E, H]; an expert's `fc` is [up; gate].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtbuild.mapping import Mapping
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight

_RENORMALIZE = 1
_MODES = (0, _RENORMALIZE)  # softmax over all experts, then the best: as they are, or made to sum to 1


@dataclass(frozen=True)
class Experts:
    """What one rank holds of the experts: `count` of them from `first` on, each `inter` wide.

    `shared_inter` is the width of its share of the expert that every token uses, 0 where there is none.
    """

    num_experts: int
    top_k: int
    renormalize: bool
    first: int
    count: int
    inter: int
    shared_inter: int

    def widths(self, hidden: int) -> dict[Buffer, int]:
        """Floats of a token in the buffers of this block: a token has at most `pairs` pairs here."""
        pairs = min(self.top_k, self.count)
        return {
            Buffer.ROUTER: self.num_experts,
            Buffer.SHARED_GATE: 1,
            Buffer.EXPERT: pairs * hidden,
            Buffer.EXPERT_FC: pairs * 2 * self.inter,
            Buffer.EXPERT_ACT: pairs * self.inter,
        }


def rank_experts(config: dict[str, Any], mapping: Mapping) -> Experts | None:
    """The experts of the rank `mapping.rank`; None for a dense model."""
    moe = config.get("moe") or {}
    if not moe.get("num_experts"):
        return None
    held = mapping.experts(moe["num_experts"])
    return Experts(
        num_experts=moe["num_experts"],
        top_k=moe["top_k"],
        renormalize=moe.get("normalization_mode", _RENORMALIZE) == _RENORMALIZE,
        first=held.start,
        count=len(held),
        inter=_expert_size(config) // mapping.moe_tp_size,
        shared_inter=_shared_size(config) // mapping.tp_size,
    )


def moe_problems(config: dict[str, Any], mapping: Mapping) -> list[str]:
    """What the runtime cannot execute of a config's mixture of experts, with values; empty for a dense model."""
    moe = config.get("moe") or {}
    experts, top_k = moe.get("num_experts") or 0, moe.get("top_k") or 0
    if not experts and not top_k:
        return []
    problems = []
    if not 0 < top_k <= experts:
        problems.append(f"moe.top_k {top_k} of {experts} experts")
    only = {
        "moe.normalization_mode": (moe.get("normalization_mode", _RENORMALIZE), _MODES),
        "moe.tp_mode": (moe.get("tp_mode", 0), (0,)),
        "residual_mlp": (config.get("residual_mlp", False), (False,)),
        "mlp_bias": (config.get("mlp_bias", False), (False,)),
    }
    problems += [
        f"{name} {value!r} (supported: {choice})" for name, (value, choice) in only.items() if value not in choice
    ]
    sizes = {
        "num_experts": (experts, "moe_ep_size", mapping.moe_ep_size),
        "the experts' intermediate size": (_expert_size(config), "moe_tp_size", mapping.moe_tp_size),
        "the shared expert's intermediate size": (_shared_size(config), "tp_size", mapping.tp_size),
        "tp_size": (mapping.tp_size, "moe_ep_size", mapping.moe_ep_size),
    }
    problems += [
        f"{what} {size} is not a multiple of {by} {ranks}" for what, (size, by, ranks) in sizes.items() if size % ranks
    ]
    return problems


def moe_block(experts: Experts, base: str, hidden: int, ops: list[Op], weights: list[Weight]) -> None:
    """Append the block that reads H and leaves this rank's summand in PART; `base` is "transformer.layers.N.mlp."."""

    def add(name: str, shape: tuple[int, ...], **fields: bool) -> str:
        weights.append(Weight(f"{base}{name}.weight", (f"{base}{name}.weight",), shape, **fields))
        return f"{base}{name}.weight"

    inter = experts.inter
    held: dict[str, Any] = {"in2": Buffer.ROUTER, "row": experts.first, "column": experts.count}
    router = add("router", (experts.num_experts, hidden), float32=True)
    fc = add("fc", (experts.count, 2 * inter, hidden), quantized=True, halves_swapped=True)
    proj = add("proj", (experts.count, hidden, inter), quantized=True)
    ops += [
        Op(Kind.LINEAR, Buffer.ROUTER, Buffer.H, weight=router, n=experts.num_experts, k=hidden),
        Op(Kind.ROUTE, Buffer.ROUTER, n=experts.num_experts, k=experts.top_k, row=int(experts.renormalize)),
        Op(Kind.GATHER, Buffer.EXPERT, Buffer.H, k=hidden, **held),
        Op(Kind.EXPERT_LINEAR, Buffer.EXPERT_FC, Buffer.EXPERT, weight=fc, n=2 * inter, k=hidden, **held),
        Op(Kind.EXPERT_ACT, Buffer.EXPERT_ACT, Buffer.EXPERT_FC, n=inter, **held),
        Op(Kind.EXPERT_LINEAR, Buffer.EXPERT, Buffer.EXPERT_ACT, weight=proj, n=hidden, k=inter, **held),
        Op(Kind.COMBINE, Buffer.PART, Buffer.EXPERT, k=hidden, **held),
    ]
    if not experts.shared_inter:
        return
    inter = experts.shared_inter
    gate = add("shared_expert_gate", (1, hidden))
    fc = add("shared_expert.fc", (2 * inter, hidden), quantized=True, halves_swapped=True)
    proj = add("shared_expert.proj", (hidden, inter), quantized=True)
    ops += [
        Op(Kind.LINEAR, Buffer.SHARED_GATE, Buffer.H, weight=gate, n=1, k=hidden),
        Op(Kind.LINEAR, Buffer.FC_GATE, Buffer.H, weight=fc, n=2 * inter, k=hidden),
        Op(Kind.ACT_MUL, Buffer.MLP, Buffer.FC_GATE, n=inter),
        Op(Kind.LINEAR, Buffer.H, Buffer.MLP, weight=proj, n=hidden, k=inter),  # nobody reads the input any more
        Op(Kind.GATED_ADD, Buffer.PART, Buffer.H, Buffer.SHARED_GATE, k=hidden),
    ]


def _expert_size(config: dict[str, Any]) -> int:
    return int(config.get("moe_intermediate_size") or config["intermediate_size"])


def _shared_size(config: dict[str, Any]) -> int:
    moe = config.get("moe") or {}
    return int(config.get("moe_shared_expert_intermediate_size") or moe.get("shared_expert_intermediate_size") or 0)
