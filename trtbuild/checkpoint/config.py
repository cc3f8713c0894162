"""Hugging Face config.json -> ModelSpec, and ModelSpec -> TensorRT-LLM config.json. Knows no family by name."""

from __future__ import annotations

import json
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

from trtbuild.errors import CheckpointError, UnsupportedModel
from trtbuild.families import architectures, family_of
from trtbuild.families.rules import REQUIRED, Family, Key
from trtbuild.layout import DTYPES
from trtbuild.spec import ConvertOptions, ModelSpec, resolved_dtype

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# What each rope scaling type needs; values are copied verbatim into `rotary_scaling`.
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {"linear": ("factor",), "llama3": _LLAMA3}


def load_config(folder: Path) -> dict[str, Any]:
    """Parse `folder`/config.json.

    Raises:
        CheckpointError: the file is absent, unreadable or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "Give a Hugging Face model folder: config.json, *.safetensors and tokenizer files."
        raise CheckpointError(f"{folder} has no config.json", hint=hint) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def read_spec(config: Dict[str, Any]) -> tuple[Family, ModelSpec]:
    """The family and the spec of a Hugging Face config.

    Raises:
        UnsupportedModel: an unknown architecture, or values that cannot be honoured (all of them in one message).
    """
    family = _find_family(config)
    problems: list[str] = []
    values = {field: _value(config, key, problems) for field, key in family.keys.items()}
    problems += _demands(family, config)
    base, scaling = _rope(family, config, values.get("rotary_base"), problems)
    _derive(config, values, problems)
    act = values["hidden_act"]
    if act not in family.activations:
        problems.append(f"hidden_act is {act!r}; supported: {', '.join(sorted(family.activations))}")
    dtype = _dtype(config, problems)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        head = "a value" if len(problems) == 1 else f"{len(problems)} values"
        raise UnsupportedModel(f"config.json has {head} that cannot be honoured:\n{lines}")
    names = set(ModelSpec.__dataclass_fields__)
    flags = {field: value for field, value in values.items() if field not in names}
    fields = {field: value for field, value in values.items() if field in names}
    fields |= {"hidden_act": family.activations[act], "rotary_base": base, "rotary_scaling": scaling}
    architecture = family.architectures[config["architectures"][0]]
    return family, ModelSpec(architecture=architecture, source_dtype=dtype, flags=flags, **fields)


def trtllm_config(family: Family, spec: ModelSpec, options: ConvertOptions, quant_algo: str | None) -> dict[str, Any]:
    """The config.json of a TensorRT-LLM checkpoint: global sizes, no per-rank values, no unknown nested keys."""
    extra = {key: _attribute(spec, name) for key, name in family.config_fields.items()}
    return {
        "architecture": spec.architecture,
        "dtype": resolved_dtype(spec, options),
        "logits_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_size": spec.head_size,
        "intermediate_size": spec.intermediate_size,
        "hidden_act": spec.hidden_act,
        "norm_epsilon": spec.norm_epsilon,
        "position_embedding_type": family.position_embedding_type,
        "max_position_embeddings": spec.max_position_embeddings,
        "qk_layernorm": False,
        **extra,
        **dict(family.config_constants),
        "use_parallel_embedding": options.use_parallel_embedding,
        "embedding_sharding_dim": options.embedding_sharding_dim,
        # Both dicts are splatted into constructors there: a key more is a TypeError.
        "mapping": {
            "world_size": options.world_size,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": options.tp_size,
            "pp_size": options.pp_size,
        },
        "quantization": {
            "quant_algo": quant_algo,
            "kv_cache_quant_algo": None,
            "group_size": 128,
            "smoothquant_val": 0.5,
            "clamp_val": None,
            "has_zero_point": False,
            "pre_quant_scale": False,
            # Null, not []: since 1.x an empty list means that nothing is excluded, not even lm_head.
            "exclude_modules": None,
        },
    }


def _attribute(spec: ModelSpec, name: str) -> Any:
    value = spec.flags[name] if name in spec.flags else getattr(spec, name)
    return dict(value) if isinstance(value, Dict) else value


def _find_family(config: Dict[str, Any]) -> Family:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str):
        raise UnsupportedModel("config.json names no architecture (key 'architectures')")
    family = family_of(name)
    if family is None:
        hint = f"Supported: {', '.join(architectures())} (see `trtbuild show families`)."
        raise UnsupportedModel(f"architecture {name} is not supported", hint=hint)
    return family


def _value(config: Dict[str, Any], key: Key, problems: list[str]) -> Any:
    """The value of one key, checked; `key.default` where it is absent or null."""
    name = next((n for n in key.names if config.get(n) is not None), None)
    if name is None:
        if key.default is REQUIRED:
            problems.append(f"{key.names[0]} is missing")
            return None
        return key.default
    value = config[name]
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right_kind = type(value) is key.kind
    if not right_kind or (key.kind in (int, float) and not value > 0):
        wanted = {int: "a positive integer", float: "a positive number", bool: "true or false", str: "a string"}
        problems.append(f"{name} is {value!r}; it must be {wanted[key.kind]}")
        return None if key.default is REQUIRED else key.default
    return value


def _demands(family: Family, config: Dict[str, Any]) -> list[str]:
    found = []
    for expect in family.expects:
        value = config.get(expect.name)
        if value is not None and value not in expect.allowed:
            allowed = ", ".join(repr(item) for item in expect.allowed)
            found.append(f"{expect.name} is {value!r}; supported: {allowed}")
    for refuse in family.refuses:
        value = config.get(refuse.name)
        if value:
            method = (
                f" (quant_method {value['quant_method']!r})"
                if isinstance(value, dict) and "quant_method" in value
                else ""
            )
            found.append(f"{refuse.name} is set{method}: {refuse.why}")
    return found


def _rope(
    family: Family, config: Dict[str, Any], base: float | None, problems: list[str]
) -> tuple[float | None, dict[str, Any] | None]:
    """(theta, scaling) from `rope_theta` + `rope_scaling`, or from `rope_parameters` of transformers 5."""
    both = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name)]
    if any(not isinstance(rope, dict) for rope in both):
        problems.append("rope_parameters or rope_scaling is not an object")
        return base, None
    if not both:
        return base, None
    rope = dict(both[0])
    theta = rope.pop("rope_theta", None)
    if theta is not None:
        base = _value({"rope_theta": theta}, Key(("rope_theta",), float, base), problems)
    if (partial := rope.pop("partial_rotary_factor", None)) is not None:
        problems += _demands(family, {"partial_rotary_factor": partial})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return base, None
    if kind not in family.rope_types:
        supported = ", ".join(("default", *family.rope_types))
        problems.append(f"rope_scaling type is {kind!r}; supported: {supported}")
        return base, None
    for name in _ROPE_FIELDS[kind]:
        wrong: list[str] = []
        _value(rope, Key((name,), float), wrong)
        problems += [f"rope_scaling: {problem}" for problem in wrong]
    return base, rope


def _derive(config: Dict[str, Any], values: dict[str, Any], problems: list[str]) -> None:
    """Fill in what Hugging Face leaves out: kv heads = heads, head size = hidden / heads."""
    heads, hidden = values.get("num_heads"), values.get("hidden_size")
    if not heads or not hidden:
        return
    values["num_kv_heads"] = values.get("num_kv_heads") or heads
    if heads % values["num_kv_heads"]:
        problems.append(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {values['num_kv_heads']}"
        )
    if not values.get("head_size"):
        if hidden % heads:
            problems.append(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is absent"
            )
        values["head_size"] = hidden // heads


def _dtype(config: Dict[str, Any], problems: list[str]) -> str:
    """Source dtype by config; float16 where it says nothing, as upstream assumes."""
    value = config.get("dtype") or config.get("torch_dtype") or "float16"
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        problems.append(f"torch_dtype is {value!r}; supported: {', '.join(DTYPES)}")
    return name
