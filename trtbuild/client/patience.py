"""When a stream is too late. Pure: the time comes in as a value, in seconds of a steady clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from trtbuild.client.failures import stalls, too_late
from trtbuild.errors import ServerError


@dataclass
class Patience:
    """`first_s`: how long a stream may be silent at first before the server is asked whether it lives.

    Asking before would cost every request a round trip. `stall_s`: the longest pause; `deadline_s`: for all of it.
    """

    url: str
    start: float
    first_s: float
    stall_s: float
    deadline_s: float | None = None
    last: float = field(init=False)
    answered: bool = False
    asked: bool = False

    def __post_init__(self) -> None:
        self.last = self.start

    def seen(self, now: float) -> None:
        """A response came."""
        self.last, self.answered = now, True

    def unsure(self, now: float) -> bool:
        """True once: it is time to ask the server whether it lives."""
        if self.answered or self.asked or now - self.start < self.first_s:
            return False
        self.asked = True
        return True

    def late(self, now: float) -> ServerError | None:
        if self.deadline_s is not None and now - self.start >= self.deadline_s:
            return too_late(self.url, self.deadline_s)
        return stalls(self.url, self.stall_s) if now - self.last >= self.stall_s else None

    def wait_s(self, now: float) -> float:
        """Seconds until the next of these can be true."""
        ends = [self.last + self.stall_s]
        if self.deadline_s is not None:
            ends.append(self.start + self.deadline_s)
        if not self.answered and not self.asked:
            ends.append(self.start + self.first_s)
        return max(0.001, min(ends) - now)
