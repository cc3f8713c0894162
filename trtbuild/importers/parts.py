"""A quantized model's index -> the index of the model it stands for: one entry a linear, its tensors inside. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict

from trtbuild.importers.form import Import, Part
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
    stems = _named(index, imported, problems) if imported.layers else _stems(index, main)
    kv = _kv_scales(index) if imported.kv_cache else {}
    for stem in stems:
        own = imported.of(stem)
        out, inputs = own.size(index[f"{stem}.{own.parts[0].suffix}"].shape)
        parts = []
        for part in own.parts:
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
    if main and not stems and not imported.layers:
        problems.append(f"no linear of the model has a {main.suffix} of dtype {' or '.join(main.dtypes)}")
    pickled = [name for name, info in found.items() if info.parts and info.file.suffix == ".bin"]
    if pickled:
        problems.append("its weights are pickled; quantized weights are read from safetensors only")
    more = [f"and {len(problems) - _SHOWN} more such tensors"] if len(problems) > _SHOWN else []
    return found, problems[:_SHOWN] + more


def attention_of(source: str) -> str:
    """The attention of a linear's weight: "model.layers.0.self_attn" of its q_proj."""
    return source.rpartition(".")[0].rpartition(".")[0]


def kv_parts(index: Dict[str, TensorInfo], attention: str) -> dict[str, TensorInfo]:
    """The KV scales of an attention, which any of its quantized linears has; `index` is that of `with_parts`."""
    linears = (name for name, info in index.items() if info.parts and attention_of(name) == attention)
    return {part: info for name in linears for part, info in index[name].parts if part in KV}


def _stems(index: Dict[str, TensorInfo], main: Part | None) -> list[str]:
    """Linears of which the tensor `main` is there in one of its dtypes."""
    return [
        name.removesuffix(f".{main.suffix}")
        for name, info in index.items()
        if main and name.endswith(f".{main.suffix}") and info.dtype in main.dtypes and len(info.shape) == 2
    ]


def _named(index: Dict[str, TensorInfo], imported: Import, problems: list[str]) -> list[str]:
    """Linears that an import names one by one; those that are not quantized as it says are problems."""
    found = []
    for stem, own in imported.layers.items():
        main = own.parts[0]
        info = index.get(f"{stem}.{main.suffix}")
        if info is None:
            problems.append(f"{stem} has no {main.suffix}, and {own.format} is said of it")
        elif info.dtype not in main.dtypes or len(info.shape) != 2:
            problems.append(f"{info.name} is {info.dtype} {list(info.shape)}, and {own.format} is said of it")
        else:
            found.append(stem)
    return found


def _kv_scales(index: Dict[str, TensorInfo]) -> dict[str, list[tuple[str, TensorInfo]]]:
    """Name of an attention -> its KV scales."""
    found: dict[str, list[tuple[str, TensorInfo]]] = {}
    for part, names in _KV_NAMES.items():
        for name, info in index.items():
            ending = next((end for end in names if name.endswith(f".{end}")), "")
            if ending:
                found.setdefault(name.removesuffix(f".{ending}"), []).append((part, info))
    return found
