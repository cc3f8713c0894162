"""What an artefact is, and whether its files, manifest, lock, SBOM and statement all say the same. EDGE: it reads.

Nothing is taken from one document that another one, or the files themselves, must confirm: a byte or a word that was
changed in any of them is found. What a signature would add is who wrote them; the statement names all other files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.cache import lock, provenance, sbom
from trtbuild.cache.hashing import Memo, hash_files
from trtbuild.cache.key import Document, described, differences
from trtbuild.cache.lock import Lock, lock_of, shown, stable_digests
from trtbuild.errors import ArtefactError, CheckpointError, LockError, some
from trtbuild.manifest import MANIFEST, SCHEMA
from trtbuild.progress import Progress, silent
from trtbuild.staging import WRITER

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, StopIteration)
_SHOWN = 12
KINDS = {"checkpoint": "checkpoint", "reshard": "checkpoint", "engine": "engine"}
"""Stage -> the kind that its manifest has, for the stages that write lock, SBOM and statement."""
_WEIGHTS = (".safetensors", ".engine")
"""Files of those stages alone: what calls itself otherwise and holds them is stripped of its documents."""


@dataclass
class Inspection:
    """An artefact as it says it is. `checks`: name of a check -> its faults, none where it holds.

    `files`: SHA-256 by path of what is there now; `odd`: what is there and no file, by path; `notes`: what could not
    be checked, and why.
    """

    manifest: Document
    files: dict[str, str]
    odd: dict[str, str] = field(default_factory=dict)
    lock: Lock | None = None
    checks: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [fault for faults in self.checks.values() for fault in faults]


def inspect_artefact(folder: Path, progress: Progress = silent) -> Inspection:
    """Read everything of an artefact and compare it; damage is in the `faults` of what is returned.

    Raises:
        ArtefactError: no folder, or nothing of trtbuild.
    """
    if not folder.is_dir():
        raise ArtefactError(folder, ["there is no such folder"])
    if not (folder / MANIFEST).is_file():
        hint = "Artefacts of trtbuild carry one: checkpoints, engines, repositories."
        raise ArtefactError(folder, [f"it has no {MANIFEST}"], hint=hint)
    names, odd = _entries(folder)
    found = Inspection(_read(folder / MANIFEST) or {}, _digests(folder, names, progress), odd)
    manifest = found.manifest
    if not all(isinstance(manifest.get(name), dict) for name in ("files", "source", "options", "versions")):
        found.checks["manifest"] = [f"{MANIFEST} is damaged"]
    elif manifest.get("schema") != SCHEMA:
        found.checks["manifest"] = [f"{MANIFEST} has schema {manifest.get('schema')}; this trtbuild reads {SCHEMA}"]
    else:
        found.checks["files"] = _files(found)
        _documents(folder, found)
    return found


def _files(found: Inspection) -> list[str]:
    """The files as the manifest lists them: those that are missing, changed, no files, or there and not listed."""
    listed = {**found.manifest["files"]}
    faults = [f"{name} is {what}, and no file of this artefact" for name, what in sorted(found.odd.items())]
    for name, digest in sorted(listed.items()):
        here = found.files.get(name)
        if name in found.odd:
            continue
        if here is None:
            faults.append(f"{name} is missing")
        elif here != digest:
            faults.append(f"{name} was changed: its SHA-256 is {here}, {MANIFEST} says {digest}")
    others = sorted(set(found.files) - set(listed) - {MANIFEST, provenance.NAME})
    return faults + [f"{name} is not of this artefact: {MANIFEST} does not list it" for name in others]


def _documents(folder: Path, found: Inspection) -> None:
    """Lock, SBOM and statement; an artefact of a stage that writes none has none of them."""
    names = (lock.NAME, sbom.NAME, provenance.NAME)
    listed = [name for name in names if name in found.manifest["files"] or name in found.files]
    kind = found.manifest.get("kind")
    weights = [name for name in found.files if name.endswith(_WEIGHTS)]
    if not listed and kind not in KINDS.values() and not weights:
        found.notes.append(f"no {', '.join(names)}: what makes a {kind} writes none")
        return
    if not listed:
        what = f"a {kind}" if kind in KINDS.values() else f"what holds {some(weights)}"
        found.checks["documents"] = [f"{', '.join(names)} are missing, which {what} has"]
        return
    found.checks["lock"] = _lock(folder, found)
    if found.lock is None:
        found.notes.append("SBOM and statement were not compared: that needs the lock")
        return
    inputs, versions = found.lock.inputs, found.manifest["versions"]
    made = {name: sha for name, sha in found.files.items() if name not in (*names, MANIFEST)}
    whole = {name: sha for name, sha in found.files.items() if name != provenance.NAME}
    try:
        bill = sbom.sbom(inputs, versions, made)
        statement = provenance.provenance(inputs, versions, whole)
    except _MALFORMED as error:
        found.checks["lock"].append(f"{lock.NAME} is damaged: {error!r}")
        return
    found.checks["sbom"] = _sbom(folder, bill, made, found)
    found.checks["statement"] = _compared(folder / provenance.NAME, statement, provenance.subjects, whole, ("subject",))


def _lock(folder: Path, found: Inspection) -> list[str]:
    """The lock by its own key, and beside the files, the manifest's options and the manifest's source."""
    if not (folder / lock.NAME).is_file():
        return [f"{lock.NAME} is missing"]
    try:
        found.lock = locked = lock_of(_read(folder / lock.NAME), folder / lock.NAME)
        documents = (MANIFEST, lock.NAME, sbom.NAME, provenance.NAME)
        digests = {name: sha for name, sha in found.files.items() if name not in documents}
        stable = stable_digests(folder, digests, locked.measured)
        unlike = differences({"files": dict(locked.files)}, {"files": stable})
        faults = [f"{lock.NAME}: {item.where} {shown(item.wanted)}, here {shown(item.kept)}" for item in unlike]
        told = {name: described(found.manifest[name], str) for name in ("options", "source", "kind")}
        kept = {"options": dict(locked.resolved), "source": dict(locked.source), "kind": KINDS.get(locked.stage)}
        faults += _unlike(f"{lock.NAME} and {MANIFEST}", kept, told)
        return faults
    except LockError as error:
        return list(error.problems)
    except (*_MALFORMED, OSError) as error:
        return [f"{lock.NAME} is damaged: {error!r}"]


def _sbom(folder: Path, bill: Document, made: Mapping[str, str], found: Inspection) -> list[str]:
    """The bill by the schema of CycloneDX, and beside files, lock and versions."""
    path = folder / sbom.NAME
    faults = _compared(path, bill, sbom.file_hashes, made, ("serialNumber", "metadata.component.components"))
    if path.is_file():
        problem = _schema_fault(path)
        if problem is None:
            found.notes.append(f"{sbom.NAME} was not validated: pip install trtbuild[sbom]")
        elif problem:
            faults.append(f"{sbom.NAME} is no CycloneDX {sbom.SPEC}: {problem}")
    return faults


def _schema_fault(path: Path) -> str | None:
    """What the strict schema of CycloneDX says against a file, empty where nothing; None without the library."""
    try:
        from cyclonedx.exception import MissingOptionalDependencyException
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError:
        return None
    try:
        problem = JsonStrictValidator(SchemaVersion.from_version(sbom.SPEC)).validate_str(path.read_text())
    except MissingOptionalDependencyException:
        return None
    except (OSError, ValueError) as error:
        return str(error)
    return "" if problem is None else str(problem).splitlines()[0]


def _compared(
    path: Path, expected: Document, digests: Any, files: Mapping[str, str], apart: tuple[str, ...]
) -> list[str]:
    """A document beside the one that must be there; `apart`: fields whose digests (`digests`) are told by file."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    document = _read(path)
    try:
        stated = digests(document)
        faults = [
            f"{path.name}: {item.where} is {shown(item.wanted)}, the file's is {shown(item.kept)}"
            for item in differences({"SHA-256 of": stated}, {"SHA-256 of": dict(files)})
        ]
    except _MALFORMED:
        return [f"{path.name} is damaged"]
    unlike = [
        item
        for item in differences(document or {}, expected)
        if not any(item.where == name or item.where.startswith(f"{name}.") for name in apart)
    ]
    rest = [f"{path.name}: {item.where} is {shown(item.wanted)}, not {shown(item.kept)}" for item in unlike]
    return faults + _some(rest)


def _unlike(what: str, left: Document, right: Document) -> list[str]:
    found = differences(left, right)
    return _some([f"{what} differ: {item.where} {shown(item.wanted)}, {shown(item.kept)}" for item in found])


def _some(faults: list[str]) -> list[str]:
    more = len(faults) - _SHOWN
    return faults if more <= 0 else [*faults[:_SHOWN], f"and {more} more like that"]


def _entries(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Paths of the files, and of what else is there: links, whose target is not the artefact's, and devices."""
    names, odd = [], {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            odd[name] = f"a symbolic link to {path.readlink()}"
        elif path.is_file() and name != WRITER:
            names.append(name)
        elif not path.is_file() and not path.is_dir():
            odd[name] = "neither file nor folder"
    return names, odd


def _digests(folder: Path, names: Sequence[str], progress: Progress) -> dict[str, str]:
    try:
        return hash_files(folder, names, Memo(), progress)
    except CheckpointError as error:
        raise ArtefactError(folder, [error.message]) from error


def _read(path: Path) -> Document | None:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
