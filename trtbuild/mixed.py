"""Mixed precision: which linear of a model has which method, and what the checkpoint says of it. PURE: names only.

A choice is made for every linear of every layer, by its path in the whole model ("transformer.layers.3.mlp.fc"). Where
all have the same, it is no mixture, and the checkpoint is one of that method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from trtbuild.errors import some
from trtbuild.families.rules import Family
from trtbuild.fields import HEAD, LINEAR, Quantized
from trtbuild.layout import Stage
from trtbuild.quantization import DEFAULTS, LAYERS, MIXED, layer_of, unlike_stages
from trtbuild.quantize.method import Method
from trtbuild.quantize.methods import METHODS
from trtbuild.shard import rules_of
from trtbuild.spec import ConvertOptions, ModelSpec

MIXABLE = ("W4A16_AWQ", "W4A8_AWQ", "FP8", "W8A8_SQ_PER_CHANNEL")
"""What TensorRT-LLM mixes, plain weights aside: the algorithms for which its LayerQuantConfig knows a format, NVFP4
left out (NVIDIA/TensorRT-LLM tensorrt_llm/models/modeling_utils.py, LayerQuantConfig._get_modelopt_qformat)."""
_ONLY = f"TensorRT-LLM mixes {', '.join(MIXABLE[:-1])} and {MIXABLE[-1]} only"
_WHY_NOT = {
    "FP8_PER_CHANNEL_PER_TOKEN": " (this one replaces whole attentions, MLPs and norms, never a single linear)",
}
"""Whether the loader would take W8A16 and W4A16, whose weights it quantizes itself, is unconfirmed: no exporter writes
them into a mixture."""
_SHOWN = 4


@dataclass(frozen=True)
class Choice:
    """How one linear is quantized; `group_size` counts only for group-wise methods."""

    method: Method
    group_size: int = 128

    @property
    def label(self) -> str:
        return f"{self.method.name}:{self.group_size}" if self.method.group_sizes else self.method.name

    @property
    def fields(self) -> Quantized:
        method = self.method
        return Quantized(method.fields, self.group_size, bias_once=method.bias_once, norm_scales=method.norm_scales)


Choices = dict[str, Choice]
"""Path of a linear in the whole model -> its choice, for every linear that methods quantize."""


def linears_of(family: Family, spec: ModelSpec) -> list[str]:
    """Paths of all linears that methods quantize, layer by layer."""
    rules = [rule for rule in rules_of(family, spec, Stage.LAYER) if LINEAR.search(rule.target.format(i=0))]
    return [rule.target.format(i=i).removesuffix(".weight") for i in range(spec.num_layers) for rule in rules]


def quantizable(family: Family, spec: ModelSpec, options: ConvertOptions) -> list[str]:
    """Paths of all modules that options quantize: the linears of the layers, and lm_head where that is asked for."""
    return [*linears_of(family, spec), *([HEAD] if options.quantize_lm_head else [])]


def choices_of(family: Family, spec: ModelSpec, options: ConvertOptions) -> Choices:
    """What `--quant` and the patterns of `--quant-layer` give each linear; the last pattern that matches counts.

    The options' methods must be known ones.
    """
    found = {}
    for module in quantizable(family, spec, options):
        name, group_size = options.quant, options.group_size
        for layer in options.quant_layers:
            if fnmatchcase(module, layer.pattern):
                name, group_size = layer.method, layer.group_size or options.group_size
        method = METHODS[name]
        found[module] = Choice(method, group_size if method.group_sizes else options.group_size)
    return found


def only_choice(choices: Choices) -> Choice | None:
    """The choice that all linears share, plain weights where a model has none to quantize; None for a mixture."""
    distinct = {choice.label: choice for choice in choices.values()} or {"": Choice(METHODS["none"])}
    return next(iter(distinct.values())) if len(distinct) == 1 else None


def quantized_of(choices: Choices) -> Quantized:
    """What the layout needs to know."""
    only = only_choice(choices)
    if only:
        return replace(only.fields, head=HEAD in choices)
    return Quantized(modules={module: own.fields for module, own in choices.items()})


def mixed_quantization(kv_cache_algo: str | None) -> dict[str, Any]:
    """config.json's `quantization` of a mixture: it has all else in quant_cfg.json."""
    return {**DEFAULTS, "quant_algo": MIXED, "kv_cache_quant_algo": kv_cache_algo}


def quant_cfg(choices: Choices, kv_cache_algo: str | None) -> dict[str, Any]:
    """quant_cfg.json: TensorRT-LLM's LayerQuantConfig, with an entry for every linear, plain ones too.

    An entry has the keys that ModelOpt writes (modelopt/torch/export/quant_utils.py, process_layer_quant_config).
    """
    return {"quant_algo": MIXED, "kv_cache_quant_algo": kv_cache_algo,
            LAYERS: {module: _entry(choice) for module, choice in choices.items()}}  # fmt: skip


def _entry(choice: Choice) -> dict[str, Any]:
    group = {"group_size": choice.group_size} if choice.method.group_sizes else {}
    return {"quant_algo": choice.method.quant_algo, **group, **choice.method.config}


def unknown_methods(options: ConvertOptions) -> list[str]:
    """Patterns with a method that does not exist, or groups that it does not have."""
    found = []
    for layer in options.quant_layers:
        method = METHODS.get(layer.method)
        given = f"{layer.pattern}={layer.method}"
        if method is None:
            found.append(f"unknown quantization in {given}; supported: {', '.join(METHODS)}")
        elif method.imported:
            found.append(f"{given}: {layer.method} is only read from models that are quantized already")
        elif layer.group_size is not None and layer.group_size not in method.group_sizes:
            sizes = " or ".join(map(str, method.group_sizes)) or "no groups"
            found.append(f"{given}:{layer.group_size}: {layer.method} has {'group size ' * bool(method.group_sizes)}"
                         f"{sizes}")  # fmt: skip
    return found


def unmatched(models: list[list[str]], options: ConvertOptions) -> list[str]:
    """Patterns that match no linear of any of a model's checkpoint folders (`models`: the linears of each)."""
    modules = [module for linears in models for module in linears]
    kinds = dict.fromkeys(module.split(".", 3)[-1] for module in modules)
    sample = modules[0].rsplit(".", 2)[0] if modules else "transformer.layers.0"
    return [
        f"pattern {layer.pattern!r} matches none of the {len(modules)} linears; {sample} has {', '.join(kinds)}"
        for layer in options.quant_layers
        if not any(fnmatchcase(module, layer.pattern) for module in modules)
    ]


def mixture_problems(
    family: Family, spec: ModelSpec, options: ConvertOptions, choices: Choices
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of a mixture: what TensorRT-LLM cannot mix, and pipeline stages that are not alike."""
    if only_choice(choices):
        return [], []
    used = {choice.method.name: choice.method for choice in choices.values()}
    found = [
        f"{name} ({method.quant_algo}) cannot be mixed with other methods: {_ONLY}"
        + _WHY_NOT.get(method.quant_algo or "", "")
        for name, method in used.items()
        if method.quant_algo not in (None, *MIXABLE)
    ]
    found += [_sentence(*item) for item in _apart(choices).items()]
    if spec.num_experts:
        found += _expert_problems(family, spec, choices)
    alike = unlike_stages(
        {module: choice.label for module, choice in choices.items()}, options.pp_size, spec.num_layers
    )
    if not alike:
        return found, []
    module, read = next(iter(alike.items()))
    text = (
        f"TensorRT-LLM counts layers from 0 on every pipeline stage and reads one quant_cfg.json for all: with pp "
        f"{options.pp_size} it would take {module} ({choices[module].label}) for {choices[read].label}, which is "
        f"{read}'s; make the stages alike, or use pp 1"
    )
    return ([*found, text], []) if options.target == "tensorrt" else (found, [text])


def _apart(choices: Choices) -> dict[tuple[str, str, str], list[int]]:
    """("mlp.fc", its method, that of "mlp.gate") -> the layers where they differ; both read the same input."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for module, choice in choices.items():
        gate = choices.get(f"{module.removesuffix('fc')}gate") if module.endswith(".fc") else None
        if gate is not None and gate.label != choice.label:
            kind = module.split(".layers.", 1)[-1].split(".", 1)[1]
            found.setdefault((kind, choice.label, gate.label), []).append(layer_of(module) or 0)
    return found


def _sentence(item: tuple[str, str, str], layers: list[int]) -> str:
    kind, ours, other = item
    gate = f"{kind.removesuffix('fc')}gate"
    return f"{kind} is {ours} and {gate} {other} in {_layers(layers)}: they are one matrix in TensorRT-LLM's fused MLP"


def _expert_problems(family: Family, spec: ModelSpec, choices: Choices) -> list[str]:
    """Experts of all layers must have one method: their class asks what the whole model has, not what the layer has.

    So it is for other linears' methods too; whether experts can be mixed with those at all is unconfirmed.
    """
    rules = [rule.target for rule in rules_of(family, spec, Stage.LAYER) if rule.experts]
    experts = {target.format(i=i).removesuffix(".weight") for target in rules for i in range(spec.num_layers)}
    labels = sorted({choice.label for module, choice in choices.items() if module in experts})
    if len(labels) < 2:
        return []
    return [f"experts have {' and '.join(labels)}: TensorRT-LLM's mixture of experts has one method in all layers"]


def _layers(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {some(layers, _SHOWN)}"
