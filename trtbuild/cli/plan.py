"""`trtbuild plan`: what a conversion would write and need, and everything that is wrong, in about a second."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from trtbuild.cli.options import (
    AllowPickleOpt,
    DtypeOpt,
    EmbeddingDimOpt,
    EmbeddingSharingOpt,
    GroupSizeOpt,
    JsonOpt,
    KvCacheOpt,
    LmHeadOpt,
    ModelArg,
    MoeEpOpt,
    MoeTpOpt,
    ParallelEmbeddingOpt,
    PpOpt,
    QuantLayerOpt,
    QuantOpt,
    RevisionOpt,
    SmOpt,
    TargetOpt,
    TpOpt,
    convert_options,
)
from trtbuild.cli.output import data, line, note, print_json, size
from trtbuild.cli.sizing import show_estimate, show_fit, sizing_document
from trtbuild.cli.sizing_options import (
    Asked,
    ConcurrencyOpt,
    ContextOpt,
    FitOpt,
    GpuOpt,
    GpusOpt,
    GpusPerNodeOpt,
    KvFractionOpt,
    MaxBatchOpt,
    MaxSeqOpt,
    MaxTokensOpt,
    ReleaseOpt,
    given_of,
)
from trtbuild.errors import PlanError
from trtbuild.sizing.legality import LATEST
from trtbuild.sizing.target import Limits, Target
from trtbuild.spec import AUTO, ConvertOptions

if TYPE_CHECKING:
    from rich.table import Table

    from trtbuild.layout import RankJobs
    from trtbuild.plan import ModelPlan, Plan

NAME = "plan"
PANEL = "Build"
SCHEMA = 1


def command(
    command_line: typer.Context,
    model: ModelArg,
    tp: TpOpt = 1,
    pp: PpOpt = 1,
    dtype: DtypeOpt = "auto",
    quant: QuantOpt = AUTO,
    quant_layer: QuantLayerOpt = [],  # noqa: B006
    group_size: GroupSizeOpt = ConvertOptions.group_size,
    kv_cache: KvCacheOpt = ConvertOptions.kv_cache,
    lm_head: LmHeadOpt = False,
    target: TargetOpt = "cpu",
    parallel_embedding: ParallelEmbeddingOpt = False,
    embedding_dim: EmbeddingDimOpt = 0,
    embedding_sharing: EmbeddingSharingOpt = False,
    moe_tp: MoeTpOpt = None,
    moe_ep: MoeEpOpt = None,
    sm: SmOpt = None,
    revision: RevisionOpt = None,
    allow_pickle: AllowPickleOpt = False,
    as_json: JsonOpt = False,
    gpu: GpuOpt = None,
    context: ContextOpt = None,
    concurrency: ConcurrencyOpt = None,
    fit: FitOpt = False,
    gpus: GpusOpt = 8,
    gpus_per_node: GpusPerNodeOpt = Target.gpus_per_node,
    max_batch_size: MaxBatchOpt = None,
    max_num_tokens: MaxTokensOpt = None,
    max_seq_len: MaxSeqOpt = None,
    kv_fraction: KvFractionOpt = Limits.kv_fraction,
    release: ReleaseOpt = LATEST,
) -> None:
    """Show the tensors of every rank, memory and disk needed, and all problems; reads no weights.

    With --gpu, what each rank needs on that GPU and how many sequences fit; with --fit, which layout to choose.
    """
    from trtbuild import pipeline

    limits = (max_batch_size, max_num_tokens, max_seq_len, kv_fraction)
    asked = Asked(gpu, context, concurrency, gpus, gpus_per_node, *limits, release, given_of(command_line))
    asked.require(fit, target, sm)
    wanted = asked.wanted(tp, pp, None if quant == AUTO else quant, kv_cache)
    tp, pp, target, sm = asked.settled(fit, tp, pp, target, sm)
    embedding = (parallel_embedding, embedding_dim, embedding_sharing)
    options = convert_options(
        tp, pp, dtype, quant, target, *embedding, moe_tp, moe_ep, group_size, kv_cache, sm, quant_layer, lm_head
    )
    plan = pipeline.make_plan(model, options, revision, allow_pickle=allow_pickle)
    if fit:
        show_fit(model, plan, asked, wanted, as_json=as_json)
    else:
        _report(model, plan, asked, as_json=as_json)


def _report(model: str, plan: ModelPlan, asked: Asked, *, as_json: bool) -> None:
    """Print the plan, and the estimate where one is asked for; raise PlanError for what is wrong with either."""
    sizing = asked.estimate(plan) if asked.gpu and not plan.problems else None
    if as_json:
        found = document(model, plan)
        print_json({**found, "sizing": sizing_document(sizing)} if sizing else found)
    else:
        _show(plan)
        if sizing:
            show_estimate(sizing)
    plan.require()
    if sizing and sizing.verdict.problems:
        raise PlanError(sizing.verdict.problems, hint="trtbuild plan --fit looks for a layout that fits.")


def document(model: str, plan: ModelPlan) -> dict[str, Any]:
    """The plan as JSON; sizes in bytes. `schema` changes when a key is removed or changes its meaning.

    An encoder-decoder model has two `folders`, and the ranks of both are in `ranks`.
    """
    options = plan.options
    return {
        "schema": SCHEMA,
        "model": model,
        "architecture": " + ".join(part.spec.architecture for part in plan.parts),
        "family": plan.parts[0].family.name,
        "folders": [part.folder for part in plan.parts],
        "tp": options.tp_size,
        "pp": options.pp_size,
        "dtype": plan.dtype,
        "quant": options.quant,
        "group_size": options.group_size,
        "quant_layers": [asdict(layer) for layer in options.quant_layers],
        "kv_cache": options.kv_cache,
        "quantize_lm_head": options.quantize_lm_head,
        "target": options.target,
        "parameters": plan.parameters,
        "source_bytes": plan.source_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "memory_bytes": plan.memory_bytes,
        "problems": list(plan.problems),
        "warnings": list(plan.warnings),
        "ranks": [_rank(part, rank) for part in plan.parts for rank in part.ranks],
    }


def _rank(part: Plan, rank: RankJobs) -> dict[str, Any]:
    return {
        "folder": part.folder,
        "rank": rank.rank,
        "tp_rank": rank.tp_rank,
        "pp_rank": rank.pp_rank,
        "layers": [rank.layers.start, rank.layers.stop],
        "bytes": rank.nbytes,
        "tensors": [
            {"name": job.name, "dtype": job.dtype, "shape": list(job.shape), "bytes": job.nbytes} for job in rank.jobs
        ],
    }


def _show(plan: ModelPlan) -> None:
    for part in plan.parts:
        spec = part.spec
        heads = f"{spec.num_heads} heads ({spec.num_kv_heads} kv)"
        line(
            f"{spec.architecture}: {spec.num_layers} layers, hidden {spec.hidden_size}, {heads}, "
            f"vocabulary {spec.vocab_size}"
            + (f", {plan.parameters / 1e6:.1f} M parameters" if part is plan.parts[-1] else "")
        )
    for part in plan.parts:
        if part.ranks:
            data.print(_table(part))
    if all(part.ranks for part in plan.parts):
        reads, writes, memory = (size(n) for n in (plan.source_bytes, plan.checkpoint_bytes, plan.memory_bytes))
        line(f"reads {reads}, writes {writes}, host memory {memory}")
    for warning in plan.warnings:
        note(f"warning: {warning}")


def _table(part: Plan) -> Table:
    """What each rank of one checkpoint folder holds."""
    from rich.table import Table

    options = part.options
    files = options.target == "llmapi"
    layout = "Hugging Face files" if files else f"tp {options.tp_size} x pp {options.pp_size}"
    title = f"{layout}, {part.dtype}, quant {options.quant}"
    if options.kv_cache_algo:
        title += f", KV cache {options.kv_cache}"
    table = Table(title=f"{part.folder}: {title}" if part.folder else title)
    numbers = ("file",) if files else ("rank", "tp rank", "stage")
    for column in (*numbers, "layers", "tensors", "size"):
        table.add_column(column, justify="right")
    for rank in part.ranks:
        layers = f"{rank.layers.start}-{rank.layers.stop - 1}" if rank.layers else ""
        place = (rank.rank + 1,) if files else (rank.rank, rank.tp_rank, rank.pp_rank)
        table.add_row(*(str(cell) for cell in (*place, layers, len(rank.jobs), size(rank.nbytes))))
    table.add_section()
    tensors = sum(len(rank.jobs) for rank in part.ranks)
    blank = [""] * (len(numbers) - 1)
    table.add_row("all", *blank, f"0-{part.spec.num_layers - 1}", str(tensors), size(part.checkpoint_bytes))
    return table
