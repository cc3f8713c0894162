"""Rules of names, shapes and dtypes: what a rank file must hold against what its header says. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from trtbuild.layout import DTYPES, TensorInfo
from trtbuild.lint import tables
from trtbuild.lint.expected import renamed
from trtbuild.lint.finding import ERROR, INFO, WARNING, Finding, find
from trtbuild.lint.forms import Expected
from trtbuild.mapping import Mapping

Headers = dict[str, TensorInfo]
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
_TABLE = "transformer.vocab_embedding.weight"
_NAMED = {code: name for name, code in DTYPES.items()}
_SCALES = {
    *("weights_scaling_factor", "weights_scaling_factor_2", "activation_scaling_factor", "prequant_scaling_factor"),
    *("per_channel_scale", "act_scale", "smoother", "zero"),
}
_NEAR = 40  # names compared for a typo; more of them are no typos
_ONE_RUN = "config.json and the rank files must come from one run with one layout."


def current_names(headers: Headers, rank: int) -> tuple[Headers, list[Finding]]:
    """Headers by the names of the 1.x classes, and what was renamed."""
    found, names = [], {}
    for name, info in headers.items():
        new = renamed(name)
        if new != name and new not in headers:
            found.append(find("tensor-renamed", name, new, name, "0.14's name; 1.x looks for the other.", rank))
            names[new] = info
        else:
            names[name] = info
    return names, found


def local_layers(headers: Headers, layers: range, rank: int) -> tuple[Headers, list[Finding]]:
    """Headers with layers counted from 0, and a finding where they are not, or are not as many as the stage has."""
    there = sorted({int(match[2]) for name in headers if (match := _LAYER.search(name))})
    where = "transformer.layers"
    if layers.start and there == list(layers):
        text = f"{there[0]} to {there[-1]}"
        hint = "Layer numbers are local to a pipeline stage."
        found = [find("layer-numbering", where, f"0 to {len(layers) - 1}", text, hint, rank)]
        local = {_LAYER.sub(lambda m: f"{m[1]}layers.{int(m[2]) - layers.start}.", n): i for n, i in headers.items()}
        return local, found
    if there and there != list(range(len(there))):
        text = ", ".join(map(str, there[:20]))
        return headers, [find("layer-numbering", where, "0, 1, 2, ... without gaps", text, "", rank)]
    if len(there) != len(layers):
        expected = f"{len(layers)} layers in this stage"
        return headers, [find("layer-count", where, expected, str(len(there)), _ONE_RUN, rank)]
    return headers, []


def compare(
    expected: Dict[str, Expected], headers: Headers, rank: int, config: Dict[str, Any], off: frozenset[str], layers: int
) -> list[Finding]:
    """Missing, extra, misshapen and mistyped tensors of one rank; `off`: names that config.json switches off."""
    extras = [n for n in headers if n not in expected and not any(fnmatchcase(n, p) for p in tables.BUFFERS)]
    missing = [name for name in expected if name not in headers]
    found = [_missing(name, expected, headers, extras, rank, config) for name in missing]
    for name in extras:
        layer = _LAYER.search(name)
        if layer and int(layer[2]) >= layers:
            continue  # layer-count says it once
        if name in off:
            text = "the tensor is there"
            hint = "The flag of that bias or norm in config.json is wrong, or the tensor does not belong there."
            found.append(find("tensor-unused", name, "no such tensor by config.json", text, hint, rank))
        elif _belongs_to_a_weight(name, headers, missing):
            # Leftover scales of an lm_head are dropped on load; of any other module the weights need them.
            severity = WARNING if name.startswith("lm_head.") else ERROR
            hint = "quantization in config.json says otherwise: without the scale the weight means something else."
            found.append(find("tensor-unused", name, "no scale by config.json", "a scale", hint, rank, severity))
        else:
            found.append(_extra(name, missing, rank))
    for name, item in expected.items():
        if name in headers:
            found += _tensor(item, headers[name], rank)
    return _one_dtype(found, expected, headers, rank, config)


def _belongs_to_a_weight(name: str, headers: Headers, missing: list[str]) -> bool:
    """Whether an extra tensor is a scale of a weight that is there, and not another form of one that is missing."""
    module, _, last = name.rpartition(".")
    return last in _SCALES and f"{module}.weight" in headers and not any(n.startswith(f"{module}.") for n in missing)


def generic(
    headers: Headers, mapping: Mapping, config: Dict[str, Any], sharded: int | None, plain: bool
) -> list[Finding]:
    """What holds of any decoder: shapes of qkv and the vocabulary, and dtypes where the weights are `plain`.

    `sharded`: dim of the vocabulary table that is cut, or None.
    """
    found = []
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv, tp = config.get("num_key_value_heads") or heads, mapping.tp_size
    size, vocab = config.get("head_size") or hidden // heads, -(-config["vocab_size"] // tp)
    table = (vocab if sharded == 0 else config["vocab_size"], hidden // tp if sharded == 1 else hidden)
    rows = (heads // tp + 2 * mapping.kv_heads(kv)) * size
    for name, info in headers.items():
        shapes = {"lm_head.weight": (vocab, hidden), _TABLE: table}
        wanted = (rows, hidden) if name.endswith(".attention.qkv.weight") and plain else shapes.get(name)
        if wanted and info.shape != wanted:
            found.append(find("tensor-shape", name, str(list(wanted)), str(list(info.shape)), _ONE_RUN, mapping.rank))
        kind = DTYPES[config["dtype"]]
        last = name.rsplit(".", 1)[-1]
        if plain and last in ("weight", "bias") and info.dtype != kind and "router" not in name:
            found.append(find("tensor-dtype", name, kind, info.dtype, "", mapping.rank))
    return found


def stage_findings(stages: Sequence[Dict[int, Headers]]) -> list[Finding]:
    """Ranks of one stage (rank -> headers) that differ in names, shapes or dtypes from the first of them."""
    found = []
    for stage in stages:
        first, *others = sorted(stage)
        base = {name: (info.dtype, info.shape) for name, info in stage[first].items()}
        for rank in others:
            own = {name: (info.dtype, info.shape) for name, info in stage[rank].items()}
            for name in sorted(base.keys() | own.keys()):
                if base.get(name) != own.get(name):
                    text = [f"{t[0]} {list(t[1])}" if t else "absent" for t in (base.get(name), own.get(name))]
                    found.append(find("ranks-differ", name, f"{text[0]}, as on rank {first}", text[1], _ONE_RUN, rank))
    return found


def _missing(
    name: str, expected: Dict[str, Expected], headers: Headers, extras: list[str], rank: int, config: Dict[str, Any]
) -> Finding:
    item = expected[name]
    text = f"{item.dtypes[0]} {list(item.shapes[0])}"
    if name == "lm_head.weight":
        tied = config.get("tie_word_embeddings") or config.get("share_embedding_table")
        table = headers.get(_TABLE)
        if tied and table and table.shape == item.shapes[0]:
            hint = "The build shares the table; an explicit copy is safer."
            return find("lm-head-missing", name, text, "absent, the embeddings are tied", hint, rank, INFO)
        hint = "Write it as a copy of the embedding: without it the engine's lm_head is random."
        if tied:
            return find(
                "lm-head-missing", name, text, "absent, and the table of this rank cannot stand for it", hint, rank
            )
    near = get_close_matches(name, extras, 1, 0.9) if len(extras) <= _NEAR else []
    hint = f"Is it {near[0]}?" if near else ""
    if not hint and name.endswith(("factor", "scale", "factor_2", ".zero", "smoother")):
        hint = "quant_algo does not match the stored tensors, or the layer was never calibrated."
        if (
            name.endswith("per_channel_scale")
            and name.replace("per_channel_scale", "weights_scaling_factor") in headers
        ):
            hint = "ModelOpt's int8 weight-only export does not load: store plain weights with quant_algo W8A16."
            return find("weight-only-modelopt", name, text, "absent; weights_scaling_factor is there", hint, rank)
        if name.startswith("lm_head."):
            hint = "Add lm_head to quantization.exclude_modules, or set it to null."
    return find("tensor-missing", name, text, "absent", hint, rank)


def _extra(name: str, missing: list[str], rank: int) -> Finding:
    near = get_close_matches(name, missing, 1, 0.9) if len(missing) <= _NEAR else []
    hint = f"Is it {near[0]}?" if near else "TensorRT-LLM leaves it out with a warning."
    return find("tensor-extra", name, "no such tensor", "it is there", hint, rank)


def _tensor(item: Expected, info: TensorInfo, rank: int) -> list[Finding]:
    found = []
    if info.shape not in item.shapes:
        text = " or ".join(str(list(shape)) for shape in item.shapes)
        severity = WARNING if info.shape in item.doubtful else ""
        found.append(find("tensor-shape", item.name, text, str(list(info.shape)), _why(item, info), rank, severity))
    if info.dtype not in item.dtypes:
        if info.dtype == "U8" and "I8" in item.dtypes:
            hint = "The loader tests for int8 and would skip these bytes: view them as int8."
            return [*found, find("weight-uint8", item.name, "I8", "U8", hint, rank)]
        hint = "Routers are float32 whatever the dtype." if item.name.endswith("router.weight") else ""
        if item.dtypes[0] in ("I8", "F8_E4M3") and info.dtype in _NAMED:
            hint = "It is stored unquantized: name it in exclude_modules, or quantize it."
        elif info.dtype in ("I8", "F8_E4M3") and item.name == "lm_head.weight":
            hint = "exclude_modules (or null) says that lm_head is not quantized."
        found.append(find("tensor-dtype", item.name, " or ".join(item.dtypes), info.dtype, hint, rank))
    return found


def _why(item: Expected, info: TensorInfo) -> str:
    """A guess at how a shape came about."""
    wanted = item.shapes[0]
    if info.shape == wanted[::-1] and len(wanted) == 2:
        return "It lies transposed."
    if item.name.endswith("qkv.weight") or item.name.endswith("qkv.bias"):
        return "Rows are (heads/tp + 2 ceil(kv heads/tp)) x head_size: look at heads and head_size. " + _ONE_RUN
    if item.name in ("lm_head.weight", "lm_head.bias", _TABLE) and info.shape[:1] != wanted[:1]:
        return "Rows are vocab_size, padded to a multiple of tp where they are cut; vocab_size stays unpadded."
    if len(wanted) == len(info.shape) and all(b % a == 0 for a, b in zip(wanted, info.shape, strict=True) if a):
        return "It seems to be cut among fewer ranks, or not at all. " + _ONE_RUN
    return _ONE_RUN


def _one_dtype(
    found: list[Finding], expected: Dict[str, Expected], headers: Headers, rank: int, config: Dict[str, Any]
) -> list[Finding]:
    """Where nearly all plain tensors have one other dtype, config.json is what is wrong: said once."""
    own = DTYPES[config["dtype"]]
    plain = [n for n, item in expected.items() if n in headers and item.job is not None and item.dtypes == (own,)]
    others = [headers[name].dtype for name in plain if headers[name].dtype != own]
    code = max(set(others), key=others.count) if others else ""
    if code not in _NAMED or others.count(code) < max(3, 0.9 * len(plain)):
        return found
    text = f"{_NAMED[code]} in {others.count(code)} of {len(plain)} tensors"
    head = find(
        "config-dtype", "dtype", f"the tensors in {config['dtype']}", text, f"Set dtype to {_NAMED[code]}?", rank
    )
    said = {name for name in plain if headers[name].dtype == code}
    return [head, *(f for f in found if not (f.rule == "tensor-dtype" and f.where in said))]
