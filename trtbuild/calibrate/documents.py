"""Texts on disk -> documents: a string, or the messages of a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtbuild.errors import CalibrationError

Messages = list[dict[str, str]]
Document = str | Messages

_KEYS = ("text", "messages", "article", "content")
"""Of a .jsonl row, the first that is there; `messages` is a list of objects with role and content."""
_STRETCH = 4000  # characters from which on paragraphs of a .txt file are a document
_MOST = 64_000_000  # characters read of a set; a calibration set has a hundredth of them


def read_documents(source: Path) -> list[Document]:
    """All documents of a .txt or .jsonl file, or of those in a folder, in the order of their names.

    Raises:
        CalibrationError: nothing there, an empty text, not UTF-8, or rows of an unknown form.
    """
    found: list[Document] = []
    size = 0
    for path in _files(source):
        for document in _rows(path) if path.suffix == ".jsonl" else _stretches(path):
            found.append(document)
            size += len(plain(document))
            if size > _MOST:
                return found
    if not size:
        raise CalibrationError(f"the calibration text {source} is empty")
    return found


def plain(document: Document) -> str:
    """A document as text; of a conversation what was said, without roles."""
    return document if isinstance(document, str) else "\n\n".join(message["content"] for message in document)


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in (".txt", ".jsonl") and path.is_file())
        if not files:
            raise CalibrationError(f"the calibration folder {source} holds no .txt or .jsonl file")
        return files
    if not source.is_file():
        raise CalibrationError(f"the calibration text {source} does not exist")
    if source.suffix not in (".txt", ".jsonl"):
        raise CalibrationError(
            f"the calibration text {source} is of an unknown kind {source.suffix!r}",
            hint="Use a .txt file, a .jsonl file with a text or messages in each row, or a folder of them.",
        )
    return [source]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end)."""
    number = 0
    try:
        with path.open("rb") as handle:
            for raw in handle:
                number += 1
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"the calibration text {path} is not UTF-8: line {number}: {error.reason}", hint="Convert it to UTF-8."
        ) from error
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration text {path}: {error.strerror or error}") from error


def _stretches(path: Path) -> Iterator[str]:
    """Neighbouring paragraphs joined to documents; a line is never cut."""
    lines: list[str] = []
    size = 0
    for _, line in _lines(path):
        if size >= _STRETCH and not line.strip():
            yield "\n".join(lines) + "\n\n"
            lines, size = [], 0
        elif lines or line.strip():
            lines.append(line)
            size += len(line) + 1
    if size:
        yield "\n".join(lines) + "\n"


def _rows(path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"line {number} of the calibration text {path}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{where} is not JSON: {error}") from error
        yield _document(row, where)


def _document(row: Any, where: str) -> Document:
    keys = [key for key in _KEYS if key in row] if isinstance(row, dict) else []
    if not keys:
        held = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise CalibrationError(f"{where} has none of the keys {', '.join(_KEYS)} (it has: {held or 'nothing'})")
    value = row[keys[0]]
    if keys[0] != "messages":
        if not isinstance(value, str):
            raise CalibrationError(f"{where}: {keys[0]} is no text, but {type(value).__name__}")
        return value
    good = isinstance(value, list) and all(
        isinstance(said, dict) and isinstance(said.get("role"), str) and isinstance(said.get("content"), str)
        for said in value
    )
    if not good or not value:
        raise CalibrationError(f"{where}: messages must be a list of objects with a role and a content, both texts")
    return [{"role": said["role"], "content": said["content"]} for said in value]
