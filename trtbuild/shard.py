"""Rules x ModelSpec x layout -> every tensor of every rank, as windows of source tensors. PURE: integers and names.

One page of arithmetic serves everything that needs to know a checkpoint's layout: the plan of a conversion, the linter
(`names` = identity: only names and shapes matter) and re-sharding. The split rules are checkpoint format 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass

from trtbuild.families.rules import Family, Rule, Source
from trtbuild.layout import DTYPES, Axis, Job, Piece, RankJobs, Split, Stage, Window
from trtbuild.mapping import Mapping
from trtbuild.spec import ConvertOptions, ModelSpec


def shard(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, names: Dict[str, str]
) -> tuple[RankJobs, ...]:
    """The tensors of every rank; `names` gives the tensor to read for a planned source, where they differ."""
    return tuple(_rank(family, spec, options, dtype, names, rank) for rank in range(options.world_size))


def rank_mapping(options: ConvertOptions, rank: int = 0) -> Mapping:
    return Mapping(options.tp_size, options.pp_size, rank, options.moe_sizes[1])


def rules_of(family: Family, spec: ModelSpec, stage: Stage | None = None) -> list[Rule]:
    """Rules that apply to this model, in the family's order."""
    return [rule for rule in family.rules if spec.holds(rule.when) and stage in (None, rule.stage)]


def sources_of(family: Family, spec: ModelSpec) -> Iterator[tuple[Source, str]]:
    """(source, its tensor's name) of everything that the whole model consists of."""
    for rule in rules_of(family, spec):
        for layer in range(spec.num_layers if rule.stage is Stage.LAYER else 1):
            for expert in range(spec.num_experts if rule.experts else 1):
                for source in rule.sources:
                    yield source, source.name.format(i=layer, e=expert)


def source_shape(spec: ModelSpec, source: Source) -> tuple[int, ...]:
    """Shape of a source tensor as the file must hold it."""
    rows = source.skip + sum(spec.size(axis) for axis in source.rows)
    if source.cols is None:
        return (rows,)
    cols = spec.size(source.cols)
    return (cols, rows) if source.transposed else (rows, cols)


def cut_axes(rule: Rule, options: ConvertOptions) -> tuple[Axis, ...]:
    """Axes of which every rank of a tensor-parallel group must get an equal share."""
    if rule.split is Split.COLUMN:
        return tuple(axis for source in rule.sources for axis in _parts(source))
    across = rule.split is Split.ROW or (rule.split is Split.EMBED and _embeds_by(options, 1))
    return tuple(source.cols for source in rule.sources if across and source.cols)


def shares(rule: Rule, mapping: Mapping) -> tuple[int, int]:
    """(ranks that share a tensor of this rule, index of this rank among them)."""
    return (mapping.moe_tp_size, mapping.moe_tp_rank) if rule.experts else (mapping.tp_size, mapping.tp_rank)


def window(spec: ModelSpec, axis: Axis, count: int, index: int) -> Window:
    """The share of rank `index` of `count`; with fewer units (kv heads) than ranks, neighbours share one."""
    units, unit = spec.axis(axis)
    start = index * units // count
    return start * unit, (start + max(units // count, 1)) * unit


def _rank(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, names: Dict[str, str], rank: int
) -> RankJobs:
    """The jobs of one rank, first stage's tensors first; layers are numbered from 0 inside their stage."""
    mapping = rank_mapping(options, rank)
    layers = mapping.layers(spec.num_layers)

    def formed(stage: Stage) -> list[_Form]:
        return [_form(rule, spec, options, dtype, mapping) for rule in rules_of(family, spec, stage)]

    # Those of every stage come first, so that every rank's file has the fuse groups in one order.
    forms = formed(Stage.EVERY) + (formed(Stage.FIRST) if mapping.is_first_stage else [])
    jobs = [_job(form, names, 0, 0) for form in forms]
    # All layers are cut alike: the windows are worked out once, and only the names differ.
    forms = formed(Stage.LAYER) if layers else []
    jobs += [_job(form, names, layer, local) for local, layer in enumerate(layers) for form in forms]
    if mapping.is_last_stage:
        jobs += [_job(form, names, 0, 0) for form in formed(Stage.LAST)]
    return RankJobs(rank, mapping.tp_rank, mapping.pp_rank, layers, tuple(jobs))


@dataclass(frozen=True)
class _Form:
    """What the tensors of one rule on one rank have in common: `pieces` with "{i}" in their sources, experts named."""

    rule: Rule
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def _form(rule: Rule, spec: ModelSpec, options: ConvertOptions, dtype: str, mapping: Mapping) -> _Form:
    experts = mapping.experts(spec.num_experts) if rule.experts else range(1)
    pieces: list[Piece] = []
    for expert in experts:
        for source in rule.sources:
            # Only the expert is filled in; "{i}" stays for the layer.
            name = source.name.replace("{e}", str(expert))
            pieces += _pieces(rule, source, spec, options, mapping, name)
    rows = sum(piece.num_rows for piece in pieces) // len(experts)
    if _by_padded_rows(rule, options):
        rows = -(-sum(spec.size(axis) for axis in rule.sources[0].rows) // mapping.tp_size)
    shape: tuple[int, ...] = (rows,)
    if rule.sources[0].cols:
        start, stop = pieces[0].cols or (0, spec.size(rule.sources[0].cols))
        shape = (rows, stop - start)
    if rule.experts:
        shape = (len(experts), *shape)
    return _Form(rule, DTYPES[rule.dtype or dtype], shape, tuple(pieces))


def _job(form: _Form, names: Dict[str, str], layer: int, local: int) -> Job:
    """One output tensor of one rank: its windows of the sources, and the shape that they make."""
    number = str(layer)
    pieces = []
    for piece in form.pieces:
        name = piece.source.replace("{i}", number)
        pieces.append(Piece(names.get(name, name), piece.rows, piece.cols, piece.transposed))
    target = form.rule.target
    name, group = target.replace("{i}", str(local)), target.replace("{i}", number)
    return Job(name, form.dtype, form.shape, tuple(pieces), group, form.rule.add)


def _pieces(
    rule: Rule, source: Source, spec: ModelSpec, options: ConvertOptions, mapping: Mapping, name: str
) -> list[Piece]:
    count, index = shares(rule, mapping)
    cols: Window | None = None
    if rule.split is Split.COLUMN:
        wanted = [window(spec, axis, count, index) for axis in _parts(source)]
    elif _by_padded_rows(rule, options):
        total = sum(spec.size(axis) for axis in source.rows)
        each = -(-total // count)
        wanted = [(min(index * each, total), min((index + 1) * each, total))]
    else:
        wanted = [(0, spec.size(axis)) for axis in _parts(source)]
        if source.cols and cut_axes(rule, options):
            cols = window(spec, source.cols, count, index)
    rows = tuple(found for part, (start, stop) in zip(_order(source), wanted, strict=True)
                 for found in _lying(spec, source, part, start, stop))  # fmt: skip
    if rule.split is Split.FIRST_RANK and index:
        name = ""  # zeros
    return [Piece(name, _joined(rows), cols, source.transposed)]


def _order(source: Source) -> tuple[int, ...]:
    return source.order or tuple(range(len(source.rows)))


def _parts(source: Source) -> tuple[Axis, ...]:
    """Axes of a source's parts in the order of the target."""
    return tuple(source.rows[part] for part in _order(source))


def _lying(spec: ModelSpec, source: Source, part: int, start: int, stop: int) -> list[Window]:
    """Where the elements [start, stop) of a part lie along the source's output axis."""
    if not source.grouped:
        base = source.skip + sum(spec.size(axis) for axis in source.rows[:part])
        return [(base + start, base + stop)]
    head, queries = spec.head_size, spec.num_heads // spec.num_kv_heads
    found = []
    for number in range(start // head, stop // head):
        # A query head's place in its group; k and v come after the queries of a group.
        group, place = divmod(number, queries) if part == 0 else (number, queries + part - 1)
        row = (group * (queries + 2) + place) * head
        found.append((row, row + head))
    return found


def _joined(windows: tuple[Window, ...]) -> tuple[Window, ...]:
    """Neighbouring windows made one."""
    found: list[Window] = []
    for start, stop in windows:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def _embeds_by(options: ConvertOptions, dim: int) -> bool:
    return options.use_parallel_embedding and options.embedding_sharding_dim == dim


def _by_padded_rows(rule: Rule, options: ConvertOptions) -> bool:
    return rule.split is Split.VOCAB or (rule.split is Split.EMBED and _embeds_by(options, 0))
