"""Stop strings in text that comes in pieces: nothing of one is ever given out. Pure.

The engine stops at the tokens of a stop word, which the same characters need not be made of; and it leaves them in the
text. So the text is looked through as well: what could be the beginning of a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


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
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            before, self._held = self._held[: min(found)], ""
            return before
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        sure, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
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
