"""Plans without files: specs and source headers made up from numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import CONFIG
from trtbuild.checkpoint.config import read_spec
from trtbuild.layout import TensorInfo
from trtbuild.plan import Plan, make_plan
from trtbuild.spec import ConvertOptions


def config(**changes: Any) -> dict[str, Any]:
    """A Llama config.json as transformers writes it."""
    base = {**CONFIG, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    merged = {**base, "torch_dtype": "float32", "rms_norm_eps": 1e-5, "rope_theta": 1e4, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def headers(document: dict[str, Any]) -> dict[str, TensorInfo]:
    """The tensors that transformers' LlamaForCausalLM saves for a config, written out by hand."""
    c = document
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    h, i, q, kv = (
        c["hidden_size"],
        c["intermediate_size"],
        c["num_attention_heads"] * head,
        c["num_key_value_heads"] * head,
    )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], h)
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        linear = {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}
        for name, shape in linear.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if c.get("attention_bias"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (i, h), "up": (i, h), "down": (h, i)}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
            if c.get("mlp_bias"):
                shapes[f"{at}mlp.{name}_proj.bias"] = shape[:1]
        shapes[f"{at}input_layernorm.weight"] = (h,)
        shapes[f"{at}post_attention_layernorm.weight"] = (h,)
    index, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        index[name] = TensorInfo(name, "F32", shape, Path("model.safetensors"), offset, offset + size)
        offset += size
    return index


def plan_of(options: ConvertOptions | None = None, index: dict[str, TensorInfo] | None = None, **changes: Any) -> Plan:
    """The plan of a made-up Llama."""
    document = config(**changes)
    family, spec = read_spec(document)
    return make_plan(family, spec, options or ConvertOptions(), headers(document) if index is None else index)
