"""Hugging Face config.json -> ModelSpec, and ModelSpec -> TensorRT-LLM config.json. Knows no family by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

from trtbuild.checkpoint import quantized_source
from trtbuild.errors import CheckpointError, UnsupportedModel
from trtbuild.families import architectures, families_of
from trtbuild.families.rules import REQUIRED, Family, Key
from trtbuild.layout import DTYPES
from trtbuild.quantization import DEFAULTS
from trtbuild.spec import ConvertOptions, ModelSpec, resolved_dtype

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Numbers that each rope scaling type needs; values are copied verbatim into `rotary_scaling`. Yarn's original length
# has a default on both sides, but not the same one.
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": _LLAMA3,
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": (),
    "su": (),
}
_ROPE_REFUSED = {"dynamic": "TensorRT-LLM 1.2 means another formula by this name, with a fixed 'alpha'"}


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


def load_quant_config(folder: Path) -> dict[str, Any] | None:
    """Parse `folder`/hf_quant_config.json of NVIDIA ModelOpt, or None where there is none.

    Raises:
        CheckpointError: the file is unreadable or no JSON object.
    """
    path = folder / "hf_quant_config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def read_spec(config: Dict[str, Any]) -> tuple[Family, ModelSpec]:
    """The family and the spec of a Hugging Face config of a decoder-only or encoder-only model.

    Raises:
        UnsupportedModel: an unknown architecture, or values that cannot be honoured (all of them in one message).
    """
    return read_specs(config)[0]


def read_specs(config: Dict[str, Any]) -> list[tuple[Family, ModelSpec]]:
    """One (family, spec) for each checkpoint folder that a model becomes: two for an encoder-decoder model.

    Raises:
        UnsupportedModel: as `read_spec`.
    """
    name, families = _find_families(config)
    flat = flattened(config)
    problems = _contradictions(config)
    specs = [(family, _spec(family, family.architectures[name], flat, problems)) for family in families]
    if problems:
        problems = list(dict.fromkeys(problems))
        lines = "\n".join(f"  - {problem}" for problem in problems)
        head = "a value" if len(problems) == 1 else f"{len(problems)} values"
        raise UnsupportedModel(f"config.json has {head} that cannot be honoured:\n{lines}")
    return specs


def _spec(family: Family, architecture: str, config: Dict[str, Any], problems: list[str]) -> ModelSpec:
    fields: dict[str, Any] = {"architecture": architecture}
    fields |= {field: _value(config, key, problems) for field, key in family.keys.items()}
    problems += _demands(family, config, fields)
    if "rotary_scaling" not in fields and family.rope_types:
        fields["rotary_scaling"] = _rope_scaling(family, config, problems)
    _fill_sizes(fields, problems)
    act = fields["hidden_act"]
    if act not in family.activations:
        spellings = family.keys["hidden_act"].names
        name = "hidden_act" if "hidden_act" in spellings else spellings[0]
        problems.append(f"{name} is {act!r}; supported: {', '.join(sorted(family.activations))}")
    fields["hidden_act"] = family.activations.get(act, act)
    fields |= family.constants
    # A derive may count on the required fields; so its problems come together with the others.
    required = [fields[field] for field, key in family.keys.items() if key.default is REQUIRED]
    if family.derive is not None and None not in required:
        updates, found = family.derive(config, fields)
        fields |= updates
        problems += found
    return ModelSpec(fields, _dtype(config, problems))


def trtllm_config(family: Family, spec: ModelSpec, options: ConvertOptions, quant_algo: str | None) -> dict[str, Any]:
    """The config.json of a TensorRT-LLM checkpoint: global sizes, no per-rank values, no unknown nested keys."""
    moe_tp, moe_ep = options.moe_sizes
    return {
        **spec.config,
        "dtype": resolved_dtype(spec, options),
        "logits_dtype": "float32",
        "use_parallel_embedding": options.use_parallel_embedding,
        "embedding_sharding_dim": options.embedding_sharding_dim,
        # What 0.x wrote beside a missing lm_head; 1.x ignores it, and our checkpoints always hold lm_head.
        "share_embedding_table": spec.tied_embeddings and (options.use_embedding_sharing or family.parallel_embedding),
        # Both dicts are splatted into constructors there: a key more is a TypeError.
        "mapping": {
            "world_size": options.world_size,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": options.tp_size,
            "pp_size": options.pp_size,
            "moe_tp_size": moe_tp,
            "moe_ep_size": moe_ep,
        },
        "quantization": {**DEFAULTS, "quant_algo": quant_algo},
    }


def flattened(config: Dict[str, Any]) -> dict[str, Any]:
    """A config in the older of its two spellings: `rope_parameters` of transformers 5 taken apart.

    They become rope_theta, rope_scaling and partial_rotary_factor; where layers differ (Gemma 3), the full attention's,
    and the local layers' theta as rope_local_base_freq. A `text_config` (multi-modal models) takes the place of the
    whole; a rope_scaling of type default is dropped.
    """
    inner = config.get("text_config")
    flat = dict(config)
    if isinstance(inner, Dict):
        flat |= {key: value for key, value in inner.items() if value is not None or key not in config}
    if isinstance(flat.get("rope_parameters"), Dict) and flat["rope_parameters"]:
        rope = dict(flat["rope_parameters"])
        local = rope.pop("sliding_attention", None)
        if isinstance(local, Dict):
            flat.setdefault("rope_local_base_freq", local.get("rope_theta"))
        rope = dict(rope.pop("full_attention", rope))
        flat |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}
        flat["rope_scaling"] = rope
    scaling = flat.get("rope_scaling")
    if isinstance(scaling, Dict) and (scaling.get("rope_type") or scaling.get("type") or "default") == "default":
        flat["rope_scaling"] = None
    return flat


def _contradictions(config: Dict[str, Any]) -> list[str]:
    """Where both spellings of rope are there, transformers 5 reads the old one, and `flattened` the new one."""
    inner = config.get("text_config")
    both = {**config, **inner} if isinstance(inner, Dict) else config
    old, new = both.get("rope_scaling"), both.get("rope_parameters")
    if not isinstance(old, Dict) or not isinstance(new, Dict) or not old or not new:
        return []
    new = new.get("full_attention", new)
    alias = {"type": "rope_type", "rope_type": "type"}
    if all(value in (new.get(key), new.get(alias.get(key, key))) for key, value in old.items()):
        return []
    return ["rope_scaling and rope_parameters say different things; remove one"]


def _find_families(config: Dict[str, Any]) -> tuple[str, tuple[Family, ...]]:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str):
        raise UnsupportedModel("config.json names no architecture (key 'architectures')")
    families = families_of(name)
    if not families:
        hint = f"Supported: {', '.join(architectures())} (see `trtbuild show families`)."
        raise UnsupportedModel(f"architecture {name} is not supported", hint=hint)
    return name, families


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
    if not right_kind or (key.kind in (int, float) and not (value > 0 or (key.zero and value == 0))):
        wanted = {int: "a positive integer", float: "a positive number", bool: "true or false", str: "a string"}
        wanted |= {list: "a list", dict: "an object"}
        problems.append(f"{name} is {value!r}; it must be {wanted[key.kind]}")
        return None if key.default is REQUIRED else key.default
    return value


def _demands(family: Family, config: Dict[str, Any], fields: Dict[str, Any]) -> list[str]:
    found = []
    for multiple in family.multiples:
        value, base = config.get(multiple.name), fields.get(multiple.of)
        if value is not None and base is not None and value != multiple.times * base:
            times = f"{multiple.times} x " if multiple.times > 1 else ""
            why = f" ({multiple.why})" if multiple.why else ""
            found.append(
                f"{multiple.name} is {value!r}; supported: {times}{multiple.of} = {multiple.times * base}{why}"
            )
    for expect in family.expects:
        value = config.get(expect.name)
        if value is not None and value not in expect.allowed:
            allowed = ", ".join(repr(item) for item in expect.allowed)
            why = f" ({expect.why})" if expect.why else ""
            found.append(f"{expect.name} is {value!r}; supported: {allowed}{why}")
    for refuse in family.refuses:
        value = config.get(refuse.name)
        if value and refuse.name == quantized_source.KEY and not quantized_source.unreadable(value):
            continue
        if value:
            method = (
                f" (quant_method {value['quant_method']!r})"
                if isinstance(value, dict) and "quant_method" in value
                else ""
            )
            reason = f" ({quantized_source.unreadable(value)})" if refuse.name == quantized_source.KEY else ""
            found.append(f"{refuse.name} is set{method}: {refuse.why}{reason}")
    return found


def _rope_scaling(family: Family, config: Dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """`rotary_scaling`: the source's rope_scaling word for word, where its type is one that the family takes."""
    rope = config.get("rope_scaling")
    if not rope:
        return None
    if not isinstance(rope, Dict):
        problems.append("rope_parameters or rope_scaling is not an object")
        return None
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in family.rope_types:
        supported = ", ".join(("default", *family.rope_types))
        why = f" ({_ROPE_REFUSED[kind]})" if kind in _ROPE_REFUSED else ""
        problems.append(f"rope_scaling type is {kind!r}; supported: {supported}{why}")
        return None
    wrong: list[str] = []
    for name in _ROPE_FIELDS[kind]:
        _value(rope, Key((name,), float), wrong)
    if kind == "yarn":
        wrong += _yarn_problems(rope) if not wrong else []
    problems += [f"rope_scaling: {problem}" for problem in wrong]
    # TensorRT-LLM looks at `type` first, and takes a null for a value.
    found = {name: value for name, value in rope.items() if value is not None}
    return found | ({"type": kind} if "type" in found else {})


def _yarn_problems(rope: Dict[str, Any]) -> list[str]:
    """Where the yarn of TensorRT-LLM (RopeEmbeddingUtils) is not the one of transformers (modeling_rope_utils)."""
    found: list[str] = []
    factor, given, mscale, all_dim = (
        _value(rope, Key((name,), float, None, zero=True), found)
        for name in ("factor", "attention_factor", "mscale", "mscale_all_dim")
    )
    if rope.get("truncate") is False:
        found.append("truncate is False; TensorRT-LLM always rounds the range of the ramp")
    if found:
        return found

    def magnitude(weight: float) -> float:
        return 1 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0

    theirs = magnitude(1.0 if mscale is None else mscale) / magnitude(all_dim or 0.0)
    ours = magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)
    ours = ours if given is None else given
    if not math.isclose(ours, theirs, rel_tol=1e-6):
        found.append(
            f"the model's attention factor is {ours:g}, but TensorRT-LLM, which knows only factor, mscale and "
            f"mscale_all_dim, would make it {theirs:g}"
        )
    return found


def _fill_sizes(fields: dict[str, Any], problems: list[str]) -> None:
    """Fill in what Hugging Face leaves out: kv heads = heads, head size = hidden / heads, FFN = 4 x hidden."""
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    if not heads or not hidden:
        return
    fields["intermediate_size"] = fields.get("intermediate_size") or 4 * hidden
    fields["num_key_value_heads"] = kv_heads = fields.get("num_key_value_heads") or heads
    if heads % kv_heads:
        problems.append(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if not fields.get("head_size"):
        if hidden % heads:
            problems.append(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is absent"
            )
        fields["head_size"] = hidden // heads


def _dtype(config: Dict[str, Any], problems: list[str]) -> str:
    """Source dtype by config; float16 where it says nothing, as upstream assumes."""
    value = config.get("dtype") or config.get("torch_dtype") or "float16"
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        problems.append(f"torch_dtype is {value!r}; supported: {', '.join(DTYPES)}")
    return name
