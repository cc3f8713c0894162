"""A quantized model's index -> the index of the model it stands for: one entry a linear, its tensors inside. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict

from trtbuild.importers.form import Import
from trtbuild.layout import TensorInfo

KV = ("k_scale", "v_scale")
_KV_NAMES = {part: (f"{part[0]}_proj.{part}", f"attn.{part}", part) for part in KV}
"""Where a KV scale lies below the attention, the longest name first: ModelOpt, vLLM's own, compressed-tensors."""
QUANTIZED = "quantized"
"""dtype of an entry that has parts."""
_SHOWN = 6


def with_parts(index: Dict[str, TensorInfo], imported: Import) -> tuple[dict[str, TensorInfo], list[str]]:
    """(index in which X.weight stands for all tensors of the quantized linear X, problems of those tensors).

    KV scales become parts of the linears of their attention; scales of a linear that is not quantized stay listed.
    """
    found, problems = dict(index), list[str]()
    main = imported.parts[0] if imported.parts else None
    stems = [
        name.removesuffix(f".{main.suffix}")
        for name, info in index.items()
        if main and name.endswith(f".{main.suffix}") and info.dtype in main.dtypes and len(info.shape) == 2
    ]
    kv = _kv_scales(index) if imported.kv_cache else {}
    for stem in stems:
        out, inputs = imported.size(index[f"{stem}.{imported.parts[0].suffix}"].shape)
        parts = []
        for part in imported.parts:
            info = index.get(f"{stem}.{part.suffix}")
            if info is None:
                problems += [] if part.optional else [f"{stem} has no {part.suffix}"]
                continue
            shapes = part.shapes(out, inputs)
            if info.shape not in shapes or info.dtype not in part.dtypes:
                wanted = " or ".join(f"{list(shape)}" for shape in shapes)
                given = f"{info.dtype} {list(info.shape)}"
                problems.append(f"{info.name} is {given}; it must be {' or '.join(part.dtypes)} {wanted}")
            parts.append((part.suffix, info))
            found.pop(info.name, None)
        parts += kv.get(stem.rpartition(".")[0], [])
        held = parts[0][1]
        found[f"{stem}.weight"] = TensorInfo(
            f"{stem}.weight", QUANTIZED, (out, inputs), held.file, 0, 0, parts=tuple(parts)
        )
    for info in (info for pair in kv.values() for _, info in pair):
        found.pop(info.name, None)
    if main and not stems:
        problems.append(f"no linear of the model has a {main.suffix} of dtype {' or '.join(main.dtypes)}")
    pickled = [name for name, info in found.items() if info.parts and info.file.suffix == ".bin"]
    if pickled:
        problems.append("its weights are pickled; quantized weights are read from safetensors only")
    more = [f"and {len(problems) - _SHOWN} more such tensors"] if len(problems) > _SHOWN else []
    return found, problems[:_SHOWN] + more


def _kv_scales(index: Dict[str, TensorInfo]) -> dict[str, list[tuple[str, TensorInfo]]]:
    """Name of an attention -> its KV scales."""
    found: dict[str, list[tuple[str, TensorInfo]]] = {}
    for part, names in _KV_NAMES.items():
        for name, info in index.items():
            ending = next((end for end in names if name.endswith(f".{end}")), "")
            if ending:
                found.setdefault(name.removesuffix(f".{ending}"), []).append((part, info))
    return found
