"""Records -> a summary by the names, units and definitions of genai-perf. PURE.

Source: genai-perf of triton-inference-server/perf_analyzer at 263c5f6 (metrics/statistics.py, llm_metrics.py and
profile_data_parser/llm_profile_data_parser.py). Percentiles are interpolated linearly, the standard deviation is that
of the population, the duration goes from the first request to the last token. Names that genai-perf lacks are AIPerf's
(error_request_count, benchmark_duration, inter_chunk_latency, ...) or ours (schedule_delay).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trtbuild.bench.record import Record
from trtbuild.errors import BenchError

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
REQUEST_METRICS = {
    "time_to_first_token": "ms",
    "time_to_second_token": "ms",
    "inter_token_latency": "ms",
    "request_latency": "ms",
    "output_token_throughput_per_user": "tokens/sec/user",
    "output_sequence_length": "tokens",
    "input_sequence_length": "tokens",
}
GOODPUT_METRICS = (
    "time_to_first_token",
    "time_to_second_token",
    "inter_token_latency",
    "request_latency",
    "output_token_throughput_per_user",
)
"""What a service level objective may be of; the first four are upper limits, the last is a lower one."""

Metric = dict[str, Any]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of the ordered values (numpy's default)."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def statistics(values: Sequence[float], unit: str) -> Metric:
    """unit, avg, p1 .. p99, min, max, std; values must not be empty."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered))
    found: Metric = {"unit": unit, "avg": mean}
    found |= {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return found | {"min": ordered[0], "max": ordered[-1], "std": spread}


def values_of(records: Sequence[Record], name: str) -> list[float]:
    """The values of a metric that is one number for each request; those that have none are left out."""
    fields = {"output_sequence_length": "output_tokens", "input_sequence_length": "input_tokens"}
    found = (getattr(record, fields.get(name, name)) for record in records)
    return [float(value) for value in found if value is not None]


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """`NAME:VALUE`, several of them with a space or comma between, as genai-perf's --goodput; ms or tokens/sec/user.

    Raises:
        BenchError: all that are no objective.
    """
    found: dict[str, float] = {}
    problems = []
    for text in " ".join(texts).replace(",", " ").split():
        name, colon, value = text.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not colon or name not in GOODPUT_METRICS or not limit > 0:
            problems.append(f"{text!r} is no objective: NAME:VALUE with a name of {', '.join(GOODPUT_METRICS)}")
        else:
            found[name] = limit
    if problems:
        raise BenchError(problems)
    return found


def is_good(record: Record, objectives: Mapping[str, float]) -> bool:
    """Does an answer keep every objective? One token alone has no pause that could be too long."""
    if not record.ok:
        return False
    for name, limit in objectives.items():
        value = getattr(record, name)
        if value is None:
            continue
        if value < limit if name == "output_token_throughput_per_user" else value > limit:
            return False
    return True


def summary(records: Sequence[Record], objectives: Mapping[str, float] | None = None) -> dict[str, Metric]:
    """Metrics of the records of one level, warm-up not among them.

    Failed requests have no latency; they count in error_request_count and are never good. Where all failed there is
    nothing but the counts.
    """
    done = [record for record in records if record.ok]
    found: dict[str, Metric] = {}
    for name, unit in REQUEST_METRICS.items():
        if values := values_of(done, name):
            found[name] = statistics(values, unit)
    if gaps := [gap for record in done for gap in record.inter_chunk_latency]:
        found["inter_chunk_latency"] = statistics(gaps, "ms")
    if done:
        found["schedule_delay"] = statistics([(r.sent_ns - r.scheduled_ns) / 1e6 for r in done], "ms")
        seconds = duration_s(done)
        tokens = sum(record.output_tokens or 0 for record in done)
        found["benchmark_duration"] = _single(seconds, "sec")
        found["output_token_throughput"] = _single(tokens / seconds, "tokens/sec")
        found["request_throughput"] = _single(len(done) / seconds, "requests/sec")
        if objectives:
            good = sum(is_good(record, objectives) for record in done)
            found["request_goodput"] = _single(good / seconds, "requests/sec")
            found["good_request_count"] = _single(good, "requests")
    found["request_count"] = _single(len(done), "count")
    found["error_request_count"] = _single(len(records) - len(done), "requests")
    return found


def duration_s(done: Sequence[Record]) -> float:
    """From the first request to the last token; at least a nanosecond."""
    return max(1, max(r.last_ns for r in done) - min(r.start_ns for r in done)) / 1e9


def errors_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Failures by kind: how many, and the first one's words."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if not record.ok:
            entry = found.setdefault(record.error_kind, {"type": record.error_kind, "count": 0, "first": record.error})
            entry["count"] += 1
    return list(found.values())


def _single(value: float, unit: str) -> Metric:
    return {"unit": unit, "avg": value}
