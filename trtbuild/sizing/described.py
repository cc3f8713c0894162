"""Headers of a model of which only config.json is here, or an index of names beside it. PURE.

Shapes are what the family's rules demand, the dtype is the one that config.json names. Names are those of the index,
where there is one, so that the plan still finds missing and unexpected tensors.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from math import prod
from pathlib import Path

from trtbuild.families.rules import Family
from trtbuild.layout import DTYPE_BYTES, DTYPES, TensorInfo
from trtbuild.shard import source_shape, sources_of
from trtbuild.spec import ModelSpec

_UNKNOWN = Path("described.safetensors")


def described_index(
    specs: Sequence[tuple[Family, ModelSpec]], weight_map: Dict[str, str] | None = None
) -> dict[str, TensorInfo]:
    """TensorInfo by name of all tensors that the families read; `weight_map`: the names of an index -> shard.

    With a `weight_map` the result has exactly its names: one that no rule reads gets an empty shape, which the
    plan reports as unexpected. Offsets are made up (0 to the tensor's size), so nothing can be read by them.
    """
    found: dict[str, TensorInfo] = {}
    for family, spec in specs:
        code = DTYPES[spec.source_dtype]
        width = DTYPE_BYTES[code]
        for source, name in sources_of(family, spec):
            actual = _named(family, name, weight_map)
            if not actual and source.fallback and spec.tied_embeddings:
                actual = _named(family, source.fallback, weight_map)
            if actual and actual not in found:
                shape = source_shape(spec, source)
                file = Path(weight_map[actual]) if weight_map else _UNKNOWN
                found[actual] = TensorInfo(actual, code, shape, file, 0, width * prod(shape))
    for name in weight_map or ():
        if name not in found:
            found[name] = TensorInfo(name, "F32", (), Path((weight_map or {})[name]), 0, 0)
    return found


def _named(family: Family, name: str, weight_map: Dict[str, str] | None) -> str:
    """The name that the index has for a tensor, or nothing; without an index, the rules' own name."""
    if weight_map is None:
        return name
    others = (other + name.removeprefix(ours) for ours, other in family.prefixes if name.startswith(ours))
    return next((candidate for candidate in (name, *others) if candidate in weight_map), "")
