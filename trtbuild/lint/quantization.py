"""Rules of config.json's `quantization` and of quant_cfg.json. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from trtbuild.lint import tables
from trtbuild.lint.config import is_kind, repr_of
from trtbuild.lint.finding import WARNING, Finding, find
from trtbuild.quantization import EXCLUDED, MIXED, whole_model


@dataclass(frozen=True)
class Quant:
    """How a checkpoint is quantized; `layers` (global module path -> its own) only for MIXED_PRECISION."""

    algo: str = ""
    kv_algo: str = ""
    group_size: int = 128
    pre_quant_scale: bool = False
    meta_recipe: bool = False
    exclude: tuple[str, ...] = EXCLUDED
    layers: Dict[str, Quant] = field(default_factory=dict)
    known: bool = True
    """False where trtbuild does not know the tensors of the algorithm."""

    def excludes(self, module: str) -> bool:
        return any(fnmatchcase(module, pattern) for pattern in self.exclude)

    @property
    def group_wise(self) -> bool:
        return "AWQ" in self.algo or "GPTQ" in self.algo


_FLAGS = {
    "W4A16_AWQ": {"has_zero_point": False},
    "W4A8_AWQ": {"has_zero_point": False, "pre_quant_scale": True},
    "W4A16_GPTQ": {"has_zero_point": True, "pre_quant_scale": False},
    "W8A16_GPTQ": {"has_zero_point": True, "pre_quant_scale": False},
}
_KINDS = {
    "quant_algo": "string",
    "kv_cache_quant_algo": "string",
    "group_size": "positive integer",
    "has_zero_point": "true or false",
    "pre_quant_scale": "true or false",
    "use_meta_recipe": "true or false",
    "smoothquant_val": "number",
    "exclude_modules": "list of strings",
}


def quantization_of(config: Dict[str, Any], quant_cfg: Any) -> tuple[Quant, list[Finding]]:
    """What config.json says (and quant_cfg.json: parsed, or a string that says why not, or None), and its findings."""
    given = config.get("quantization")
    if not isinstance(given, dict):
        return Quant(), []  # null is no quantization; anything else is a config-type
    found = [_unknown_key(key, "quantization.") for key in given if key not in tables.QUANT_KEYS]
    quant, more = _quant(given, "quantization.")
    found += more
    if quant.algo == "MIXED_PRECISION":
        layers, more = _layers(quant_cfg, quant.kv_algo)
        found += more
        layers = whole_model(layers, *_stages(config))
        known = bool(layers) and all(layer.algo in tables.LAYER_ALGOS for layer in layers.values())
        quant = Quant(quant.algo, quant.kv_algo, layers=layers, known=known, exclude=quant.exclude)
    excluded = given.get("exclude_modules")
    if excluded == []:
        hint = "Write null: since 1.x an empty list excludes nothing, and lm_head and routers need scales."
        found.append(find("exclude-modules", "quantization.exclude_modules", "null or a complete list", "[]", hint))
    elif excluded and is_kind(excluded, "list of strings") and quant.algo in ("W8A16", "W4A16"):
        named = all(any(fnmatchcase(name, p) for p in excluded) for name in ("lm_head", "transformer.vocab_embedding"))
        hint = "Write null: with a list, the embeddings and gates may be quantized on load."
        text = repr_of(excluded)
        severity = WARNING if named else ""
        found.append(find("exclude-modules", "quantization.exclude_modules", "null", text, hint, severity=severity))
    return quant, found


def combination_findings(quant: Quant, config: Dict[str, Any], severity: str) -> list[Finding]:
    """Algorithms that the classes refuse together with other fields; `severity`: of what only kernels refuse."""
    found = []
    where = "quantization.quant_algo"
    if quant.algo and quant.known and config.get("dtype") == "float32":
        text = f"float16 or bfloat16 with {quant.algo}"
        found.append(find("quantization-dtype", "dtype", text, "float32", severity=severity))
    experts = (config.get("moe") or {}).get("num_experts", 0) if isinstance(config.get("moe"), dict) else 0
    if experts and quant.algo == "FP8_PER_CHANNEL_PER_TOKEN":
        found.append(find("quantization-algo", where, "another algorithm", "FP8 rowwise with experts", "Use FP8."))
    if experts and quant.algo == "FP8" and config.get("mlp_bias"):
        found.append(find("quantization-algo", where, "no mlp_bias", "FP8 experts with bias"))
    return found


def _quant(given: Dict[str, Any], at: str) -> tuple[Quant, list[Finding]]:
    found = [
        find("config-type", f"{at}{key}", f"{kind} or null", repr_of(given[key]))
        for key, kind in _KINDS.items()
        if given.get(key) is not None and not is_kind(given[key], kind)
    ]
    algo, kv = (_text(given.get(key)) for key in ("quant_algo", "kv_cache_quant_algo"))
    known = algo in ("", *tables.CHECKED_ALGOS)
    if algo in tables.UNCHECKED_ALGOS:
        found.append(find("quantization-unchecked", f"{at}quant_algo", ", ".join(tables.CHECKED_ALGOS), algo,
                          "Only generic rules were applied to the tensors."))  # fmt: skip
    elif not known:
        found.append(_unknown_algo(algo, f"{at}quant_algo", (*tables.CHECKED_ALGOS, *tables.UNCHECKED_ALGOS)))
    if kv and kv not in tables.KV_ALGOS:
        found.append(_unknown_algo(kv, f"{at}kv_cache_quant_algo", tables.KV_ALGOS))
        kv = ""
    asked = given.get("group_size")
    group = int(asked) if asked is not None and is_kind(asked, "positive integer") else 128
    for key, wanted in _FLAGS.get(algo, {}).items():
        default = False
        value = given.get(key) if given.get(key) is not None else default
        if value != wanted and isinstance(value, bool):
            hint = f"{algo} stores {'' if wanted else 'no '}{'zero points' if 'zero' in key else 'prequant scales'}."
            found.append(find("quantization-field", f"{at}{key}", repr_of(wanted), repr_of(value), hint))
    allowed = {"W4A8_AWQ": (128,), "W4A16_AWQ": (64, 128), "W4A16_GPTQ": (64, 128), "W8A16_GPTQ": (64, 128)}.get(algo)
    if allowed and group not in allowed:
        text = " or ".join(map(str, allowed))
        found.append(find("quantization-field", f"{at}group_size", text, str(group), "No kernel has other groups."))
    listed = given.get("exclude_modules")
    exclude = tuple(listed) if listed and is_kind(listed, "list of strings") else EXCLUDED
    algo = "" if algo == "NO_QUANT" else algo
    quant = Quant(algo, kv, group, given.get("pre_quant_scale") is True, given.get("use_meta_recipe") is True, exclude,
                  known=known)  # fmt: skip
    return quant, found


def _stages(config: Dict[str, Any]) -> tuple[int, int]:
    """(pp_size, layers), (1, 0) where config.json has no sensible numbers."""
    mapping = config.get("mapping")
    pp: Any = mapping.get("pp_size") if isinstance(mapping, dict) else 1
    layers: Any = config.get("num_hidden_layers")
    sensible = is_kind(pp, "positive integer") and is_kind(layers, "positive integer")
    return (pp, layers) if sensible and pp <= layers <= tables.MAX_LAYERS else (1, 0)


def _layers(document: Any, kv_algo: str) -> tuple[dict[str, Quant], list[Finding]]:
    """Module path -> how it is quantized, from quant_cfg.json; `kv_algo`: the KV cache's in config.json."""
    hint = "MIXED_PRECISION reads the algorithm of each layer from it, beside config.json."
    if not isinstance(document, dict):
        text = "no such file" if document is None else repr_of(document)
        return {}, [find("quant-cfg", "quant_cfg.json", "an object", text, hint)]
    table = document.get("quantized_layers")
    if not isinstance(table, dict) or not table:
        return {}, [find("quant-cfg", "quant_cfg.json: quantized_layers", "an object", repr_of(table), hint)]
    layers: dict[str, Quant] = {}
    # TensorRT-LLM puts the whole document in the place of config.json's `quantization`.
    found = [
        find("quant-cfg", f"quant_cfg.json: {key}", repr_of(wanted), repr_of(document.get(key)), hint)
        for key, wanted, hint in (
            ("quant_algo", MIXED, "Else its layers count for nothing."),
            ("kv_cache_quant_algo", kv_algo or None, "config.json says the one, and TensorRT-LLM takes the other."),
        )
        if document.get(key) != wanted
    ]
    for module, given in table.items():
        at = f"quant_cfg.json: {module}."
        if not isinstance(given, dict):
            found.append(find("quant-cfg", at[:-1], "an object", repr_of(given), hint))
            continue
        found += [_unknown_key(key, at) for key in given if key not in tables.QUANT_KEYS]
        layers[module], more = _quant(given, at)
        found += more
    return layers, found


def _unknown_key(key: str, at: str) -> Finding:
    near = get_close_matches(key, tables.QUANT_KEYS, 1)
    hint = f"It is spelled {near[0]}." if near else "Remove it: trtllm-build ends in a TypeError."
    return find("quantization-key", at + key, "no such key", "it is there", hint)


def _unknown_algo(algo: str, where: str, allowed: tuple[str, ...]) -> Finding:
    upper = algo.upper()
    near = get_close_matches(upper, allowed, 1, 0.7)
    hint = tables.ALGO_HINTS.get(upper) or (f"It is spelled {near[0]}." if near else "")
    return find("quantization-algo", where, ", ".join(allowed), repr_of(algo), hint)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
