"""config.json and hf_quant_config.json of a quantized Hugging Face checkpoint. PURE.

Sources: NVIDIA/TensorRT-Model-Optimizer modelopt/torch/export/{quant_utils,convert_hf_config}.py. config.json has what
newer releases of ModelOpt write (quant_method, kv_cache_scheme as an object): vLLM asks for both. hf_quant_config.json
has the older form, which TensorRT-LLM reads first.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtbuild.mixed import Choice

PRODUCER = {"name": "modelopt", "version": "0.33.1"}
"""Names the layout, not the program: readers know the form by it. Who wrote the files is in trtbuild.json."""
_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}


def hf_documents(
    config: Dict[str, Any], dtype: str, choice: Choice | None, kv_cache_algo: str | None, excluded: list[str]
) -> dict[str, dict[str, Any]]:
    """The files by name; `config`: the model's own, `choice`: the method of its quantized linears, None for no method.

    `excluded`: linears that stay plain, by their Hugging Face names.
    """
    made = {key: value for key, value in config.items() if key != "quantization_config"}
    made = {**made, **_older_rope(made), "torch_dtype": dtype, **({"dtype": dtype} if "dtype" in made else {})}
    if choice is None:
        return {"config.json": made}
    quantization = _quantization(choice, kv_cache_algo, excluded)
    return {
        "config.json": {**made, "quantization_config": _inline(quantization)},
        "hf_quant_config.json": {"producer": PRODUCER, "quantization": quantization},
    }


def _quantization(choice: Choice, kv_cache_algo: str | None, excluded: list[str]) -> dict[str, Any]:
    group = {"group_size": choice.group_size} if choice.method.group_sizes else {}
    extra = {name: choice.method.config[name] for name in ("has_zero_point", "pre_quant_scale")
             if name in choice.method.config}  # fmt: skip
    return {
        "quant_algo": choice.method.quant_algo,
        "kv_cache_quant_algo": kv_cache_algo,
        **group,
        **extra,
        "exclude_modules": excluded,
    }


def _inline(quantization: Dict[str, Any]) -> dict[str, Any]:
    """The same as config.json's quantization_config."""
    found: dict[str, Any] = {}
    if quantization["quant_algo"] == "FP8":
        groups = {"input_activations": _FLOAT8, "weights": _FLOAT8, "targets": ["Linear"]}
        found["config_groups"] = {"group_0": groups}
    if "group_size" in quantization:
        found["group_size"] = quantization["group_size"]
    found |= {"ignore": quantization["exclude_modules"], "quant_algo": quantization["quant_algo"]}
    if quantization["kv_cache_quant_algo"]:
        found["kv_cache_scheme"] = _FLOAT8
    return {**found, "producer": PRODUCER, "quant_method": "modelopt"}


def _older_rope(config: Dict[str, Any]) -> dict[str, Any]:
    """Rope in the spelling of transformers 4 where only that of 5 is there, which older loaders silently pass over."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, Dict) or not rope:
        return {}
    local = rope.get("sliding_attention")
    rope = dict(rope.get("full_attention", rope))
    found = {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}
    if isinstance(local, Dict) and local.get("rope_theta") is not None:
        found["rope_local_base_freq"] = local["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope
    return {key: value for key, value in found.items() if config.get(key) is None}
