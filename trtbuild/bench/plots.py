"""EDGE: pictures of a benchmark, by matplotlib (the extra `plot`); figures are made apart from their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trtbuild.bench.record import PROFILING, Record
from trtbuild.bench.table import level_of

_DPI = 120
_MOST_BARS = 400
"""More requests than these are thinned out in a timeline; what is left out is said in its title."""


_WIDTHS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_MOST_STRETCHES = 60


def available() -> bool:
    return find_spec("matplotlib") is not None


def write_plots(runs: Sequence[dict[str, Any]], records: Sequence[Record], folder: Path) -> list[Path]:
    """latency_throughput.png, and a timeline for each run that has an answer."""
    made = []
    if any("time_to_first_token" in run for run in runs):
        made.append(folder / "latency_throughput.png")
        latency_throughput(runs).savefig(made[-1], dpi=_DPI)
    for run in runs:
        of_run = records_of(run, records)
        if any(record.ok for record in of_run):
            made.append(folder / f"timeline-{slug(run)}.png")
            timeline(run, of_run).savefig(made[-1], dpi=_DPI)
    return made


def slug(run: dict[str, Any]) -> str:
    """A part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{run['endpoint']}-{run['mode']}{run['level']:g}")


def records_of(run: dict[str, Any], records: Sequence[Record]) -> list[Record]:
    """The measured records of a run."""
    key = (run["endpoint"], run["mode"], run["level"])
    return [r for r in records if r.phase == PROFILING and (r.endpoint, r.mode, r.level) == key]


def latency_throughput(runs: Sequence[dict[str, Any]]) -> Any:
    """Time to first token and inter-token latency over tokens a second, a line an endpoint, a point a level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, name in enumerate(dict.fromkeys(run["endpoint"] for run in runs)):
        color = f"C{number % 10}"
        for axes, metric in ((above, "time_to_first_token"), (below, "inter_token_latency")):
            of_name = sorted((run for run in runs if run["endpoint"] == name and metric in run), key=_level)
            x = [run["output_token_throughput"]["avg"] for run in of_name]
            for stat, style in (("p50", "o-"), ("p99", "x:")):
                y = [run[metric][stat] for run in of_name]
                axes.plot(x, y, style, color=color, label=f"{name}, {stat}")
            for run, at in zip(of_name, x, strict=True):
                point = (at, run[metric]["p50"])
                axes.annotate(_label(run), point, xytext=(4, 5), textcoords="offset points", color=color)
    modes = " and ".join(dict.fromkeys(run["mode"].replace("_", " ") for run in runs))
    above.set(ylabel="time to first token, ms", title=f"latency against throughput (numbers: {modes})")
    below.set(ylabel="inter-token latency, ms", xlabel="output tokens/s of all requests together")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    return figure


def timeline(run: dict[str, Any], records: Sequence[Record]) -> Any:
    """When each request waited and wrote, and tokens a second below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    start = min(record.start_ns for record in records)
    shown = list(records)[:: max(1, -(-len(records) // _MOST_BARS))]
    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    done = [(row, record) for row, record in enumerate(shown) if record.ok]
    failed = [(row, record) for row, record in enumerate(shown) if not record.ok]
    width = max(1.0, min(8.0, 300 / len(shown)))

    def bars(rows: list[tuple[int, Record]], begin: str, end: str, color: str, label: str) -> None:
        if rows:
            left, right = ([(getattr(r, name) - start) / 1e9 for _, r in rows] for name in (begin, end))
            above.hlines([row for row, _ in rows], left, right, colors=color, linewidth=width, label=label)

    bars(done, "start_ns", "first_ns", "tab:orange", "to the first token")
    bars(done, "first_ns", "last_ns", "tab:blue", "tokens")
    bars(failed, "start_ns", "end_ns", "tab:red", "failed")
    edges, rates = token_rates(records, start)
    below.stairs(rates, edges, fill=True, color="tab:blue")
    part = "" if len(shown) == len(records) else f" ({len(shown)} of {len(records)} requests)"
    above.set(ylabel="request", title=f"{run['endpoint']}, {level_of(run)}{part}")
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    above.legend(loc="lower left", fontsize="small")
    above.invert_yaxis()
    below.set(xlabel="seconds", ylabel="tokens/s")
    below.grid(alpha=0.3)
    return figure


def token_rates(records: Sequence[Record], start_ns: int) -> tuple[list[float], list[float]]:
    """Edges of equal stretches from `start_ns` on, in seconds, and tokens a second that came in each.

    Where a piece has no count of its own it has an even share of its answer's tokens.
    """
    last_ns = max(record.last_ns for record in records if record.arrivals)
    width = next((w for w in _WIDTHS_S if w * _MOST_STRETCHES >= (last_ns - start_ns) / 1e9), _WIDTHS_S[-1])
    found = [0.0] * (int((last_ns - start_ns) / 1e9 / width) + 1)
    for record in records:
        for time, tokens in record.arrivals:
            share = (record.output_tokens or 0) / len(record.arrivals) if tokens is None else tokens
            found[int((time - start_ns) / 1e9 / width)] += share / width
    return [number * width for number in range(len(found) + 1)], found


def _label(run: dict[str, Any]) -> str:
    """The level; latencies beside failures are those of the requests that got through."""
    failed = run["error_request_count"]["avg"]
    return f"{run['level']:g}" + (f" ({failed:g} failed)" if failed else "")


def _level(run: dict[str, Any]) -> float:
    return float(run["level"])
