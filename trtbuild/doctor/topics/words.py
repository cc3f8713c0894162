"""Numbers in sentences. Pure."""

from __future__ import annotations

GIB = 1 << 30


def gib(count: float) -> str:
    """Bytes in binary units, as nvidia-smi, docker and cgroups count."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}".replace(".0 ", " ")
    return f"{count:.0f} B"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
