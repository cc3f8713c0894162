"""Records of requests by hand, for the tests of `trtbuild bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtbuild.bench.record import PROFILING, Record

MS = 10**6
BEGIN = 1_700_000_000 * 10**9


def record(
    number: int, start_ms: float, pieces_ms: Sequence[float], tokens: int | None = None, **changes: Any
) -> Record:
    """A request that begins at `start_ms` and whose pieces come at `pieces_ms` after that, a token each."""
    at = BEGIN + round(start_ms * MS)
    arrivals = tuple((at + round(piece * MS), 1) for piece in pieces_ms)
    values: dict[str, Any] = {
        "endpoint": "a",
        "mode": "concurrency",
        "level": 2,
        "number": number,
        "phase": PROFILING,
        "scheduled_ns": at,
        "sent_ns": at,
        "end_ns": arrivals[-1][0] if arrivals else at,
        "arrivals": arrivals,
        "input_tokens": 10,
        "output_tokens": len(arrivals) if tokens is None else tokens,
        "counted_by": "server",
        "max_tokens": len(arrivals),
    }
    return Record(**(values | changes))


def run_of(records: Sequence[Record], **changes: Any) -> dict[str, Any]:
    """A run as summary.json has it."""
    from trtbuild.bench.metrics import errors_of, summary

    first = records[0]
    head = {"endpoint": first.endpoint, "mode": first.mode, "level": first.level}
    tail = {"errors": errors_of(records), "notes": [], "server_processes": [], "input_config": {}}
    return head | summary(records) | tail | changes
