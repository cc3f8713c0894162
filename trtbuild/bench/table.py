"""Summaries -> Markdown. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtbuild.bench.metrics import REQUEST_METRICS

_SHOWN = ("avg", "min", "p50", "p90", "p95", "p99", "max", "std")
_ROWS = (*REQUEST_METRICS, "inter_chunk_latency", "schedule_delay")
_SINGLE = ("output_token_throughput", "request_throughput", "request_goodput", "request_count", "error_request_count")


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The table framework | load | tokens/s | TTFT | memory, and where there is one run all of its metrics."""
    parts = [overview(runs)]
    parts += [f"- {run['endpoint']}, {level_of(run)}: {note}" for run in runs for note in run["notes"]]
    if len(runs) == 1:
        parts += ["", details(runs[0])]
    return "\n".join(parts) + "\n"


def level_of(run: dict[str, Any]) -> str:
    return f"{run['mode'].replace('_', ' ')} {run['level']:g}"


def overview(runs: Sequence[dict[str, Any]]) -> str:
    """One row for each endpoint and level; a column that nobody has is left out."""
    goodput = any("request_goodput" in run for run in runs)
    gpu = any("gpu_memory_used" in run for run in runs)
    head = ["framework", "load", "tokens/s", "tokens/s per user", "TTFT p50, ms", "TTFT p99, ms", "ITL p50, ms"]
    head += ["request p50, ms", *["goodput, requests/s"] * goodput, "memory, GB", *["GPU memory, GB"] * gpu, "failed"]
    rows = []
    for run in runs:
        row = [run["endpoint"], level_of(run), value(run, "output_token_throughput", "avg", 1)]
        row += [value(run, "output_token_throughput_per_user", "p50", 1)]
        row += [value(run, "time_to_first_token", "p50", 1), value(run, "time_to_first_token", "p99", 1)]
        row += [value(run, "inter_token_latency", "p50", 2), value(run, "request_latency", "p50", 0)]
        row += [value(run, "request_goodput", "avg", 2)] * goodput + [memory(run)]
        row += [value(run, "gpu_memory_used", "avg", 2)] * gpu
        failed, done = int(run["error_request_count"]["avg"]), int(run["request_count"]["avg"])
        rows.append([*row, f"{failed} of {failed + done}"])
    return table(head, rows, left=2)


def details(run: dict[str, Any]) -> str:
    """All metrics of one run, as genai-perf lists them."""
    rows = []
    for name in _ROWS:
        if name in run and (name != "schedule_delay" or run[name]["max"] > 0):
            rows.append([f"{name} ({run[name]['unit']})", *(f"{run[name][stat]:.2f}" for stat in _SHOWN)])
    for name in _SINGLE:
        if name in run:
            unit = run[name]["unit"]
            rows.append([f"{name} ({unit})", f"{run[name]['avg']:.2f}", *[""] * (len(_SHOWN) - 1)])
    return table(["metric", *_SHOWN], rows, left=1)


def memory(run: dict[str, Any]) -> str:
    """Shared pages counted once where that can be read, else resident memory of all processes together."""
    if "server_memory_pss" in run:
        return value(run, "server_memory_pss", "avg", 2)
    if "server_memory_rss" in run:
        return f"{value(run, 'server_memory_rss', 'max', 2)} (RSS)"
    return "-"


def value(run: dict[str, Any], name: str, stat: str, digits: int) -> str:
    return f"{run[name][stat]:.{digits}f}" if name in run else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Markdown with columns of one width, the first `left` of them to the left."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "| " + " | ".join(padded) + " |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(row) for row in cells[1:])])
