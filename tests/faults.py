"""Ways in which a quantized checkpoint is wrong although every tensor has the right name, shape and dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.checkpoints import Tensors

LAYERS = "transformer.layers."


def exchange(tensors: Tensors, one: str, other: str) -> None:
    """All fields of two modules."""
    for key in [key for key in tensors if key.startswith(f"{LAYERS}{one}.")]:
        twin = key.replace(f"{LAYERS}{one}.", f"{LAYERS}{other}.")
        tensors[key], tensors[twin] = tensors[twin], tensors[key]


def swapped_gate(tensors: Tensors) -> None:
    exchange(tensors, "1.mlp.fc", "1.mlp.gate")


def nibbles(tensors: Tensors) -> None:
    """High nibble first."""
    key = f"{LAYERS}2.mlp.proj.weight"
    bits = tensors[key].view(torch.uint8)
    tensors[key] = ((bits >> 4) | (bits << 4)).view(torch.int8)


def neighbour_scales(tensors: Tensors) -> None:
    tensors[f"{LAYERS}1.attention.dense.weights_scaling_factor"] = tensors[
        f"{LAYERS}2.attention.dense.weights_scaling_factor"
    ].clone()


def no_prequant(tensors: Tensors) -> None:
    tensors[f"{LAYERS}0.mlp.fc.prequant_scaling_factor"].fill_(1.0)


def transposed(tensors: Tensors) -> None:
    key = f"{LAYERS}2.attention.dense.weight"
    tensors[key] = tensors[key].T.contiguous()


def unfused(tensors: Tensors, q: int, kv: int) -> None:
    """fp8 of q, k and v each by its own scale, and the scale of q stored for all of them."""
    base = f"{LAYERS}1.attention.qkv."
    scale, parts = tensors[f"{base}weights_scaling_factor"], tensors[f"{base}weight"].float().split([q, kv, kv])
    own = [part.abs().max() / 448.0 for part in parts]  # in units of the common scale
    fp8 = [(part / step).clamp(-448, 448).to(torch.float8_e4m3fn) for part, step in zip(parts, own, strict=True)]
    tensors[f"{base}weight"] = torch.cat([part.view(torch.uint8) for part in fp8]).view(torch.float8_e4m3fn)
    tensors[f"{base}weights_scaling_factor"] = scale * own[0]


def activation_scale(tensors: Tensors) -> None:
    tensors[f"{LAYERS}1.mlp.proj.activation_scaling_factor"] /= 16.0


@dataclass(frozen=True)
class Fault:
    """`where`: modules whose weights are found to be wrong, with words of the reason; none: only the layer's output."""

    quant: str
    plant: Callable[[Tensors], None]
    layer: int
    where: dict[str, str]


FAULTS = {
    "swapped gate and up": Fault("int4_awq", swapped_gate, 1, {"mlp.fc": "it is mlp.gate", "mlp.gate": "it is mlp.fc"}),
    "wrong nibble order": Fault("int4_awq", nibbles, 2, {"mlp.proj": "neighbouring outputs are exchanged"}),
    "scales of a neighbouring layer": Fault("int4_awq", neighbour_scales, 1, {"attention.dense": "scales of its"}),
    "no pre-quant scale": Fault("int4_awq", no_prequant, 0, {"mlp.fc": "pre-quant scale"}),
    "transposed": Fault("int8", transposed, 2, {"attention.dense": "it is transposed"}),
    "unfused q, k, v": Fault(
        "fp8",
        lambda tensors: unfused(tensors, 128, 64),
        1,
        {"attention.qkv (k)": "scale", "attention.qkv (v)": "scale"},
    ),
    "activation scale": Fault("fp8", activation_scale, 1, {}),
}
