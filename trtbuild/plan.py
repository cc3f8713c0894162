"""Family x ModelSpec x options x source headers -> every tensor of every rank, and all problems at once.

A `ModelPlan` has one `Plan` for each checkpoint folder: one, or two for an encoder-decoder model.

PURE: touches no weight, file or array library; `trtbuild plan` runs it in a fraction of a second. Converting is then a
dull loop over `Plan.ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from trtbuild.coverage import coverage
from trtbuild.errors import PlanError
from trtbuild.families.rules import Family
from trtbuild.fields import HEAD, shard_fields
from trtbuild.fit import layout_problems, option_problems, quant_problems, smoothing_problems
from trtbuild.importers.fit import import_memory, import_problems, layer_methods
from trtbuild.importers.form import Import
from trtbuild.layout import BLOCK_BYTES, KV_SCALES, RankJobs, TensorInfo
from trtbuild.mixed import Choices, choices_of, quantizable, quantized_of, unmatched
from trtbuild.quantize.method import Method
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import shard
from trtbuild.spec import SEARCHES, ConvertOptions, ModelSpec, resolved_dtype

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
    """Where a method has fields, or the KV cache scales, and for an import: all tensors of the whole model in its own
    dtype. They become a logical checkpoint, of which `ranks` is cut; for the others `ranks` is cut of the source."""
    imported: Import | None = None
    """How a quantized model is read."""
    choices: Choices = field(default_factory=dict)
    """How each linear is quantized; empty where `problems` make a layout impossible."""

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
        """That of the linears which no pattern names."""
        return METHODS[self.options.quant]

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that some linear has."""
        return _methods(self.choices)

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
    imported: Import | None = None

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
    specs: Sequence[tuple[Family, ModelSpec]],
    options: ConvertOptions,
    index: Dict[str, TensorInfo],
    imported: Import | None = None,
    problems: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> ModelPlan:
    """The plans of all folders of a model; `index` holds the source tensors by name (headers only).

    `problems` and `warnings` of the source itself come first.
    """
    parts = tuple(make_plan(family, spec, options, index, imported) for family, spec in specs)
    lost = unmatched([quantizable(family, spec, options) for family, spec in specs], options)
    if imported is not None:
        asked = {"--quant-layer": bool(options.quant_layers), "--quantize-lm-head": options.quantize_lm_head}
        lost = [f"the model is quantized already; {name} needs the unquantized one" for name in asked if asked[name]]
    parts = tuple(
        replace(part, problems=(*problems, *part.problems, *lost), warnings=(*warnings, *part.warnings))
        for part in parts
    )
    reads = frozenset[str]().union(*(part.reads for part in parts))
    return ModelPlan(
        parts=parts,
        parameters=sum(prod(index[name].shape) for name in reads),
        source_bytes=sum(_with_scale(index[name]) for name in reads),
        imported=imported,
    )


def make_plan(
    family: Family,
    spec: ModelSpec,
    options: ConvertOptions,
    index: Dict[str, TensorInfo],
    imported: Import | None = None,
) -> Plan:
    """Decide everything about one checkpoint folder; `index` holds the source tensors by name (headers only)."""
    options = _as_the_class_has_it(family, options)
    problems = option_problems(options)
    dtype = resolved_dtype(spec, options)
    if not problems:
        problems += layout_problems(family, spec, options)
    laid_out = not problems
    sources, missing = coverage(family, spec, index)
    if imported is not None and laid_out:
        layers, mixed = layer_methods(family, spec, options, imported, sources, index)
        options, problems = replace(options, quant_layers=layers), problems + mixed
    rough, warnings = quant_problems(family, spec, options, dtype) if laid_out else ([], [])
    if imported is not None:
        unfit, said = import_problems(family, spec, options, dtype, imported, sources, index)
        rough, warnings = rough + unfit, warnings + said
    elif laid_out:
        rough += smoothing_problems(family, spec, choices_of(family, spec, options))
    problems += rough + missing
    complete = laid_out and not missing
    choices = choices_of(family, spec, options) if laid_out else {}
    methods = _methods(choices)
    logical = options.kv_cache_algo is not None or imported is not None or any(method.fields for method in methods)
    ranks: tuple[RankJobs, ...] = ()
    whole = None
    if complete and logical:
        whole = shard(family, spec, ConvertOptions(dtype=dtype), dtype, sources)[0]
        layout = replace(quantized_of(choices), kv_scales=KV_SCALES if options.kv_cache_algo else ())
        ranks = () if rough else shard_fields(family, spec, options, dtype, layout.stored)
        needed = (
            import_memory(whole)
            if imported is not None
            else max(_memory((whole,), index), _quantizing_memory(whole, methods, options.quantize_lm_head))
        )
    else:
        ranks = shard(family, spec, options, dtype, sources) if complete else ()
        needed = _memory(ranks, index)
    return Plan(
        family=family,
        spec=spec,
        options=options,
        dtype=dtype,
        ranks=ranks,
        problems=tuple(problems),
        warnings=tuple(warnings),
        reads=frozenset(sources.values()),
        memory_bytes=needed,
        imported=imported,
        whole=whole,
        choices=choices,
    )


def _methods(choices: Choices) -> tuple[Method, ...]:
    return tuple({choice.method.name: choice.method for choice in choices.values()}.values())


def _with_scale(info: TensorInfo) -> int:
    parts = sum(part.nbytes for _, part in info.parts)
    return info.nbytes + parts + (info.scale.info.nbytes if info.scale else 0)


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


def _quantizing_memory(whole: RankJobs, methods: Sequence[Method], quantize_lm_head: bool) -> int:
    """Peak bytes of quantizing a layer at a time: torch, a layer's weights in float32, and what a method needs beside.

    That is second moments of every linear's inputs where it searches with them, and some copies of one weight.
    """
    layer = [job for job in whole.jobs if job.group.split(".")[:3] == ["transformer", "layers", "0"]]
    linears = [job for job in layer if len(job.shape) > 1]
    grams = sum(4 * job.shape[-1] ** 2 for job in linears) if any(SEARCHES[0] in m.gram_for for m in methods) else 0
    weights = sum(4 * job.elements for job in layer)
    head = [job for job in whole.jobs if job.group == f"{HEAD}.weight" and quantize_lm_head]
    largest = max((4 * prod(job.shape[-2:]) for job in (*linears, *head)), default=0)
    return _TORCH_BYTES + 2 * weights + grams + _COPIES * largest


def _as_the_class_has_it(family: Family, options: ConvertOptions) -> ConvertOptions:
    """Some model classes overrule the option: GemmaConfig shards its table whenever tp > 1 (checkpoint format 1.6)."""
    return replace(options, use_parallel_embedding=options.tp_size > 1) if family.parallel_embedding else options
