"""Every weight of an engine against the slice of the model that its rank should hold, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trtbuild.checkpoint.layer import read_tensors
from trtbuild.errors import EngineError
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.mapping import Mapping
from trtbuild.progress import Progress
from trtbuild.runtime.ops import Weight
from trtbuild.runtime.program import Program, build_program
from trtbuild.verify.dequantize import best, dequantized, names
from trtbuild.verify.diagnose import cause
from trtbuild.verify.folded import Folded, readers_of
from trtbuild.verify.measure import snr_db
from trtbuild.verify.report import WeightSnr

if TYPE_CHECKING:
    from safetensors import safe_open as Source

_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
SUSPICIOUS_DB = 0.9
"""Below its form, from which on the reason is looked for."""


def weight_snrs(
    engine: Path, config: dict[str, Any], ranks: tuple[RankJobs, ...], index: Dict[str, TensorInfo], progress: Progress
) -> tuple[tuple[WeightSnr, ...], int]:
    """(all weights of all ranks, number of norms that are compared together with the weights that read them).

    `ranks`: the float32 plan of the engine's layout; `index`: the model's tensors.

    Raises:
        EngineError: a rank file is damaged. CheckpointError: the model cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found: list[WeightSnr] = []
    total = sum(len(rank.jobs) for rank in ranks)
    done, folded = 0, set[str]()
    for jobs in ranks:
        mapping = Mapping.of_config(config["mapping"], jobs.rank)
        rank = _Rank(build_program(config, mapping), jobs, index, str(config["dtype"]))
        path = engine / f"rank{jobs.rank}.engine"
        try:
            with safe_open(str(path), framework="pt") as source:
                rank.find_folded(source)
                for weight in rank.weights:
                    progress(done, total, f"weights of rank {jobs.rank}")
                    found += rank.measured(weight, source)
                    done += len(weight.sources)
                folded |= {f"{jobs.layers.start} {norm.name}" for norm in rank.folded.values()}
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{path} is damaged: {error}", hint="Build the engine again.") from error
    progress(total, total, "weights")
    return tuple(found), len(folded)


class _Rank:
    """The weights of one rank; `folded`: norms whose scales lie in the weights that read them (`find_folded`)."""

    def __init__(self, program: Program, jobs: RankJobs, index: Dict[str, TensorInfo], dtype: str) -> None:
        self._jobs, self._index, self._dtype = jobs, index, dtype
        self._named = {job.name: job for job in jobs.jobs}
        shapes = program.shapes
        self._qkv = [heads * shapes.head_size for heads in (shapes.num_heads, *(shapes.num_kv_heads,) * 2)]
        # What is not the model's, like the scale of a KV cache, has nothing to be compared with.
        self.weights = [weight for weight in program.weights if all(name in self._named for name in weight.sources)]
        self._readers = readers_of(program.ops)
        self.folded: dict[str, Folded] = {}

    def find_folded(self, source: Source) -> None:
        """Norms that are not the model's, but whose products with every weight that reads them are."""
        weights = {weight.name: weight for weight in self.weights}
        for name, readers in self._readers.items():
            if not weights.keys() >= {name, *readers}:
                continue
            norm = Folded(name, found=source.get_tensor(name).float(), wanted=self._slice(name))
            if norm.found.shape == norm.wanted.shape and self._bad(self._plain(weights[name], norm.wanted, norm.found)):
                items = [item for reader in readers for item in self._product(weights[reader], norm, source)]
                if not self._bad(items):
                    self.folded |= dict.fromkeys((name, norm.bias, *readers), norm)

    def measured(self, weight: Weight, source: Source) -> list[WeightSnr]:
        """One value a module; a qkv has one for each of its parts. None for a folded norm: its readers have it."""
        norm = self.folded.get(weight.name)
        if norm and weight.name == norm.name:
            return []
        if norm and weight.name != norm.bias:
            return self._product(weight, norm, source)
        tensors = {name: source.get_tensor(name) for name in names(weight)}
        found, wanted = dequantized(weight, tensors), self._slice(*weight.sources)
        if found.shape != wanted.shape:
            raise EngineError(f"{weight.name} has shape {tuple(found.shape)}, but the model has {tuple(wanted.shape)}")
        if norm:  # its bias, divided as its weights are
            wanted = wanted / norm.ratio
            could = self._at_best(weight, wanted, tensors) + wanted * norm.rounding(self._dtype)
            return self._compared(weight, wanted, found, could)
        return self._explained(weight, self._plain(weight, wanted, found, tensors), wanted, found)

    @staticmethod
    def _bad(items: list[WeightSnr]) -> bool:
        return any(item.loss_db > SUSPICIOUS_DB for item in items)

    def _explained(
        self, weight: Weight, items: list[WeightSnr], wanted: torch.Tensor, found: torch.Tensor
    ) -> list[WeightSnr]:
        """The same numbers, with the likely reason of those that are bad."""
        if wanted.dim() != 2:
            return items
        _, sizes = self._parts(weight, wanted)
        rows = zip(items, wanted.split(sizes), found.split(sizes), strict=True)
        return [
            replace(item, cause=self._cause(weight, item, want, have)) if item.loss_db > SUSPICIOUS_DB else item
            for item, want, have in rows
        ]

    def _plain(
        self, weight: Weight, wanted: torch.Tensor, found: torch.Tensor, tensors: Dict[str, torch.Tensor] | None = None
    ) -> list[WeightSnr]:
        """Numbers of every part of a weight; `tensors`: those of the engine, where it is quantized."""
        return self._compared(weight, wanted, found, self._at_best(weight, wanted, tensors or {}))

    def _product(self, weight: Weight, norm: Folded, source: Source) -> list[WeightSnr]:
        """Numbers of every part of a weight, each with the norm before it."""
        tensors = {name: source.get_tensor(name) for name in names(weight)}
        found, wanted = dequantized(weight, tensors), self._slice(*weight.sources)
        could = self._at_best(weight, wanted * norm.ratio, tensors) * torch.where(norm.lives, norm.found, norm.wanted)
        product = wanted * norm.wanted
        return self._compared(weight, product, found * norm.found, could + product * norm.rounding(self._dtype))

    def _at_best(self, weight: Weight, wanted: torch.Tensor, tensors: Dict[str, torch.Tensor]) -> torch.Tensor:
        base = weight.name.removesuffix("weight")
        scales = (tensors.get(base + name) for name in ("prequant", "per_channel_scale"))
        return best(wanted, weight.form, self._dtype, *scales)

    def _compared(
        self, weight: Weight, wanted: torch.Tensor, found: torch.Tensor, could: torch.Tensor
    ) -> list[WeightSnr]:
        labels, sizes = self._parts(weight, wanted)
        every = [tensor if tensor.dim() > 1 else tensor[:, None] for tensor in (wanted, found, could)]
        return [
            replace(label, snr_db=snr_db(want, have), form_db=snr_db(want, at_best))
            for label, want, have, at_best in zip(
                labels, *(tensor.split(sizes, dim=-2) for tensor in every), strict=True
            )
        ]

    def _parts(self, weight: Weight, tensor: torch.Tensor) -> tuple[list[WeightSnr], list[int]]:
        """(where each part of a weight belongs, its rows); the numbers come later."""
        rows = tensor.shape[-2] if tensor.dim() > 1 else len(tensor)
        labels = [self._label(name) for name in weight.sources]
        if labels[0].module.startswith("attention.qkv") and len(labels) == 1:
            return [replace(labels[0], part=part) for part in "qkv"], self._qkv
        return labels, [rows // len(labels)] * len(labels)

    def _label(self, name: str) -> WeightSnr:
        match = _LAYER.fullmatch(name)
        layer = self._jobs.layers.start + int(match[1]) if match else None
        return WeightSnr(layer, (match[2] if match else name).removesuffix(".weight"), "", self._jobs.rank, 0.0, 0.0)

    def _slice(self, *wanted: str) -> torch.Tensor:
        """What this rank should hold of the model, parts stacked along their outputs."""
        read = read_tensors(self._jobs, self._index, lambda job: job.name in wanted)
        parts = [read[name] for name in wanted]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _cause(self, weight: Weight, item: WeightSnr, want: torch.Tensor, have: torch.Tensor) -> str:
        if item.layer is None:
            return ""
        others: dict[str, torch.Tensor] = {}
        for name, job in self._named.items():
            label = self._label(name)
            near = label.layer is not None and abs(label.layer - item.layer) <= 1
            same = label.layer == item.layer or label.module == item.module
            if not near or not same or not name.endswith(".weight") or len(job.shape) != 2:
                continue
            others |= self._named_parts(name, label, item, want.shape)
        return cause(want, have, item.form_db, others, weight.form.group if weight.form else 0)

    def _named_parts(
        self, name: str, label: WeightSnr, item: WeightSnr, shape: torch.Size
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of that tensor, for people, which are not the one in question but have its shape."""
        at = "" if label.layer == item.layer else f" of layer {label.layer}"
        tensor = self._slice(name)
        labels, sizes = self._parts(Weight(name, (name,), tuple(tensor.shape)), tensor)
        for part, rows in zip(labels, tensor.split(sizes), strict=True):
            if rows.shape == shape and (part.layer, part.name) != (item.layer, item.name):
                yield f"{part.name}{at}", rows
