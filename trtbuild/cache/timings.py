"""Timing caches of TensorRT in the cache's folder: kernel timings that make the next build of a like model faster.

    timing/RELEASE-GPU.cache     one for each release of TensorRT-LLM and kind of GPU

They are no artefacts: nothing is made of them that would not be made without, and TensorRT itself refuses one that does
not fit (engine-build 2.7). A build reads its file, and replaces it when it is done, so that its time stamp tells when
it was used last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trtbuild.cache.prune import Limits

_FOLDER, _SUFFIX = "timing", ".cache"


@dataclass(frozen=True)
class Timing:
    """One of them; `name`: release and GPU. `used`: seconds since 1970."""

    name: str
    path: Path
    size: int
    used: float


def timing_file(root: Path, release: str, gpu: str) -> Path:
    """Where timings of a release and a GPU, by the name that its driver gives, are kept."""
    kind = re.sub(r"[^A-Za-z0-9.+]+", "-", gpu).strip("-") or "unseen"
    return root / _FOLDER / f"{release}-{kind}{_SUFFIX}"


def timings(root: Path) -> list[Timing]:
    """All that are kept, the one used last first."""
    found = []
    for path in (root / _FOLDER).glob(f"[!.]*{_SUFFIX}"):
        with suppress(OSError):  # another process removed it just now
            status = path.stat()
            found.append(Timing(path.name.removesuffix(_SUFFIX), path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda timing: (-timing.used, timing.name))


def outdated(kept: Sequence[Timing], limits: Limits, now: float) -> list[Timing]:
    """Those that go: by age, or with everything else (`size` 0). They are too small to make room otherwise."""
    ages = [age for age in (limits.unused, limits.age) if age is not None]
    return [one for one in kept if limits.size == 0 or any(now - one.used > age for age in ages)]
