"""Rules of config.json alone: fields, types, words, mapping. PURE: a parsed object in, findings out."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from difflib import get_close_matches
from typing import Any

from trtbuild.families.rules import REQUIRED as MUST
from trtbuild.families.rules import Family
from trtbuild.layout import DTYPES
from trtbuild.lint import tables
from trtbuild.lint.finding import INFO, WARNING, Finding, find
from trtbuild.spec import ConvertOptions

_NEEDED = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_KINDS: dict[str, str] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"), "positive integer"),
    **dict.fromkeys(("num_key_value_heads", "head_size", "intermediate_size"), "positive integer"),
    **dict.fromkeys(("max_position_embeddings", "num_buckets", "type_vocab_size", "num_labels"), "positive integer"),
    **dict.fromkeys(("moe_intermediate_size", "moe_shared_expert_intermediate_size"), "integer of at least 0"),
    **dict.fromkeys(("norm_epsilon", "rotary_base", "rotary_emb_base", "rotary_pct"), "positive number"),
    **dict.fromkeys(("use_parallel_embedding", "share_embedding_table", "tie_word_embeddings"), "true or false"),
    **dict.fromkeys(("attn_bias", "mlp_bias", "bias", "qk_layernorm", "is_pruned"), "true or false"),
    **dict.fromkeys(("architecture", "dtype", "logits_dtype", "hidden_act", "position_embedding_type"), "string"),
    **dict.fromkeys(("mapping", "quantization", "moe", "rotary_scaling"), "object"),
    "max_attention_window": "list of positive integers",
}
_OF_KEY = {int: "positive integer", float: "number", bool: "true or false", str: "string", dict: "object", list: "list"}
_STRUCTURE = ("moe", "num_key_value_heads", "head_size", "intermediate_size", "max_position_embeddings", *_NEEDED[2:])
_ONE_RUN = "config.json and the rank files must come from one run of one converter"


def is_kind(value: Any, kind: str) -> bool:
    """Whether a JSON value is what `_KINDS` says in words."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    tests = {
        "positive integer": whole and value > 0,
        "integer of at least 0": whole and value >= 0,
        "integer": whole,
        "number": number and value == value,
        "positive number": number and value > 0 and value != float("inf"),
        "true or false": isinstance(value, bool),
        "string": isinstance(value, str),
        "object": isinstance(value, dict),
        "list": isinstance(value, list),
        "list of strings": isinstance(value, list) and all(isinstance(item, str) for item in value),
        "list of positive integers": isinstance(value, list)
        and all(is_kind(item, "positive integer") for item in value),
    }
    return bool(tests[kind])


def field_findings(config: Dict[str, Any], family: Family | None) -> list[Finding]:
    """Absent fields, wrong types, unknown words, fields that must not be there."""
    architecture = config.get("architecture")
    name = architecture if isinstance(architecture, str) else ""
    needed = [*_NEEDED, *tables.REQUIRED.get(name, ())]
    needed += [field for field, key in family.keys.items() if key.default is MUST] if family else []
    needed += tables.LONG_ROPE if config.get("position_embedding_type") == "long_rope" else ()
    found = [
        find("config-missing", field, "a value", "nothing" if field not in config else "null", _ONE_RUN)
        for field in dict.fromkeys(needed)
        if config.get(field) is None
    ]
    found += [
        find("config-missing", field, "a value: TensorRT-LLM 1.x reads it", "nothing", severity=INFO)
        for field in tables.READ_LATER.get(name, ())
        if field not in config
    ]
    found += [
        find("config-missing", field, "a value", f"nothing: TensorRT-LLM then assumes {default}", severity=WARNING)
        for field, default in (("hidden_act", "gelu"), ("position_embedding_type", "learned_absolute"))
        if config.get(field) is None
    ]
    kinds = dict(_KINDS)
    for field, key in family.keys.items() if family else ():
        kinds.setdefault(field, "integer of at least 0" if key.zero and key.kind is int else _OF_KEY[key.kind])
    for field, kind in kinds.items():
        value = config.get(field)
        if value is not None and not is_kind(value, kind):
            found.append(find("config-type", field, kind, repr_of(value)))
    return [*found, *_word_findings(config), *_forbidden(config), *_rope_findings(config)]


def family_findings(config: Dict[str, Any], family: Family) -> list[Finding]:
    """Fields whose value this family always writes differently."""
    found = []
    for field, value in family.constants.items():
        there = config.get(field, value)
        if there != value and there is not None:
            rule = "config-value" if field == "position_embedding_type" else "config-family"
            hint = f"checkpoints of {config['architecture']} always have that"
            found.append(find(rule, field, repr_of(value), repr_of(there), hint))
    acts = {*family.activations.values(), family.constants.get("hidden_act")}
    act = config.get("hidden_act")
    if isinstance(act, str) and act in tables.ACTIVATIONS and act not in acts and not config.get("moe"):
        expected = " or ".join(sorted(name for name in acts if name))
        found.append(find("config-family", "hidden_act", expected, act, f"of {config['architecture']}"))
    return found


def mapping_of(config: Dict[str, Any]) -> tuple[ConvertOptions | None, list[Finding]]:
    """(layout of the rank files, findings); None where the sizes make no sense. Files lie as with cp_size 1."""
    mapping = config.get("mapping")
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        return None, []  # config-type says so
    found = [_mapping_key(key) for key in mapping if key not in tables.MAPPING_KEYS]
    sizes: dict[str, int] = {}
    for key in sorted(tables.MAPPING_KEYS):
        value = mapping.get(key)
        moe = key.startswith("moe")
        if value is None or (moe and value == -1):
            continue
        if not is_kind(value, "positive integer"):
            found.append(find("config-type", f"mapping.{key}", "positive integer", repr_of(value)))
        else:
            sizes[key] = value
    if any(finding.rule == "config-type" for finding in found):
        return None, found
    tp, pp, cp = (sizes.get(f"{name}_size", 1) for name in ("tp", "pp", "cp"))
    world = sizes.get("world_size", 1)
    if world != tp * pp * cp:
        expected = f"{tp * pp * cp} (tp {tp} x pp {pp} x cp {cp})"
        found.append(find("mapping-world-size", "mapping.world_size", expected, str(world), _ONE_RUN))
    if cp > 1:
        found.append(find("mapping-cp", "mapping.cp_size", "1", str(cp), "Convert without context parallelism."))
    if tp * pp > tables.MAX_WORLD:
        found.append(find("config-too-large", "mapping", f"at most {tables.MAX_WORLD} ranks", str(tp * pp)))
        return None, found
    moe_tp, moe_ep = sizes.get("moe_tp_size"), sizes.get("moe_ep_size")
    ep = moe_ep or (tp // moe_tp if moe_tp else 1)
    if (moe_tp or tp // max(ep, 1)) * ep != tp:
        text = f"moe_tp_size {moe_tp or 'unset'} x moe_ep_size {moe_ep or 'unset'}"
        found.append(find("mapping-moe", "mapping.moe_ep_size", f"a product of {tp} (tp_size)", text))
        moe_tp = moe_ep = None
    parallel, dim = config.get("use_parallel_embedding") or False, config.get("embedding_sharding_dim") or 0
    if not is_kind(dim, "integer") or dim not in (0, 1):
        found.append(find("config-value", "embedding_sharding_dim", "0 (vocabulary) or 1 (hidden)", repr_of(dim)))
        dim = 0
    return ConvertOptions(tp, pp, "auto", "none", "tensorrt", parallel is True, dim, False, moe_tp, moe_ep), found


def structure_ok(config: Dict[str, Any], family: Family | None) -> bool:
    """Whether the fields that make up shapes are there and right, so that arithmetic on them cannot fail."""
    if any(config.get(field) is None for field in _NEEDED):
        return False
    kinds = {field: kind for field, kind in _KINDS.items() if field in _STRUCTURE or field.endswith("_size")}
    kinds |= {"num_buckets": "positive integer", "num_labels": "positive integer", "architecture": "string"}
    kinds |= {field: _OF_KEY[key.kind] for field, key in (family.keys if family else {}).items() if key.kind is bool}
    for field, kind in kinds.items():
        value = config.get(field)
        if value is not None and not is_kind(value, kind):
            return False
    experts = (config.get("moe") or {}).get("num_experts", 0)
    return is_kind(experts, "integer of at least 0") and config.get("dtype") in tuple(DTYPES)


def size_findings(config: Dict[str, Any], options: ConvertOptions) -> list[Finding]:
    """Sizes beyond any model, for which nothing is computed. Call where `structure_ok`."""
    found = []
    layers, experts = config["num_hidden_layers"], (config.get("moe") or {}).get("num_experts", 0)
    for field, value, limit in (
        ("num_hidden_layers", layers, tables.MAX_LAYERS),
        ("moe.num_experts", experts, tables.MAX_EXPERTS),
        ("num_attention_heads", config["num_attention_heads"], tables.MAX_LAYERS),
    ):
        if value > limit:
            found.append(find("config-too-large", field, f"at most {limit}", repr_of(value)))
    if not found and layers * options.tp_size * max(1, experts) * 16 > tables.MAX_JOBS:
        text = f"{layers} layers x {experts} experts on {options.tp_size} ranks"
        found.append(find("config-too-large", "num_hidden_layers", "sizes of a model", text))
    return found


def repr_of(value: Any) -> str:
    """A JSON value for people, in one line of bounded length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _word_findings(config: Dict[str, Any]) -> list[Finding]:
    found = []
    for field, allowed in (
        ("dtype", tuple(DTYPES)),
        ("logits_dtype", ("float32", "float16", "bfloat16")),
        ("hidden_act", tables.ACTIVATIONS),
        ("position_embedding_type", tables.POSITION_TYPES),
    ):
        value = config.get(field)
        if isinstance(value, str) and value not in allowed:
            near = tables.SPELLED.get(value) or "".join(get_close_matches(value, allowed, 1))
            hint = f"Write {near!r}." if near else ""
            found.append(find("config-value", field, ", ".join(sorted(allowed)), value, hint))
    moe = config.get("moe")
    if isinstance(moe, dict):
        experts, top = moe.get("num_experts", 0), moe.get("top_k", 0)
        for key, value in (("num_experts", experts), ("top_k", top)):
            if not is_kind(value, "integer of at least 0"):
                found.append(find("config-type", f"moe.{key}", "integer of at least 0", repr_of(value)))
                return found
        if bool(experts) != bool(top) or top > experts:
            text = f"num_experts {experts}, top_k {top}"
            found.append(find("moe-config", "moe", "num_experts and top_k <= num_experts, or both 0", text))
    return found


def _forbidden(config: Dict[str, Any]) -> list[Finding]:
    found = []
    if config.get("rope_scaling"):
        hint = "TensorRT-LLM ignores it under that name: long texts degrade without an error. Write rotary_scaling."
        found.append(find("config-forbidden", "rope_scaling", "rotary_scaling", "rope_scaling", hint))
    if config.get("is_pruned"):
        hint = "Remove it: wrongly shaped weights would be taken as dummies."
        found.append(find("config-forbidden", "is_pruned", "no such field", repr_of(config["is_pruned"]), hint))
    for field, (value, hint) in tables.MEANING.items():
        if config.get(field, value) not in (value, None):
            found.append(find("config-forbidden", field, repr_of(value), repr_of(config[field]), hint))
    return found


def _rope_findings(config: Dict[str, Any]) -> list[Finding]:
    rope = config.get("rotary_scaling")
    found = _long_rope_findings(config)
    if not isinstance(rope, dict):
        return found
    kind = rope.get("rope_type") or rope.get("type")
    if not isinstance(kind, str):
        hint = "Copy rope_scaling of the Hugging Face config.json word for word."
        return [*found, find("rope-scaling", "rotary_scaling", "a type (rope_type or type)", repr_of(kind), hint)]
    fields: tuple[str, ...] = () if kind in ("default", "longrope", "su", "mrope") else ("factor",)
    if kind == "llama3":
        fields += ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    found += [
        find("rope-scaling", f"rotary_scaling.{name}", f"positive number (type {kind})", repr_of(rope.get(name)))
        for name in fields
        if not is_kind(rope.get(name), "positive number")
    ]
    return found


def _long_rope_findings(config: Dict[str, Any]) -> list[Finding]:
    """Factors of long rope: one positive number for each pair of rotary channels."""
    found = []
    whole = _rotary_channels(config)
    for field in tables.LONG_ROPE[1:]:
        factors = config.get(field)
        if factors is None:
            continue
        if not isinstance(factors, list) or not all(is_kind(item, "positive number") for item in factors):
            found.append(find("rope-scaling", field, "list of positive numbers", repr_of(factors)))
        elif whole and len(factors) != whole // 2:
            found.append(find("rope-scaling", field, f"{whole // 2} numbers", f"{len(factors)}"))
    return found


def _rotary_channels(config: Dict[str, Any]) -> int:
    """Channels of a head that rope turns; 0 where the fields that say so are wrong."""
    heads, hidden, size = (config.get(name) for name in ("num_attention_heads", "hidden_size", "head_size"))
    if size is None and is_kind(heads, "positive integer") and is_kind(hidden, "positive integer"):
        size = int(hidden or 0) // int(heads or 1)
    part, own = config.get("rotary_pct", 1.0), config.get("rotary_embedding_dim")
    if is_kind(own, "positive integer"):
        return int(own or 0)
    right = is_kind(size, "positive integer") and is_kind(part, "positive number") and part <= 1
    # A size that is no float would overflow, and no head has that many channels.
    return int(int(size or 0) * part) if right and int(size or 0) < 2**31 else 0


def _mapping_key(key: str) -> Finding:
    where = f"mapping.{key}"
    if key in tables.MAPPING_LATER:
        hint = "Some releases only know it, or it is set per rank on load: leave it out."
        return find("mapping-key", where, "no such key", "it is there", hint, severity=WARNING)
    near = get_close_matches(key, tables.MAPPING_KEYS, 1)
    hint = f"It is spelled {near[0]}." if near else "Remove it: trtllm-build ends in a TypeError."
    return find("mapping-key", where, "no such key", "it is there", hint)
