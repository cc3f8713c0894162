"""Executes an import: a quantized model's linears become logical fields, layer by layer; all else is converted.

Sources are read once. Rows of fused linears (q, k, v; gate and up) are stacked, and what cannot be stacked is made
common: the largest fp8 scale of a tensor (weights under a smaller one are rounded again), the largest activation scale.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.layer import read_tensors
from trtbuild.checkpoint.logical import LogicalWriter
from trtbuild.checkpoint.pack import pack_checkpoint
from trtbuild.errors import CheckpointError, some
from trtbuild.fields import NORM
from trtbuild.importers.fit import part_of
from trtbuild.importers.form import Import
from trtbuild.importers.gptq import in_order
from trtbuild.importers.parts import KV, attention_of, kv_parts
from trtbuild.importers.values import cast_checked, dequantized, fp8_scale, require_sound, rescaled
from trtbuild.layout import DTYPES, KV_SCALES, Field, Job, Piece, RankJobs, TensorInfo
from trtbuild.mixed import Choices
from trtbuild.progress import Progress, silent
from trtbuild.quantize.method import Fields, Method
from trtbuild.quantize.methods import METHODS

if TYPE_CHECKING:
    import torch

    from trtbuild.plan import ModelPlan

_NAMES = {code: name for name, code in DTYPES.items()}
_DTYPES = {
    **_NAMES,
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
}


@dataclass(frozen=True)
class Importing:
    """An import of one model: the plan's one-rank `whole`, its sources by name, and what its linears become.

    Those that `choices` does not name become plain.
    """

    whole: RankJobs
    index: Dict[str, TensorInfo]
    imported: Import
    choices: Choices

    def method(self, job: Job) -> Method:
        """What a tensor becomes."""
        choice = self.choices.get(job.name.removesuffix(".weight"))
        return METHODS["none"] if choice is None else choice.method

    def is_fields(self, job: Job) -> bool:
        """Whether a tensor becomes fields of its method, and stays quantized."""
        return bool(self.method(job).fields)

    @property
    def stays_quantized(self) -> bool:
        return any(choice.method.fields for choice in self.choices.values())

    @property
    def norm_scales(self) -> bool:
        return any(choice.method.norm_scales for choice in self.choices.values())

    def is_read(self, job: Job) -> bool:
        """Whether a tensor is made from quantized sources, and so not by the converter."""
        return any(piece.source and self.index[piece.source].parts for piece in job.pieces)


def import_checkpoint(
    plan: ModelPlan,
    imported: Import,
    index: Dict[str, TensorInfo],
    folder: Path,
    fingerprint: str,
    progress: Progress = silent,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write rank files and config.json of a quantized model into `folder`: (SHA-256 by file, what the manifest says).

    Raises:
        CheckpointError, OSError: as `write_logical` and `pack_checkpoint`.
    """
    digests, notes = dict[str, str](), list(plan.warnings)
    for part in plan.parts:
        options, place = part.options, folder / part.folder
        assert part.whole is not None, "a plan without problems"
        logical = place / ".logical"
        work = Importing(part.whole, index, imported, part.choices)
        notes += write_logical(work, logical, fingerprint, progress)
        made = pack_checkpoint(logical, part.family, part.spec, options, place, progress)
        shutil.rmtree(logical)
        digests |= {(place / name).relative_to(folder).as_posix(): digest for name, digest in made.items()}
    said = {"format": imported.format, "quantization_config": dict(imported.config), "notes": notes}
    return digests, said


def write_logical(work: Importing, folder: Path, fingerprint: str, progress: Progress = silent) -> list[str]:
    """Make the logical checkpoint `folder`; what an interrupted run finished is kept. Returns notes for people.

    Raises:
        CheckpointError: numbers that cannot be (NaN, scales of 0), groups in another order, files that cannot be read.
        OSError: the file system refuses.
    """
    _require_order(work)
    parts: dict[str, list[Job]] = {}
    for job in work.whole.jobs:
        parts.setdefault(part_of(job.group), []).append(job)
    total, done = sum(job.nbytes for job in work.whole.jobs), 0
    writer = LogicalWriter(folder, fingerprint)
    again: list[str] = []
    for part, jobs in parts.items():
        progress(done, total, part)
        if not writer.has(part):
            writer.write(part, _part(work, jobs, again))
        done += sum(job.nbytes for job in jobs)
    writer.close()
    progress(total, total, "")
    return [f"fp8 weights were rounded again under a larger scale: {some(again)}"] if again else []


def _part(work: Importing, jobs: list[Job], again: list[str]) -> dict[str, torch.Tensor]:
    import torch

    names = {job.name for job in jobs if not work.is_read(job)}
    made = dict(read_tensors(work.whole, work.index, lambda job: job.name in names))
    scales = _shared_scales(work, jobs)
    for job in jobs:
        if work.norm_scales and NORM.search(job.name):
            made[f"{job.name.removesuffix('weight')}scale_to_int"] = torch.ones(1)
        if work.imported.kv_cache and work.stays_quantized and job.name.endswith("attention.qkv.weight"):
            at = job.name.removesuffix("qkv.weight")
            made |= {at + name: scale for name, scale in zip(KV_SCALES, _kv_scales(work, job), strict=True)}
        if job.name in names:
            continue
        if not work.is_fields(job):
            made[job.name] = _multiplied_out(work, job)
            continue
        module = job.name.removesuffix(".weight")
        for suffix, tensor in _fields(work, job, scales.get(_fuse_group(module)), again).items():
            made[f"{module}.{suffix}"] = tensor
    return made


def _fuse_group(module: str) -> str:
    """fc and gate read the same input, and the engine build makes them one."""
    return module.removesuffix("gate") + "fc" if module.endswith(".gate") else module


def _shared_scales(work: Importing, jobs: list[Job]) -> dict[str, torch.Tensor]:
    """Fuse group -> the largest fp8 scale of its weights, [E or 1]; empty for methods without one a tensor."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for job in jobs:
        if not any(field.suffix == "weights_scaling_factor" and not field.rows for field in work.method(job).fields):
            continue
        group = _fuse_group(job.name.removesuffix(".weight"))
        for e, pieces in enumerate(_experts(job)):
            for piece in pieces:
                scale = fp8_scale(piece.source, dict(_tensors(work.index[piece.source], "weight_scale")))
                held = found.setdefault(group, torch.zeros((len(job.shape[:-2]) and job.shape[0]) or 1))
                held[e] = held[e].maximum(scale)
    return found


def _fields(work: Importing, job: Job, shared: torch.Tensor | None, again: list[str]) -> Fields:
    """The fields of one linear, or of all its experts: parts stacked, experts stacked again."""
    import torch

    made: list[Fields] = []
    method = work.method(job)
    for e, pieces in enumerate(_experts(job)):
        parts = []
        for piece in pieces:
            fields = _read(work, piece, method)
            if shared is not None:
                again += [piece.source] if rescaled(fields, shared[e]) else []
            parts.append((piece, fields))
        module = job.name.split(".")[-2]
        own = [field for field in method.fields if not field.only or module in field.only]
        made.append({field.suffix: _merged(work, job, field, parts) for field in own})
    if len(job.shape) == 2:
        return made[0]
    fields = {name: torch.stack([one[name] for one in made]) for name in made[0]}
    for field in method.fields:
        if field.shared:
            fields[field.suffix] = fields[field.suffix].amax(dim=0)
    return fields


def _merged(work: Importing, job: Job, field: Field, parts: list[tuple[Piece, Fields]]) -> torch.Tensor:
    """One field of a linear whose outputs lie in `parts`."""
    import torch

    values = [fields[field.suffix] for _, fields in parts]
    if field.rows:
        rows = [value[start:stop] for (piece, _), value in zip(parts, values, strict=True)
                for start, stop in piece.rows]  # fmt: skip
        found = torch.cat(rows)
    elif field.cols:
        if any(not torch.equal(value, values[0]) for value in values[1:]):
            names = ", ".join(piece.source.removesuffix(".weight") for piece, _ in parts)
            hint = "Export the model again with its q, k and v calibrated together, or take --quant none."
            raise CheckpointError(f"{names} scale their common input differently ({field.suffix})", hint=hint)
        found = values[0]
    else:
        found = torch.stack([value.reshape(1) for value in values]).amax(dim=0)
    wanted = field.dtype or job.dtype
    if wanted in _NAMES:
        found = cast_checked(found, getattr(torch, _NAMES[wanted]), f"{parts[0][0].source} ({field.suffix})")
    return found.contiguous()


def _multiplied_out(work: Importing, job: Job) -> torch.Tensor:
    """The plain weight of a linear in the job's dtype."""
    import torch

    rows = []
    for piece in job.pieces:
        weight = dequantized(_read(work, piece, work.method(job)))
        target = getattr(torch, _NAMES[job.dtype])
        weight = cast_checked(weight, target, piece.source)
        rows += [weight[start:stop] for start, stop in piece.rows]
    return torch.cat(rows).reshape(job.shape)


def _read(work: Importing, piece: Piece, method: Method) -> Fields:
    info = work.index[piece.source]
    own = work.imported.of(info.name.removesuffix(".weight"))
    fields = own.read(dict(_tensors(info)))
    require_sound(info.name, fields, method)
    return fields


def _kv_scales(work: Importing, job: Job) -> tuple[torch.Tensor, ...]:
    """KV_SCALES [1] of an attention: that of both is the larger."""
    import torch

    attention = attention_of(job.pieces[0].source)
    own = {
        part: _mapped(info).float().reshape(-1).amax().reshape(1)
        for part, info in kv_parts(work.index, attention).items()
    }
    for part, scale in own.items():
        if not bool(torch.isfinite(scale).all()) or float(scale) <= 0:
            raise CheckpointError(f"{part} of the KV cache of {attention} is {float(scale):g}; it must be positive")
    k, v = (own[part] for part in KV)
    return k.maximum(v), k, v


def _experts(job: Job) -> list[tuple[Piece, ...]]:
    """Pieces of each expert; of the one linear where there are none."""
    if len(job.shape) == 2:
        return [job.pieces]
    each = len(job.pieces) // job.shape[0]
    return [job.pieces[i : i + each] for i in range(0, len(job.pieces), each)]


def _require_order(work: Importing) -> None:
    """Raise CheckpointError where groups do not lie in order (act-order): no kernel of TensorRT-LLM takes that."""
    found = []
    sized = {
        piece.source: work.choices[job.name.removesuffix(".weight")].group_size
        for job in work.whole.jobs
        if work.is_fields(job)
        for piece in job.pieces
    }
    for name, group_size in sized.items():
        info = work.index[name]
        order = [tensor for _, tensor in _tensors(info, "g_idx", "weight_g_idx")]
        if order and int(order[0].min()) >= 0 and not in_order(order[0], -(-info.shape[1] // group_size)):
            found.append(name.removesuffix(".weight"))
    if found:
        raise CheckpointError(
            f"the groups of {some(found)} do not hold neighbouring inputs (act-order, g_idx), which TensorRT-LLM "
            "cannot read",
            hint="Take a model that was quantized with desc_act false, or --quant none to multiply this one out.",
        )


def _tensors(info: TensorInfo, *only: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(suffix, tensor) of a quantized linear's parts, memory-mapped; of those in `only` if it is given."""
    for suffix, part in info.parts:
        if not only or suffix in only:
            yield suffix, _mapped(part)


def _mapped(info: TensorInfo) -> torch.Tensor:
    """A tensor as its file holds it, memory-mapped."""
    import numpy as np
    import torch

    try:
        raw = np.memmap(info.file, np.uint8, "c", info.start, (info.nbytes,))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{info.file} cannot be read: {error}") from error
    return torch.from_numpy(raw).view(getattr(torch, _DTYPES[info.dtype])).reshape(info.shape)
