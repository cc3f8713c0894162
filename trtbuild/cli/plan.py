"""`trtbuild plan`: what a conversion would write and need, and everything that is wrong, in about a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtbuild.cli.options import (
    AllowPickleOpt,
    DtypeOpt,
    EmbeddingDimOpt,
    EmbeddingSharingOpt,
    JsonOpt,
    ModelArg,
    MoeEpOpt,
    MoeTpOpt,
    ParallelEmbeddingOpt,
    PpOpt,
    QuantOpt,
    RevisionOpt,
    TargetOpt,
    TpOpt,
    convert_options,
)
from trtbuild.cli.output import data, note, print_json

if TYPE_CHECKING:
    from trtbuild.plan import Plan

NAME = "plan"
PANEL = "Build"
SCHEMA = 1


def command(
    model: ModelArg,
    tp: TpOpt = 1,
    pp: PpOpt = 1,
    dtype: DtypeOpt = "auto",
    quant: QuantOpt = "none",
    target: TargetOpt = "cpu",
    parallel_embedding: ParallelEmbeddingOpt = False,
    embedding_dim: EmbeddingDimOpt = 0,
    embedding_sharing: EmbeddingSharingOpt = False,
    moe_tp: MoeTpOpt = None,
    moe_ep: MoeEpOpt = None,
    revision: RevisionOpt = None,
    allow_pickle: AllowPickleOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Show the tensors of every rank, memory and disk needed, and all problems; reads no weights."""
    from trtbuild import pipeline

    options = convert_options(
        tp, pp, dtype, quant, target, parallel_embedding, embedding_dim, embedding_sharing, moe_tp, moe_ep
    )
    plan = pipeline.make_plan(model, options, revision, allow_pickle=allow_pickle)
    if as_json:
        print_json(document(model, plan))
    else:
        _show(plan)
    plan.require()


def document(model: str, plan: Plan) -> dict[str, Any]:
    """The plan as JSON; sizes in bytes. `schema` changes when a key is removed or changes its meaning."""
    options = plan.options
    return {
        "schema": SCHEMA,
        "model": model,
        "architecture": plan.spec.architecture,
        "family": plan.family.name,
        "tp": options.tp_size,
        "pp": options.pp_size,
        "dtype": plan.dtype,
        "quant": options.quant,
        "target": options.target,
        "parameters": plan.parameters,
        "source_bytes": plan.source_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "memory_bytes": plan.memory_bytes,
        "problems": list(plan.problems),
        "warnings": list(plan.warnings),
        "ranks": [
            {
                "rank": rank.rank,
                "tp_rank": rank.tp_rank,
                "pp_rank": rank.pp_rank,
                "layers": [rank.layers.start, rank.layers.stop],
                "bytes": rank.nbytes,
                "tensors": [
                    {"name": job.name, "dtype": job.dtype, "shape": list(job.shape), "bytes": job.nbytes}
                    for job in rank.jobs
                ],
            }
            for rank in plan.ranks
        ],
    }


def _show(plan: Plan) -> None:
    from rich.table import Table

    spec = plan.spec
    heads = f"{spec.num_heads} heads ({spec.num_kv_heads} kv)"
    data.print(
        f"{spec.architecture}: {spec.num_layers} layers, hidden {spec.hidden_size}, {heads}, "
        f"vocabulary {spec.vocab_size}, {plan.parameters / 1e6:.1f} M parameters",
        highlight=False,
        soft_wrap=True,
    )
    if plan.ranks:
        table = Table(
            title=f"tp {plan.options.tp_size} x pp {plan.options.pp_size}, {plan.dtype}, quant {plan.options.quant}"
        )
        for column in ("rank", "tp rank", "stage", "layers", "tensors", "size"):
            table.add_column(column, justify="right")
        for rank in plan.ranks:
            layers = f"{rank.layers.start}-{rank.layers.stop - 1}"
            cells = (rank.rank, rank.tp_rank, rank.pp_rank, layers, len(rank.jobs), size(rank.nbytes))
            table.add_row(*(str(cell) for cell in cells))
        table.add_section()
        tensors = sum(len(rank.jobs) for rank in plan.ranks)
        table.add_row("all", "", "", f"0-{spec.num_layers - 1}", str(tensors), size(plan.checkpoint_bytes))
        data.print(table)
        reads, writes, memory = (size(n) for n in (plan.source_bytes, plan.checkpoint_bytes, plan.memory_bytes))
        data.print(f"reads {reads}, writes {writes}, host memory {memory}", highlight=False)
    for warning in plan.warnings:
        note(f"warning: {warning}")


def size(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
