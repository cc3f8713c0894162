"""Which entries of the cache go. PURE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtbuild.cache.store import Entry

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Limits:
    """What may stay; None is no limit. Seconds since an entry was used last (`unused`) and since it was made (`age`).

    `size`: bytes of all files together, each once; what was used last stays. `least`: so many stay whatever `size` is.
    """

    unused: float | None = None
    age: float | None = None
    size: int | None = None
    least: int = 0


def choose(entries: Sequence[Entry], limits: Limits, now: float) -> list[Entry]:
    """Entries to remove; `entries` is ordered by use, the last one first."""
    kept: list[Entry] = []
    gone: list[Entry] = []
    full = False
    for entry in entries:
        unused = limits.unused is not None and now - entry.used > limits.unused
        old = limits.age is not None and now - entry.created > limits.age
        if unused or old:
            gone.append(entry)
            continue
        if limits.size is not None and len(kept) >= limits.least:
            # What was used longer ago than the first that does not fit goes too: no gaps in what is kept.
            full = full or total([*kept, entry]) > limits.size
        (gone if full else kept).append(entry)
    return gone


def total(entries: Sequence[Entry]) -> int:
    """Bytes of the files of all entries, those that they share counted once."""
    return sum({blob.sha256: blob.size for entry in entries for blob in entry.files}.values())


def ago(seconds: float) -> str:
    """How long something is past, in a word or two."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def parse_size(text: str) -> int:
    """Bytes of "200", "1.5GB", "20GiB"; ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not found or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size; write it as 500MB, 20GB or 1.5TiB")
    return int(float(found[1]) * _UNITS[found[2]])


def parse_age(text: str) -> float:
    """Seconds of "90s", "12h", "30d", "2w"; ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text.lower())
    if not found:
        raise ValueError(f"{text!r} is no age; write it as 12h, 30d or 2w")
    return float(found[1]) * _SECONDS[found[2]]
