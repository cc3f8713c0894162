"""Artefacts to other places and back: a folder, an S3-compatible store, the Hugging Face hub.

The manifest is written last and read first: where there is none, there is no artefact, only what an interrupted push
left, and the next one goes over it. What is fetched is compared with manifest, lock and statement before it appears.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from trtbuild.cache import provenance
from trtbuild.cache.inspect import inspect_artefact
from trtbuild.errors import ArtefactError, HubError, OutputError, RemoteError
from trtbuild.manifest import MANIFEST, sha256_file
from trtbuild.progress import Progress, silent, stretch
from trtbuild.staging import WRITER, check_disk, check_output, staged_dir

FORMS = "a folder, file:///folder, s3://bucket/prefix or hf://owner/name[@revision]"


class Place(Protocol):
    """Where an artefact may lie. Failures are RemoteError, HubError or OutputError."""

    name: str

    def files(self) -> dict[str, int]:
        """Size in bytes by path; nothing where nothing is."""

    def read(self, name: str) -> bytes:
        """A small file."""

    def put(self, folder: Path, names: Collection[str], stale: Collection[str], progress: Progress) -> None:
        """Bring `names` of `folder` there and remove `stale`, so that at no time it looks whole and is not."""

    def fetch(self, names: Collection[str], folder: Path, progress: Progress) -> None:
        """Bring `names` into `folder`."""


@dataclass(frozen=True)
class Transfer:
    """What was brought: SHA-256 of the manifest, size in bytes; `needed` false where it was there already."""

    manifest: str
    files: int
    size: int
    needed: bool = True


def place_of(address: str) -> Place:
    """The place of an address.

    Raises:
        RemoteError: it has another form. HubError: it is no id of the hub.
    """
    from trtbuild.cache.place_folder import FolderPlace
    from trtbuild.cache.place_s3 import S3Place
    from trtbuild.hub.artefacts import HubPlace

    scheme, separator, rest = address.partition("://")
    if not separator:
        return FolderPlace(Path(address).expanduser())
    if scheme == "file":
        if not rest.startswith("/"):
            raise RemoteError(f"{address}: a file address has three slashes, as file:///folder", hint=f"Give {FORMS}.")
        return FolderPlace(Path(rest))
    if scheme in ("s3", "hf"):
        return S3Place(address) if scheme == "s3" else HubPlace(address)
    raise RemoteError(f"{address}: there is no transfer by {scheme}://", hint=f"Give {FORMS}.")


def push(artefact: Path, address: str, *, force: bool = False, progress: Progress = silent) -> Transfer:
    """Bring an artefact to another place; what is there already in the same form stays untouched.

    Raises:
        ArtefactError: it is damaged. OutputError: something else lies there (with `force`: that is no artefact).
        RemoteError, HubError: the place refused or cannot be reached.
    """
    place = place_of(address)
    found = inspect_artefact(artefact, stretch(progress, 0.0, 0.2))
    if found.faults:
        raise ArtefactError(artefact, found.faults, hint="Only sound artefacts are pushed; make it again.")
    names = sorted(found.files)
    transfer = Transfer(found.files[MANIFEST], len(names), sum((artefact / name).stat().st_size for name in names))
    there = place.files()
    stale = sorted(set(there) - set(names))
    if MANIFEST in there:
        if place.read(MANIFEST) == (artefact / MANIFEST).read_bytes() and _same_sizes(artefact, names, there):
            return Transfer(transfer.manifest, transfer.files, transfer.size, needed=False)
        if not force:
            hint = "Choose another place, or pass --force to replace it."
            raise OutputError(f"{place.name} holds another artefact", hint=hint)
    elif stale:
        hint = "Choose another place, or empty that one yourself."
        raise OutputError(f"{place.name} holds other files: {', '.join(stale[:4])}", hint=hint)
    place.put(artefact, names, stale, stretch(progress, 0.2, 1.0))
    return transfer


def pull(address: str, out: Path, *, force: bool = False, progress: Progress = silent) -> Transfer:
    """Bring an artefact into `out`, which appears when everything was found to be as its documents say.

    What an interrupted pull has fetched, and is good, is not fetched again.

    Raises:
        RemoteError, HubError: the place has no artefact, refused or cannot be reached.
        ArtefactError: what came is damaged. OutputError: as `staged_dir`.
    """
    place = place_of(address)
    check_output(out, force=force)
    there = place.files()
    if MANIFEST not in there:
        why = "only parts of one" if there else "nothing"
        raise RemoteError(f"there is no artefact at {place.name}: {why}", hint="Its trtbuild.json comes last.")
    listed = _listed(place)
    names = [*listed, MANIFEST, *([provenance.NAME] if provenance.NAME in there else [])]
    missing = sorted(set(names) - set(there))
    if missing:
        raise ArtefactError(place.name, [f"{name} is missing" for name in missing], hint="Push it again.")
    size = sum(there[name] for name in names)
    with staged_dir(out, force=force, resume=True, keep=(RemoteError, HubError)) as folder:
        held = _held(folder, listed)
        check_disk(out, folder, size - sum(there[name] for name in held))
        place.fetch(sorted(set(names) - held), folder, stretch(progress, 0.0, 0.8))
        found = inspect_artefact(folder, stretch(progress, 0.8, 1.0))
        if found.faults:
            raise ArtefactError(place.name, found.faults, hint="Nothing was kept; push it again from a sound one.")
    return Transfer(found.files[MANIFEST], len(names), size)


def _listed(place: Place) -> dict[str, str]:
    """SHA-256 by path, as the manifest there says; paths that lead out of a folder are refused."""
    try:
        document: Any = json.loads(place.read(MANIFEST))
        listed = {str(name): str(digest) for name, digest in document["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(place.name, [f"its {MANIFEST} is damaged"]) from error
    odd = [name for name in listed if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name]
    if odd:
        raise ArtefactError(place.name, [f"its {MANIFEST} lists {name!r}, which leads out of it" for name in odd])
    return listed


def _held(folder: Path, listed: dict[str, str]) -> set[str]:
    """Files that are here already; everything else in the staging directory goes."""
    held = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != WRITER:
            if name in listed and sha256_file(path) == listed[name]:
                held.add(name)
            else:
                path.unlink()
    return held


def _same_sizes(artefact: Path, names: Collection[str], there: dict[str, int]) -> bool:
    return all(there.get(name) == (artefact / name).stat().st_size for name in names)
