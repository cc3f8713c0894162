"""EDGE: a checkpoint that the linter found sound, opened for re-sharding: its family, layout and headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbuild.errors import CheckpointError, PlanError
from trtbuild.families import family_of_checkpoint
from trtbuild.families.rules import Family
from trtbuild.layout import TensorInfo
from trtbuild.lint.check import check
from trtbuild.lint.config import mapping_of
from trtbuild.lint.expected import dims_findings, jobs_of, options_of, spec_of
from trtbuild.lint.finding import ERROR, Report
from trtbuild.lint.quantization import Quant, quantization_of
from trtbuild.lint.read import read_files
from trtbuild.lint.tensors import current_names
from trtbuild.plan import layout_problems
from trtbuild.progress import Progress, silent
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import ConvertOptions, ModelSpec

_SHOWN = 20


@dataclass(frozen=True)
class PlainCheckpoint:
    """Rank files whose tensors are plain weights; headers are by rank and by the names of the 1.x classes."""

    config: dict[str, Any]
    family: Family
    spec: ModelSpec
    options: ConvertOptions
    quant: Quant
    headers: dict[int, dict[str, TensorInfo]]
    manifest: dict[str, Any]

    @property
    def dtype(self) -> str:
        return self.options.dtype


def require_sound(folder: Path, progress: Progress = silent) -> Report:
    """Check a checkpoint, numbers included.

    Raises:
        CheckpointError: it has errors; the message lists them.
    """
    report = check(folder, progress=progress)
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
        CheckpointError: an architecture that trtbuild does not know, or packed weights.
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
    packed = [
        job.name
        for rank in jobs_of(family, config, options)
        for job in rank.jobs
        if job.name in headers[rank.rank] and headers[rank.rank][job.name].dtype != job.dtype
    ]
    if packed or quant.kv_algo or quant.algo not in ("", "W8A16", "W4A16"):
        what = quant.algo or "quantized"
        what += f" with {quant.kv_algo} KV cache" if quant.kv_algo else ""
        some = f" (for example {packed[0]})" if packed else ""
        hint = "Convert the source model to the new layout, and quantize that."
        raise CheckpointError(f"{folder} holds {what} weights in packed form{some}: it cannot be re-sharded", hint=hint)
    return PlainCheckpoint(config, family, spec_of(family, config), options, quant, headers, files.manifest)


def new_layout(old: PlainCheckpoint, asked: ConvertOptions) -> ConvertOptions:
    """The options of the re-sharded checkpoint.

    Raises:
        PlanError: the ranks cannot share the model that way, or a dtype or quantization is asked for.
    """
    problems = []
    if asked.dtype not in ("auto", old.dtype):
        problems.append(f"the checkpoint is {old.dtype}; --dtype {asked.dtype} needs the source model")
    algo = METHODS[asked.quant].quant_algo if asked.quant in METHODS else asked.quant
    if asked.quant != "none" and algo != (old.quant.algo or None):
        problems.append(f"the checkpoint's quant_algo is {old.quant.algo or None}; --quant needs the source model")
    name = next((name for name, method in METHODS.items() if (method.quant_algo or "") == old.quant.algo), "none")
    options = options_of(old.family, replace(asked, quant=name), old.dtype)
    found = layout_problems(old.family, old.spec, options)
    problems += found
    if not found and asked.target == "tensorrt":
        ranks = jobs_of(old.family, old.config, options)
        for finding in dims_findings(ranks, old.quant, options.tp_size, ERROR):
            problems.append(f"{old.quant.algo} needs {finding.expected}; it is {finding.found}")
    if problems:
        raise PlanError(problems)
    return options
