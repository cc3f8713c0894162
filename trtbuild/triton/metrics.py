"""Upstream's nv_trt_llm_* metric families, filled from the counters of the cpu runtime or of llmapi."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from trtbuild.errors import TrtbuildError

_FAMILIES: dict[str, tuple[str, str, dict[str, str]]] = {
    "nv_trt_llm_request_metrics": (
        "TRT LLM request metrics",
        "request_type",
        {
            "active": "active_requests",
            "waiting": "queued_requests",
            "max": "max_batch_size",
            "scheduled": "active_requests",
        },
    ),
    "nv_trt_llm_kv_cache_block_metrics": (
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        {
            "max": "kv_blocks_total",
            "free": "kv_blocks_free",
            "used": "kv_blocks_used",
            "tokens_per": "tokens_per_block",
        },
    ),
    "nv_trt_llm_general_metrics": ("General TRT LLM metrics", "general_type", {"iteration_counter": "iterations"}),
}


class MetricsReporter:
    """Refreshes the gauges every `period_s` on its own thread until `close`.

    `only`: the counters that `stats` has; a gauge of another would say 0 where nothing is known.
    """

    def __init__(
        self,
        pb: Any,
        model: str,
        version: str,
        stats: Callable[[], dict[str, int]],
        period_s: float,
        only: Collection[str] | None = None,
    ) -> None:
        self._stats = stats
        self._period = period_s
        self._stopping = threading.Event()
        self._families = []  # kept alive: a family that is collected disappears from the page
        self._gauges: list[tuple[str, Any]] = []
        for name, (description, label, counters) in _FAMILIES.items():
            values = {value: counter for value, counter in counters.items() if only is None or counter in only}
            if not values:
                continue
            family = pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.GAUGE)
            self._families.append(family)
            for value, counter in values.items():
                gauge = family.Metric(labels={"model": model, "version": version, label: value})
                self._gauges.append((counter, gauge))
        self._thread = threading.Thread(target=self._run, daemon=True, name="metrics")
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._period):
            try:
                counters = self._stats()
            except TrtbuildError:  # the ranks are gone or going; whoever waits for them reports it
                return
            for counter, gauge in self._gauges:
                if counter in counters:
                    gauge.set(float(counters[counter]))
