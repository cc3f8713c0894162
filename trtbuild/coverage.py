"""Source headers against what a family's rules read: missing, misshapen, unreadable and unexpected tensors. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from fnmatch import fnmatchcase

from trtbuild.errors import some
from trtbuild.families.rules import Family
from trtbuild.layout import READABLE, SCALED, TensorInfo
from trtbuild.shard import source_shape, sources_of
from trtbuild.spec import ModelSpec

_SHOWN = 8  # tensors of wrong shape or dtype that are listed


def coverage(family: Family, spec: ModelSpec, index: Dict[str, TensorInfo]) -> tuple[dict[str, str], list[str]]:
    """(planned source -> name actually read, problems): missing, misshapen, unreadable and unexpected tensors."""
    names: dict[str, str] = {}
    missing, wrong = [], []
    for source, planned in sources_of(family, spec):
        name = _found(family, planned, index)
        if not name and source.fallback and spec.tied_embeddings:
            name = _found(family, source.fallback, index)
            planned_name = source.fallback
        else:
            planned_name = planned
        if not name:
            missing.append(planned_name)
            continue
        names[planned] = name
        info = index[name]
        # The linears of quantized models are [out, in], whatever the plain model does.
        shape = source_shape(spec, replace(source, transposed=False) if info.parts else source)
        if info.shape != shape:
            wrong.append(f"{name} has shape {list(info.shape)}, but the config says {list(shape)}")
        elif info.dtype not in READABLE and info.scale is None and not info.parts:
            lacks = " and no scale that fits it" if info.dtype in SCALED else ""
            wrong.append(f"{name} has dtype {info.dtype}{lacks}; supported: {', '.join(READABLE)}")
    used = set(names.values())
    unexpected = [n for n in index if n not in used and not any(fnmatchcase(n, p) for p in family.ignored)]
    for refuse in family.unusable:
        unread = [name for name in unexpected if fnmatchcase(name, refuse.name)]
        wrong += [f"{some(unread)}: {refuse.why}"] if unread else []
        unexpected = [name for name in unexpected if name not in unread]
    found = [f"missing tensors: {some(missing)}"] if missing else []
    found += wrong[:_SHOWN] + (
        [f"and {len(wrong) - _SHOWN} more tensors of wrong shape or dtype"] if wrong[_SHOWN:] else []
    )
    found += [f"unexpected tensors, which {family.name} has no place for: {some(unexpected)}"] if unexpected else []
    return names, found


def _found(family: Family, name: str, index: Dict[str, TensorInfo]) -> str:
    """The tensor of that name, or of the name with a prefix that some files have instead; empty where none is."""
    others = (other + name.removeprefix(ours) for ours, other in family.prefixes if name.startswith(ours))
    return next((candidate for candidate in (name, *others) if candidate in index), "")
