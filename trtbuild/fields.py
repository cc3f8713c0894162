"""Quantized layouts: shard's windows of a weight -> windows of each field that stands for it. PURE: integers and names.

A logical checkpoint holds the whole model by TensorRT-LLM's names with global layer numbers: plain tensors, and for
every quantized linear the fields of its method. A field is cut where its weight is, so no method needs a rule of its
own (checkpoint format 3.4). Legend: g = group size, e = expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

from trtbuild.errors import PlanError
from trtbuild.families.rules import Family, Rule, Source
from trtbuild.layout import GROUP, Field, Job, Piece, RankJobs, Split, Window
from trtbuild.shard import rank_mapping, rules_of, shard
from trtbuild.spec import ConvertOptions, ModelSpec

LINEAR = re.compile(r"\.layers\.\d+\..*\b(qkv|dense|fc|gate|proj)\.weight$")
"""Weights that methods quantize: no router, shared_expert_gate, embedding, norm or lm_head."""
HEAD = "lm_head"
"""The module of the logits, quantized only where that is asked for."""
NORMS = ("input_layernorm", "post_layernorm")
"""Norms whose output plugin SmoothQuant makes int8."""
NORM = re.compile(rf"\.layers\.\d+\.({'|'.join(NORMS)})\.weight$")
DIVIDED = re.compile(rf"\.layers\.\d+\.({'|'.join(NORMS)})\.(weight|bias)$")
"""What takes the factors of the inputs that plugin SmoothQuant does not store."""


@dataclass(frozen=True)
class Quantized:
    """What a layout needs to know of a quantization: fields of a linear, g, and the KV scales of attention (KV_SCALES).

    `bias_once`: whether the bias of a row-parallel linear is on the first rank only, zeros elsewhere. `norm_scales`:
    whether the norms before linears have a scale [1] of their own (plugin SmoothQuant). `head`: lm_head is quantized.
    `modules`: where linears differ, the fields and g of each by its path in the whole model; those not there are plain.
    """

    fields: tuple[Field, ...] = ()
    group_size: int = 128
    kv_scales: tuple[str, ...] = ()
    bias_once: bool = False
    norm_scales: bool = False
    final: bool = False
    """Whether shapes and dtypes are those of rank files; pieces of fields stored in a kernel's layout do not count."""
    modules: Dict[str, Quantized] | None = None
    head: bool = False

    @property
    def stored(self) -> Quantized:
        """The same with packed bytes as the elements: as rank files hold it."""
        fields = tuple(replace(field, rows=field.rows * field.packed, packed=1) for field in self.fields)
        modules = None if self.modules is None else {name: own.stored for name, own in self.modules.items()}
        return replace(self, fields=fields, final=True, modules=modules)

    def of(self, module: str) -> Quantized:
        """The quantization of one module, without fields where it is plain."""
        if self.modules is not None:
            return self.modules.get(module, Quantized())
        return self if LINEAR.search(f"{module}.weight") or (self.head and module == HEAD) else Quantized()


@dataclass(frozen=True)
class _Whole:
    """A weight [rows, cols] of the whole model, or of one expert."""

    rows: int
    cols: int


def shard_fields(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, quantized: Quantized
) -> tuple[RankJobs, ...]:
    """Every tensor of every rank as windows of a logical checkpoint; layer numbers in sources are global.

    The rows of pieces count elements of a vector, and rows of a matrix or of experts' matrices one below the other; a
    vector along the outputs of experts counts as one vector.

    Raises:
        PlanError: groups or packed bytes that this layout would have to cut, all of them.
    """
    wholes = _wholes(family, spec)
    rules = tuple(_bias_once(rule) if quantized.bias_once else rule for rule in map(_logical, family.rules))
    ranks = shard(replace(family, rules=rules), spec, options, dtype, {})
    problems: dict[str, None] = {}
    made = []
    for rank in ranks:
        experts = rank_mapping(options, rank.rank).experts(spec.num_experts) if spec.num_experts else range(0)
        jobs: list[Job] = []
        cut: dict[tuple[str, int, int], list[Job]] = {}
        for job in rank.jobs:
            whole = wholes.get(job.group, _Whole(0, 0))
            job = _of_experts(job, whole, experts)
            own = quantized.of(job.group.removesuffix(".weight"))
            if not own.fields:
                jobs.append(job)
            else:
                # The layers of a rank are cut alike: one of them tells, and in the others only the names differ.
                kind = (_kind(job), id(own.fields), own.group_size)
                if kind not in cut:
                    found = [text for text in (_misfit(job, field, own.group_size) for field in own.fields) if text]
                    problems |= dict.fromkeys(found)
                    cut[kind] = [] if found else list(_fields(job, whole, own))
                jobs += [_renamed(field, job) for field in cut[kind]]
            if job.name.endswith("attention.qkv.weight"):
                jobs += [_scalar(job, "qkv.weight", name) for name in quantized.kv_scales]
            if quantized.norm_scales and NORM.search(job.name):
                jobs.append(_scalar(job, "weight", "scale_to_int"))
        made.append(replace(rank, jobs=tuple(jobs)))
    if problems:
        raise PlanError(tuple(problems))
    return tuple(made)


def _logical(rule: Rule) -> Rule:
    """The rule with one source: the whole tensor by its own name."""
    parts = tuple(
        source.rows[part] for source in rule.sources for part in source.order or tuple(range(len(source.rows)))
    )
    return replace(rule, sources=(Source(rule.target, parts, rule.sources[0].cols),), add=0.0)


def _bias_once(rule: Rule) -> Rule:
    """The rule of a row-parallel linear's bias, which its kernel adds before the sum over the ranks."""
    row_bias = rule.split is Split.ROW and rule.sources[0].cols is None
    return replace(rule, split=Split.FIRST_RANK) if row_bias else rule


def _wholes(family: Family, spec: ModelSpec) -> dict[str, _Whole]:
    found = {}
    for rule in rules_of(family, spec):
        source = _logical(rule).sources[0]
        whole = _Whole(sum(spec.size(axis) for axis in source.rows), spec.size(source.cols) if source.cols else 1)
        for layer in range(spec.num_layers):
            found[rule.target.format(i=layer)] = whole
    return found


def _of_experts(job: Job, whole: _Whole, experts: range) -> Job:
    """Pieces of one expert's matrix -> of all experts' matrices, which the logical tensor holds one below the other."""
    if len(job.shape) != 3:
        return job
    pieces = tuple(
        replace(piece, rows=tuple((start + e * whole.rows, stop + e * whole.rows) for start, stop in piece.rows))
        for e, piece in zip(experts, job.pieces, strict=True)
    )
    return replace(job, pieces=pieces)


def _kind(job: Job) -> str:
    """A linear's name inside its layer, or its whole name."""
    return job.group.removesuffix(".weight").split(".", 3)[-1]


def _misfit(job: Job, field: Field, group_size: int) -> str:
    """Why a field cannot be cut where its weight is, or nothing."""
    name = _kind(job)
    edges = (job.shape[-1], *(edge for piece in job.pieces for edge in piece.cols or ()))
    if field.cols == GROUP and any(edge % group_size for edge in edges):
        return f"group size {group_size} does not divide the {job.shape[-1]} inputs of {name} on a rank"
    multiples = (64 // field.kernel_bits, 64) if field.kernel_bits else (1, 1)
    if any(size % multiple for size, multiple in zip(job.shape[-2:], multiples, strict=True)):
        return (
            f"the kernels' layout needs outputs in multiples of {multiples[0]}, inputs of {multiples[1]}; "
            f"{name} has {list(job.shape[-2:])} on a rank"
        )
    ends = (job.shape[-2], *(edge for piece in job.pieces for window in piece.rows for edge in window))
    if field.rows > 1 and any(edge % field.rows for edge in ends):
        return f"{field.rows} outputs of {name} share a byte, and this layout cuts between them"
    return ""


def _fields(job: Job, whole: _Whole, quantized: Quantized) -> Iterator[Job]:
    """The fields in place of a weight's job."""
    module = job.name.split(".")[-2]
    for field in (field for field in quantized.fields if not field.only or module in field.only):
        per_column = quantized.group_size if field.cols == GROUP else field.cols
        lead = job.shape[:-2]
        shape: tuple[int, ...]
        if field.rows:
            pieces = [_by_rows(piece, field.rows, per_column) for piece in job.pieces]
            pieces += _padding(job, whole) if field.cols != 1 else ()
            shape = (*lead, job.shape[-2] // field.rows, *((job.shape[-1] // per_column,) if per_column else ()))
        elif per_column:
            pieces = [_by_inputs(piece, whole, bool(lead)) for piece in job.pieces]
            shape = (*lead, job.shape[-1])
        else:
            pieces = [Piece("", (_expert(piece, whole, bool(lead)),)) for piece in job.pieces]
            shape = (*lead, 1)
            if field.shared or not lead:
                pieces, shape = [Piece("", ((0, 1),))], (1,)
        source = job.group.removesuffix("weight") + field.suffix
        made = Job(
            name=job.name.removesuffix("weight") + field.suffix,
            dtype=field.dtype or job.dtype,
            shape=shape,
            pieces=tuple(replace(piece, source=source) for piece in pieces),
            group=source,
        )
        yield _as_stored(made, field, job.dtype) if quantized.final else made


def _renamed(field: Job, weight: Job) -> Job:
    """The field of another layer's weight, which is cut in the same way."""
    suffix = field.group.rpartition(".")[2]
    name, source = (text.removesuffix("weight") + suffix for text in (weight.name, weight.group))
    pieces = tuple([Piece(source, piece.rows, piece.cols, piece.transposed) for piece in field.pieces])
    return Job(name, field.dtype, field.shape, pieces, source)


def _as_stored(job: Job, field: Field, dtype: str) -> Job:
    """The shape and dtype of a field in a rank file; packed bytes are the elements already."""
    if field.kernel_bits:
        *lead, out, width = job.shape
        return replace(job, dtype=dtype, shape=(*lead, width, out * field.kernel_bits // 16))
    if field.transposed:
        *lead, out, width = job.shape
        return replace(job, shape=(*lead, width, out))
    return replace(job, shape=(1, *job.shape)) if field.lead else job


def _by_rows(piece: Piece, rows: int, cols: int) -> Piece:
    """A window of what has one element for `rows` outputs and `cols` inputs (0: no such dim)."""
    window = (piece.cols[0] // cols, piece.cols[1] // cols) if piece.cols and cols else None
    return Piece("", tuple((start // rows, stop // rows) for start, stop in piece.rows), window)


def _padding(job: Job, whole: _Whole) -> tuple[Piece, ...]:
    """Scales of the rows of zeros that are added to a weight: the last output's again, so that all are positive."""
    missing = job.rows - sum(piece.num_rows for piece in job.pieces)
    return (Piece("", ((whole.rows - 1, whole.rows),) * missing),) if missing else ()


def _by_inputs(piece: Piece, whole: _Whole, experts: bool) -> Piece:
    """A window of a vector along the inputs; the experts' vectors are the rows of a matrix."""
    if experts:
        return Piece("", (_expert(piece, whole, True),), piece.cols)
    return Piece("", (piece.cols or (0, whole.cols),))


def _expert(piece: Piece, whole: _Whole, experts: bool) -> Window:
    e = piece.rows[0][0] // whole.rows if experts else 0
    return (e, e + 1)


def _scalar(job: Job, ending: str, instead: str) -> Job:
    """A float32 scalar [1] beside a tensor, the same on every rank."""
    name, group = (text.removesuffix(ending) + instead for text in (job.name, job.group))
    return Job(name, "F32", (1,), (Piece(group, ((0, 1),)),), group)
