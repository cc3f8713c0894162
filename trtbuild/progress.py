"""The callback by which stages report progress without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with (done, total) in any unit, and the name of what is being worked on."""

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


def silent(done: float, total: float, text: str = "") -> None:
    """Progress that nobody watches."""
