"""Already quantized Hugging Face models: which `quantization_config` can be read, and which tensor scales which. PURE.

Only 8-bit floats with scales for a tensor, for its rows or for blocks of it: they are multiplied out again. Integers,
and floats that keep their bytes, are the business of `importers/`. Formats:
- `fp8` (transformers' FineGrainedFP8Config; DeepSeek-V3, Qwen3-FP8): `weight_scale_inv` for each block of
  `weight_block_size`, or one for the tensor; despite its name it is multiplied with. AutoFP8 writes `weight_scale`.
- `fbgemm_fp8` (Llama-3.1-405B-FP8): `weight_scale` [out, 1].
- `compressed-tensors` with 8-bit symmetric float weights: `weight_scale` [1], [out, 1] or by `block_structure`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.layout import READABLE, SCALED, Scale, TensorInfo

KEY = "quantization_config"
_SCALES = ("_scale_inv", "_scale")
# Of activations, which plain weights do not need.
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


def unreadable(quantization: Any) -> str:
    """Why weights with this `quantization_config` cannot be multiplied out; empty where they can, or for none."""
    if not quantization:
        return ""
    if not isinstance(quantization, Dict):
        return "it is not an object"
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return _unreadable_groups(quantization)
    if method not in ("fp8", "fbgemm_fp8"):
        return "gptq, awq, compressed-tensors, modelopt, fp8 and fbgemm_fp8 can be read"
    if quantization.get("expert_dtype", "fp8") != "fp8":
        return f"expert_dtype is {quantization['expert_dtype']!r}"
    block = quantization.get("weight_block_size")
    return "" if block is None or _is_block(block) else f"weight_block_size is {block!r}"


def with_scales(index: Dict[str, TensorInfo], quantization: Any) -> dict[str, TensorInfo]:
    """The index with each 8-bit tensor's scale attached to it and out of the list; unchanged for a plain model.

    A scale whose shape does not fit stays in the list, and its tensor without a scale: the plan reports both.
    """
    found = dict(index)
    if not quantization or unreadable(quantization):
        return found
    block = _block_of(quantization)
    for name, info in index.items():
        if info.dtype not in SCALED:
            continue
        for scale in (index[name + end] for end in _SCALES if name + end in index):
            covered = _covered(info.shape, scale.shape, block)
            if covered and scale.dtype in READABLE:
                found[name] = replace(info, scale=Scale(scale, covered))
                del found[scale.name]
                break
        stem = name.rpartition(".")[0]
        for end in _ACTIVATIONS:
            found.pop(f"{stem}.{end}", None)
    return found


def _covered(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int] | None:
    """(rows, columns) of a weight for which one scale holds; None where the shapes do not fit each other."""
    if len(shape) != 2:
        return None
    rows, columns = max(shape[0], 1), max(shape[1], 1)
    if all(size == 1 for size in scale) and len(scale) <= 2:
        return rows, columns
    if scale in ((rows,), (rows, 1)):
        return 1, columns
    return block if scale == (-(-rows // block[0]), -(-columns // block[1])) else None


def _block_of(quantization: Dict[str, Any]) -> tuple[int, int]:
    blocks = [quantization.get("weight_block_size")]
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Dict) else ():
        blocks.append((group.get("weights") or {}).get("block_structure"))
    return next(((block[0], block[1]) for block in blocks if block and _is_block(block)), (128, 128))


def _is_block(block: Any) -> bool:
    return isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)


def _unreadable_groups(quantization: Dict[str, Any]) -> str:
    if quantization.get("kv_cache_scheme"):
        return "its KV cache is quantized (kv_cache_scheme)"
    groups = quantization.get("config_groups")
    if not isinstance(groups, Dict) or not groups:
        return "it has no config_groups"
    for name, group in groups.items():
        weights = (group.get("weights") if isinstance(group, Dict) else None) or {}
        kind = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
        if kind != (8, "float", True):
            return f"{name} has weights of {kind[0]} bits, type {kind[1]!r}; only symmetric 8-bit floats can be read"
        if weights.get("strategy") not in ("tensor", "channel", "block"):
            return f"{name} has strategy {weights.get('strategy')!r}; tensor, channel and block can be read"
    return ""
