"""One run of a stage as the cache sees it: a hit, or documents about what was made, which is then kept.

run = Run(cache, "engine", Files(...), options={...})
if run.hit(out, force=force):
    return out                      # nothing was computed
with staged_dir(out, force=force) as folder:
    ...
    run.seal(folder, kind="engine", ...)
run.keep(out)
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.cache import facts, lock, provenance, sbom
from trtbuild.cache.facts import Memo
from trtbuild.cache.key import Document, Inputs, Source, described, document_of, key_of
from trtbuild.cache.lock import Lock, Measured, read_lock, stable_digests
from trtbuild.cache.prune import Limits, choose, parse_size, total
from trtbuild.cache.store import Damaged, Entry, Store
from trtbuild.errors import OutputError
from trtbuild.manifest import MANIFEST, read_manifest, sha256_file, write_manifest
from trtbuild.progress import Progress, silent
from trtbuild.staging import staged_dir

VARIABLE, LIMIT = "TRTBUILD_CACHE", "TRTBUILD_CACHE_LIMIT"
DOCUMENTS = (MANIFEST, lock.NAME, sbom.NAME, provenance.NAME)
"""Files about an artefact, which are no part of it."""
_SHARE = 4  # the cache keeps at most this fraction of its disk where nothing is said


@dataclass
class Cache:
    """Where artefacts are kept (`store`, None: nowhere), what must come out (`lock`), and what happened (`notes`).

    `limit`: bytes that the store may hold, None for any number.
    """

    store: Store | None = None
    lock: Lock | None = None
    memo: Memo = field(default_factory=lambda: Memo(None))
    limit: int | None = None
    notes: list[str] = field(default_factory=list)

    def within(self) -> Cache:
        """The same for a stage inside another one, whose lock does not speak of it."""
        return Cache(self.store, None, self.memo, self.limit, self.notes)


@dataclass(frozen=True)
class Files:
    """What a stage reads: files (`names`) of a folder, and the name by which the manifest calls the whole."""

    folder: Path
    names: tuple[str, ...]
    model: str
    repo_id: str | None = None
    revision: str | None = None


def cache_root() -> Path | None:
    """The folder of the cache: TRTBUILD_CACHE, else `artefacts` beside trtbuild's other caches; None: switched off."""
    given = os.environ.get(VARIABLE, "").strip()
    if given.lower() == "off":
        return None
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtbuild" / "artefacts"


def open_cache(*, keep: bool = True, locked: Lock | None = None) -> Cache:
    """The cache of this user; without `keep` it does nothing but remember the digests of sources.

    Raises:
        OutputError: TRTBUILD_CACHE_LIMIT is no size.
    """
    root = cache_root()
    if root is None:
        return Cache(lock=locked)
    return Cache(Store(root) if keep else None, locked, Memo(root / "hashes"), size_limit(root))


def size_limit(root: Path) -> int:
    """Bytes that the cache may hold: TRTBUILD_CACHE_LIMIT, else a quarter of its disk.

    Raises:
        OutputError: the variable is no size.
    """
    given = os.environ.get(LIMIT)
    if given:
        try:
            return parse_size(given)
        except ValueError as error:
            raise OutputError(f"{LIMIT}: {error}") from error
    near = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(near).total // _SHARE


class Run:
    """A stage that is about to run. `options`: dataclasses by group; paths in them stand for their content."""

    def __init__(
        self,
        cache: Cache,
        stage: str,
        files: Files,
        options: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        machine: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> None:
        self._cache, self._stage, self._files, self._options = cache, stage, files, options
        self._versions = facts.versions() if versions is None else versions
        self._machine = machine or {}
        self._progress = progress
        self._document: Document | None = None

    def document(self) -> Document:
        """The key document; sources whose digests are not known are read."""
        if self._document is None:
            files = self._files
            digests = facts.hash_files(files.folder, files.names, self._cache.memo, self._progress)
            source = Source(files.model, digests, files.repo_id, files.revision)
            inputs = Inputs(self._stage, source, self._options, self._versions, self._machine)
            self._document = document_of(inputs, lambda path: facts.text_digest(Path(path), self._cache.memo))
        return self._document

    def quick_hit(self, out: Path, *, force: bool = False) -> bool:
        """As `hit`, where the digests of all sources are known; else False, and nothing was read."""
        known = (self._cache.memo.known(self._files.folder / name) for name in self._files.names)
        return all(known) and self.hit(out, force=force)

    def hit(self, out: Path, *, force: bool = False) -> bool:
        """Whether `out` now holds what this stage would make, out of the cache.

        Raises:
            LockError: the inputs are not those of the lock, with every difference.
            OutputError: as `staged_dir`.
        """
        cache, document = self._cache, self.document()
        if cache.lock:
            cache.lock.require_inputs(document)
        entry = cache.store.find(key_of(document)) if cache.store else None
        if cache.store is None or entry is None:
            if cache.store:
                cache.store.miss(document)
            return False
        try:
            with staged_dir(out, force=force) as folder:
                cache.store.restore(entry, folder)
                if cache.lock:
                    cache.lock.require_files(read_lock(folder).files)
        except Damaged as error:
            cache.notes.append(f"{error.blob.path} in the cache is damaged; made again")
            with suppress(OSError):
                cache.store.discard(entry, error.blob)
            return False
        cache.notes.append(f"{self._stage} from the cache: {entry.key[:12]}, made {_ago(entry)}")
        return True

    def seal(
        self,
        folder: Path,
        *,
        kind: str,
        source: Mapping[str, Any],
        options: Mapping[str, Any],
        versions: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        measured: Measured | None = None,
    ) -> None:
        """Write lock, SBOM, provenance and manifest of what is in `folder`; arguments as of `write_manifest`.

        `measured`: see `lock`.

        Raises:
            LockError: what was made is not what the lock demands; every file that differs.
        """
        digests = dict(files or {})
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock")):
            name = path.relative_to(folder).as_posix()
            if name not in DOCUMENTS and name not in digests:
                digests[name] = sha256_file(path)
        inputs = self.document()
        resolved = described(options, lambda path: Path(path).name)
        stable = stable_digests(folder, digests, measured or {})
        if self._cache.lock:
            self._cache.lock.require_files(stable)
        made = {
            lock.NAME: Lock(inputs, resolved, stable, measured or {}).document(),
            sbom.NAME: sbom.sbom(inputs, versions, digests),
            provenance.NAME: provenance.provenance(inputs, versions, digests),
        }
        for name, document in made.items():
            (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        write_manifest(folder, kind=kind, source=source, options=options, versions=versions, files=digests)

    def keep(self, out: Path) -> None:
        """Keep what was made; a cache that cannot is a note, and no failure."""
        store, limit = self._cache.store, self._cache.limit
        if store is None:
            return
        files = {**read_manifest(out)["files"], MANIFEST: sha256_file(out / MANIFEST)}
        size = sum((out / name).stat().st_size for name in files)
        if limit is not None and size > limit:
            self._cache.notes.append(f"not kept in the cache: {size / 1e9:.1f} GB, {LIMIT} is {limit / 1e9:.1f} GB")
            return
        try:
            store.keep(self.document(), out, files)
            entries = store.entries()
            if limit is not None and total(entries) > limit:
                gone = choose(entries, Limits(max_size=limit, keep_last=1), time.time())
                store.remove([entry.key for entry in gone])
                self._cache.notes.append(f"the cache is full ({limit / 1e9:.1f} GB): removed {len(gone)} old entries")
        except OSError as error:
            self._cache.notes.append(f"not kept in the cache: {error.strerror or error} ({store.root})")


def _ago(entry: Entry) -> str:
    seconds = max(0.0, time.time() - entry.created)
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
