"""How each module of a TensorRT-LLM checkpoint is quantized, as its config says it. PURE: parsed JSON in, words out.

One quantization for all linears lies in config.json's `quantization`. With quant_algo MIXED_PRECISION each module has
its own, in quant_cfg.json beside it; a reader merges that file's `quantized_layers` into the config under the same key.
Sources: NVIDIA/TensorRT-LLM tensorrt_llm/models/modeling_utils.py (QuantConfig, LayerQuantConfig) and
tensorrt_llm/quantization/quantize.py (quantize: a module has the entry of exactly its name, or stays plain).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from fnmatch import fnmatchcase
from typing import Any

MIXED = "MIXED_PRECISION"
"""The quant_algo of a checkpoint whose modules have each their own."""
LAYERS = "quantized_layers"
"""Where quant_cfg.json has the table: module path -> the fields of a QuantConfig."""
EXCLUDED = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")
"""What exclude_modules null stands for."""

DEFAULTS: dict[str, Any] = {
    "quant_algo": None,
    "kv_cache_quant_algo": None,
    "group_size": 128,
    "smoothquant_val": 0.5,
    "clamp_val": None,
    "has_zero_point": False,
    "pre_quant_scale": False,
    # Null, not []: since 1.x an empty list means that nothing is excluded, not even lm_head.
    "exclude_modules": None,
}
"""A QuantConfig of plain weights: the fields that a checkpoint writes."""


def module_quantization(config: Dict[str, Any], module: str) -> dict[str, Any]:
    """The QuantConfig fields of one linear (`module`: its path with the global layer number, without ".weight").

    `config` is config.json with `quantized_layers` merged in where quant_algo is MIXED_PRECISION. An excluded module
    has DEFAULTS, so quant_algo None; kv_cache_quant_algo is the same for all modules.
    """
    whole = {**DEFAULTS, **(config.get("quantization") or {})}
    if whole["quant_algo"] == MIXED:
        own = (config.get(LAYERS) or {}).get(module)
    else:
        patterns = whole["exclude_modules"]
        patterns = EXCLUDED if patterns is None else patterns
        own = None if any(fnmatchcase(module, pattern) for pattern in patterns) else whole
    found = {**DEFAULTS, **(own or {}), "kv_cache_quant_algo": whole["kv_cache_quant_algo"]}
    if found["quant_algo"] == "NO_QUANT":
        found["quant_algo"] = None
    return found


def algo_of(config: Dict[str, Any], module: str) -> str | None:
    """The quant_algo of one linear, None where its weight is plain; arguments as `module_quantization`."""
    algo = module_quantization(config, module)["quant_algo"]
    return None if algo is None else str(algo)
