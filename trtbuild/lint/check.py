"""The linter's order of work: read, rules of config.json, rules of headers, rules of numbers; all findings at once."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtbuild.families import families_of, family_of_checkpoint
from trtbuild.families.rules import Family
from trtbuild.layout import RankJobs
from trtbuild.lint import tables, tensors, values
from trtbuild.lint.config import (
    family_findings,
    field_findings,
    mapping_of,
    repr_of,
    size_findings,
    structure_ok,
)
from trtbuild.lint.expected import dims_findings, expected_of, jobs_of, layout_findings, switched_off
from trtbuild.lint.finding import ERROR, WARNING, Finding, Report, find, ordered
from trtbuild.lint.forms import Expected
from trtbuild.lint.mixture import mixture_findings
from trtbuild.lint.quantization import Quant, combination_findings, quantization_of
from trtbuild.lint.read import KINDS, Files, kind_of, manifest_of, read_files
from trtbuild.mapping import Mapping
from trtbuild.progress import Progress, silent
from trtbuild.spec import ConvertOptions

Wanted = dict[int, dict[str, Expected]]


def check(folder: Path, *, read_data: bool = True, target: str = "", progress: Progress = silent) -> Report:
    """All faults of a TensorRT-LLM checkpoint, whoever made it; never raises for what is in the files.

    `read_data` False looks at headers only. `target`: for "cpu", what only TensorRT's kernels refuse is a warning;
    "" takes the target that trtbuild.json names, else "tensorrt".
    """
    kind = kind_of(folder)
    if kind == "encoder-decoder":
        halves = ("encoder", "decoder")
        reports = [_check(folder / half, read_data, target, progress) for half in halves]
        merged = [replace(f, folder=half) for half, r in zip(halves, reports, strict=True) for f in r.findings]
        merged += values.manifest_findings(folder, manifest_of(folder)) if read_data else []
        total = sum(report.num_tensors for report in reports)
        return replace(reports[1], kind=kind, findings=ordered(merged), num_tensors=total)
    if kind != "checkpoint":
        hint = f"This is {KINDS[kind]}." if kind != "missing" else ""
        found = find("not-a-checkpoint", str(folder), KINDS["checkpoint"], KINDS[kind].split(":")[0], hint)
        return Report(kind, (found,))
    return _check(folder, read_data, target, progress)


def _check(folder: Path, read_data: bool, target: str, progress: Progress) -> Report:
    files = read_files(folder)
    config = files.config
    name = config.get("architecture")
    architecture = name if isinstance(name, str) else ""
    family = family_of_checkpoint(architecture)
    options, found = mapping_of(config)
    found = [*files.findings, *found]
    quant = Quant()
    # Of what TensorRT's kernels refuse and the cpu runtime takes.
    severity = ERROR if (target or _target(files)) == "tensorrt" else WARNING
    if config:
        quant, more = quantization_of(config, files.quant_cfg)
        found += [*_architecture(architecture), *field_findings(config, family), *more]
        found += combination_findings(quant, config, severity)
    found += _rank_files(files, options) if options else []
    jobs: tuple[RankJobs, ...] = ()
    wanted: Wanted = {}
    if options and config and structure_ok(config, family):
        more = [*size_findings(config, options)]
        more += layout_findings(family, config, options) if not more else []
        found += [*more, *(family_findings(config, family) if family else [])]
        if not more:
            jobs, wanted, more = _headers(files, config, family, options, quant, severity)
            found += more
    if read_data:
        found += _numbers(files, jobs, wanted, config, progress)
    return Report(
        kind="checkpoint",
        findings=ordered(found),
        architecture=architecture,
        family=family.name if family else "",
        quant_algo=quant.algo,
        tp_size=options.tp_size if options else 0,
        pp_size=options.pp_size if options else 0,
        num_tensors=sum(map(len, files.headers.values())),
        data_checked=read_data,
    )


def _headers(
    files: Files, config: Dict[str, Any], family: Family | None, options: ConvertOptions, quant: Quant, severity: str
) -> tuple[tuple[RankJobs, ...], Wanted, list[Finding]]:
    """(every rank's plain tensors, every rank's tensors as stored, findings); the first two only for our families."""
    found: list[Finding] = []
    layers = config["num_hidden_layers"]
    for rank in [rank for rank in files.headers if rank < options.world_size]:
        mapping = Mapping(options.tp_size, options.pp_size, rank)
        headers, more = tensors.current_names(files.headers[rank], rank)
        headers, numbered = tensors.local_layers(headers, mapping.layers(layers), rank)
        files.headers[rank] = headers
        found += more + numbered
    if family is None or not quant.known:
        sharded = options.embedding_sharding_dim if options.use_parallel_embedding else None
        stages: dict[int, dict[int, Any]] = {}
        for rank, headers in files.headers.items():
            if rank < options.world_size:
                mapping = Mapping(options.tp_size, options.pp_size, rank)
                stages.setdefault(mapping.pp_rank, {})[rank] = headers
                found += tensors.generic(headers, mapping, config, sharded, quant.known and not quant.algo)
        return (), {}, found + tensors.stage_findings(list(stages.values()))
    jobs = jobs_of(family, config, options)
    wanted: Wanted = {}
    off = switched_off(family, config, layers)
    for job in jobs:
        if job.rank in files.headers:
            headers = files.headers[job.rank]
            stored = {name: info.dtype for name, info in headers.items()}
            wanted[job.rank] = expected_of(job, layers, quant, stored)
            found += tensors.compare(wanted[job.rank], headers, job.rank, config, off, len(job.layers))
    found += dims_findings(jobs, quant, options.tp_size, severity)
    found += mixture_findings(jobs, quant, layers, options.pp_size, severity)
    return jobs, wanted, found


def _numbers(
    files: Files, jobs: tuple[RankJobs, ...], wanted: Wanted, config: Dict[str, Any], progress: Progress
) -> list[Finding]:
    try:
        found = values.number_findings(files.headers, wanted, progress)
        found += values.copy_findings(jobs, files.headers, wanted)
        if config.get("tie_word_embeddings") is True or config.get("share_embedding_table") is True:
            found += values.tied_findings(jobs, files.headers, wanted)
        found += values.scale_pair_findings(files.headers, wanted)
        found += values.zero_scale_findings(files.headers, wanted)
        return found + values.manifest_findings(files.folder, files.manifest)
    except OSError as error:
        text = f"it cannot be read: {error.strerror or error}"
        return [find("rank-file-unreadable", str(error.filename or files.folder), "readable files", text)]


def _architecture(name: str) -> list[Finding]:
    if not name or family_of_checkpoint(name) is not None:
        return []
    where = "architecture"
    if name in tables.ARCHITECTURES:
        text = f"{name}, whose tensors it does not know"
        hint = "Only generic rules were applied: names and shapes of its tensors are not checked."
        return [find("architecture-unchecked", where, "an architecture that trtbuild converts", text, hint)]
    ours = sorted({family.architectures[name] for family in families_of(name)})
    lower = [other for other in sorted(tables.ARCHITECTURES) if other.lower() == name.lower()]
    near = (ours or lower)[:1]
    hint = f"The checkpoint of that model has {near[0]!r}." if near else "trtllm-build ends in a KeyError."
    return [find("architecture-unknown", where, "a name of TensorRT-LLM's MODEL_MAP", repr_of(name), hint)]


def _rank_files(files: Files, options: ConvertOptions) -> list[Finding]:
    world, there = options.world_size, set(files.ranks)
    layout = f"tp {options.tp_size} x pp {options.pp_size}"
    found = []
    for rank in range(world):
        if rank not in there:
            text = f"a file for each rank of {layout}"
            found.append(find("rank-file-missing", f"rank{rank}.safetensors", text, "no such file", "", rank))
    for rank in sorted(there):
        if rank >= world:
            text = f"{world} files ({layout})"
            hint = "A file of another layout, or mapping in config.json is not this checkpoint's."
            found.append(find("rank-file-extra", f"rank{rank}.safetensors", text, "one more", hint, rank))
    return found


def _target(files: Files) -> str:
    """The target that trtbuild.json says the checkpoint was made for."""
    options = files.manifest.get("options")
    value = options.get("target") if isinstance(options, dict) else None
    return value if isinstance(value, str) else "tensorrt"
