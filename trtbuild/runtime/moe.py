"""The mixture-of-experts block of a layer: its sizes on one rank, its operations and its weights. PURE.

Every rank routes every token, so all agree. A *pair* is a token with one of its experts that this rank holds; pairs
are ordered by expert, then by token, and the expert operations work on their rows [P, width]. Experts that other ranks
hold, and the other shares of a cut expert, come with the all-reduce of PART.

Format: checkpoint format 1.8, 2.2, 2.4 and 3.1. The router is float32 [E, H]; an expert's `fc` is [up; gate].
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.linears import Linears
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight

_MODES = (0, 1)  # softmax over all experts, then the best of them: as they are, or made to sum to 1
_RENORMALIZE = 1


@dataclass(frozen=True)
class Moe:
    """The experts of a model: each `inter` wide; every token also uses the shared one where `shared_inter` is not 0."""

    num_experts: int
    top_k: int
    renormalize: bool
    inter: int
    shared_inter: int


@dataclass(frozen=True)
class Experts:
    """What one rank holds of them: `count` experts from `first` on, and of each, and of the shared one, a share."""

    moe: Moe
    first: int
    count: int
    inter: int
    shared_inter: int

    def widths(self, hidden: int) -> dict[Buffer, int]:
        """Floats of a token in the buffers of this block: a token has at most `pairs` pairs here."""
        pairs = min(self.moe.top_k, self.count)
        return {
            Buffer.ROUTER: self.moe.num_experts,
            Buffer.SHARED_GATE: 1,
            Buffer.EXPERT: pairs * hidden,
            Buffer.EXPERT_FC: pairs * 2 * self.inter,
            Buffer.EXPERT_ACT: pairs * self.inter,
        }


def moe_problems(config: Dict[str, Any], *, wanted: bool) -> list[str]:
    """What the runtime cannot execute of a config's mixture of experts; `wanted`: whether the architecture has one."""
    moe = config.get("moe") or {}
    experts, top_k = moe.get("num_experts") or 0, moe.get("top_k") or 0
    if not wanted:
        return [f"moe.num_experts {experts} (supported: 0)"] if experts else []
    problems = [] if 0 < top_k <= experts else [f"moe.top_k {top_k} of moe.num_experts {experts}"]
    only = {"normalization_mode": (_RENORMALIZE, _MODES), "tp_mode": (0, (0,))}
    return problems + [
        f"moe.{name} {moe.get(name, default)!r} (supported: {', '.join(map(str, allowed))})"
        for name, (default, allowed) in only.items()
        if moe.get(name, default) not in allowed
    ]


def read_moe(config: Dict[str, Any]) -> Moe:
    """The experts of a config without `moe_problems`; checkpoint format 1.6 and 1.8 name the fields."""
    moe = config["moe"]
    shared = config.get("moe_shared_expert_intermediate_size") or moe.get("shared_expert_intermediate_size") or 0
    return Moe(
        num_experts=moe["num_experts"],
        top_k=moe["top_k"],
        renormalize=moe.get("normalization_mode", _RENORMALIZE) == _RENORMALIZE,
        inter=config.get("moe_intermediate_size") or config["intermediate_size"],
        shared_inter=shared,
    )


def rank_experts(moe: Moe, mapping: Mapping) -> Experts:
    """What the rank `mapping.rank` holds.

    Raises:
        EngineError: the ranks cannot share the experts equally; names every size.
    """
    shares = (
        ("tp_size", mapping.tp_size, "moe_ep_size", mapping.moe_ep_size),
        ("moe.num_experts", moe.num_experts, "moe_ep_size", mapping.moe_ep_size),
        ("an expert's intermediate size", moe.inter, "moe_tp_size", mapping.moe_tp_size),
        ("the shared expert's intermediate size", moe.shared_inter, "tp_size", mapping.tp_size),
    )
    uneven = [f"{what} {size} is not a multiple of {by} {ranks}" for what, size, by, ranks in shares if size % ranks]
    if uneven:
        raise EngineError("; ".join(uneven))
    held = mapping.experts(moe.num_experts)
    inter, shared = moe.inter // mapping.moe_tp_size, moe.shared_inter // mapping.tp_size
    return Experts(moe, held.start, len(held), inter, shared)


def moe_block(experts: Experts, base: str, hidden: int, act: int, out: Buffer, linears: Linears) -> None:
    """Append the block that reads H and leaves this rank's summand in `out`; H is lost.

    `base` is "transformer.layers.N.mlp.".

    Raises:
        EngineError: the experts are quantized in a form that stacks of them cannot have.
    """

    def plain(name: str, shape: tuple[int, ...], *, float32: bool = False) -> str:
        linears.weights.append(Weight(f"{base}{name}.weight", (f"{base}{name}.weight",), shape, float32=float32))
        return f"{base}{name}.weight"

    def gather(tokens: Buffer) -> None:
        ops.append(Op(Kind.GATHER, Buffer.EXPERT, tokens, k=hidden, **held))

    moe, inter, ops = experts.moe, experts.inter, linears.ops
    held: dict[str, Any] = {"in2": Buffer.ROUTER, "row": experts.first, "column": experts.count}
    router = plain("router", (moe.num_experts, hidden), float32=True)
    ops += [
        Op(Kind.LINEAR, Buffer.ROUTER, Buffer.H, weight=router, n=moe.num_experts, k=hidden),
        Op(Kind.ROUTE, Buffer.ROUTER, n=moe.num_experts, k=moe.top_k, row=int(moe.renormalize)),
    ]
    fc, proj = (experts.count, 2 * inter, hidden), (experts.count, hidden, inter)
    linears.experts(f"{base}fc", Buffer.EXPERT_FC, Buffer.H, fc, held, gather)
    ops.append(Op(Kind.EXPERT_ACT, Buffer.EXPERT_ACT, Buffer.EXPERT_FC, n=inter, act=act, **held))
    linears.experts(f"{base}proj", Buffer.EXPERT, Buffer.EXPERT_ACT, proj, held)
    ops.append(Op(Kind.COMBINE, out, Buffer.EXPERT, k=hidden, **held))
    if not experts.shared_inter:
        return
    inter = experts.shared_inter
    gate = plain("shared_expert_gate", (1, hidden))
    ops.append(Op(Kind.LINEAR, Buffer.SHARED_GATE, Buffer.H, weight=gate, n=1, k=hidden))
    linears.add(f"{base}shared_expert.fc", Buffer.FC_GATE, Buffer.H, 2 * inter, hidden)
    ops.append(Op(Kind.ACT_MUL, Buffer.MLP, Buffer.FC_GATE, n=inter, column=inter, act=act))
    linears.add(f"{base}shared_expert.proj", Buffer.H, Buffer.MLP, hidden, inter)
    ops.append(Op(Kind.GATED_ADD, out, Buffer.H, Buffer.SHARED_GATE, k=hidden))
