"""EDGE: a checkpoint that the linter found sound, opened for re-sharding: its family, layout and headers."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trtbuild.errors import CheckpointError, PlanError
from trtbuild.families import family_of_checkpoint
from trtbuild.families.rules import Family
from trtbuild.fields import HEAD, Quantized, shard_fields
from trtbuild.fit import layout_problems
from trtbuild.layout import KV_SCALES, Job, TensorInfo
from trtbuild.lint.check import check
from trtbuild.lint.config import mapping_of
from trtbuild.lint.expected import dims_findings, jobs_of, options_of, spec_of
from trtbuild.lint.finding import ERROR, Report
from trtbuild.lint.quantization import Quant, quantization_of
from trtbuild.lint.read import read_files
from trtbuild.lint.tensors import current_names
from trtbuild.mixed import linears_of
from trtbuild.progress import Progress, silent
from trtbuild.quantization import LAYERS, unlike_stages, whole_model
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import ConvertOptions, ModelSpec

_SHOWN = 20


@dataclass(frozen=True)
class PlainCheckpoint:
    """Rank files that can be cut; headers are by rank and by the names of the 1.x classes.

    `quantized`: the stored fields of their linears, None where those are plain weights.
    """

    config: dict[str, Any]
    family: Family
    spec: ModelSpec
    options: ConvertOptions
    quant: Quant
    headers: dict[int, dict[str, TensorInfo]]
    manifest: dict[str, Any]
    quantized: Quantized | None = None
    quant_cfg: Dict[str, Any] = field(default_factory=dict)
    """The table of a mixture as a file, {"quant_cfg.json": ...}: every linear by its number in the whole model."""

    @property
    def dtype(self) -> str:
        return self.options.dtype


def require_sound(folder: Path, progress: Progress = silent, *, read_data: bool = True, target: str = "") -> Report:
    """Check a checkpoint, numbers included unless `read_data` is false; `target` as for `check`.

    Raises:
        CheckpointError: it has errors; the message lists them.
    """
    report = check(folder, read_data=read_data, target=target, progress=progress)
    errors = [finding for finding in report.findings if finding.severity == ERROR]
    if errors:
        lines = []
        for item in errors[:_SHOWN]:
            rank = "" if item.rank is None else f" (rank {item.rank})"
            lines.append(f"  - {item.rule}: {item.where}{rank}: expected {item.expected}, found {item.found}")
        lines += [f"  - and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        head = f"{folder} has 1 error:" if len(errors) == 1 else f"{folder} has {len(errors)} errors:"
        hint = f"`trtbuild check {folder}` says of each what to do."
        raise CheckpointError("\n".join([head, *lines]), hint=hint)
    return report


def read_plain(folder: Path) -> PlainCheckpoint:
    """Open a sound checkpoint folder (one half of an encoder-decoder model) for re-sharding.

    Raises:
        CheckpointError: an architecture that trtbuild does not know, or a form of weights that it cannot cut.
    """
    files = read_files(folder)
    config = files.config
    family = family_of_checkpoint(str(config.get("architecture")))
    if family is None:
        hint = "Convert the source model to the new layout instead."
        raise CheckpointError(
            f"{folder}: trtbuild does not know the tensors of {config.get('architecture')}", hint=hint
        )
    options, _ = mapping_of(config)
    assert options is not None, "a sound checkpoint has a mapping"
    options = options_of(family, options, str(config["dtype"]))
    quant, _ = quantization_of(config, files.quant_cfg)
    headers = {
        rank: current_names(table, rank)[0] for rank, table in files.headers.items() if rank < options.world_size
    }
    spec = spec_of(family, config)
    quantized = _quantized(quant, _kv_scales(headers))
    document = {"quant_cfg.json": _complete(files.quant_cfg, family, spec, options)} if quant.layers else {}
    if quantized is None:
        ranks = jobs_of(family, config, options)
    else:
        ranks = shard_fields(family, spec, options, options.dtype, quantized)
    odd = [job.name for rank in ranks for job in rank.jobs if not _as_planned(job, headers[rank.rank], quantized)]
    plain = quantized is None and not quant.kv_algo and quant.algo in ("", "W8A16", "W4A16")
    if odd or not (quantized or plain):
        what = quant.algo or "quantized"
        what += f" with {quant.kv_algo} KV cache" if quant.kv_algo else ""
        some = f" (for example {odd[0]})" if odd else ""
        hint = "Convert the source model to the new layout, and quantize that."
        raise CheckpointError(f"{folder} holds {what} weights in a form that cannot be re-sharded{some}", hint=hint)
    return PlainCheckpoint(config, family, spec, options, quant, headers, files.manifest, quantized, document)


def _kv_scales(headers: Dict[int, Dict[str, TensorInfo]]) -> tuple[str, ...]:
    """Those of KV_SCALES that a checkpoint's files hold."""
    held = {name.rpartition(".")[2] for table in headers.values() for name in table}
    return tuple(name for name in KV_SCALES if name in held)


def _quantized(quant: Quant, kv_scales: tuple[str, ...]) -> Quantized | None:
    """The stored fields of a quantization that trtbuild has a method for; None for plain weights and other forms."""
    kv_scales = kv_scales if quant.kv_algo else ()
    if quant.layers:
        modules = {module: _quantized(own, ()) for module, own in quant.layers.items() if own.algo}
        known = {module: own for module, own in modules.items() if own is not None}
        return Quantized((), kv_scales=kv_scales, modules=known) if len(known) == len(modules) else None
    methods = [
        method
        for method in METHODS.values()
        if method.quant_algo == quant.algo and method.fields and not method.imported
    ]
    if not methods and not (quant.kv_algo and quant.algo in ("", "W8A16", "W4A16")):
        return None
    fields = methods[0].fields if methods else ()
    head = bool(methods) and methods[0].head and not quant.excludes(HEAD)
    norms = bool(methods) and methods[0].norm_scales
    return Quantized(fields, quant.group_size, kv_scales, norm_scales=norms, head=head).stored


def _complete(document: Dict[str, Any], family: Family, spec: ModelSpec, options: ConvertOptions) -> dict[str, Any]:
    """quant_cfg.json with an entry for every linear, so that its numbers are plainly those of the whole model."""
    table = whole_model(document[LAYERS], options.pp_size, spec.num_layers)
    return {**document, LAYERS: table | {m: {"quant_algo": None} for m in linears_of(family, spec) if m not in table}}


def _as_planned(job: Job, held: dict[str, TensorInfo], quantized: Quantized | None) -> bool:
    """Whether a tensor can be cut as `job` says; a tied lm_head may be absent, and fp8 may be called int8."""
    info = held.get(job.name)
    if info is None:
        return quantized is None or job.name.startswith("lm_head.")
    return info.nbytes == job.nbytes and info.dtype in ((job.dtype, "I8") if job.dtype == "F8_E4M3" else (job.dtype,))


def new_layout(old: PlainCheckpoint, asked: ConvertOptions) -> ConvertOptions:
    """The options of the re-sharded checkpoint.

    Raises:
        PlanError: the ranks cannot share the model that way, or a dtype or quantization is asked for.
    """
    problems = []
    if asked.dtype not in ("auto", old.dtype):
        problems.append(f"the checkpoint is {old.dtype}; --dtype {asked.dtype} needs the source model")
    algo = METHODS[asked.quant].quant_algo if asked.quant in METHODS else asked.quant
    again = {"--quant-layer": bool(asked.quant_layers), "--quantize-lm-head": asked.quantize_lm_head}
    problems += [f"a checkpoint is quantized already; {name} needs the source model" for name in again if again[name]]
    if asked.quant != "none" and algo != (old.quant.algo or None):
        problems.append(f"the checkpoint's quant_algo is {old.quant.algo or None}; --quant needs the source model")
    name = next((name for name, method in METHODS.items() if (method.quant_algo or "") == old.quant.algo), "none")
    options = options_of(
        old.family,
        replace(asked, quant_layers=(), quantize_lm_head=False, quant=name, group_size=old.quant.group_size),
        old.dtype,
    )
    found = layout_problems(old.family, old.spec, options)
    problems += found
    if not found and old.quantized is not None:
        try:
            shard_fields(old.family, old.spec, options, old.dtype, old.quantized)
        except PlanError as error:
            problems += error.problems
    if not found and asked.target == "tensorrt":
        ranks = jobs_of(old.family, old.config, options)
        for finding in dims_findings(ranks, old.quant, options.tp_size, ERROR):
            problems.append(f"{old.quant.algo} needs {finding.expected}; it is {finding.found}")
        table = old.quant_cfg.get("quant_cfg.json", {}).get(LAYERS, {})
        for module, read in list(unlike_stages(table, options.pp_size, old.spec.num_layers).items())[:1]:
            problems.append(
                f"TensorRT-LLM counts layers from 0 on every pipeline stage: with pp {options.pp_size} it would read "
                f"{module} as {read}, which is quantized in another way; pp 1 works"
            )
    if problems:
        raise PlanError(problems)
    return options
