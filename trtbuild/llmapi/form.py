"""Hugging Face's form of a quantized layer: the quantizers' fields for its own linears, by ModelOpt's names.

Linears that loaders fuse (q, k, v; gate and up) get scales that need no second rounding there: the same weight scale
(fp8), the same input scale, the same pre_quant_scale. ModelOpt leaves fp8 weight scales apart, and loaders round again
under the largest; the search "modelopt" does as ModelOpt does. A pre_quant_scale goes into the norm before, where there
is one: TensorRT-LLM reads one for o_proj and down_proj only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trtbuild.errors import CheckpointError
from trtbuild.layout import Field
from trtbuild.llmapi.layout import PREQUANT, SUFFIXES, HfLayout, HfLinear, HfNorm
from trtbuild.quantize.method import Fields, LinearGroup
from trtbuild.quantize.values import kv_cache_scale

if TYPE_CHECKING:
    from trtbuild.calibrate.form import Job
    from trtbuild.runtime.blockwise import Linear

Parts = list[tuple[HfLinear, torch.Tensor]]


@dataclass(frozen=True)
class HfForm:
    """`dtype`: of norms and pre_quant_scale."""

    layout: HfLayout
    dtype: torch.dtype

    def fields(self, job: Job) -> dict[str, torch.Tensor]:
        """Tensors of the Hugging Face linears in one engine linear, and the norm before it."""
        made: dict[str, torch.Tensor] = {}
        norm = self.layout.norms.get(f"{job.base}{job.linear.modules[0]}")
        for parts in self._groups(job.base, job.linear, job.weight):
            for hf, fields in _quantized(parts, job):
                p = fields.get(PREQUANT)
                if norm is not None and p is not None:
                    made[norm.name] = self._folded(norm, job.weights[norm.target], p)
                    del fields[PREQUANT]
                for field in job.method.fields:
                    if field.suffix in fields:
                        stored = _stored(fields[field.suffix], field)
                        made[f"{hf.name}.{SUFFIXES[field.suffix]}"] = stored if field.dtype else stored.to(self.dtype)
        return made

    def kv_scales(self, base: str, algo: str, amax_k: float, amax_v: float) -> dict[str, torch.Tensor]:
        """One for k and one for v, scalars."""
        attention = self.layout.linears[f"{base}attention.qkv"][0].name.rpartition(".")[0]
        return {
            f"{attention}.{name}_proj.{name}_scale": kv_cache_scale(algo, amax, 0.0).reshape(())
            for name, amax in (("k", amax_k), ("v", amax_v))
        }

    def _groups(self, base: str, linear: Linear, weight: torch.Tensor) -> Iterator[Parts]:
        """What a loader fuses: the parts of one engine linear, or of one of its experts."""
        found: dict[int | None, Parts] = {}
        start = 0
        for module in linear.modules:
            for hf in self.layout.linears[f"{base}{module}"]:
                own = weight if hf.expert is None else weight[hf.expert]
                rows = [own[start + first : start + last] for (first, last), _ in hf.rows]
                found.setdefault(hf.expert, []).append((hf, rows[0] if len(rows) == 1 else torch.cat(rows)))
            start += weight.shape[-2] // len(linear.modules)
        yield from found.values()

    def _folded(self, norm: HfNorm, weight: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        """The norm's weight times the scale of what reads it; Gemma's multiplies with 1 + weight."""
        found = (weight.float() * p - norm.add).to(self.dtype)
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(
                f"{norm.name} times the scale of its linears is beyond {self.dtype}", hint="Use --dtype bfloat16."
            )
        return found


def _quantized(parts: Parts, job: Job) -> Iterator[tuple[HfLinear, Fields]]:
    """Fields of each part; common ones where it is one scale that a loader takes for all."""
    if any(field.suffix == PREQUANT for field in job.method.fields):
        # One module of several parts: they share p, and the second scale.
        whole = job.quantized(LinearGroup({"common": tuple(weight for _, weight in parts)}))["common"]
        sizes = [hf.out for hf, _ in parts]
        split = {
            field.suffix: whole[field.suffix].split(sizes) if field.rows else [whole[field.suffix]] * len(parts)
            for field in job.method.fields
        }
        for number, (hf, _) in enumerate(parts):
            yield hf, {suffix: tensors[number].clone() for suffix, tensors in split.items()}
        return
    # Modules of one block share the scale of a tensor, those of different blocks do not.
    apart = job.options.search == "modelopt"
    names = [f"{number if apart else 0}.{number}" for number in range(len(parts))]
    made = job.quantized(LinearGroup({name: (weight,) for name, (_, weight) in zip(names, parts, strict=True)}))
    for name, (hf, _) in zip(names, parts, strict=True):
        yield hf, made[name]


def _stored(value: torch.Tensor, field: Field) -> torch.Tensor:
    """A field as the file holds it: two int4 outputs a byte, the even one in its low nibble; scalars without a dim."""
    if field.packed == 2:
        return ((value[0::2] & 15) | (value[1::2] << 4)).view(torch.uint8)
    return value if field.rows or field.cols else value.reshape(())
