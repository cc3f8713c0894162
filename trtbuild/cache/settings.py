"""Where the cache is and how much it may hold: the environment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trtbuild.cache.prune import parse_size
from trtbuild.errors import OutputError

FOLDER, OFF, LIMIT = "TRTBUILD_CACHE", "TRTBUILD_NO_CACHE", "TRTBUILD_CACHE_LIMIT"
_SHARE = 4  # the cache keeps at most this fraction of its disk where nothing is said


def cache_root() -> Path | None:
    """The folder of the cache: TRTBUILD_CACHE, else `artefacts` beside trtbuild's other caches.

    None where TRTBUILD_NO_CACHE is set, to anything but 0.
    """
    if os.environ.get(OFF, "0").strip() not in ("", "0"):
        return None
    return cache_folder()


def cache_folder() -> Path:
    """As `cache_root`, for commands about the cache itself, which look into one that is switched off too."""
    given = os.environ.get(FOLDER, "").strip()
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtbuild" / "artefacts"


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
