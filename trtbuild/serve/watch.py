"""When is a process dead, frozen or hung. PURE: numbers in, a sentence or None out.

A rank is frozen when its heartbeat is silent for `watch_s` and it uses no CPU meanwhile; one that is silent and works
(it holds the interpreter, or the machine is very busy) gets `_BLIND` times as long. Processes without a heartbeat are
frozen when the kernel has them stopped for `watch_s`. An engine stalls when requests are open and no step is begun for
`stall_s`; a cpu engine only when its ranks are idle too, as one step of a long prompt may well take minutes there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GONE, STOPPED = "X", "T"
_BUSY = 0.02
"""A process that uses less of a core than this does nothing."""
_IDLE = 0.05
"""A rank that waits for another looks for a message a thousand times a second."""
_BLIND = 6
_STATES = {
    STOPPED: "it is stopped (SIGSTOP)",
    "D": "it waits for a disk or a driver",
    "S": "it sleeps",
    "R": "it runs",
    "": "it does not answer",
}


@dataclass(frozen=True)
class Vital:
    """One process as it is now. `silent_s`: since its last sign of life; `cpu_s`: the CPU time it has used since.

    `state`: the kernel's letter (proc(5)), GONE, or empty where it cannot be seen, as on another host (`pid` 0 then);
    `rank` None for other processes.
    """

    who: str
    pid: int
    silent_s: float
    state: str = ""
    cpu_s: float = 0.0
    rank: int | None = None


@dataclass(frozen=True)
class Progress:
    """What the engine has to do and has done: open requests, and a number that grows with every step."""

    open_requests: int
    steps: int


@dataclass(frozen=True)
class Verdict:
    text: str
    rank: int | None = None
    dead: bool = False


def judge(vitals: Iterable[Vital], watch_s: float) -> Verdict | None:
    """The process that keeps the server from going on: a dead one before a frozen one."""
    known = list(vitals)
    for vital in known:
        if vital.state == GONE:
            return Verdict(f"{vital.who} (process {vital.pid}) is gone", vital.rank, dead=True)
    for vital in sorted(known, key=lambda vital: vital.state != STOPPED):
        idle = vital.cpu_s < _BUSY * vital.silent_s
        if vital.silent_s >= watch_s * (1 if idle else _BLIND):
            why = _STATES.get(vital.state, f"the kernel says {vital.state}")
            who = f"{vital.who} (process {vital.pid})" if vital.pid else vital.who
            return Verdict(f"{who} gives no sign of life for {vital.silent_s:.1f} s: {why}", vital.rank)
    return None


class Stall:
    """Notices an engine that does not step on. `now`: seconds of a steady clock; `cpu_s`: of all ranks together."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since: tuple[float, int, float] | None = None

    def seen(self, now: float, progress: Progress | None, cpu_s: float | None = None) -> Verdict | None:
        """`cpu_s` None: CPU time says nothing about this engine."""
        if progress is None or progress.open_requests <= 0 or not self._stall_s:
            self._since = None
            return None
        used = cpu_s or 0.0
        if self._since is None or self._since[1] != progress.steps:
            self._since = now, progress.steps, used
        since, _, before = self._since
        waited = now - since
        if waited < self._stall_s:
            return None
        if cpu_s is not None and used - before > _IDLE * waited:
            self._since = now, progress.steps, used
            return None
        return Verdict(f"the engine stalls: {progress.open_requests} open request(s), and no step for {waited:.0f} s")

    def shift(self, seconds: float) -> None:
        """Time that this process itself has lost does not count."""
        if self._since is not None:
            self._since = self._since[0] + seconds, *self._since[1:]


class Quiet:
    """Notices that nothing is open any more: counters follow requests a moment later, so 0 must stay for a while.

    `left`: what was open when the server last told; None where it never did.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._since: float | None = None
        self.left: int | None = None

    def seen(self, now: float, left: int | None) -> bool:
        """`left` None: the server did not tell, which is not the same as 0."""
        if left is not None:
            self.left = left
        if left != 0:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._quiet_s


def backoff_s(failures: int, first_s: float = 1.0, longest_s: float = 30.0) -> float:
    """Seconds before restart 1, 2, ...: twice as long each time."""
    return float(min(longest_s, first_s * 2.0 ** (failures - 1)))
