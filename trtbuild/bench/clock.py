"""EDGE: nanoseconds since 1970 that never go back."""

from __future__ import annotations

import time

_OFFSET = time.time_ns() - time.perf_counter_ns()


def now_ns() -> int:
    return _OFFSET + time.perf_counter_ns()
