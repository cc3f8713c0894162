"""The plan of a quantized Hugging Face checkpoint: its files, and all that keeps it from being loaded. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtbuild.coverage import coverage
from trtbuild.families.rules import Family
from trtbuild.importers.form import Import
from trtbuild.layout import TensorInfo
from trtbuild.llmapi.layout import HfLayout, hf_layout, in_shards, with_layers
from trtbuild.llmapi.loaders import ARCHITECTURES, loader_problems, loaders_of
from trtbuild.plan import ModelPlan, Plan, plan_model
from trtbuild.spec import ConvertOptions, ModelSpec


def plan_hf_model(
    config: Dict[str, Any],
    specs: Sequence[tuple[Family, ModelSpec]],
    options: ConvertOptions,
    index: Dict[str, TensorInfo],
    imported: Import | None = None,
    problems: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> ModelPlan:
    """The plan of a model for `--target llmapi`; `ranks` are its files, `config` is its config.json.

    What the quantizers need is planned as for the cpu target; what TensorRT-LLM's engine build demands does not count.
    """
    alone = ConvertOptions(
        dtype=options.dtype,
        quant=options.quant,
        group_size=options.group_size,
        kv_cache=options.kv_cache,
        quant_layers=options.quant_layers,
    )
    base = plan_model(specs, alone, index, imported, problems, ())
    architecture = str((config.get("architectures") or [""])[0])
    found = []
    if imported is not None:
        found.append("--target llmapi needs the unquantized model: this one is quantized already, so serve it as it is")
    part = base.parts[0]
    family, spec = specs[0]
    if len(specs) > 1 or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        found.append(f"--target llmapi is not confirmed for {architecture}; it is for {known}")
    elif part.choices and imported is None:
        found += loader_problems(architecture, family, spec, options, part.dtype, part.choices)
    if imported is None:
        warnings = [*warnings, *_said(architecture, part)]
    part = replace(part, options=options, problems=(*part.problems, *found), warnings=tuple(warnings), ranks=())
    if not part.problems:
        part = replace(part, ranks=with_layers(in_shards(layout_of(part, index).jobs)))
    return replace(base, parts=(part,))


def layout_of(part: Plan, index: Dict[str, TensorInfo]) -> HfLayout:
    """The layout of a plan without problems."""
    sources, _ = coverage(part.family, part.spec, index)
    kv_cache = part.options.kv_cache_algo is not None
    return hf_layout(part.family, part.spec, part.dtype, part.choices, kv_cache, sources, index)


def _said(architecture: str, part: Plan) -> list[str]:
    """Who does not load it, where somebody does."""
    able = loaders_of(architecture, part.methods)
    others = [name for name in dict.fromkeys(name for names in ARCHITECTURES.values() for name in names)
              if name not in able]  # fmt: skip
    return [f"{' and '.join(able)} loads this; {' and '.join(others)} does not"] if able and others else []
