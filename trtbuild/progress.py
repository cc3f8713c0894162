"""The callback by which stages report progress without knowing who shows it."""

from __future__ import annotations

from typing import Protocol

QUIET_S, EVERY_S, STAGE_S = 20.0, 60.0, 10.0
"""Seconds for `Milestones`: until the first line, between lines, and how long a text must stand to be a stage."""


class Progress(Protocol):
    """Called with (done, total) in any unit, and the name of what is being worked on."""

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


def silent(done: float, total: float, text: str = "") -> None:
    """Progress that nobody watches."""


def stretch(progress: Progress, start: float, stop: float) -> Progress:
    """The progress of one of several steps: its own from 0 to 1 is shown as `start` to `stop` of the whole."""

    def report(done: float, total: float, text: str = "") -> None:
        progress(start + (stop - start) * (done / total if total else 1.0), 1.0, text)

    return report


class Milestones:
    """Progress as lines of a log: none of short work, then one a minute, and one where a stage gives way to the next.

    What is worked on is a stage if it was that for a while; names of tensors, which pass by, are none.
    """

    def __init__(self, now: float) -> None:
        self._started = self._changed = now
        self._told = now + QUIET_S - EVERY_S
        self._text = ""

    def line(self, now: float, done: float, total: float, text: str) -> str:
        """What to write at `now` (seconds of any clock), "" mostly."""
        stage_over = text != self._text and now - self._changed >= STAGE_S
        if text != self._text:
            self._text, self._changed = text, now
        seconds = now - self._started
        if seconds < QUIET_S or not (stage_over or now - self._told >= EVERY_S):
            return ""
        self._told = now
        minutes, rest = divmod(int(seconds), 60)
        return f"{int(100 * done / total) if total else 0}% after {minutes}:{rest:02} {text}".rstrip()
