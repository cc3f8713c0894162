"""Whether a quantized model fits the method that it is to become: whole layers, KV scales, float ranges. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict

from trtbuild.errors import some
from trtbuild.families.rules import Family
from trtbuild.fields import LINEAR
from trtbuild.importers.form import Import
from trtbuild.importers.parts import KV, attention_of, kv_parts
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.mixed import MIXABLE
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import shard
from trtbuild.spec import ConvertOptions, LayerMethod, ModelSpec

PLAIN = ("none", 0)
_SHOWN = 6
_PROCESS_BYTES = 300_000_000  # anonymous memory of Python with torch, measured
_ELEMENT_BYTES = 12  # of a weight while it is unpacked and merged


def import_problems(
    family: Family,
    spec: ModelSpec,
    options: ConvertOptions,
    dtype: str,
    imported: Import,
    names: Dict[str, str],
    index: Dict[str, TensorInfo],
) -> tuple[list[str], list[str]]:
    """(problems, warnings); `names`: planned source -> the tensor read for it, absent ones left out."""
    method = METHODS[options.quant]
    problems, warnings = list[str](), list[str]()
    floats, others, scales = list[str](), list[str](), list[str]()
    jobs = shard(family, spec, ConvertOptions(dtype=dtype), dtype, names)[0].jobs
    for job in jobs:
        for piece in job.pieces:
            info = index.get(piece.source)
            if info is None:
                continue
            if LINEAR.search(job.name):
                floats += [] if info.parts else [piece.source]
                attention = attention_of(piece.source)
                lacks = [kv for kv in KV if kv not in kv_parts(index, attention)] if "attention.qkv" in job.name else []
                if imported.kv_cache and method.fields and lacks:
                    scales += [f"{attention}.{kv}" for kv in lacks]
            elif info.parts:
                others.append(piece.source)
    if method.fields and floats and not options.quant_layers:
        problems.append(
            f"the model leaves these linears unquantized, and {method.quant_algo} is for all of them: {some(floats)}; "
            "--quant none multiplies the others out"
        )
    if scales:
        problems.append(f"missing scales of the {imported.kv_cache} KV cache: {some(scales)}")
    if others:
        warnings.append(f"TensorRT-LLM leaves these unquantized by default, so they are multiplied out: {some(others)}")
    if dtype == "bfloat16" and any(not field.dtype and field.rows for field in method.fields):
        halves = [info.name for whole in index.values() for _, info in whole.parts if info.dtype == "F16"]
        text = f"scales are float16, and bfloat16 rounds them ({some(halves[:1])}); --dtype float16 keeps them"
        warnings += [text] if halves else []
    if method.name == "fp8":
        warnings.append(
            "fp8 weights of q, k and v, and of gate and up, get the largest of their scales, as TensorRT-LLM needs it; "
            "weights that had a smaller one are rounded again"
        )
    if any(field.kernel_bits for field in method.fields):
        warnings.append(
            f"{method.quant_algo} weights are laid out for the kernels of SM {options.layout_sm} (80, 86 and 89 have "
            "the same, 90 its own): --sm says which; on a GPU of the other layout the engine gives garbage without an "
            "error"
        )
    return problems, warnings


def layer_methods(
    family: Family,
    spec: ModelSpec,
    options: ConvertOptions,
    imported: Import,
    names: Dict[str, str],
    index: Dict[str, TensorInfo],
) -> tuple[tuple[LayerMethod, ...], list[str]]:
    """(linears that are not quantized as `options.quant` says, each with how; problems): of a partly quantized model.

    Nothing where the method is for all linears of a model or none: then `import_problems` says so. `names` as there.
    """
    if METHODS[options.quant].quant_algo not in MIXABLE:
        return (), []
    found, problems = list[LayerMethod](), list[str]()
    for job in shard(family, spec, ConvertOptions(dtype="float32"), "float32", names)[0].jobs:
        if not LINEAR.search(job.name):
            continue
        module, ways = job.name.removesuffix(".weight"), dict[tuple[str, int], str]()
        for piece in job.pieces:
            own = imported.of(piece.source.removesuffix(".weight"))
            quantized = piece.source in index and index[piece.source].parts
            way = ((own.methods if imported.layers else (options.quant,))[0], own.group_size) if quantized else PLAIN
            ways.setdefault(way, piece.source)
        if len(ways) > 1:
            said = " and ".join(f"{source} ({name})" for (name, _), source in list(ways.items())[:2])
            problems.append(f"{said} are one matrix in TensorRT-LLM, {module}; --quant none multiplies them out")
        name, group = next(iter(ways))
        if (name, group) != (options.quant, options.group_size):
            found.append(LayerMethod(module, name, group if METHODS[name].group_sizes else None))
    return tuple(found), problems[:_SHOWN]


def import_memory(whole: RankJobs) -> int:
    """Peak bytes of the host: one layer's tensors, and the largest linear while it is read."""
    layers: dict[str, int] = {}
    for job in whole.jobs:
        part = part_of(job.group)
        layers[part] = layers.get(part, 0) + job.nbytes
    return _PROCESS_BYTES + max(layers.values()) + _ELEMENT_BYTES * max(job.elements for job in whole.jobs)


def part_of(group: str) -> str:
    """The part of a logical checkpoint in which a tensor lies: its layer, or `rest`."""
    return f"layer{group.split('.')[2]}" if ".layers." in group else "rest"
