"""A TensorRT-LLM checkpoint's layout -> another layout, as blocks of the old rank files. PURE: integers and names.

Both layouts come from `shard` and speak of the same whole tensors, so a window that a new rank wants is looked up in
what the old ranks hold. Nothing is computed on the way: the new files hold the bytes that a conversion of the source
model to the new layout would hold.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtbuild.families.rules import Family
from trtbuild.fields import Quantized, shard_fields
from trtbuild.layout import Job, Piece, RankJobs, Window
from trtbuild.shard import rules_of, shard, sources_of
from trtbuild.spec import ConvertOptions, ModelSpec


@dataclass(frozen=True)
class Block:
    """A rectangle of one tensor of an old rank file, and where its upper left corner goes in the new tensor.

    Tensors count as matrices: all dims but the last are rows; a vector has one column (`Job.columns`).
    """

    rank: int
    tensor: str
    rows: Window
    cols: Window
    at: tuple[int, int]


@dataclass(frozen=True)
class Recut:
    """One tensor of a new rank file; what no block covers is zero."""

    job: Job
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class RecutRank:
    """All tensors of one new rank file, in the order in which the file holds them."""

    rank: int
    tensors: tuple[Recut, ...]

    @property
    def nbytes(self) -> int:
        return sum(recut.job.nbytes for recut in self.tensors)


@dataclass(frozen=True)
class _Held:
    """Rows and columns of a whole tensor that an old rank holds, from row `at` of its own tensor on."""

    rank: int
    tensor: str
    rows: Window
    cols: Window
    at: int


def reshard(
    family: Family,
    spec: ModelSpec,
    old: ConvertOptions,
    new: ConvertOptions,
    dtype: str,
    present: Sequence[frozenset[str]],
    quantized: Quantized | None = None,
) -> tuple[RecutRank, ...]:
    """Every tensor of every new rank. `present`: names in each old rank file (a tied lm_head may be absent there).

    `old` and `new` must be layouts without problems, and the old files hold what `old` says; `quantized`: the stored
    fields of their linears, where those are not plain weights.
    """
    if quantized is None:
        ranks_of = [shard(family, spec, options, dtype, {}) for options in (old, new)]
        fallbacks = {planned: source.fallback for source, planned in sources_of(family, spec) if source.fallback}
    else:
        ranks_of = [shard_fields(family, spec, options, dtype, quantized) for options in (old, new)]
        targets = {rule.sources[0].name: rule.target for rule in rules_of(family, spec)}
        tied = [(rule.target, rule.sources[0].fallback) for rule in rules_of(family, spec)]
        fallbacks = {target: targets[source] for target, source in tied if source}
    held = _held(ranks_of[0], present)
    # A source that another tensor's copy may stand for, whatever that tensor is called.
    by_source: dict[str, list[_Held]] = {}
    for (_, source), places in held.items():
        by_source.setdefault(source, places)
    ranks = []
    for rank in ranks_of[1]:
        tensors = []
        for job in rank.jobs:
            find = {
                piece.source: held.get((job.group, piece.source)) or by_source[fallbacks[piece.source]]
                for piece in job.pieces
                if piece.source
            }
            tensors.append(Recut(job, _blocks(job, find)))
        ranks.append(RecutRank(rank.rank, tuple(tensors)))
    return tuple(ranks)


def resharded_config(
    config: Dict[str, Any], family: Family, spec: ModelSpec, options: ConvertOptions
) -> dict[str, Any]:
    """config.json of the new layout: the old one with its layout fields replaced, in their old places."""
    moe_tp, moe_ep = options.moe_sizes
    tied = bool(spec.tied_embeddings or config.get("share_embedding_table"))
    changed = {
        "use_parallel_embedding": options.use_parallel_embedding,
        "embedding_sharding_dim": options.embedding_sharding_dim,
        "share_embedding_table": tied and (options.use_embedding_sharing or family.parallel_embedding),
        "mapping": {
            **(config.get("mapping") or {}),
            "world_size": options.world_size,
            "cp_size": 1,
            "tp_size": options.tp_size,
            "pp_size": options.pp_size,
            "moe_tp_size": moe_tp,
            "moe_ep_size": moe_ep,
        },
    }
    return {**config, **changed}


def _held(ranks: Sequence[RankJobs], present: Sequence[frozenset[str]]) -> dict[tuple[str, str], list[_Held]]:
    """(global target name, whole tensor's name) -> what the old ranks hold of it."""
    found: dict[tuple[str, str], list[_Held]] = {}
    for rank in ranks:
        for job in rank.jobs:
            if job.name not in present[rank.rank]:
                continue
            row, width = 0, job.columns
            for piece in job.pieces:
                for window in piece.rows:
                    if piece.source and window[1] > window[0]:
                        place = _Held(rank.rank, job.name, window, _cols(piece, width), row)
                        found.setdefault((job.group, piece.source), []).append(place)
                    row += window[1] - window[0]
    return found


def _blocks(job: Job, held: Dict[str, list[_Held]]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    row, width = 0, job.columns
    for piece in job.pieces:
        for window in piece.rows:
            if piece.source:
                for block in _cover(held[piece.source], window, _cols(piece, width), row):
                    _append(blocks, block)
            row += window[1] - window[0]
    return tuple(blocks)


def _cover(held: list[_Held], rows: Window, cols: Window, at: int) -> list[Block]:
    """Old rectangles that make up a wanted one, row band by row band; `at` is its first row in the new tensor."""
    found = []
    row = rows[0]
    while row < rows[1]:
        band = [place for place in held if place.rows[0] <= row < place.rows[1]]
        end, col = rows[1], cols[0]
        chosen = []
        while col < cols[1]:
            place = next(place for place in band if place.cols[0] <= col < place.cols[1])
            stop = min(place.cols[1], cols[1])
            chosen.append((place, col, stop))
            end, col = min(end, place.rows[1]), stop
        for place, start, stop in chosen:
            own = place.at + row - place.rows[0]
            columns = (start - place.cols[0], stop - place.cols[0])
            corner = (at + row - rows[0], start - cols[0])
            found.append(Block(place.rank, place.tensor, (own, own + end - row), columns, corner))
        row = end
    return found


def _append(blocks: list[Block], block: Block) -> None:
    """Add a block, joined to the one before where they continue each other in both tensors."""
    if blocks:
        last = blocks[-1]
        height = last.rows[1] - last.rows[0]
        same = (last.rank, last.tensor, last.cols, last.at[1]) == (block.rank, block.tensor, block.cols, block.at[1])
        if same and last.rows[1] == block.rows[0] and last.at[0] + height == block.at[0]:
            blocks[-1] = Block(last.rank, last.tensor, (last.rows[0], block.rows[1]), last.cols, last.at)
            return
    blocks.append(block)


def _cols(piece: Piece, width: int) -> Window:
    """Columns of the whole tensor that a piece takes; without a cut they are all of the job's."""
    return piece.cols or (0, width)
