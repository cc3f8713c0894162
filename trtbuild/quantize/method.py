"""What a quantization method declares about itself, and what its arithmetic takes and gives. PURE.

A method turns the weights of a fuse group (the linears that read the same input: q, k, v; fc and gate; dense; proj)
into logical fields: numbers by name, whole, unpacked. Cutting knows only the axes of a field (`layout.Field`);
packing comes last, on each rank's part.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtbuild.layout import Field
from trtbuild.spec import SEARCHES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Method:
    """`quant_algo` is TensorRT-LLM's name, None for plain weights.

    `dim_multiple`: both dims of every quantized linear must be multiples of this x tp in TensorRT-LLM; 0 = free.
    `dtypes`: model dtypes that its kernels take there. `fields`: what the checkpoint holds for a quantized linear in
    logical form; empty where the checkpoint keeps plain weights (the engine build quantizes them, or nobody does).
    `config`: what the method sets in the checkpoint's `quantization` beside quant_algo. `head`: whether
    lm_head can have it there. `experts`: whether
    TensorRT-LLM has the method for mixture-of-experts layers. `imported`: trtbuild only reads it from quantized models.
    `bias_once`: whether the bias of a row-parallel linear is on the first rank only. `norm_scales`: whether the norms
    before linears have a scale; they also take the inputs' factors that only some linears store (`Field.only`).
    `gram_for`: the searches that need second moments of the inputs.
    """

    name: str
    quant_algo: str | None
    description: str
    needs_calibration: bool = False
    gram_for: tuple[str, ...] = ()
    weight_bits: int = 16
    dim_multiple: int = 0
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    fields: tuple[Field, ...] = ()
    head: bool = True
    group_sizes: tuple[int, ...] = ()
    config: Dict[str, Any] = field(default_factory=dict)
    experts: bool = True
    imported: bool = False
    bias_once: bool = False
    norm_scales: bool = False


@dataclass(frozen=True)
class QuantOptions:
    """`group_size`: inputs that share a scale (group-wise methods).

    `search`: one of `spec.SEARCHES`.
    """

    group_size: int = 128
    search: str = SEARCHES[0]


@dataclass(frozen=True)
class InputStats:
    """What calibration saw at the input of a fuse group, float32; in = its features.

    amax [in]: greatest |x|. abs_mean [in]: mean over batches of the mean over a batch's tokens of |x|.
    gram [in, in] or None: mean over tokens of x x^T, for the error of a changed weight without the activations
    themselves: mean over tokens of |(W' - W) x|^2 = trace((W' - W) gram (W' - W)^T). Where the search is "compensate"
    they are of `statistics.evened` inputs.
    """

    tokens: int
    amax: torch.Tensor
    abs_mean: torch.Tensor
    gram: torch.Tensor | None = None


@dataclass(frozen=True)
class LinearGroup:
    """A fuse group: module name inside the layer ("attention.qkv") -> its parts [out, in] float32, in stacking order.

    q, k and v are three parts of one module; fc and gate are two modules of one part each. The parts of experts are
    [E, out, in], and so are all fields stacked; their InputStats are for all experts, or with a leading dim E for each.
    """

    modules: Dict[str, tuple[torch.Tensor, ...]]


Fields = dict[str, "torch.Tensor"]
"""Suffix -> logical field of one module; weights are int8 or float8_e4m3fn [out, in], unpacked."""
