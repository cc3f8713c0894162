"""Whether a model fits the options: tp, pp, experts, method, group size. PURE: sentences and integers.

Every check says all that is wrong, with the values, and what works instead; `plan.py` asks them together.
"""

from __future__ import annotations

import re
from dataclasses import replace

from trtbuild.errors import PlanError, some
from trtbuild.families.rules import Family, Rule
from trtbuild.fields import HEAD, NORMS, Quantized, shard_fields
from trtbuild.layout import DTYPES, Axis, Split, Stage
from trtbuild.mixed import Choice, Choices, choices_of, mixture_problems, unknown_methods
from trtbuild.quantization import DATA_CENTER_BLACKWELL, KV_LEAST_SM, KV_NOT_ON_BLACKWELL, LEAST_SM, NOT_ON_BLACKWELL
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import cut_axes, rank_mapping, rules_of, shares, window
from trtbuild.spec import KV_CACHES, TARGETS, ConvertOptions, ModelSpec

_LAYER = re.compile(r"\.layers\.\d+\.")


def option_problems(options: ConvertOptions) -> list[str]:
    found = [
        f"{name} must be at least 1, not {size}"
        for name, size in (
            ("tp", options.tp_size),
            ("pp", options.pp_size),
            ("moe_tp", options.moe_tp_size),
            ("moe_ep", options.moe_ep_size),
        )
        if size is not None and size < 1
    ]
    if options.quant not in METHODS:
        found.append(f"unknown quantization {options.quant!r}; supported: {', '.join(METHODS)}")
    found += unknown_methods(options)
    if options.dtype not in ("auto", *DTYPES):
        found.append(f"unknown dtype {options.dtype!r}; supported: auto, {', '.join(DTYPES)}")
    if options.kv_cache not in KV_CACHES:
        found.append(f"unknown KV cache {options.kv_cache!r}; supported: {', '.join(KV_CACHES)}")
    if options.target not in TARGETS:
        found.append(f"target {options.target!r} is not supported; supported: {', '.join(TARGETS)}")
    if options.embedding_sharding_dim not in (0, 1):
        found.append(
            f"embedding_sharding_dim must be 0 (vocabulary) or 1 (hidden), not {options.embedding_sharding_dim}"
        )
    return found


def layout_problems(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[str]:
    """Axes that the ranks cannot share, with the values of tp that work; stages that pp leaves empty."""
    tp, pp = options.tp_size, options.pp_size
    moe_tp, moe_ep = options.moe_sizes
    asked = options.moe_tp_size is not None or options.moe_ep_size is not None
    if asked and not spec.num_experts:
        return [f"moe_tp and moe_ep share experts among ranks, but {spec.architecture} has none"]
    if moe_tp * moe_ep != tp:
        return [f"moe_tp {moe_tp} x moe_ep {moe_ep} is not tp {tp}"]
    found = []
    uncut = uncut_axes(family, spec, options)
    works = [t for t in range(1, spec.num_heads + 1) if uncut and not uncut_axes(family, spec, _other_tp(options, t))]
    for name, count, axis, units in uncut:
        if name == "moe_ep":
            hint = _working(name, [size for size in range(1, tp + 1) if tp % size == 0 and units % size == 0])
        else:
            hint = _working("tp", works)
        found.append(f"{name} {count} does not divide {units} {axis.value}; {hint}")
    if pp > spec.num_layers:
        found.append(f"pp {pp} is more than the {spec.num_layers} layers; at most pp {spec.num_layers} works")
    if pp > 1 and not family.pipeline:
        found.append(f"TensorRT-LLM cannot cut {spec.architecture} into pipeline stages; use pp 1")
    if tp > 1 and not family.tensor:
        found.append(f"TensorRT-LLM cannot cut {spec.architecture} into tensor-parallel ranks; use tp 1")
    names = {options.quant, *(layer.method for layer in options.quant_layers)}
    if any(METHODS[name].quant_algo for name in names) and not family.quantization:
        found.append(f"TensorRT-LLM has no quantized form of {spec.architecture}; leave --quant out")
    if options.kv_cache_algo and not family.quantization:
        found.append(f"trtbuild has no quantized KV cache for {spec.architecture}; leave --kv-cache out")
    if options.use_parallel_embedding and all(rule.split is not Split.EMBED for rule in family.rules):
        found.append(
            f"every rank of {spec.architecture} holds its embeddings whole; leave --use-parallel-embedding out"
        )
    if family.parallel_embedding and tp > 1:
        found += _forced_embedding_problems(spec, options)
    return found


def _working(name: str, sizes: list[int]) -> str:
    """ "tp 1, 2 or 4 works"."""
    if not sizes:
        return f"no {name} works"
    *most, last = (str(size) for size in sizes)
    return f"{name} {', '.join(most)} or {last} works" if most else f"only {name} {last} works"


def _other_tp(options: ConvertOptions, tp: int) -> ConvertOptions:
    """The options with another tp; how experts are shared follows only where it was left open."""
    return replace(options, tp_size=tp)


def _forced_embedding_problems(spec: ModelSpec, options: ConvertOptions) -> list[str]:
    found = []
    if options.embedding_sharding_dim:
        found.append(f"{spec.architecture} shards its vocabulary table by rows: embedding_sharding_dim must be 0")
    if spec.vocab_size % options.tp_size:
        found.append(
            f"tp {options.tp_size} does not divide {spec.vocab_size} tokens of the vocabulary, "
            f"which {spec.architecture} shards without padding"
        )
    return found


def uncut_axes(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[tuple[str, int, Axis, int]]:
    """(tp or moe_tp or moe_ep, its size, axis, units) of each axis that the ranks cannot share.

    Kv heads may also be repeated evenly (grouped-query attention).
    """
    moe_tp, moe_ep = options.moe_sizes
    if moe_tp * moe_ep != options.tp_size:
        return [("moe_tp x moe_ep", moe_tp * moe_ep, Axis.EXPERTS, spec.num_experts)]
    mapping = rank_mapping(options)
    cuts: dict[tuple[str, int, Axis], None] = {}
    for rule in rules_of(family, spec):
        count, _ = shares(rule, mapping)
        name = "moe_tp" if rule.experts and moe_ep > 1 else "tp"
        cuts |= dict.fromkeys((name, count, axis) for axis in cut_axes(rule, options))
        if rule.experts:
            cuts["moe_ep", mapping.moe_ep_size, Axis.EXPERTS] = None
    result = []
    for name, count, axis in cuts:
        units, _ = spec.axis(axis)
        repeated = axis is Axis.KV and count % units == 0
        if units % count and not repeated:
            result.append((name, count, axis, units))
    return result


def quant_problems(family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the methods; for other targets, what TensorRT-LLM's classes demand only warns."""
    choices = choices_of(family, spec, options)
    problems, warnings = mixture_problems(family, spec, options, choices)
    problems += _head_problems(family, spec, options, choices)
    problems += _gpu_problems(options, choices)
    for choice in {choice.label: choice for choice in choices.values()}.values():
        modules = {module for module, own in choices.items() if own == choice}
        problems += _field_problems(family, spec, options, dtype, choice, modules)
        demands = _demands(family, spec, options, dtype, choice, modules)
        problems += demands if options.target == "tensorrt" else []
        warnings += demands if options.target != "tensorrt" else []
    return problems, warnings


def _gpu_problems(options: ConvertOptions, choices: Choices) -> list[str]:
    """Methods and a KV cache that the GPU which was named cannot run."""
    if options.sm is None:
        return []
    needs = {method.name: LEAST_SM.get(method.quant_algo or "", 0) for method in METHODS.values()}
    asked = {choice.method.name: needs[choice.method.name] for choice in choices.values()}
    cache = f"a KV cache of {options.kv_cache}"
    found = {**asked, cache: KV_LEAST_SM.get(options.kv_cache_algo or "", 0)}
    refused = {method.name for method in METHODS.values() if _on_blackwell(method.quant_algo, options.sm)}
    works = ", ".join(
        name
        for name, least in needs.items()
        if least <= options.sm and name not in {"none", *refused} and not METHODS[name].imported
    )
    no_kernels = [name for name in asked if name in refused]
    if options.sm in DATA_CENTER_BLACKWELL and options.kv_cache_algo in KV_NOT_ON_BLACKWELL:
        no_kernels.append(cache)
    return [
        f"trtllm-build refuses {name} on SM 100 to 119, and SM {options.sm} was named; {works} and a KV cache of fp8 "
        "run there"
        for name in no_kernels
    ] + [
        f"{name} needs fp8 tensor cores (SM {least} or newer), and SM {options.sm} was named; --sm {least} or no --sm "
        f"is for another GPU, and {'a KV cache of int8 runs' if name == cache else f'{works} run'} on SM {options.sm}"
        for name, least in found.items()
        if options.sm < least
    ]


def _on_blackwell(quant_algo: str | None, sm: int) -> bool:
    return sm in DATA_CENTER_BLACKWELL and quant_algo in NOT_ON_BLACKWELL


def _head_problems(family: Family, spec: ModelSpec, options: ConvertOptions, choices: Choices) -> list[str]:
    """What speaks against quantizing lm_head."""
    choice = choices.get(HEAD)
    if choice is None:
        return []
    out = "leave --quantize-lm-head out"
    if all(rule.target != f"{HEAD}.weight" for rule in rules_of(family, spec, Stage.LAST)):
        return [f"{spec.architecture} has no lm_head; {out}"]
    found = []
    if choice.method.name == "none":
        found.append(f"lm_head has no method; say --quant-layer {HEAD}=METHOD, or {out}")
    elif not choice.method.fields or not choice.method.head:
        found.append(f"TensorRT-LLM has no {choice.method.name} for lm_head; {out}")
    if options.use_embedding_sharing:
        found.append(
            "--use-embedding-sharing makes lm_head the table, which stays plain; leave it or --quantize-lm-head out"
        )
    return found


def _demands(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, choice: Choice, modules: set[str]
) -> list[str]:
    """What TensorRT-LLM's classes of a method demand of the dtype, and of both dims of its linears."""
    method = choice.method
    found = []
    if dtype not in method.dtypes:
        found.append(f"{method.name} in TensorRT-LLM needs dtype {' or '.join(method.dtypes)}, not {dtype}")
    multiple = max(method.dim_multiple, choice.group_size if method.group_sizes else 0) * options.tp_size
    for rule in rules_of(family, spec) if multiple else ():
        if rule.split not in (Split.COLUMN, Split.ROW, Split.VOCAB) or not rule.sources[0].cols:
            continue
        if modules.isdisjoint(rule.target.format(i=i).removesuffix(".weight") for i in range(spec.num_layers)):
            continue
        shape = (_out_features(rule, spec, options.tp_size), spec.size(rule.sources[0].cols))
        if any(size % multiple for size in shape):
            name = rule.target.replace("transformer.layers.{i}.", "").removesuffix(".weight")
            need = f"multiples of {method.dim_multiple} x tp = {multiple}"
            found.append(f"{method.name} in TensorRT-LLM needs both dims of {name} {list(shape)} to be {need}")
    return found


def _field_problems(
    family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, choice: Choice, modules: set[str]
) -> list[str]:
    """What a method's numbers themselves cannot do, whatever the target: groups that do not divide, experts."""
    method = choice.method
    if not method.fields:
        return []
    odd = [norm for norm in _layer_norms(family, spec) if norm not in NORMS]
    if method.norm_scales and odd:
        return [f"TensorRT-LLM's form of {method.name} ({method.quant_algo}) has no {some(odd)}"]
    if spec.num_experts and not method.experts:
        return [f"TensorRT-LLM has no {method.name} for mixture-of-experts layers"]
    if method.group_sizes and choice.group_size not in method.group_sizes:
        sizes = " or ".join(map(str, method.group_sizes))
        return [f"{method.name} has group size {sizes}, not {choice.group_size}"]

    # All layers and stages are cut alike, so one layer tells.
    layer = replace(spec, config={**spec.config, "num_hidden_layers": 1})
    kinds = {_LAYER.sub(".layers.0.", module) for module in modules}

    def misfits(group_size: int) -> list[str]:
        own = replace(choice, group_size=group_size).fields
        form = Quantized(modules=dict.fromkeys(kinds, own)).stored
        try:
            shard_fields(family, layer, replace(options, pp_size=1), dtype, form)
        except PlanError as error:
            return list(error.problems)
        return []

    problems = {size: misfits(size) for size in (choice.group_size, *method.group_sizes)}
    found = problems[choice.group_size]
    works = [str(size) for size in method.group_sizes if not problems[size]]
    if found and works:
        found.append(f"{method.name} with group size {' or '.join(works)} works")
    elif found and method.group_sizes:
        found.append(
            f"no group size of {method.name} ({' or '.join(map(str, method.group_sizes))}) works; try another tp"
        )
    return found


def smoothing_problems(family: Family, spec: ModelSpec, choices: Choices) -> list[str]:
    """Methods that divide the norm before qkv and the one before the MLP, where both read the same one."""
    absent = [norm for norm in NORMS if norm not in _layer_norms(family, spec)]
    names = {choice.method.name for choice in choices.values() if choice.method.norm_scales}
    return [
        f"{name} divides the norm before each linear, and {spec.architecture} has no {some(absent)}: its attention and "
        "its MLP read one norm"
        for name in names
        if absent
    ]


def _layer_norms(family: Family, spec: ModelSpec) -> list[str]:
    """Norms of a layer, by their names inside it."""
    targets = [rule.target.split(".", 3)[-1] for rule in rules_of(family, spec, Stage.LAYER)]
    return [name.removesuffix(".weight") for name in targets if "norm" in name and name.endswith(".weight")]


def _out_features(rule: Rule, spec: ModelSpec, tp: int) -> int:
    """Outputs of a linear over all ranks; kv heads fewer than ranks are repeated."""
    axes = [axis for source in rule.sources for axis in source.rows]
    if rule.split is not Split.COLUMN:
        return sum(spec.size(axis) for axis in axes)
    windows = [window(spec, axis, tp, 0) for axis in axes]
    return tp * sum(stop - start for start, stop in windows)
