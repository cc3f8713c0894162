"""Data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from trtbuild.progress import Milestones, Progress

console = Console(stderr=True)
data = Console()


def print_json(document: Any) -> None:
    """One JSON document on stdout, for CI."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def line(text: str) -> None:
    """One line on stdout as it is: nothing in it is markup, and it is not broken at the width of a terminal."""
    data.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line about what is happening, on stderr."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress callback: a bar with ETA on a terminal; elsewhere lines about long work, for logs of CI and Slurm."""
    if not console.is_terminal:
        milestones = Milestones(time.monotonic())

        def tell(done: float, total: float, text: str = "") -> None:
            if said := milestones.line(time.monotonic(), done, total, text):
                note(f"{title} {said}")

        yield tell
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)

        def report(done: float, total: float, text: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {text}".strip())

        yield report


def size(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
