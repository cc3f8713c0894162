"""EDGE: what a running tritonserver answers: alive, ready, its counters, and one real token."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from trtbuild.errors import ServerError, TrtbuildError
from trtbuild.handover import engine_label
from trtbuild.serve.signs import stat_of
from trtbuild.serve.watch import Progress, Vital

_ASK_EVERY_S = 1.0
_GAUGE = re.compile(r"^nv_trt_llm_(?:request|general)_metrics\{(.*)\} (\S+)", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_ports_free(host: str, ports: dict[str, int]) -> None:
    """Refuse ports that something else listens on, before anything is started.

    Raises:
        ServerError: naming every taken port.
    """
    taken = []
    for kind, port in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                taken.append(f"{kind} port {port} on {host}: {error.strerror}")
    if taken:
        raise ServerError(
            "cannot listen: " + "; ".join(taken), hint="Choose others with --http-port, --grpc-port, --metrics-port."
        )


def answer_of(host: str, port: int, path: str, *, timeout_s: float = 1.0) -> tuple[int, str]:
    """Status and text; (0, "") where nobody answers in time."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def read_progress(page: str) -> dict[str, Progress]:
    """Of every engine on Triton's metrics page, by its label: open requests, and steps where it counts them.

    An engine without these gauges is not there.
    """
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    for text, value in _GAUGE.findall(page):
        labels = dict(_LABEL.findall(text))
        kind = labels.get("request_type") or labels.get("general_type", "")
        counts[engine_label(labels.get("model", ""), labels.get("version", ""))][kind] = float(value)
    return {
        engine: Progress(int(own.get("active", 0) + own.get("waiting", 0)), _whole(own.get("iteration_counter")))
        for engine, own in counts.items()
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


class Pulse:
    """Asks the server every second on its own thread, so that one that hangs holds up nobody. `close` ends it.

    `pid` of tritonserver where it is a process of this host.
    """

    def __init__(self, host: str, http_port: int, metrics_port: int, pid: int | None, *, timeout_s: float) -> None:
        self._host, self._http, self._metrics, self._timeout_s = host, http_port, metrics_port, timeout_s
        self._pid = pid
        self._alive_at, self._cpu_s = time.monotonic(), self._stat()[1]
        self.progress: Mapping[str, Progress] = {}
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="pulse").start()

    def vital(self, now: float) -> Vital:
        """By when it last answered that it lives; its death is for others to notice."""
        state, cpu_s = self._stat()
        return Vital("tritonserver", self._pid or 0, now - self._alive_at, state, cpu_s - self._cpu_s)

    def shift(self, seconds: float) -> None:
        self._alive_at += seconds

    def close(self) -> None:
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(_ASK_EVERY_S):
            if answer_of(self._host, self._http, "/v2/health/live", timeout_s=self._timeout_s)[0]:
                self._alive_at, self._cpu_s = time.monotonic(), self._stat()[1]
            status, page = answer_of(self._host, self._metrics, "/metrics", timeout_s=self._timeout_s)
            if status == 200:
                self.progress = read_progress(page)

    def _stat(self) -> tuple[str, float]:
        stat = stat_of(self._pid) if self._pid else None
        return ("", 0.0) if stat is None else (stat.state, stat.cpu_s)


def wait_until(done: Callable[[], bool], failed: Callable[[], TrtbuildError | None], deadline: float) -> bool:
    """True when `done`; False at the deadline, in seconds of the steady clock.

    Raises:
        TrtbuildError: the one of `failed`.
    """
    while not done():
        failure = failed()
        if failure is not None:
            raise failure
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
