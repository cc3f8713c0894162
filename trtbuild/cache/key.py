"""What decides the bytes of an artefact, as one JSON document, and its SHA-256: the key of the cache. PURE.

    {"schema", "stage", "source": {"model", "repo_id", "revision", "files": {name: sha256}},
     "options": {group: {field: value}}, "versions": {package: version}, "machine": {fact: value}}

Options are dataclasses and are taken field by field, so that a new field is part of the key by itself. Documents are
kept beside what they stand for, and a miss is explained by how the wanted one differs from the nearest one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

SCHEMA = 1
Document = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a stage reads: the name that the manifest gives it, and SHA-256 by file name."""

    model: str
    files: Mapping[str, str]
    repo_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Inputs:
    """All that decides what a stage writes.

    `options`: dataclasses by group ("convert", "build", ...) and plain values; `versions`: of tools and libraries that
    can change the bytes; `machine`: facts of it that can (the GPU of a TensorRT engine), else empty.
    """

    stage: str
    source: Source
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One leaf of two documents; None where a document has no such leaf."""

    where: str
    wanted: Any
    kept: Any


def document_of(inputs: Inputs, text: Callable[[PurePath], Any]) -> Document:
    """The key document. `text` says what stands for a path among the options: its content, never where it lies.

    Raises:
        TypeError: an option that is no JSON value, dataclass, enum or path.
    """
    return {
        "schema": SCHEMA,
        "stage": inputs.stage,
        "source": described(inputs.source, text),
        "options": described(inputs.options, text),
        "versions": described(inputs.versions, text),
        "machine": described(inputs.machine, text),
    }


def described(value: Any, text: Callable[[PurePath], Any]) -> Any:
    """A value as JSON, dataclasses by their fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: described(getattr(value, item.name), text) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): described(item, text) for name, item in value.items()}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple | list):
        return [described(item, text) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(described(item, text) for item in value)
    if isinstance(value, PurePath):
        return text(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a key: {value!r}")


def canonical(document: Any) -> bytes:
    """One spelling of a JSON value."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode()


def key_of(document: Document) -> str:
    """Hex SHA-256 of the canonical document."""
    return hashlib.sha256(canonical(document)).hexdigest()


def differences(wanted: Document, kept: Document) -> tuple[Difference, ...]:
    """Every leaf in which two documents differ, by its dotted path."""
    left, right = dict(_leaves(wanted, "")), dict(_leaves(kept, ""))
    names = [*left, *(name for name in right if name not in left)]
    return tuple(
        Difference(name, left.get(name), right.get(name))
        for name in names
        if canonical(left.get(name)) != canonical(right.get(name))
    )


def nearest(wanted: Document, kept: Iterable[tuple[str, Document]]) -> tuple[str, tuple[Difference, ...]] | None:
    """(name, differences) of the document of the same stage that differs least; of equals, the first."""
    found = [(name, differences(wanted, other)) for name, other in kept if other.get("stage") == wanted.get("stage")]
    return min(found, key=lambda item: len(item[1]), default=None)


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{where}.{name}" if where else str(name))
    else:
        yield where, value
