"""What came of one request: its times and counts. PURE.

Times are nanoseconds since 1970 of one clock that never goes back (its offset is taken once a run).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

WARMUP, PROFILING = "warmup", "profiling"
TIMEOUT, REFUSED, SERVER, EMPTY = "timeout", "refused", "server", "empty"
"""Kinds of failures: too late; the server refused; it is away or broke off; it ended without a token."""


@dataclass
class Answer:
    """One answer as it comes in. `arrivals`: (time, tokens) of each piece; tokens are None where nobody says."""

    arrivals: list[tuple[int, int | None]] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    counted_by: str = ""
    text: str = ""


@dataclass(frozen=True)
class Record:
    """`scheduled_ns`: when it was due; `sent_ns`: when it went out; `end_ns`: when it was answered, or had failed.

    `start_ns` is where its latencies begin: when it was due, also where it went out late (else a slow server would set
    its own pace: "coordinated omission"). With a fixed concurrency both are the same.
    """

    endpoint: str
    mode: str
    level: float
    number: int
    phase: str
    scheduled_ns: int
    sent_ns: int
    end_ns: int
    arrivals: tuple[tuple[int, int | None], ...] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None
    counted_by: str = ""
    max_tokens: int = 0
    error: str = ""
    error_kind: str = ""

    @property
    def start_ns(self) -> int:
        return self.scheduled_ns

    @property
    def ok(self) -> bool:
        return not self.error_kind

    @property
    def first_ns(self) -> int:
        return self.arrivals[0][0]

    @property
    def last_ns(self) -> int:
        return self.arrivals[-1][0]

    @property
    def time_to_first_token(self) -> float | None:
        """ms."""
        return (self.first_ns - self.start_ns) / 1e6 if self.arrivals else None

    @property
    def time_to_second_token(self) -> float | None:
        """ms after the first, as genai-perf has it."""
        return (self.arrivals[1][0] - self.first_ns) / 1e6 if len(self.arrivals) > 1 else None

    @property
    def request_latency(self) -> float | None:
        """ms up to the last token."""
        return (self.last_ns - self.start_ns) / 1e6 if self.arrivals else None

    @property
    def inter_token_latency(self) -> float | None:
        """ms: (last - first) / (tokens - 1); None for answers of one token, or of one piece."""
        if len(self.arrivals) < 2 or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.last_ns - self.first_ns) / 1e6 / (self.output_tokens - 1)

    @property
    def output_token_throughput_per_user(self) -> float | None:
        """Tokens a second that one user sees: 1 / inter_token_latency."""
        latency = self.inter_token_latency
        return 1e3 / latency if latency else None

    @property
    def inter_chunk_latency(self) -> list[float]:
        """ms between pieces that came one after the other."""
        times = [time for time, _ in self.arrivals]
        return [(b - a) / 1e6 for a, b in pairwise(times)]

    def document(self) -> dict[str, Any]:
        """A line of records.jsonl, in the order of AIPerf's: metadata, metrics, error; beside them the raw times."""
        metrics: dict[str, tuple[Any, str]] = {
            "input_sequence_length": (self.input_tokens, "tokens"),
            "output_sequence_length": (self.output_tokens, "tokens"),
            "time_to_first_token": (self.time_to_first_token, "ms"),
            "time_to_second_token": (self.time_to_second_token, "ms"),
            "request_latency": (self.request_latency, "ms"),
            "inter_token_latency": (self.inter_token_latency, "ms"),
            "output_token_throughput_per_user": (self.output_token_throughput_per_user, "tokens/sec/user"),
            "inter_chunk_latency": (self.inter_chunk_latency, "ms"),
        }
        return {
            "metadata": {
                "endpoint": self.endpoint,
                "mode": self.mode,
                "level": self.level,
                "session_num": self.number,
                "benchmark_phase": self.phase,
                "request_scheduled_ns": self.scheduled_ns,
                "request_start_ns": self.sent_ns,
                "request_end_ns": self.end_ns,
                "max_tokens": self.max_tokens,
                "counted_by": self.counted_by,
            },
            "metrics": {
                name: {"value": value, "unit": unit} for name, (value, unit) in metrics.items() if value is not None
            },
            "arrivals": [list(arrival) for arrival in self.arrivals],
            "error": {"type": self.error_kind, "message": self.error} if self.error_kind else None,
        }


def record_of(document: dict[str, Any]) -> Record:
    """A record of its line.

    Raises:
        KeyError, TypeError: it is no such line.
    """
    meta, error = document["metadata"], document["error"] or {}
    metrics = document["metrics"]
    return Record(
        endpoint=meta["endpoint"],
        mode=meta["mode"],
        level=meta["level"],
        number=meta["session_num"],
        phase=meta["benchmark_phase"],
        scheduled_ns=meta["request_scheduled_ns"],
        sent_ns=meta["request_start_ns"],
        end_ns=meta["request_end_ns"],
        arrivals=tuple((time, tokens) for time, tokens in document["arrivals"]),
        input_tokens=metrics.get("input_sequence_length", {}).get("value"),
        output_tokens=metrics.get("output_sequence_length", {}).get("value"),
        counted_by=meta["counted_by"],
        max_tokens=meta["max_tokens"],
        error=error.get("message", ""),
        error_kind=error.get("type", ""),
    )
