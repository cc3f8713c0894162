"""How to reach servers: addresses, TLS, headers, patience. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. Without `root_certificates` the system's are used; the other two are for mutual TLS."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


@dataclass(frozen=True)
class Retry:
    """How often to try again, and how long to wait: `first_s`, then twice as long each time, `longest_s` at most.

    Only what is safe is tried again: questions that change nothing, and generations which the server did certainly not
    begin with (no connection came about, or its queue was full).
    """

    times: int = 2
    first_s: float = 0.1
    longest_s: float = 2.0

    def pause_s(self, attempt: int) -> float:
        """Seconds before attempt 1, 2, ..."""
        return min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))


@dataclass(frozen=True)
class Reach:
    """`timeout_s`: of a question, and of the first sign of life of a stream. `stall_s`: the longest pause in one."""

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 2.0
    stall_s: float = 60.0
    retry: Retry = Retry()


@dataclass
class Endpoints:
    """Addresses in turn; one that failed is left out for `rest_s` seconds where another is there."""

    urls: Sequence[str]
    rest_s: float = 5.0
    _next: int = 0
    _down: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("no address of a server")

    def pick(self, now: float) -> str:
        """The next address; `now` in seconds of a steady clock."""
        order = [self.urls[(self._next + i) % len(self.urls)] for i in range(len(self.urls))]
        self._next = (self._next + 1) % len(self.urls)
        alive = [url for url in order if now - self._down.get(url, -self.rest_s) >= self.rest_s]
        return (alive or order)[0]

    def failed(self, url: str, now: float) -> None:
        self._down[url] = now
