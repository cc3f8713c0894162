"""The table of families: add a file beside this one and a row here."""

from __future__ import annotations

from trtbuild.families.llama import LLAMA
from trtbuild.families.rules import Family

FAMILIES: tuple[Family, ...] = (LLAMA,)


def family_of(architecture: str) -> Family | None:
    """The family that handles a Hugging Face architecture string, or None."""
    return next((family for family in FAMILIES if architecture in family.architectures), None)


def architectures() -> list[str]:
    """All supported Hugging Face architecture strings, sorted."""
    return sorted(name for family in FAMILIES for name in family.architectures)
