"""Stop strings in text that comes in pieces: nothing of one is ever given out. Pure.

The engine stops at the tokens of a stop word, which the same characters need not be made of; and it leaves them in the
text. So the text is looked through as well: what could be the beginning of a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


def find_stops(text: str, stops: Sequence[str]) -> list[tuple[int, int]]:
    """Where in `text` each of the stop strings is found first: begin and end."""
    return [(at, at + len(stop)) for stop in stops if (at := text.find(stop)) >= 0]


def certain(text: str, stops: Sequence[str]) -> int:
    """How much of `text` can be given out: what comes before any stop string, and before what may become one."""
    found = [begin for begin, _ in find_stops(text, stops)]
    return min(found) if found else len(text) - max((_overlap(text, stop) for stop in stops), default=0)


class StopFilter:
    """The state of one answer. `push` returns the text that is certain to be before any stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False
        """A stop string was found; whatever comes later is not given out."""

    def push(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        self.stopped = bool(find_stops(self._held, self._stops))
        count = certain(self._held, self._stops)
        sure, self._held = self._held[:count], "" if self.stopped else self._held[count:]
        return sure

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` (not all of it) that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
