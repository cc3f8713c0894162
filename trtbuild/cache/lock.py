"""`trtbuild.lock.json`: what is needed to make an artefact again, and the SHA-256 of what must come out.

`files` are those of the artefact without the documents about it. What is measured on the machine while an engine is
built (`measured`: file -> dotted paths of JSON values, none = the whole file) cannot be the same twice and is not
compared.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from trtbuild.cache.key import Document, canonical, differences, key_of
from trtbuild.errors import LockError

NAME = "trtbuild.lock.json"
SCHEMA = 2
Measured = Mapping[str, tuple[str, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class Lock:
    """`inputs`: a key document. `resolved`: the options as the stage settled them (dtype, method of a model).

    `source`: what the manifest says of it, which is more than the key needs (an engine's is that of its checkpoint).
    """

    inputs: Document
    resolved: Mapping[str, Any]
    files: Mapping[str, str]
    measured: Measured = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

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
            "source": dict(self.source),
            "files": dict(sorted(self.files.items())),
            "measured": {name: list(path) for name, path in sorted(self.measured.items())},
        }

    def require_inputs(self, found: Document) -> None:
        """Refuse inputs that differ from the locked ones; raises LockError with every difference."""
        unlike = [item for item in differences(self.inputs, found) if not self._is_name(item.where, found)]
        if unlike:
            problems = [f"{item.where}: locked {shown(item.wanted)}, here {shown(item.kept)}" for item in unlike]
            raise LockError(problems, hint="Provide what the lock names, or leave --locked out and get a new lock.")

    def _is_name(self, where: str, found: Document) -> bool:
        """Whether this is only what folders are called: their files are compared, and an id of the hub too."""
        return where == "source.model" and not self.inputs["source"]["repo_id"] and not found["source"]["repo_id"]

    def require_files(self, found: Mapping[str, str]) -> None:
        """Refuse an artefact whose files differ from the locked ones; raises LockError with every file."""
        problems = [
            f"{item.where}: locked {shown(item.wanted)}, made {shown(item.kept)}"
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
        inputs, resolved, files, source = (dict(document[name]) for name in ("inputs", "resolved", "files", "source"))
        lock = Lock(inputs, resolved, files, measured, source)
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
            for path in measured[name]:
                *way, last = path.split(".")
                place = document
                for step in way:
                    place = place.get(step, {})
                place.pop(last, None)
            found[name] = hashlib.sha256(canonical(document)).hexdigest()
    return found


def filled(asked: T, usual: T, locked: Mapping[str, Any]) -> T:
    """A dataclass of options in which the locked values stand where nothing was asked for (as in `usual`).

    What was asked for, and what an earlier or later trtbuild has no option for, is found when the inputs are compared.
    Paths are not in a lock, only their content: those asked for hold, and are compared by it.
    """
    hints = typing.get_type_hints(type(asked))
    values = {}
    for item in fields(cast(Any, asked)):
        here, default, hint = getattr(asked, item.name), getattr(usual, item.name), hints[item.name]
        there = locked.get(item.name)
        if is_dataclass(here) and isinstance(there, Mapping):
            values[item.name] = filled(here, default, there)
        elif here != default or item.name not in locked or _is_path(hint):
            values[item.name] = here
        else:
            values[item.name] = _restored(hint, there)
    return type(asked)(**values)


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
    return hint is Path or any(_is_path(one) for one in typing.get_args(hint))


def shown(value: Any) -> str:
    """A leaf of a document in a sentence."""
    return "nothing" if value is None else value if isinstance(value, str) and value else json.dumps(value)
