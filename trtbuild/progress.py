"""The callback by which stages report progress without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


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
