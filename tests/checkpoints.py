"""TensorRT-LLM checkpoints for the tests of the linter: made here or upstream's, and ways to damage them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.test_families_b import MODELS as GPT_MODELS
from tests.test_families_b import make as make_gpt
from tests.tiny import GOLDEN, make_llama
from trtbuild import pipeline
from trtbuild.spec import ConvertOptions

Tensors = dict[str, torch.Tensor]
SHARED = GOLDEN.parent
LINEAR = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2}

MADE: dict[str, tuple[dict[str, Any], ConvertOptions]] = {
    "tp2 pp2": ({}, ConvertOptions(2, 2, "float16")),
    "tied": ({"tie_word_embeddings": True}, ConvertOptions(1, 2, "float16")),
    "tied, table by columns": (
        {"tie_word_embeddings": True},
        ConvertOptions(2, 1, "float16", use_parallel_embedding=True, embedding_sharding_dim=1),
    ),
    "odd vocabulary": ({"vocab_size": 509}, ConvertOptions(2, 1, "bfloat16")),
    "2 kv heads on 4": ({"num_key_value_heads": 2}, ConvertOptions(4, 1, "float32")),
    "biases": ({"attention_bias": True, "mlp_bias": True}, ConvertOptions(2, 1, "float16")),
    "wide": (WIDE, ConvertOptions(1, 1, "float16")),
    "int8": (WIDE, ConvertOptions(2, 1, "float16", "int8", "tensorrt")),
}


def make(name: str, folder: Path) -> Path:
    """A checkpoint of MADE, in a form of FORMS (by hand, from the format document), or upstream's by its folder."""
    if name in MADE:
        changes, options = MADE[name]
        source = make_llama(folder / "source", **changes)
        return pipeline.make_checkpoint(str(source), folder / "checkpoint", options)
    if name == "falcon":  # parallel attention and MLP: their biases are summed once
        _, architecture, fields = GPT_MODELS["falcon parallel with biases"]
        make_gpt(folder / "source", architecture, fields)
        return pipeline.make_checkpoint(str(folder / "source"), folder / "checkpoint", ConvertOptions(2, 1))
    if name in FORMS:
        made = make("wide", folder)
        quantization, form, *others = FORMS[name]
        edit_config(made, quantization=quantization)
        edit_rank(made, 0, lambda tensors: in_form(tensors, form))
        for other in others:
            other(made)
        (made / "trtbuild.json").unlink()
        return made
    return Path(shutil.copytree(SHARED / name / "trtllm", folder / "checkpoint", copy_function=shutil.copyfile))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; a dict changes fields of a dict there, `...` removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            config[key] = {k: v for k, v in {**config[key], **value}.items() if v is not ...}
        else:
            config[key] = value
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_rank(folder: Path, rank: int, edit: Callable[[Tensors], Any]) -> None:
    path = folder / f"rank{rank}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def in_form(tensors: Tensors, form: Callable[[torch.Tensor], Tensors]) -> None:
    """Replace every linear of the layers by what `form` stores for its weight [out, in]."""
    for name in [name for name in tensors if name.endswith(tuple(f"{linear}.weight" for linear in LINEAR))]:
        module = name.removesuffix(".weight")
        tensors.update({f"{module}.{part}": tensor for part, tensor in form(tensors.pop(name)).items()})


def _bits(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def _scale(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(*shape) * 0.01 + 0.001).to(dtype)


def weight_only_int4(w: torch.Tensor) -> Tensors:
    out, width = w.shape
    return {"weight": _bits(width, out // 2), "per_channel_scale": _scale(out, dtype=w.dtype)}


def awq(w: torch.Tensor) -> Tensors:
    out, width = w.shape
    return {
        "weight": _bits(out // 2, width),
        "weights_scaling_factor": _scale(out, width // 128),
        "prequant_scaling_factor": _scale(width, dtype=w.dtype),
    }


def w4a8(w: torch.Tensor) -> Tensors:
    return {**awq(w), "activation_scaling_factor": _scale(1), "weights_scaling_factor_2": _scale(1)}


def gptq(w: torch.Tensor) -> Tensors:
    out, width = w.shape
    return {
        "weight": _bits(width, out // 2).view(torch.float16),
        "weights_scaling_factor": _scale(width // 128, out, dtype=w.dtype),
        "zero": -_scale(width // 128, out, dtype=w.dtype),
    }


def fp8(w: torch.Tensor) -> Tensors:
    return {
        "weight": w.to(torch.float8_e4m3fn),
        "weights_scaling_factor": torch.tensor([0.01]),
        "activation_scaling_factor": torch.tensor(0.02),
    }


def fp8_rowwise(w: torch.Tensor) -> Tensors:
    return {"weight": w.to(torch.float8_e4m3fn), "per_channel_scale": _scale(w.shape[0])}


def smooth(w: torch.Tensor) -> Tensors:
    out, width = w.shape
    return {"weight": _bits(out, width), "per_channel_scale": _scale(1, out), "act_scale": _scale(1, 1)}


def _plugin_extras(folder: Path) -> None:
    """Smoothers and the scales of attention, MLP and norms of the static SmoothQuant plugin."""

    def edit(tensors: Tensors) -> None:
        for layer in range(2):
            at = f"transformer.layers.{layer}."
            tensors |= {f"{at}attention.dense.smoother": _scale(1, 256), f"{at}mlp.proj.smoother": _scale(1, 512)}
            tensors |= {f"{at}{name}_layernorm.scale_to_int": _scale(1) for name in ("input", "post")}
            tensors |= {f"{at}{name}.quantization_scaling_factor": _scale(1) for name in ("attention", "mlp")}

    edit_rank(folder, 0, edit)


def _kv_scales(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for layer in range(2):
            tensors[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"] = torch.ones(1)

    edit_rank(folder, 0, edit)


def _mixed(folder: Path) -> None:
    """fp8 attention in layer 0, AWQ MLP in layer 1, the rest plain."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("transformer.layers.") and "layernorm" not in name]:
            layer, module = int(name.split(".")[2]), name.removesuffix(".weight")
            form = {(0, True): fp8, (1, False): awq}.get((layer, ".attention." in name))
            if form:
                tensors.update({f"{module}.{part}": tensor for part, tensor in form(tensors.pop(name)).items()})

    edit_rank(folder, 0, edit)
    attention, mlp = LINEAR[:2], LINEAR[2:]
    layers = {f"transformer.layers.0.{name}": {"quant_algo": "FP8"} for name in attention}
    plan = {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True}
    layers |= {f"transformer.layers.1.{name}": plan for name in mlp}
    document = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    (folder / "quant_cfg.json").write_text(json.dumps(document))


FORMS: dict[str, tuple[Any, ...]] = {
    "W4A16": ({"quant_algo": "W4A16"}, weight_only_int4),
    "W4A8": ({"quant_algo": "W4A8_AWQ", "pre_quant_scale": True}, w4a8),
    "GPTQ": ({"quant_algo": "W4A16_GPTQ", "has_zero_point": True}, gptq),
    "FP8 with kv": ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, fp8, _kv_scales),
    "FP8 rowwise": ({"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, fp8_rowwise),
    "SQ plugin": ({"quant_algo": "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"}, smooth, _plugin_extras),
    "mixed": ({"quant_algo": "MIXED_PRECISION"}, lambda w: {"weight": w}, _mixed),
}
