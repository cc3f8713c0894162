"""One run of a stage as the cache sees it: a hit, or documents about what was made, which is then kept.

run = Run(cache, "engine", Files(...), options={...})
if run.hit(out, force=force):
    return out                      # nothing was computed
with run.reading(), staged_dir(out, force=force) as folder:
    ...
    run.seal(folder, kind="engine", ...)
run.keep(out)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.cache import facts, lock, provenance, sbom
from trtbuild.cache.hashing import Hashing, Memo, hash_files, identity
from trtbuild.cache.key import Document, Inputs, Source, described, document_of, key_of
from trtbuild.cache.lock import Lock, Measured, read_lock, stable_digests
from trtbuild.cache.prune import Limits, ago, choose, total
from trtbuild.cache.settings import LIMIT, cache_root, size_limit
from trtbuild.cache.store import Damaged, Entry, Store
from trtbuild.errors import CheckpointError, some
from trtbuild.manifest import MANIFEST, all_digests, read_manifest, sha256_file, write_manifest
from trtbuild.progress import Progress, silent
from trtbuild.staging import staged_dir

DOCUMENTS = (MANIFEST, lock.NAME, sbom.NAME, provenance.NAME)
"""Files about an artefact, which are no part of it."""


@dataclass
class Cache:
    """Where artefacts are kept (`store`, None: nowhere), what must come out (`lock`), and what happened (`notes`).

    `limit`: bytes that the store may hold, None for any number.
    """

    store: Store | None = None
    lock: Lock | None = None
    memo: Memo = field(default_factory=Memo)
    limit: int | None = None
    notes: list[str] = field(default_factory=list)

    def within(self) -> Cache:
        """The same for a stage inside another one, whose lock does not speak of it."""
        return Cache(self.store, None, self.memo, self.limit, self.notes)

    def unkept(self, why: str) -> Cache:
        """The same for a stage that is neither looked up nor kept, as its key would not say all; `why` is a note."""
        if self.store is not None:
            self.notes.append(why)
        return Cache(None, self.lock, self.memo, None, self.notes)


@dataclass(frozen=True)
class Files:
    """What a stage reads: files (`names`) of a folder, and the name by which the manifest calls the whole.

    `recorded`: SHA-256 by name as who made the folder wrote them down.
    """

    folder: Path
    names: tuple[str, ...]
    model: str
    repo_id: str | None = None
    revision: str | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)


def open_cache(*, keep: bool = True, locked: Lock | None = None) -> Cache:
    """The cache of this user; without `keep` nothing is looked up, kept or remembered.

    Raises:
        OutputError: TRTBUILD_CACHE_LIMIT is no size.
    """
    root = cache_root()
    if not keep or root is None:
        return Cache(lock=locked)
    return Cache(Store(root), locked, Memo(root / "hashes"), size_limit(root))


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
        self._hashing: Hashing | None = None  # while the stage works
        self._states: dict[str, object] = {}  # of the sources, before any of them was read
        self._explained = False  # whether the miss is told
        self._sealed = self._attested = ""  # SHA-256 of the manifest and of the statement

    def document(self) -> Document:
        """The key document; sources whose digests are not known are read.

        Raises:
            CheckpointError: a source cannot be read, or is not what its manifest recorded.
        """
        if self._document is None:
            files = self._files
            if self._hashing is not None:
                digests = self._hashing.result(self._progress, done=1)
            else:
                self._note_states()
                digests = hash_files(files.folder, files.names, self._cache.memo, self._progress)
            self._require_recorded(digests)
            self._document = self._document_of(digests)
        return self._document

    def _require_recorded(self, digests: Mapping[str, str]) -> None:
        recorded = self._files.recorded
        changed = [name for name, digest in digests.items() if recorded.get(name, digest) != digest]
        if changed:
            raise CheckpointError(
                f"{self._files.folder}: {some(changed)}: not what {MANIFEST} recorded when trtbuild wrote it",
                hint=f"Make it again. If the change is meant, remove its {MANIFEST} and run `trtbuild check`.",
            )

    def _document_of(self, digests: Mapping[str, str]) -> Document:
        source = Source(self._files.model, digests, self._files.repo_id, self._files.revision)
        inputs = Inputs(self._stage, source, self._options, self._versions, self._machine)
        return document_of(inputs, lambda path: facts.text_digest(Path(path), self._cache.memo))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The block does the work of the stage; sources whose digests are not known yet are hashed beside it."""
        if self._document is not None:
            yield
            return
        self._note_states()
        with Hashing(self._files.folder, self._files.names, self._cache.memo) as self._hashing:
            yield

    def _note_states(self) -> None:
        self._states = self._states or self._states_now()

    def _states_now(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name in self._files.names:
            with suppress(FileNotFoundError):
                found[name] = identity(self._files.folder / name)
        return found

    def _could_hit(self) -> bool:
        """Whether something is kept that would be a hit if files whose digests are not known are those of its source.

        Where there is nothing of the kind, no digest is worth waiting for.
        """
        if self._cache.store is None:
            return False
        known = {name: self._cache.memo.known(self._files.folder / name) for name in self._files.names}
        if all(known.values()):
            return True
        wanted = key_of(self._document_of({name: digest or "" for name, digest in known.items()}))
        for entry in self._cache.store.entries():
            files = entry.document["source"]["files"]
            if known.keys() == files.keys():
                seen = {name: digest if known[name] else "" for name, digest in files.items()}
                source = {**entry.document["source"], "files": seen}
                if key_of({**entry.document, "source": source}) == wanted:
                    return True
        return False

    def quick_hit(self, out: Path, *, force: bool = False) -> bool:
        """As `hit`, where the digests of all sources are known, or a lock must hold first; else False."""
        known = (self._cache.memo.known(self._files.folder / name) for name in self._files.names)
        return (self._cache.lock is not None or all(known)) and self.hit(out, force=force)

    def hit(self, out: Path, *, force: bool = False) -> bool:
        """Whether `out` now holds what this stage would make, out of the cache. Sources are read where it could be.

        Raises:
            LockError: the inputs are not those of the lock, with every difference.
            OutputError: as `staged_dir`.
        """
        store, wanted = self._cache.store, self._cache.lock
        if wanted is None and not self._could_hit():
            return False
        document = self.document()
        if wanted:
            wanted.require_inputs(document)
        if store is None:
            return False
        entry = store.find(key_of(document))
        self._explained = True
        if entry is None:
            store.miss(document)
            return False
        try:
            with staged_dir(out, force=force) as folder:
                store.restore(entry, folder)
                if wanted and read_lock(folder).files != wanted.files:
                    raise _AnotherResult
        except Damaged as error:
            self._drop(store, entry, error)
            return False
        except _AnotherResult:  # the stage decides whether the lock can be met
            return False
        self._cache.notes.append(
            f"{self._stage} from the cache: {entry.key[:12]}, made {ago(time.time() - entry.created)}"
        )
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
            CheckpointError: sources were written while the stage read them.
        """
        digests = all_digests(folder, files or {}, DOCUMENTS)
        inputs, store = self.document(), self._cache.store
        now = self._states_now()
        changed = [name for name in self._files.names if now.get(name) != self._states.get(name)]
        if changed:
            message = f"{some(changed)} in {self._files.folder} changed while the {self._stage} was made"
            raise CheckpointError(message, hint="Run it again when nobody writes there.")
        if store is not None and not self._explained:  # it was not looked for, as nothing could have been there
            store.miss(inputs)
        resolved = described(options, lambda path: Path(path).name)
        stable = stable_digests(folder, digests, measured or {})
        if self._cache.lock:
            self._cache.lock.require_files(stable)
        locked = Lock(inputs, resolved, stable, measured or {}, described(source, str)).document()
        made = {lock.NAME: locked, sbom.NAME: sbom.sbom(inputs, versions, digests)}
        listed = {**digests, **{name: _write(folder / name, document) for name, document in made.items()}}
        write_manifest(folder, kind=kind, source=source, options=options, versions=versions, files=listed)
        self._sealed = sha256_file(folder / MANIFEST)
        statement = provenance.provenance(inputs, versions, {**listed, MANIFEST: self._sealed})
        self._attested = _write(folder / provenance.NAME, statement)

    def keep(self, out: Path) -> None:
        """Keep what was sealed and now is `out`; a cache that cannot is a note, and no failure."""
        store, limit, notes = self._cache.store, self._cache.limit, self._cache.notes
        if store is None:
            return
        try:
            listed = read_manifest(out).get("files", {})
            files = {**listed, provenance.NAME: self._attested, MANIFEST: self._sealed}
            size = sum((out / name).stat().st_size for name in files)
            if limit is not None and size > limit:
                notes.append(f"not kept in the cache: {size / 1e9:.1f} GB, its limit is {limit / 1e9:.1f} GB ({LIMIT})")
                return
            store.keep(self.document(), out, files)
            self._make_room(store)
        except OSError as error:
            notes.append(f"not kept in the cache: {error.strerror or error} ({store.root})")

    def _make_room(self, store: Store) -> None:
        """Let the entries go that were not used for longest, where the cache is full."""
        limit, entries = self._cache.limit, store.entries()
        if limit is None or total(entries) <= limit:
            return
        gone = choose(entries, Limits(size=limit, least=1), time.time())
        with suppress(BlockingIOError):  # the next one makes room
            store.sweep([entry.key for entry in gone], wait=False)
            self._cache.notes.append(f"the cache is full ({limit / 1e9:.1f} GB): removed {len(gone)} old entries")

    def _drop(self, store: Store, entry: Entry, error: Damaged) -> None:
        self._cache.notes.append(f"{error.blob.path} in the cache is damaged or missing; made again")
        store.miss(entry.document, error.blob.path)
        with suppress(OSError):
            store.discard(entry.key, [error.blob.sha256])


def _write(path: Path, document: Document) -> str:
    """Write JSON; its SHA-256."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return sha256_file(path)


class _AnotherResult(Exception):
    """The cache has this, but made otherwise than the lock says."""
