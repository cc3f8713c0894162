"""The work directory of `trtbuild run`: what its stages were asked for, and that only one run is in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtbuild.errors import OutputError
from trtbuild.staging import replace_file, write_error

STATE = "run.json"
RECIPE = "recipe.yaml"
_SCHEMA = 1
_SHOWN = 3


def changes(old: Any, new: Any) -> str:
    """The first differences of two requests, as "convert.tp_size 1 -> 2"."""
    before, now = dict(_flat(old)), dict(_flat(new))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    said = [f"{name} {_short(before.get(name))} -> {_short(now.get(name))}" for name in names[:_SHOWN]]
    return ", ".join(said) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and not text.strip("0123456789abcdef") else text


def require_work(work: Path) -> None:
    """Refuse a folder with something else in it.

    Raises:
        OutputError: it is no folder, or has files and is no work directory.
    """
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work} exists and is not a directory", hint="Choose another -o/--output.")
    if work.is_dir() and any(work.iterdir()) and not (work / RECIPE).is_file():
        raise OutputError(
            f"{work} is not empty, and is no work directory of `trtbuild run` (it would hold {RECIPE})",
            hint="Choose another -o/--output.",
        )


@contextmanager
def claimed(work: Path) -> Iterator[None]:
    """Make the work directory and keep other runs out of it.

    Raises:
        OutputError: another run is in it, or the file system refuses.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(work, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OutputError(f"another run is in {work}", hint="Wait for it, or choose another -o/--output.") from None
    try:
        yield
    finally:
        os.close(lock)


def write_recipe(work: Path, text: str) -> None:
    """Keep the recipe as it is run."""
    _write(work / RECIPE, text)


def read_state(work: Path) -> dict[str, Any]:
    """What the stages that are done were asked for; nothing where the file is missing or of another form."""
    try:
        document = json.loads((work / STATE).read_text())
    except (OSError, ValueError):
        return {}
    known = isinstance(document, dict) and document.get("schema") == _SCHEMA
    return dict(document["stages"]) if known and isinstance(document.get("stages"), dict) else {}


def write_state(work: Path, stages: Dict[str, Any]) -> None:
    """Note what the stages that are done were asked for."""
    _write(work / STATE, json.dumps({"schema": _SCHEMA, "stages": dict(stages)}, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace a file whole."""
    try:
        replace_file(path, text)
    except OSError as error:
        raise write_error(path, error) from error
