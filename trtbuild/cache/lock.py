"""`trtbuild.lock.json`: what is needed to make an artefact again, and the SHA-256 of what must come out.

`files` are those of the artefact without the documents about it. What is measured on the machine while an engine is
built (`measured`: file -> path of a JSON value, empty = the whole file) cannot be the same twice and is not compared.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from trtbuild.cache.key import Document, canonical, differences, key_of
from trtbuild.errors import LockError
from trtbuild.manifest import sha256_file

NAME = "trtbuild.lock.json"
SCHEMA = 1
Measured = Mapping[str, tuple[str, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class Lock:
    """`inputs`: a key document. `resolved`: the options as the stage settled them (dtype, method of a model)."""

    inputs: Document
    resolved: Mapping[str, Any]
    files: Mapping[str, str]
    measured: Measured = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return str(self.inputs.get("stage"))

    def document(self) -> dict[str, Any]:
        """What is written."""
        return {
            "schema": SCHEMA,
            "key": key_of(self.inputs),
            "inputs": self.inputs,
            "resolved": dict(self.resolved),
            "files": dict(sorted(self.files.items())),
            "measured": {name: list(path) for name, path in sorted(self.measured.items())},
        }

    def require_inputs(self, found: Document) -> None:
        """Refuse inputs that differ from the locked ones; raises LockError with every difference."""
        unlike = differences(self.inputs, found)
        if unlike:
            problems = [f"{item.where}: locked {_value(item.wanted)}, here {_value(item.kept)}" for item in unlike]
            raise LockError(problems, hint="Provide what the lock names, or leave --locked out and get a new lock.")

    def require_files(self, found: Mapping[str, str]) -> None:
        """Refuse an artefact whose files differ from the locked ones; raises LockError with every file."""
        problems = [
            f"{item.where}: locked {_value(item.wanted)}, made {_value(item.kept)}"
            for item in differences({"files": dict(self.files)}, {"files": dict(found)})
        ]
        if problems:
            hint = "The inputs are those of the lock, so the machine or a library computes differently."
            raise LockError(problems, hint=hint)


def read_lock(path: Path) -> Lock:
    """The lock in a file, or in an artefact's folder.

    Raises:
        LockError: there is none, it is damaged, or a later trtbuild wrote it.
    """
    place = path / NAME if path.is_dir() else path
    try:
        document = json.loads(place.read_text())
    except OSError as error:
        hint = f"Give an artefact of trtbuild, or its {NAME}."
        raise LockError([f"{place} cannot be read: {error.strerror}"], hint=hint) from error
    except ValueError as error:
        raise LockError([f"{place} is damaged: {error}"]) from error
    return lock_of(document, place)


def lock_of(document: Any, place: Path) -> Lock:
    """The lock that a JSON document is; raises LockError where it is none."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise LockError([f"{place} is no lock of this trtbuild (schema {SCHEMA})"])
    try:
        measured = {name: tuple(where) for name, where in document["measured"].items()}
        lock = Lock(dict(document["inputs"]), dict(document["resolved"]), dict(document["files"]), measured)
        key = document["key"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LockError([f"{place} is damaged: {error!r}"]) from error
    if key != key_of(lock.inputs):
        raise LockError([f"{place} was edited: its key is not that of its inputs"])
    return lock


def stable_digests(folder: Path, digests: Mapping[str, str], measured: Measured) -> dict[str, str]:
    """Digests of an artefact's files for its lock: measured files are left out, measured values taken out."""
    found = {}
    for name, digest in digests.items():
        if name not in measured:
            found[name] = digest
        elif measured[name]:
            document = json.loads((folder / name).read_text())
            *way, last = measured[name]
            place = document
            for step in way:
                place = place.get(step, {})
            place.pop(last, None)
            found[name] = hashlib.sha256(canonical(document)).hexdigest()
    return found


def file_digests(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of files as they are now; of those that are there."""
    return {name: sha256_file(folder / name) for name in names if (folder / name).is_file()}


def merged(asked: T, usual: T, locked: Mapping[str, Any], group: str) -> T:
    """The locked options of a dataclass; what is asked for beside `usual`, where nothing is said, must be the same.

    Paths are not in a lock, only their content: those asked for hold, and are compared later.

    Raises:
        LockError: names every option that was asked for and is locked to something else, or that no longer exists.
    """
    problems: list[str] = []
    made: T = _merged(asked, usual, locked, group, problems)
    if problems:
        raise LockError(problems, hint="Leave the options out: --locked takes all of them from the lock.")
    return made


def _merged(asked: Any, usual: Any, locked: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    kind = type(asked)
    hints = typing.get_type_hints(kind)
    values = {}
    for item in fields(kind):
        name, here = f"{where}.{item.name}", getattr(asked, item.name)
        default = getattr(usual, item.name)
        if item.name not in locked:
            problems.append(f"{name}: not in the lock, which an earlier trtbuild wrote")
            continue
        if is_dataclass(here) and isinstance(locked[item.name], Mapping):
            values[item.name] = _merged(here, default, locked[item.name], name, problems)
            continue
        if _is_path(hints[item.name]):
            values[item.name] = here
            continue
        value = _restored(hints[item.name], locked[item.name])
        if here not in (default, value):
            problems.append(f"{name}: locked {_value(value)}, asked for {_value(here)}")
        values[item.name] = value
    known = {item.name for item in fields(kind)}
    problems += [
        f"{where}.{name}: locked, and this trtbuild has no such option" for name in locked if name not in known
    ]
    return kind(**values) if not problems else asked


def _restored(hint: Any, value: Any) -> Any:
    """A JSON value as the type that a field declares: dataclasses and tuples of them come back."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        chosen = next((one for one in arguments if is_dataclass(one) or typing.get_origin(one) is tuple), None)
        return _restored(chosen, value) if chosen is not None and value is not None else value
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_restored(arguments[0], item) for item in value)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _restored(hints[name], item) for name, item in value.items() if name in hints})
    return value


def _is_path(hint: Any) -> bool:
    return hint is Path or Path in typing.get_args(hint)


def _value(value: Any) -> str:
    return "nothing" if value is None else str(value)
