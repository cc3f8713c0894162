"""Tables and documents of `trtbuild plan --gpu`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trtbuild.cli.output import data, line, note, print_json, size
from trtbuild.errors import PlanError
from trtbuild.sizing.target import Limits, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.cli.sizing_options import Asked
    from trtbuild.plan import ModelPlan
    from trtbuild.sizing.estimate import Estimate, Verdict
    from trtbuild.sizing.fit import Choice, Wanted

_SHOWN_FITS = 10
_SHOWN_REJECTED = 24


def show_estimate(found: Estimate) -> None:
    from rich.table import Table

    target, verdict = found.target, found.verdict
    title = f"{target.gpu.name} (SM {target.gpu.sm}, {_gib(target.gpu.memory_bytes)}), {_limits(verdict.limits)}"
    table = Table(title=title)
    columns = ("rank", "weights", "activations", "buffers", "decoder", "CUDA", "free for KV", "KV/token", "tokens")
    for column in columns:
        table.add_column(column, justify="right")
    for rank in verdict.ranks:
        sizes = (rank.weights, rank.activations, rank.runtime, rank.decoder, rank.context)
        free = max(0, target.gpu.memory_bytes - rank.fixed)
        cells = [*(_gib(n) for n in sizes), _gib(free), f"{rank.kv_token_bytes / 1024:g} KiB"]
        mark = " *" if rank.rank == verdict.deciding and len(verdict.ranks) > 1 else ""
        table.add_row(f"{rank.rank}{mark}", *cells, f"{verdict.kv_tokens[rank.rank]:,}")
    data.print(table)
    where = f"rank {verdict.deciding} decides: " if len(verdict.ranks) > 1 else ""
    line(
        f"{where}{verdict.sequences} sequences of {target.context} tokens fit at once "
        f"({target.concurrency} asked, max_batch_size allows {verdict.limits.max_batch_size * _stages(verdict)})"
    )
    for stage in found.stages:
        line(
            f"{stage.name}: host memory {size(stage.memory_bytes)}, disk {size(stage.disk_bytes)}, about "
            f"{_time(stage.seconds)} (x{stage.spread:g} either way); {stage.note}"
        )
    for warning in verdict.warnings:
        note(f"warning: {warning}")


def sizing_document(found: Estimate) -> dict[str, Any]:
    """The estimate as JSON; bytes and seconds."""
    return {
        **_target_document(found.target),
        **_verdict_document(found.verdict),
        "stages": [asdict(stage) for stage in found.stages],
    }


def show_fit(model: str, plan: ModelPlan, asked: Asked, wanted: Wanted, *, as_json: bool) -> None:
    """Search among what is `wanted`, and print.

    Raises:
        PlanError: nothing fits.
    """
    from trtbuild.sizing.estimate import DEFAULT_CONCURRENCY
    from trtbuild.sizing.fit import fit

    target = asked.target(plan, DEFAULT_CONCURRENCY)
    found = fit(plan, target, asked.gpus, wanted)
    if as_json:
        print_json(
            {
                "schema": 1,
                "model": model,
                **_target_document(target),
                "gpus": asked.gpus,
                "fits": [_choice_document(choice) for choice in found.fits],
                "rejected": [_choice_document(choice) for choice in found.rejected],
            }
        )
    else:
        _show_choices(found.fits, target)
        _show_rejected(found.rejected, found.fits)
    if not found.fits:
        hint = "Allow more GPUs (--gpus), another GPU, a shorter --context or a smaller --concurrency."
        what = f"{target.concurrency} sequences of {target.context} tokens on up to {asked.gpus} x {target.gpu.name}"
        raise PlanError((f"no layout serves {what}; the nearest: {_nearest(found.rejected)}",), hint=hint)


def _nearest(rejected: Sequence[Choice]) -> str:
    judged = [choice for choice in rejected if choice.verdict]
    if not judged:
        return rejected[0].reasons[0]
    best = max(judged, key=_nearness)
    return f"tp {best.tp} x pp {best.pp}, quant {best.quant}, KV cache {best.kv_cache}: {best.reasons[0]}"


def _show_choices(fits: Sequence[Choice], target: Target) -> None:
    from rich.table import Table

    if not fits:
        return
    title = f"{target.concurrency} sequences of {target.context} tokens on {target.gpu.name}, best first"
    table = Table(title=title)
    for column in ("GPUs", "tp", "pp", "quant", "KV cache", "batch", "step", "weights", "sequences", "chunked"):
        table.add_column(column, justify="right")
    for choice in fits[:_SHOWN_FITS]:
        verdict = choice.verdict
        assert verdict is not None
        deciding = next(rank for rank in verdict.ranks if rank.rank == verdict.deciding)
        numbers = (choice.gpus, choice.tp, choice.pp, choice.quant, choice.kv_cache)
        limits = (verdict.limits.max_batch_size, verdict.limits.max_num_tokens)
        rest = (*limits, _gib(deciding.weights), verdict.sequences, "yes" if verdict.paged_context else "no")
        table.add_row(*(str(cell) for cell in (*numbers, *rest)))
    data.print(table)
    best = fits[0]
    more = f"; {len(fits) - _SHOWN_FITS} more fit (--json lists them)" if len(fits) > _SHOWN_FITS else ""
    chosen = f"--tp {best.tp} --pp {best.pp} --quant {best.quant} --kv-cache {best.kv_cache}"
    if best.verdict:
        build = best.verdict.limits
        chosen += f" --max-batch-size {build.max_batch_size} --max-num-tokens {build.max_num_tokens}"
        chosen += f" --max-seq-len {build.max_seq_len}"
    line(f"choose: {chosen}{more}")
    for warning in best.verdict.warnings if best.verdict else ():
        note(f"warning: {warning}")


def _nearness(choice: Choice) -> tuple[int, int]:
    """Greater for a combination that comes nearer to its target."""
    verdict = choice.verdict
    return (verdict.sequences, -max(rank.fixed for rank in verdict.ranks)) if verdict else (-1, 0)


def _show_rejected(rejected: Sequence[Choice], fits: Sequence[Choice]) -> None:
    """The reason of the combination that came nearest, for each layout and quantization, or for all of a layout."""
    from rich.table import Table

    if not rejected:
        return
    rows: dict[tuple[int, int, str], list[Choice]] = {}
    whole = {(choice.tp, choice.pp) for choice in rejected} - {(choice.tp, choice.pp) for choice in fits}
    for choice in rejected:
        quant = "any" if (choice.tp, choice.pp) in whole else choice.quant
        rows.setdefault((choice.tp, choice.pp, quant), []).append(choice)
    table = Table(title="rejected")
    for column in ("tp x pp", "quant", "KV cache"):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for (tp, pp, quant), choices in list(rows.items())[:_SHOWN_REJECTED]:
        near = max(choices, key=_nearness)
        kvs = " ".join(dict.fromkeys(choice.kv_cache for choice in choices))
        named = f"{near.quant}, KV {near.kv_cache}: " if quant == "any" else ""
        table.add_row(f"{tp} x {pp}", quant, kvs, named + "; ".join(near.reasons))
    data.print(table)
    if len(rows) > _SHOWN_REJECTED:
        line(f"and {len(rows) - _SHOWN_REJECTED} more rows (--json lists all)")


def _target_document(target: Target) -> dict[str, Any]:
    gpu = target.gpu
    return {
        "gpu": {
            **{"name": gpu.name, "sm": gpu.sm, "memory_bytes": gpu.memory_bytes},
            **{"nvlink": gpu.nvlink, "nvlink_pairs_only": gpu.bridged},
        },
        "context": target.context,
        "concurrency": target.concurrency,
        "release": target.version,
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "limits": asdict(verdict.limits),
        "ranks": [
            {**asdict(rank), "fixed": rank.fixed, "kv_tokens": verdict.kv_tokens[rank.rank]} for rank in verdict.ranks
        ],
        "deciding_rank": verdict.deciding,
        "sequences": verdict.sequences,
        "chunked_context": verdict.paged_context,
        "problems": list(verdict.problems),
        "warnings": list(verdict.warnings),
    }


def _choice_document(choice: Choice) -> dict[str, Any]:
    layout = {"tp": choice.tp, "pp": choice.pp, "gpus": choice.gpus, "quant": choice.quant, "kv_cache": choice.kv_cache}
    verdict = _verdict_document(choice.verdict) if choice.verdict else {}
    return {**layout, **verdict, "reasons": list(choice.reasons)}


def _limits(limits: Limits) -> str:
    return f"batch {limits.max_batch_size}, step {limits.max_num_tokens}, length {limits.max_seq_len}"


def _stages(verdict: Verdict) -> int:
    return len({rank.pp_rank for rank in verdict.ranks})


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.2f} GiB"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
