"""How each module of a TensorRT-LLM checkpoint is quantized, as its config says it. PURE: parsed JSON in, words out.

One quantization for all linears lies in config.json's `quantization`. With quant_algo MIXED_PRECISION each module has
its own, in quant_cfg.json beside it; a reader merges that file's `quantized_layers` into the config under the same key.
Sources: NVIDIA/TensorRT-LLM tensorrt_llm/models/modeling_utils.py (QuantConfig, LayerQuantConfig) and
tensorrt_llm/quantization/quantize.py (quantize); NVIDIA/TensorRT-Model-Optimizer modelopt/torch/export/
model_config_export.py and quant_utils.py (process_layer_quant_config), which write the file.

Layer numbers: TensorRT-LLM looks a module up by its name on its rank, and layers of a rank count from 0 on every
pipeline stage. There is one file for all ranks, so the stages must be alike. ModelOpt writes the names of the last
rank. trtbuild writes an entry for every linear by its number in the whole model: that says all, and reads the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Dict
from fnmatch import fnmatchcase
from typing import Any

from trtbuild.mapping import Mapping

MIXED = "MIXED_PRECISION"
"""The quant_algo of a checkpoint whose modules have each their own."""
LAYERS = "quantized_layers"
"""Where quant_cfg.json has the table: module path -> the fields of a QuantConfig."""
EXCLUDED = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")
"""What exclude_modules null stands for."""

LEAST_SM = {
    **dict.fromkeys(("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_BLOCK_SCALES", "W4A8_AWQ"), 89),
    **dict.fromkeys(("NVFP4", "W4A8_NVFP4_FP8"), 100),
}
"""quant_algo -> the oldest compute capability that has its tensor cores (fp8: Ada, NVFP4: Blackwell); else any has."""
KV_LEAST_SM = {"FP8": 89}
"""The same for the KV cache (cpp/tensorrt_llm refuses an fp8 one below)."""
DATA_CENTER_BLACKWELL = range(100, 120)
"""Compute capabilities for which trtllm-build refuses what `NOT_ON_BLACKWELL` and `KV_NOT_ON_BLACKWELL` name."""
NOT_ON_BLACKWELL = {
    **dict.fromkeys(("W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "W8A16_GPTQ"), "int8 and int4 weights"),
    **dict.fromkeys(
        (
            "W8A8_SQ_PER_CHANNEL",
            "W8A8_SQ_PER_TENSOR_PLUGIN",
            "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
            "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
            "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
        ),
        "SmoothQuant",
    ),
    **dict.fromkeys(("W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL"), "QServe"),
    "FP8_PER_CHANNEL_PER_TOKEN": "scales per channel and per token",
}
"""quant_algo -> what of it is refused on SM 100 to 119 (tensorrt_llm/builder.py, build)."""
KV_NOT_ON_BLACKWELL = frozenset({"INT8"})
"""The same for kv_cache_quant_algo."""

_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")

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


def layer_table(config: Dict[str, Any]) -> Dict[str, Any]:
    """The `quantized_layers` that a reader merged into a config; empty where it is no mixture's."""
    found: Dict[str, Any] = config.get(LAYERS) or {}
    return found


def module_quantization(config: Dict[str, Any], module: str) -> dict[str, Any]:
    """The QuantConfig fields of one linear (`module`: its path with the global layer number, without ".weight").

    `config` is config.json; where quant_algo is MIXED_PRECISION with quant_cfg.json's `quantized_layers` merged in. An
    excluded module has DEFAULTS, so quant_algo None; kv_cache_quant_algo is the same for all modules.
    """
    whole = {**DEFAULTS, **(config.get("quantization") or {})}
    if whole["quant_algo"] == MIXED:
        own = layer_table(config).get(module)
    else:
        patterns = whole["exclude_modules"]
        patterns = EXCLUDED if patterns is None else patterns
        own = None if any(fnmatchcase(module, pattern) for pattern in patterns) else whole
    found = {**DEFAULTS, **(own or {}), "kv_cache_quant_algo": whole["kv_cache_quant_algo"]}
    if found["quant_algo"] == "NO_QUANT":
        found["quant_algo"] = None
    return found


def layer_of(module: str) -> int | None:
    """The layer number in a module's path, None for what belongs to no layer."""
    found = _LAYER.match(module)
    return int(found[2]) if found else None


def at_layer(module: str, layer: int) -> str:
    """The path of the same module of another layer."""
    return _LAYER.sub(rf"\g<1>{layer}\g<3>", module)


def whole_model(layers: Dict[str, Any], pp_size: int, num_layers: int) -> dict[str, Any]:
    """A table of `quantized_layers` by the numbers of the whole model, whichever numbers it came with.

    One that speaks of no layer beyond the largest stage counts inside stages, as ModelOpt's: each stage gets it.
    """
    stages = [Mapping(1, pp_size, rank).layers(num_layers) for rank in range(pp_size)]
    numbers = [number for number in map(layer_of, layers) if number is not None]
    if pp_size == 1 or not numbers or max(numbers) >= max(map(len, stages)):
        return dict(layers)
    found = {module: own for module, own in layers.items() if layer_of(module) is None}
    for stage in stages:
        for module, own in layers.items():
            number = layer_of(module)
            if number is not None and number < len(stage):
                found[at_layer(module, stage[number])] = own
    return found


def unlike_stages(layers: Dict[str, Any], pp_size: int, num_layers: int) -> dict[str, str]:
    """Modules of later stages -> the module of the first stage whose entry TensorRT-LLM gives them, where they differ.

    `layers` has the numbers of the whole model, and the same value for what is quantized in the same way.
    """
    found = {}
    for rank in range(1, pp_size):
        stage = Mapping(1, pp_size, rank).layers(num_layers)
        for module in layers:
            number = layer_of(module)
            if number is not None and number in stage:
                read = at_layer(module, number - stage.start)
                if layers.get(read) != layers[module]:
                    found[module] = read
    return found
