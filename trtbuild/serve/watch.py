"""When is a process dead, frozen or hung. PURE: numbers in, a sentence or None out.

A rank is frozen when its heartbeat is silent for `watch_s` and it uses no CPU meanwhile; one that is silent and works
(it holds the interpreter, or the machine is very busy) gets `_BLIND` times as long. Processes without a heartbeat are
frozen when the kernel has them stopped for `watch_s`. An engine stalls when requests are open and no step is begun for
`stall_s`; a cpu engine whose ranks use the CPU gets `_BLIND` times as long, as they may compute, or spin in a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    engine: str = ""


@dataclass(frozen=True)
class Progress:
    """What an engine has to do and has done: open requests, and a number that grows with every step.

    `steps` None: it tells nothing of them. `cpu_s`: of all its ranks so far; None where it says nothing of an engine.
    """

    open_requests: int
    steps: int | None
    cpu_s: float | None = None


@dataclass(frozen=True)
class Verdict:
    """`engine`: its label, where one of several is meant."""

    text: str
    rank: int | None = None
    dead: bool = False
    engine: str = ""


def judge(vitals: Iterable[Vital], watch_s: float) -> Verdict | None:
    """The process that keeps the server from going on: a dead one before a frozen one."""
    known = list(vitals)
    for vital in known:
        if vital.state == GONE:
            return Verdict(f"{vital.who} (process {vital.pid}) is gone", vital.rank, True, vital.engine)
    for vital in sorted(known, key=lambda vital: vital.state != STOPPED):
        idle = vital.cpu_s < _BUSY * vital.silent_s
        if vital.silent_s >= watch_s * (1 if idle else _BLIND):
            why = _STATES.get(vital.state, f"the kernel says {vital.state}")
            who = f"{vital.who} (process {vital.pid})" if vital.pid else vital.who
            return Verdict(
                f"{who} gives no sign of life for {vital.silent_s:.1f} s: {why}", vital.rank, False, vital.engine
            )
    return None


class Stall:
    """Notices an engine that does not step on. `now`: seconds of a steady clock."""

    def __init__(self, engine: str, stall_s: float) -> None:
        self._engine, self._stall_s = engine, stall_s
        self._steps: int | None = None
        self._since = 0.0  # its last step
        self._mark = 0.0, 0.0  # when its CPU time was looked at, and what that was

    def seen(self, now: float, progress: Progress) -> Verdict | None:
        open_requests, steps, cpu_s = progress.open_requests, progress.steps, progress.cpu_s or 0.0
        if open_requests <= 0 or steps is None or not self._stall_s:
            self._steps = None
            return None
        if self._steps != steps:
            self._steps, self._since, self._mark = steps, now, (now, cpu_s)
        marked, before = self._mark
        if now - marked < self._stall_s:
            return None
        waited, busy = now - self._since, cpu_s - before > _IDLE * (now - marked)
        self._mark = now, cpu_s
        if busy and waited < self._stall_s * _BLIND:
            return None
        who = f"the engine {self._engine}" if self._engine else "the engine"
        but = ", although it uses the CPU" if busy else ""
        text = f"{who} stalls: {open_requests} open request(s), and no step for {waited:.0f} s{but}"
        return Verdict(text, engine=self._engine)

    def shift(self, seconds: float) -> None:
        """Time that this process itself has lost does not count."""
        self._since += seconds
        self._mark = self._mark[0] + seconds, self._mark[1]


class Stalls:
    """One `Stall` an engine: what one of them does says nothing of another."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._of: dict[str, Stall] = {}

    def seen(self, now: float, engines: Mapping[str, Progress]) -> Verdict | None:
        self._of = {name: self._of.get(name) or Stall(name, self._stall_s) for name in engines}
        verdicts = [self._of[name].seen(now, progress) for name, progress in sorted(engines.items())]
        return next((verdict for verdict in verdicts if verdict is not None), None)

    def shift(self, seconds: float) -> None:
        for stall in self._of.values():
            stall.shift(seconds)


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
