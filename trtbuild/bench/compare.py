"""Two summaries -> is the new one worse than a gate allows? PURE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtbuild.bench.table import level_of, table
from trtbuild.errors import BenchError

SHORT = {
    "ttft": "time_to_first_token",
    "itl": "inter_token_latency",
    "latency": "request_latency",
    "per_user": "output_token_throughput_per_user",
    "throughput": "output_token_throughput",
    "requests": "request_throughput",
    "goodput": "request_goodput",
    "memory": "server_memory_pss",
    "rss": "server_memory_rss",
    "gpu_memory": "gpu_memory_used",
    "errors": "error_request_count",
}
_MORE_IS_BETTER = ("throughput", "goodput")
DEFAULT_GATES = ("ttft_p50=10%", "itl_p50=10%", "throughput=10%", "memory=10%", "errors=0")
_GATE = re.compile(r"([a-z_]+?)(?:_(avg|min|max|std|p\d+))?=([0-9.]+)(%?)")


@dataclass(frozen=True)
class Gate:
    """`worse`: how much worse a statistic may be, of the old value (`relative`), else in the metric's unit."""

    metric: str
    stat: str
    worse: float
    relative: bool
    text: str

    @property
    def more_is_better(self) -> bool:
        return any(word in self.metric for word in _MORE_IS_BETTER)

    def limit(self, old: float) -> float:
        """The worst value that passes."""
        allowed = abs(old) * self.worse / 100 if self.relative else self.worse
        return old - allowed if self.more_is_better else old + allowed

    def passes(self, old: float, new: float) -> bool:
        limit = self.limit(old)
        slack = 1e-9 * max(1.0, abs(limit))
        return new >= limit - slack if self.more_is_better else new <= limit + slack


@dataclass(frozen=True)
class Verdict:
    """`old` or `new` is None where that run has no such metric."""

    run: str
    gate: Gate
    old: float | None
    new: float | None
    unit: str = ""

    @property
    def measured(self) -> bool:
        return self.old is not None and self.new is not None

    @property
    def passed(self) -> bool:
        return self.old is None or self.new is None or self.gate.passes(self.old, self.new)

    @property
    def sentence(self) -> str:
        assert self.old is not None
        assert self.new is not None
        change = f" ({(self.new / self.old - 1) * 100:+.1f} %)" if self.old else ""
        what = f"{self.gate.metric} {self.gate.stat}"
        return f"{self.run}: {what} {self.old:.4g} -> {self.new:.4g} {self.unit}{change}, allowed is {self.gate.text}"


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """`NAME[_STAT]=N%` or `NAME[_STAT]=N` in the metric's unit; the statistic is avg where none is named.

    Raises:
        BenchError: all that are no gate.
    """
    gates, problems = [], []
    for text in ",".join(texts).replace(" ", ",").split(","):
        if not text:
            continue
        found = _GATE.fullmatch(text)
        known = found and (SHORT.get(found[1]) or (found[1] if found[1] in SHORT.values() else None))
        if not found or not known or found[3].count(".") > 1 or not found[3].strip("."):
            names = ", ".join(f"{short} ({name})" for short, name in SHORT.items())
            problems.append(f"{text!r} is no gate: NAME_STAT=N% or NAME_STAT=N, as ttft_p50=5%; names: {names}")
            continue
        gates.append(Gate(known, found[2] or "avg", float(found[3]), bool(found[4]), text))
    if problems:
        raise BenchError(problems)
    return gates


def compare(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], gates: Sequence[Gate]) -> list[Verdict]:
    """A verdict for each gate on each pair of runs with the same endpoint and level.

    Where both have one endpoint its name may differ.

    Raises:
        BenchError: no run has a counterpart, or a run of the old ones has none among the new.
    """
    one_each = len({run["endpoint"] for run in old}) == 1 == len({run["endpoint"] for run in new})

    def key(run: dict[str, Any]) -> tuple[str, str, float]:
        return ("" if one_each else run["endpoint"], run["mode"], run["level"])

    others = {key(run): run for run in new}
    if missing := [f"{run['endpoint']}, {level_of(run)}" for run in old if key(run) not in others]:
        there = ", ".join(f"{run['endpoint']}, {level_of(run)}" for run in new)
        problems = [f"the new summary has no run of {name}" for name in missing]
        raise BenchError(problems, hint=f"It has {there}. Compare runs of the same endpoints and levels.")
    return [
        _verdict(f"{run['endpoint']}, {level_of(run)}", gate, run, others[key(run)]) for run in old for gate in gates
    ]


def unlike(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[str]:
    """Options in which the two differ, so that their figures are hardly comparable."""
    names = ("input_len", "output_len", "prompts", "ignore_eos", "temperature", "chat", "seed", "model")
    found = []
    for name in names:
        before, after = ({repr(run["input_config"].get(name)) for run in runs} for runs in (old, new))
        if before != after:
            found.append(f"{name} differs: {', '.join(sorted(before))} and {', '.join(sorted(after))}")
    return found


def missing(verdicts: Sequence[Verdict], asked: bool) -> list[str]:
    """Gates that could not be looked at; where the user `asked` for them that is a failure of its own."""
    named = dict.fromkeys(verdict.gate.text for verdict in verdicts if not verdict.measured)
    return [f"{text}: one of the summaries does not have it" for text in named] if asked else []


def comparison(verdicts: Sequence[Verdict]) -> str:
    """Markdown: old, new, change and gate of each."""
    rows = []
    for v in verdicts:
        cells = ["-" if number is None else f"{number:.4g}" for number in (v.old, v.new)]
        change = f"{(v.new / v.old - 1) * 100:+.1f} %" if v.old and v.new is not None else ""
        state = "not measured" if not v.measured else "ok" if v.passed else "WORSE"
        rows.append(
            [v.run, f"{v.gate.metric} {v.gate.stat}, {v.unit}".rstrip(", "), *cells, change, v.gate.text, state]
        )
    return table(["run", "metric", "old", "new", "change", "gate", "verdict"], rows, left=2) + "\n"


def _verdict(name: str, gate: Gate, old: dict[str, Any], new: dict[str, Any]) -> Verdict:
    unit = old.get(gate.metric, {}).get("unit", "")
    return Verdict(name, gate, old.get(gate.metric, {}).get(gate.stat), new.get(gate.metric, {}).get(gate.stat), unit)
