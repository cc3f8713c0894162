"""Family x ModelSpec x options x source headers -> every tensor of every rank, and all problems at once.

A `ModelPlan` has one `Plan` for each checkpoint folder: one, or two for an encoder-decoder model.

PURE: touches no weight, file or array library; `trtbuild plan` runs it in a fraction of a second. Converting is then a
dull loop over `Plan.ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

from trtbuild.errors import PlanError
from trtbuild.families.rules import Family
from trtbuild.fields import Quantized, shard_fields
from trtbuild.fit import layout_problems, option_problems, quant_problems
from trtbuild.layout import BLOCK_BYTES, READABLE, SCALED, RankJobs, TensorInfo
from trtbuild.quantize.method import Method
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import shard, source_shape, sources_of
from trtbuild.spec import ConvertOptions, ModelSpec, resolved_dtype

_SHOWN = 8  # names listed before "and N more"
_PROCESS_BYTES = 60_000_000  # anonymous memory of Python with numpy, measured
_TORCH_BYTES = 300_000_000  # the same with torch and a tokenizer
_COPIES = 6  # of one weight, in a method's arithmetic
_BLOCKS = 48  # of a conversion with 8 threads: those on the way, and temporaries of casts
_WIDEST_ELEMENT = 8
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
    reads: frozenset[str]
    """Source tensors that go into the checkpoint."""
    memory_bytes: int
    """Host memory of the conversion."""
    whole: RankJobs | None = None
    """Where a method has fields, or the KV cache scales: all tensors of the whole model in its own dtype. They become a
    logical checkpoint, of which `ranks` is cut; for the others `ranks` is cut of the source itself."""

    @property
    def folder(self) -> str:
        """Where below the output the checkpoint lies; empty for the output itself."""
        return self.family.folder

    @property
    def checkpoint_bytes(self) -> int:
        """Disk needed for the output."""
        return sum(rank.nbytes + _HEADER_BYTES * len(rank.jobs) for rank in self.ranks)

    @property
    def scratch_bytes(self) -> int:
        """Disk needed beside the output while a quantized checkpoint is made: plain tensors, and fields unpacked."""
        return sum(job.nbytes for job in self.whole.jobs) if self.whole else 0

    @property
    def method(self) -> Method:
        return METHODS[self.options.quant]

    def require(self) -> None:
        """Raise PlanError with every problem, if there is one."""
        _require(self.problems)


@dataclass(frozen=True)
class ModelPlan:
    """Everything that a model becomes: one plan for each of its checkpoint folders. Sizes in bytes."""

    parts: tuple[Plan, ...]
    parameters: int
    source_bytes: int
    """Of tensors that are read; one that both halves hold counts once."""

    @property
    def options(self) -> ConvertOptions:
        return self.parts[0].options

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def problems(self) -> tuple[str, ...]:
        return self._said([part.problems for part in self.parts])

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._said([part.warnings for part in self.parts])

    @property
    def checkpoint_bytes(self) -> int:
        """Disk needed for the output."""
        return sum(part.checkpoint_bytes for part in self.parts)

    @property
    def scratch_bytes(self) -> int:
        """Disk needed beside the output, at most, while it is made."""
        return sum(part.scratch_bytes for part in self.parts)

    @property
    def memory_bytes(self) -> int:
        """Host memory of the conversion, which does one folder after the other."""
        return max(part.memory_bytes for part in self.parts)

    def require(self) -> None:
        """Raise PlanError with every problem of every folder, if there is one."""
        _require(self.problems)

    def _said(self, sentences: list[tuple[str, ...]]) -> tuple[str, ...]:
        """Sentences of all parts; one that only some parts say names its folder."""
        everywhere = set(sentences[0]).intersection(*sentences[1:])
        found = [
            said if said in everywhere else f"{part.folder}: {said}"
            for part, all_said in zip(self.parts, sentences, strict=True)
            for said in all_said
        ]
        return tuple(dict.fromkeys(found))


def plan_model(
    specs: Sequence[tuple[Family, ModelSpec]], options: ConvertOptions, index: Dict[str, TensorInfo]
) -> ModelPlan:
    """The plans of all folders of a model; `index` holds the source tensors by name (headers only)."""
    parts = tuple(make_plan(family, spec, options, index) for family, spec in specs)
    reads = frozenset[str]().union(*(part.reads for part in parts))
    return ModelPlan(
        parts=parts,
        parameters=sum(prod(index[name].shape) for name in reads),
        source_bytes=sum(_with_scale(index[name]) for name in reads),
    )


def make_plan(family: Family, spec: ModelSpec, options: ConvertOptions, index: Dict[str, TensorInfo]) -> Plan:
    """Decide everything about one checkpoint folder; `index` holds the source tensors by name (headers only)."""
    options = _as_the_class_has_it(family, options)
    problems = option_problems(options)
    dtype = resolved_dtype(spec, options)
    if not problems:
        problems += layout_problems(family, spec, options)
    laid_out = not problems
    rough, warnings = quant_problems(family, spec, options, dtype) if laid_out else ([], [])
    sources, missing = _coverage(family, spec, index)
    problems += rough + missing
    complete = laid_out and not missing
    ranks = shard(family, spec, options, dtype, sources) if complete else ()
    method = METHODS.get(options.quant)
    whole, memory = None, _memory(ranks, index)
    if ranks and method is not None and (method.fields or options.kv_cache_algo):
        whole = shard(family, spec, ConvertOptions(dtype=dtype), dtype, sources)[0]
        layout = Quantized(method.fields, options.group_size, kv_scales=options.kv_cache_algo is not None)
        ranks = () if rough else shard_fields(family, spec, options, dtype, layout.stored)
        memory = max(memory, _quantizing_memory(whole, method))
    return Plan(
        family=family,
        spec=spec,
        options=options,
        dtype=dtype,
        ranks=ranks,
        problems=tuple(problems),
        warnings=tuple(warnings),
        reads=frozenset(sources.values()),
        memory_bytes=memory,
        whole=whole,
    )


def _with_scale(info: TensorInfo) -> int:
    return info.nbytes + (info.scale.info.nbytes if info.scale else 0)


def _require(problems: tuple[str, ...]) -> None:
    if problems:
        raise PlanError(problems)


def _memory(ranks: tuple[RankJobs, ...], index: Dict[str, TensorInfo]) -> int:
    """Peak bytes of converting with up to 8 threads: the process, and blocks that do not depend on the model's size.

    A block is a megabyte, or a row where one is larger; page cache, which the kernel can take back, is not counted.
    """
    if not ranks:
        return 0
    names = {piece.source for rank in ranks for job in rank.jobs for piece in job.pieces if piece.source}
    widest = max(prod(index[name].shape[1:]) * _WIDEST_ELEMENT for name in names)
    scales = sum(4 * prod(scale.info.shape) for scale in (index[name].scale for name in names) if scale)
    return _PROCESS_BYTES + _BLOCKS * max(BLOCK_BYTES, widest) + scales


def _quantizing_memory(whole: RankJobs, method: Method) -> int:
    """Peak bytes of quantizing a layer at a time: torch, a layer's weights in float32, and what a method needs beside.

    That is second moments of every linear's inputs where it searches with them, and some copies of one weight.
    """
    layer = [job for job in whole.jobs if job.group.split(".")[:3] == ["transformer", "layers", "0"]]
    linears = [job for job in layer if len(job.shape) > 1]
    grams = sum(4 * job.shape[-1] ** 2 for job in linears) if method.needs_gram else 0
    weights = sum(4 * job.elements for job in layer)
    largest = max((4 * prod(job.shape[-2:]) for job in linears), default=0)
    return _TORCH_BYTES + 2 * weights + grams + _COPIES * largest


def _as_the_class_has_it(family: Family, options: ConvertOptions) -> ConvertOptions:
    """Some model classes overrule the option: GemmaConfig shards its table whenever tp > 1 (checkpoint format 1.6)."""
    return replace(options, use_parallel_embedding=options.tp_size > 1) if family.parallel_embedding else options


def _coverage(family: Family, spec: ModelSpec, index: Dict[str, TensorInfo]) -> tuple[dict[str, str], list[str]]:
    """(planned source -> name actually read, problems): missing, misshapen, unreadable and unexpected tensors."""
    names: dict[str, str] = {}
    missing, wrong = [], []
    for source, planned in sources_of(family, spec):
        name = _found(family, planned, index)
        if not name and source.fallback and spec.tied_embeddings:
            name = _found(family, source.fallback, index)
            planned_name = source.fallback
        else:
            planned_name = planned
        if not name:
            missing.append(planned_name)
            continue
        names[planned] = name
        info, shape = index[name], source_shape(spec, source)
        if info.shape != shape:
            wrong.append(f"{name} has shape {list(info.shape)}, but the config says {list(shape)}")
        elif info.dtype not in READABLE and info.scale is None:
            lacks = " and no scale that fits it" if info.dtype in SCALED else ""
            wrong.append(f"{name} has dtype {info.dtype}{lacks}; supported: {', '.join(READABLE)}")
    used = set(names.values())
    unexpected = [n for n in index if n not in used and not any(fnmatchcase(n, p) for p in family.ignored)]
    for refuse in family.unusable:
        unread = [name for name in unexpected if fnmatchcase(name, refuse.name)]
        wrong += [f"{_some(unread)}: {refuse.why}"] if unread else []
        unexpected = [name for name in unexpected if name not in unread]
    found = [f"missing tensors: {_some(missing)}"] if missing else []
    found += wrong[:_SHOWN] + (
        [f"and {len(wrong) - _SHOWN} more tensors of wrong shape or dtype"] if wrong[_SHOWN:] else []
    )
    found += [f"unexpected tensors, which {family.name} has no place for: {_some(unexpected)}"] if unexpected else []
    return names, found


def _found(family: Family, name: str, index: Dict[str, TensorInfo]) -> str:
    """The tensor of that name, or of the name with a prefix that some files have instead; empty where none is."""
    others = (other + name.removeprefix(ours) for ours, other in family.prefixes if name.startswith(ours))
    return next((candidate for candidate in (name, *others) if candidate in index), "")


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
