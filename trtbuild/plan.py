"""Family x ModelSpec x options x source headers -> every tensor of every rank, and all problems at once.

PURE: touches no weight, file or array library; `trtbuild plan` runs it in a fraction of a second. Converting is then a
dull loop over `Plan.ranks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from trtbuild.errors import PlanError
from trtbuild.families.rules import Family, Rule, Source
from trtbuild.layout import DTYPE_BYTES, DTYPES, READABLE, Axis, Job, Piece, RankJobs, Split, Stage, TensorInfo
from trtbuild.mapping import Mapping
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import TARGETS, ConvertOptions, ModelSpec, resolved_dtype

_SHOWN = 8  # names listed before "and N more"
_PROCESS_BYTES = 300_000_000  # resident size of Python with torch, measured
_HEADER_BYTES = 160  # of a safetensors header, per tensor


@dataclass(frozen=True)
class Plan:
    """What a conversion will write. `ranks` is empty where `problems` make a layout impossible. Sizes in bytes."""

    family: Family
    spec: ModelSpec
    options: ConvertOptions
    dtype: str
    ranks: tuple[RankJobs, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    parameters: int
    source_bytes: int
    memory_bytes: int
    """Host memory of the conversion."""

    @property
    def checkpoint_bytes(self) -> int:
        """Disk needed for the output."""
        return sum(rank.nbytes + _HEADER_BYTES * len(rank.jobs) for rank in self.ranks)

    @property
    def quant_algo(self) -> str | None:
        return METHODS[self.options.quant].quant_algo

    def require(self) -> None:
        """Raise PlanError with every problem, if there is one."""
        if self.problems:
            raise PlanError(self.problems)


def make_plan(family: Family, spec: ModelSpec, options: ConvertOptions, index: Dict[str, TensorInfo]) -> Plan:
    """Decide everything about a conversion; `index` holds the source tensors by name (headers only)."""
    problems = _option_problems(options)
    dtype = resolved_dtype(spec, options)
    if not problems:
        problems += _layout_problems(family, spec, options)
    laid_out = not problems
    rough, warnings = _quant_problems(family, spec, options, dtype) if laid_out else ([], [])
    sources, missing = _coverage(family, spec, index)
    problems += rough + missing
    complete = laid_out and not missing
    ranks = (
        tuple(_rank(family, spec, options, dtype, sources, rank) for rank in range(options.world_size))
        if complete
        else ()
    )
    used = {name for name in sources.values() if name in index}
    return Plan(
        family=family,
        spec=spec,
        options=options,
        dtype=dtype,
        ranks=ranks,
        problems=tuple(problems),
        warnings=tuple(warnings),
        parameters=sum(prod(index[name].shape) for name in used),
        source_bytes=sum(index[name].nbytes for name in used),
        memory_bytes=_memory(ranks, index),
    )


def _memory(ranks: tuple[RankJobs, ...], index: Dict[str, TensorInfo]) -> int:
    """Peak bytes of converting: a fuse group's sources cast, the largest of them as read, one cut, and the process."""
    groups: dict[str, tuple[set[str], int, int]] = {}
    for job in (job for rank in ranks for job in rank.jobs):
        names, largest, _ = groups.get(job.group, (set(), 0, 0))
        names |= {piece.source for piece in job.pieces}
        groups[job.group] = (names, max(largest, job.nbytes), DTYPE_BYTES[job.dtype])
    peaks = [
        largest + max(index[name].nbytes for name in names) + sum(prod(index[name].shape) * size for name in names)
        for names, largest, size in groups.values()
    ]
    return _PROCESS_BYTES + max(peaks) if peaks else 0


def _option_problems(options: ConvertOptions) -> list[str]:
    found = [
        f"{name} must be at least 1, not {size}"
        for name, size in (("tp", options.tp_size), ("pp", options.pp_size))
        if size < 1
    ]
    if options.quant not in METHODS:
        found.append(f"unknown quantization {options.quant!r}; supported: {', '.join(METHODS)}")
    if options.dtype not in ("auto", *DTYPES):
        found.append(f"unknown dtype {options.dtype!r}; supported: auto, {', '.join(DTYPES)}")
    if options.target not in TARGETS:
        found.append(f"target {options.target!r} is not supported; supported: {', '.join(TARGETS)}")
    if options.embedding_sharding_dim not in (0, 1):
        found.append(
            f"embedding_sharding_dim must be 0 (vocabulary) or 1 (hidden), not {options.embedding_sharding_dim}"
        )
    return found


def _layout_problems(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[str]:
    """Axes that tp cannot divide, with the values of tp that work; stages that pp leaves empty."""
    found = []
    tp, pp = options.tp_size, options.pp_size
    uncut = _uncut(family, spec, options, tp)
    if uncut:
        works = [str(t) for t in range(1, spec.num_heads + 1) if not _uncut(family, spec, options, t)]
        hint = f"tp {', '.join(works[:-1])} or {works[-1]} works" if len(works) > 1 else "only tp 1 works"
        found += [f"tp {tp} does not divide {units} {axis.value}; {hint}" for axis, units in uncut]
    if pp > spec.num_layers:
        found.append(f"pp {pp} is more than the {spec.num_layers} layers; at most pp {spec.num_layers} works")
    if pp > 1 and not family.pipeline:
        found.append(f"TensorRT-LLM cannot cut {spec.architecture} into pipeline stages; use pp 1")
    return found


def _uncut(family: Family, spec: ModelSpec, options: ConvertOptions, tp: int) -> list[tuple[Axis, int]]:
    """(axis, units) of each axis that `tp` ranks cannot share; kv heads may also be repeated evenly."""
    axes: dict[Axis, None] = {}
    for rule in family.rules:
        for source in rule.sources:
            axes |= dict.fromkeys(_cut_axes(rule, source, options))
    result = []
    for axis in axes:
        units, _ = spec.axis(axis)
        repeated = axis is Axis.KV and tp % units == 0
        if units % tp and not repeated:
            result.append((axis, units))
    return result


def _cut_axes(rule: Rule, source: Source, options: ConvertOptions) -> tuple[Axis, ...]:
    if rule.split is Split.COLUMN:
        return source.rows
    across = rule.split is Split.ROW or (
        rule.split is Split.EMBED and options.use_parallel_embedding and options.embedding_sharding_dim == 1
    )
    return (source.cols,) if across and source.cols else ()


def _quant_problems(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the method: what TensorRT-LLM's quantized modules demand only warns for other targets."""
    method = METHODS[options.quant]
    found = []
    if dtype not in method.dtypes:
        found.append(f"{method.name} in TensorRT-LLM needs dtype {' or '.join(method.dtypes)}, not {dtype}")
    multiple = method.dim_multiple * options.tp_size
    for rule in family.rules if multiple else ():
        if rule.stage is not Stage.LAYER or rule.split not in (Split.COLUMN, Split.ROW) or not rule.sources[0].cols:
            continue
        rows = sum(_share(spec, axis, options.tp_size) for source in rule.sources for axis in source.rows)
        out = rows * options.tp_size if rule.split is Split.COLUMN else spec.size(rule.sources[0].rows[0])
        shape = (out, spec.size(rule.sources[0].cols))
        if any(size % multiple for size in shape):
            name = rule.target.replace("transformer.layers.{i}.", "").removesuffix(".weight")
            need = f"multiples of {method.dim_multiple} x tp = {multiple}"
            found.append(f"{method.name} in TensorRT-LLM needs both dims of {name} {list(shape)} to be {need}")
    return (found, []) if options.target == "tensorrt" else ([], found)


def _share(spec: ModelSpec, axis: Axis, tp: int) -> int:
    """Elements of an axis that one rank holds; kv heads fewer than ranks are repeated."""
    units, unit = spec.axis(axis)
    return max(units // tp, 1) * unit


def _coverage(family: Family, spec: ModelSpec, index: Dict[str, TensorInfo]) -> tuple[dict[str, str], list[str]]:
    """(planned source -> name actually read, problems): missing, misshapen, unreadable and unexpected tensors."""
    names: dict[str, str] = {}
    missing, wrong = [], []
    for source, layer in _sources(family, spec):
        planned = source.name.format(i=layer)
        name = planned
        if planned not in index and source.fallback and spec.tied_embeddings:
            name = source.fallback
        names[planned] = name
        shape = [sum(spec.size(axis) for axis in source.rows)] + ([spec.size(source.cols)] if source.cols else [])
        info = index.get(name)
        if info is None:
            missing.append(name)
        elif list(info.shape) != shape:
            wrong.append(f"{name} has shape {list(info.shape)}, but the config says {shape}")
        elif info.dtype not in READABLE:
            wrong.append(f"{name} has dtype {info.dtype}; supported: {', '.join(READABLE)}")
    used = set(names.values())
    unexpected = [n for n in index if n not in used and not any(fnmatchcase(n, p) for p in family.ignored)]
    found = [f"missing tensors: {_some(missing)}"] if missing else []
    found += wrong[:_SHOWN] + (
        [f"and {len(wrong) - _SHOWN} more tensors of wrong shape or dtype"] if wrong[_SHOWN:] else []
    )
    found += [f"unexpected tensors, which {family.name} has no place for: {_some(unexpected)}"] if unexpected else []
    return names, found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sources(family: Family, spec: ModelSpec) -> Iterator[tuple[Source, int]]:
    for rule in _rules(family, spec):
        for layer in range(spec.num_layers if rule.stage is Stage.LAYER else 1):
            for source in rule.sources:
                yield source, layer


def _rules(family: Family, spec: ModelSpec, stage: Stage | None = None) -> list[Rule]:
    """Rules that apply to this model, in the family's order."""
    return [r for r in family.rules if (not r.when or spec.flags[r.when]) and stage in (None, r.stage)]


def _rank(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, sources: dict[str, str], rank: int
) -> RankJobs:
    """The jobs of one rank, first stage's tensors first; layers are numbered from 0 inside their stage."""
    mapping = Mapping(options.tp_size, options.pp_size, rank)
    layers = mapping.layers(spec.num_layers)
    todo: list[tuple[Rule, int, int]] = []
    if mapping.is_first_stage:
        todo += [(rule, 0, 0) for rule in _rules(family, spec, Stage.FIRST)]
    todo += [(rule, layer, local) for local, layer in enumerate(layers) for rule in _rules(family, spec, Stage.LAYER)]
    if mapping.is_last_stage:
        todo += [(rule, 0, 0) for rule in _rules(family, spec, Stage.LAST)]
    jobs = tuple(_job(rule, spec, options, dtype, sources, mapping, layer, local) for rule, layer, local in todo)
    return RankJobs(rank, mapping.tp_rank, mapping.pp_rank, layers, jobs)


def _job(
    rule: Rule,
    spec: ModelSpec,
    options: ConvertOptions,
    dtype: str,
    sources: dict[str, str],
    mapping: Mapping,
    layer: int,
    local: int,
) -> Job:
    """One output tensor of one rank: its windows of the sources, and the shape that they make."""
    pieces: list[Piece] = []
    rows, cols = 0, 0
    for source in rule.sources:
        name = sources[source.name.format(i=layer)]
        for piece in _pieces(rule, source, spec, options, mapping, name):
            pieces.append(piece)
            whole = sum(spec.size(axis) for axis in source.rows)
            rows += piece.stop - piece.start if piece.axis == 0 else whole
            cols = piece.stop - piece.start if piece.axis == 1 else spec.size(source.cols) if source.cols else 0
    if _by_vocab(rule, options):
        rows = -(-spec.vocab_size // mapping.tp_size)
    shape = (rows, cols) if rule.sources[0].cols else (rows,)
    return Job(rule.target.format(i=local), DTYPES[dtype], shape, tuple(pieces), rule.target.format(i=layer))


def _by_vocab(rule: Rule, options: ConvertOptions) -> bool:
    rows_cut = options.use_parallel_embedding and options.embedding_sharding_dim == 0
    return rule.split is Split.VOCAB or (rule.split is Split.EMBED and rows_cut)


def _pieces(
    rule: Rule, source: Source, spec: ModelSpec, options: ConvertOptions, mapping: Mapping, name: str
) -> Iterator[Piece]:
    tp, rank = mapping.tp_size, mapping.tp_rank
    if rule.split is Split.COLUMN:
        offset = 0
        for axis in source.rows:
            start, stop = _window(spec, axis, tp, rank)
            yield Piece(name, 0, offset + start, offset + stop)
            offset += spec.size(axis)
    elif _by_vocab(rule, options):
        each = -(-spec.vocab_size // tp)
        yield Piece(name, 0, min(rank * each, spec.vocab_size), min((rank + 1) * each, spec.vocab_size))
    elif across := _cut_axes(rule, source, options):
        yield Piece(name, 1, *_window(spec, across[0], tp, rank))
    else:
        yield Piece(name, 0, 0, sum(spec.size(axis) for axis in source.rows))


def _window(spec: ModelSpec, axis: Axis, tp: int, rank: int) -> tuple[int, int]:
    """[start, stop) of a rank's share; with fewer units (kv heads) than ranks, neighbours share one."""
    units, unit = spec.axis(axis)
    start = rank * units // tp
    return start * unit, start * unit + _share(spec, axis, tp)
