"""What every model here reads out of its input tensors in the same way. Pure; numpy arrays in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flag(tensors: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A switch of the request, from its first row as upstream reads it; an empty tensor counts as absent."""
    return bool(tensors[name].reshape(-1)[0]) if name in tensors and tensors[name].size else default
