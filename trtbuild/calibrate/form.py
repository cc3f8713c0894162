"""The form in which a quantized layer is written: what its numbers are called, and which linears go together. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trtbuild.errors import CheckpointError
from trtbuild.layout import KV_SCALES
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.methods import QUANTIZE
from trtbuild.quantize.values import kv_cache_scale

if TYPE_CHECKING:
    import torch

    from trtbuild.runtime.blockwise import Linear


_NORM_BEFORE = {"attention.qkv": "input_layernorm", "mlp.fc": "post_layernorm", "mlp.gate": "post_layernorm"}


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
        made: dict[str, torch.Tensor] = {}
        for module, fields in job.quantized(group).items():
            for field in job.method.fields:
                value = fields[field.suffix]
                if not field.only or module.rpartition(".")[2] in field.only:
                    made[f"{job.base}{module}.{field.suffix}"] = value if field.dtype else value.to(self.dtype)
                elif job.method.norm_scales:
                    made |= self._divided_norm(job, _NORM_BEFORE[module], value)
        return made

    def _divided_norm(self, job: Job, norm: str, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A norm whose outputs are divided by `factor` [in], and its scale."""
        import torch

        made = {f"{job.base}{norm}.scale_to_int": torch.ones(1)}
        for name in (f"{job.base}{norm}.weight", f"{job.base}{norm}.bias"):
            if name in job.weights:
                made[name] = (job.weights[name] / factor).to(self.dtype)
                if not bool(torch.isfinite(made[name]).all()):
                    hint = "Use --dtype bfloat16, or another method."
                    raise CheckpointError(f"{name}, divided by the smoother, is beyond {self.dtype}", hint=hint)
        return made

    def kv_scales(self, base: str, algo: str, amax_k: float, amax_v: float) -> dict[str, torch.Tensor]:
        both = kv_cache_scale(algo, amax_k, amax_v)
        own = [kv_cache_scale(algo, amax, amax).minimum(both) for amax in (amax_k, amax_v)]  # 0 has the scale 1
        return {f"{base}attention.{name}": scale for name, scale in zip(KV_SCALES, (both, *own), strict=True)}


def group_of(linear: Linear, weight: torch.Tensor) -> LinearGroup:
    """The fuse group of an engine weight [out, in] or [experts, out, in]: views of its modules and their parts."""
    pieces = weight.split(linear.parts, dim=-2)
    if len(linear.modules) == 1:
        return LinearGroup({linear.modules[0]: tuple(pieces)})
    return LinearGroup({module: (piece,) for module, piece in zip(linear.modules, pieces, strict=True)})
