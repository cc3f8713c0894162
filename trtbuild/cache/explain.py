"""Why an artefact was not in the cache."""

from __future__ import annotations

import time
from pathlib import Path

from trtbuild.cache.key import key_of, nearest
from trtbuild.cache.lock import read_lock
from trtbuild.cache.store import Miss, Store
from trtbuild.errors import ArtefactError


def explain(store: Store, what: str | None = None) -> Miss | None:
    """The last miss, or the one whose key begins with `what`; None where there was none at all.

    `what` may also be an artefact or its lock: how it differs from the nearest that is kept now.

    Raises:
        ArtefactError: there is no such miss. LockError: the lock cannot be read.
    """
    misses = store.misses()
    if what is None:
        return misses[0] if misses else None
    found = [miss for miss in misses if miss.key.startswith(what)]
    if found:
        return found[0]
    if not Path(what).exists():
        known = ", ".join(miss.key[:12] for miss in misses[:8]) or "none"
        raise ArtefactError(what, ["no miss has that key, and no artefact lies there"], hint=f"Last misses: {known}")
    document = read_lock(Path(what)).inputs
    entries = [(entry.key, entry.document) for entry in store.entries()]
    near, unlike = nearest(document, entries) or (None, ())
    return Miss(document, time.time(), near, unlike)


def is_kept(store: Store, miss: Miss) -> bool:
    """Whether what was missed is in the cache by now."""
    return store.find(key_of(miss.document)) is not None
