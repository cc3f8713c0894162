"""The form in which a quantized layer is written: what its numbers are called, and which linears go together. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.methods import QUANTIZE
from trtbuild.quantize.values import kv_cache_scale

if TYPE_CHECKING:
    import torch

    from trtbuild.runtime.blockwise import Linear


@dataclass(frozen=True)
class Job:
    """One engine linear of layer `base` ("transformer.layers.0."; "" for lm_head), and how it is quantized.

    `weights`: the layer's, float32. `stats`: None where the method needs none.
    """

    base: str
    linear: Linear
    weights: Dict[str, torch.Tensor]
    stats: InputStats | None
    method: Method
    options: QuantOptions

    @property
    def weight(self) -> torch.Tensor:
        """[out, in] or [experts, out, in], the linear's modules stacked."""
        return self.weights[f"{self.base}{self.linear.name}.weight"]

    def quantized(self, group: LinearGroup) -> Dict[str, Fields]:
        """The fields of each module of `group`.

        Raises:
            CheckpointError: the weights or the statistics are not numbers that can be quantized.
        """
        return QUANTIZE[self.method.name](group, self.stats, self.options)


class Form(Protocol):
    def fields(self, job: Job) -> Dict[str, torch.Tensor]:
        """Tensors by name for one engine linear."""

    def kv_scales(self, base: str, algo: str, amax_k: float, amax_v: float) -> Dict[str, torch.Tensor]:
        """The scales of the KV cache of a layer, by name."""


@dataclass(frozen=True)
class EngineForm:
    """TensorRT-LLM's: fields of the checkpoint's modules; `dtype` is that of plain ones (prequant)."""

    dtype: torch.dtype

    def fields(self, job: Job) -> dict[str, torch.Tensor]:
        group = group_of(job.linear, job.weight)
        plain = {field.suffix for field in job.method.fields if not field.dtype}
        return {
            f"{job.base}{module}.{suffix}": field.to(self.dtype) if suffix in plain else field
            for module, fields in job.quantized(group).items()
            for suffix, field in fields.items()
        }

    def kv_scales(self, base: str, algo: str, amax_k: float, amax_v: float) -> dict[str, torch.Tensor]:
        return {f"{base}attention.kv_cache_scaling_factor": kv_cache_scale(algo, amax_k, amax_v)}


def group_of(linear: Linear, weight: torch.Tensor) -> LinearGroup:
    """The fuse group of an engine weight [out, in] or [experts, out, in]: views of its modules and their parts."""
    pieces = weight.split(linear.parts, dim=-2)
    if len(linear.modules) == 1:
        return LinearGroup({linear.modules[0]: tuple(pieces)})
    return LinearGroup({module: (piece,) for module, piece in zip(linear.modules, pieces, strict=True)})
