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
from trtbuild.families.rules import Family, Rule
from trtbuild.fields import Quantized, shard_fields
from trtbuild.layout import BLOCK_BYTES, DTYPES, READABLE, SCALED, Axis, RankJobs, Split, Stage, TensorInfo
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import cut_axes, rank_mapping, rules_of, shard, shares, source_shape, sources_of, window
from trtbuild.spec import TARGETS, ConvertOptions, ModelSpec, resolved_dtype

_SHOWN = 8  # names listed before "and N more"
_PROCESS_BYTES = 60_000_000  # anonymous memory of Python with numpy, measured
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

    @property
    def folder(self) -> str:
        """Where below the output the checkpoint lies; empty for the output itself."""
        return self.family.folder

    @property
    def checkpoint_bytes(self) -> int:
        """Disk needed for the output."""
        return sum(rank.nbytes + _HEADER_BYTES * len(rank.jobs) for rank in self.ranks)

    @property
    def quant_algo(self) -> str | None:
        return METHODS[self.options.quant].quant_algo

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
    problems = _option_problems(options)
    dtype = resolved_dtype(spec, options)
    if not problems:
        problems += layout_problems(family, spec, options)
    laid_out = not problems
    rough, warnings = _quant_problems(family, spec, options, dtype) if laid_out else ([], [])
    sources, missing = _coverage(family, spec, index)
    problems += rough + missing
    complete = laid_out and not missing
    ranks = shard(family, spec, options, dtype, sources) if complete else ()
    return Plan(
        family=family,
        spec=spec,
        options=options,
        dtype=dtype,
        ranks=ranks,
        problems=tuple(problems),
        warnings=tuple(warnings),
        reads=frozenset(sources.values()),
        memory_bytes=_memory(ranks, index),
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


def _as_the_class_has_it(family: Family, options: ConvertOptions) -> ConvertOptions:
    """Some model classes overrule the option: GemmaConfig shards its table whenever tp > 1 (checkpoint format 1.6)."""
    return replace(options, use_parallel_embedding=options.tp_size > 1) if family.parallel_embedding else options


def _option_problems(options: ConvertOptions) -> list[str]:
    found = [
        f"{name} must be at least 1, not {size}"
        for name, size in (
            ("tp", options.tp_size),
            ("pp", options.pp_size),
            ("moe_tp", options.moe_tp_size),
            ("moe_ep", options.moe_ep_size),
        )
        if size is not None and size < 1
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


def layout_problems(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[str]:
    """Axes that the ranks cannot share, with the values of tp that work; stages that pp leaves empty."""
    tp, pp = options.tp_size, options.pp_size
    moe_tp, moe_ep = options.moe_sizes
    asked = options.moe_tp_size is not None or options.moe_ep_size is not None
    if asked and not spec.num_experts:
        return [f"moe_tp and moe_ep share experts among ranks, but {spec.architecture} has none"]
    if moe_tp * moe_ep != tp:
        return [f"moe_tp {moe_tp} x moe_ep {moe_ep} is not tp {tp}"]
    found = []
    uncut = uncut_axes(family, spec, options)
    works = [t for t in range(1, spec.num_heads + 1) if uncut and not uncut_axes(family, spec, _other_tp(options, t))]
    for name, count, axis, units in uncut:
        if name == "moe_ep":
            hint = _working(name, [size for size in range(1, tp + 1) if tp % size == 0 and units % size == 0])
        else:
            hint = _working("tp", works)
        found.append(f"{name} {count} does not divide {units} {axis.value}; {hint}")
    if pp > spec.num_layers:
        found.append(f"pp {pp} is more than the {spec.num_layers} layers; at most pp {spec.num_layers} works")
    if pp > 1 and not family.pipeline:
        found.append(f"TensorRT-LLM cannot cut {spec.architecture} into pipeline stages; use pp 1")
    if tp > 1 and not family.tensor:
        found.append(f"TensorRT-LLM cannot cut {spec.architecture} into tensor-parallel ranks; use tp 1")
    if METHODS[options.quant].quant_algo and not family.quantization:
        found.append(f"TensorRT-LLM has no quantized form of {spec.architecture}; leave --quant out")
    if options.use_parallel_embedding and all(rule.split is not Split.EMBED for rule in family.rules):
        found.append(
            f"every rank of {spec.architecture} holds its embeddings whole; leave --use-parallel-embedding out"
        )
    if family.parallel_embedding and tp > 1:
        found += _forced_embedding_problems(spec, options)
    return found


def _working(name: str, sizes: list[int]) -> str:
    """ "tp 1, 2 or 4 works"."""
    if not sizes:
        return f"no {name} works"
    *most, last = (str(size) for size in sizes)
    return f"{name} {', '.join(most)} or {last} works" if most else f"only {name} {last} works"


def _other_tp(options: ConvertOptions, tp: int) -> ConvertOptions:
    """The options with another tp; how experts are shared follows only where it was left open."""
    return replace(options, tp_size=tp)


def _forced_embedding_problems(spec: ModelSpec, options: ConvertOptions) -> list[str]:
    found = []
    if options.embedding_sharding_dim:
        found.append(f"{spec.architecture} shards its vocabulary table by rows: embedding_sharding_dim must be 0")
    if spec.vocab_size % options.tp_size:
        found.append(
            f"tp {options.tp_size} does not divide {spec.vocab_size} tokens of the vocabulary, "
            f"which {spec.architecture} shards without padding"
        )
    return found


def uncut_axes(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[tuple[str, int, Axis, int]]:
    """(tp or moe_tp or moe_ep, its size, axis, units) of each axis that the ranks cannot share.

    Kv heads may also be repeated evenly (grouped-query attention).
    """
    moe_tp, moe_ep = options.moe_sizes
    if moe_tp * moe_ep != options.tp_size:
        return [("moe_tp x moe_ep", moe_tp * moe_ep, Axis.EXPERTS, spec.num_experts)]
    mapping = rank_mapping(options)
    cuts: dict[tuple[str, int, Axis], None] = {}
    for rule in rules_of(family, spec):
        count, _ = shares(rule, mapping)
        name = "moe_tp" if rule.experts and moe_ep > 1 else "tp"
        cuts |= dict.fromkeys((name, count, axis) for axis in cut_axes(rule, options))
        if rule.experts:
            cuts["moe_ep", mapping.moe_ep_size, Axis.EXPERTS] = None
    result = []
    for name, count, axis in cuts:
        units, _ = spec.axis(axis)
        repeated = axis is Axis.KV and count % units == 0
        if units % count and not repeated:
            result.append((name, count, axis, units))
    return result


def _quant_problems(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the method: what TensorRT-LLM's quantized modules demand only warns for other targets."""
    method = METHODS[options.quant]
    found = []
    if dtype not in method.dtypes:
        found.append(f"{method.name} in TensorRT-LLM needs dtype {' or '.join(method.dtypes)}, not {dtype}")
    fit = _field_problems(family, spec, options, dtype)
    multiple = max(method.dim_multiple, options.group_size if method.group_sizes else 0) * options.tp_size
    for rule in rules_of(family, spec) if multiple else ():
        if rule.stage is not Stage.LAYER or rule.split not in (Split.COLUMN, Split.ROW) or not rule.sources[0].cols:
            continue
        shape = (_out_features(rule, spec, options.tp_size), spec.size(rule.sources[0].cols))
        if any(size % multiple for size in shape):
            name = rule.target.replace("transformer.layers.{i}.", "").removesuffix(".weight")
            need = f"multiples of {method.dim_multiple} x tp = {multiple}"
            found.append(f"{method.name} in TensorRT-LLM needs both dims of {name} {list(shape)} to be {need}")
    return (fit + found, []) if options.target == "tensorrt" else (fit, found)


def _field_problems(family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str) -> list[str]:
    """What the method's numbers themselves cannot do, whatever the target: groups that do not divide, experts."""
    method = METHODS[options.quant]
    if not method.fields:
        return []
    if spec.num_experts and not method.experts:
        return [f"TensorRT-LLM has no {method.name} for mixture-of-experts layers"]
    if method.group_sizes and options.group_size not in method.group_sizes:
        sizes = " or ".join(map(str, method.group_sizes))
        return [f"{method.name} has group size {sizes}, not {options.group_size}"]
    problems = {
        size: _misfits(family, spec, replace(options, group_size=size), dtype)
        for size in (options.group_size, *method.group_sizes)
    }
    found = problems[options.group_size]
    works = [str(size) for size in method.group_sizes if not problems[size]]
    if found and works:
        found.append(f"{method.name} with group size {' or '.join(works)} works")
    elif found and method.group_sizes:
        found.append(
            f"no group size of {method.name} ({' or '.join(map(str, method.group_sizes))}) works; try another tp"
        )
    return found


def _misfits(family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str) -> list[str]:
    quantized = Quantized(METHODS[options.quant].fields, options.group_size)
    try:
        shard_fields(family, spec, options, dtype, quantized.stored)
    except PlanError as error:
        return list(error.problems)
    return []


def _out_features(rule: Rule, spec: ModelSpec, tp: int) -> int:
    """Outputs of a linear over all ranks; kv heads fewer than ranks are repeated."""
    axes = [axis for source in rule.sources for axis in source.rows]
    if rule.split is not Split.COLUMN:
        return sum(spec.size(axis) for axis in axes)
    windows = [window(spec, axis, tp, 0) for axis in axes]
    return tp * sum(stop - start for start, stop in windows)


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
