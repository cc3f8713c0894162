"""Config x layout -> the tensors that every rank file must hold, by the same arithmetic as the converter. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtbuild.families.rules import Family
from trtbuild.fit import uncut_axes
from trtbuild.layout import Axis, Job, RankJobs, Stage
from trtbuild.lint import tables
from trtbuild.lint.finding import Finding, find
from trtbuild.lint.forms import Expected, attention_extras, dim_multiple, is_linear, quantized
from trtbuild.lint.quantization import Quant
from trtbuild.shard import rules_of, shard
from trtbuild.spec import ConvertOptions, ModelSpec

_FIELDS = {
    Axis.POSITIONS: "max_position_embeddings",
    Axis.EXPERTS: "moe.num_experts",
    Axis.EXPERT_INTER: "moe_intermediate_size",
    Axis.SHARED_INTER: "moe_shared_expert_intermediate_size",
    Axis.BUCKETS: "num_buckets",
    Axis.TYPES: "type_vocab_size",
    Axis.LABELS: "num_labels",
}
"""Where config.json has a size that may be absent."""


def spec_of(family: Family, config: Dict[str, Any]) -> ModelSpec:
    """The spec of a ready checkpoint; what older converters left out has the family's constant value."""
    return ModelSpec({**family.constants, **config}, str(config["dtype"]))


def options_of(family: Family, options: ConvertOptions, dtype: str) -> ConvertOptions:
    """The layout as the model class has it: some shard their table whatever config.json says (format 1.6)."""
    parallel = options.tp_size > 1 if family.parallel_embedding else options.use_parallel_embedding
    return replace(options, dtype=dtype, use_parallel_embedding=parallel)


def layout_findings(family: Family | None, config: Dict[str, Any], options: ConvertOptions) -> list[Finding]:
    """Heads, axes and layers that the ranks of the mapping cannot share. Call where the structure is right."""
    spec = ModelSpec(config)
    tp, pp, heads, kv = options.tp_size, options.pp_size, spec.num_heads, spec.num_kv_heads
    found = []
    if "head_size" not in config and spec.hidden_size % heads:
        text = f"hidden_size {spec.hidden_size}, num_attention_heads {heads}"
        found.append(find("config-missing", "head_size", "a value, since heads do not divide hidden_size", text))
    if heads % tp:
        found.append(find("layout-heads", "num_attention_heads", f"a multiple of tp_size {tp}", str(heads)))
    if heads % kv:
        found.append(find("layout-heads", "num_key_value_heads", f"a divisor of {heads} heads", str(kv)))
    elif kv % tp and tp % kv:
        text = f"a multiple or a divisor of tp_size {tp}"
        found.append(find("layout-heads", "num_key_value_heads", text, str(kv)))
    if pp > spec.num_layers:
        text = f"at most {spec.num_layers}, the number of layers"
        found.append(find("layout-pipeline", "mapping.pp_size", text, str(pp)))
    found += _absent_sizes(family, spec_of(family, config)) if family else []
    if found or family is None:
        return found
    for name, size, wanted in (("pp_size", pp, family.pipeline), ("tp_size", tp, family.tensor)):
        if size > 1 and not wanted:
            text = f"{size}: TensorRT-LLM's class cannot be cut that way"
            found.append(find("layout-pipeline", f"mapping.{name}", "1", text))
    for name, count, axis, units in uncut_axes(family, spec_of(family, config), options_of(family, options, "float16")):
        where = "moe.num_experts" if name == "moe_ep" else f"mapping.{name}_size"
        found.append(find("layout-axis", where, f"a divisor of {units} {axis.value}", f"{name} {count}"))
    if family.parallel_embedding and spec.vocab_size % tp:
        found.append(find("layout-axis", "vocab_size", f"a multiple of tp_size {tp}", str(spec.vocab_size)))
    return found


def _absent_sizes(family: Family, spec: ModelSpec) -> list[Finding]:
    """Fields without which a tensor of this model would have no rows."""
    found: dict[str, Finding] = {}
    for rule in rules_of(family, spec):
        axes = [axis for source in rule.sources for axis in (*source.rows, *((source.cols,) if source.cols else ()))]
        for axis in axes + ([Axis.EXPERTS] if rule.experts else []):
            if not spec.size(axis):
                field = _FIELDS.get(axis, axis.value)
                name = rule.target.replace(".{i}", ".*")
                found[field] = find("config-missing", field, f"a size, for {name}", "none, or 0")
    return list(found.values())


def jobs_of(family: Family, config: Dict[str, Any], options: ConvertOptions) -> tuple[RankJobs, ...]:
    """The plain tensors of every rank; their pieces speak of the model's own (unsharded) tensors."""
    dtype = str(config["dtype"])
    return shard(family, spec_of(family, config), options_of(family, options, dtype), dtype, {})


def expected_of(rank: RankJobs, num_layers: int, quant: Quant, stored: Dict[str, str]) -> dict[str, Expected]:
    """name -> tensor of one rank file, in the form in which its quantization stores it; `stored`: dtypes by name."""
    found: list[Expected] = []
    ends = {f"transformer.layers.{layer}." for layer in (0, num_layers - 1)}
    for job in rank.jobs:
        form = quantized(job, quant, any(job.group.startswith(end) for end in ends), stored.get(job.name, ""))
        found += [_bias(job) if quant.algo.endswith("GPTQ") else plain(job)] if form is None else form
    found += attention_extras(rank.jobs, quant, set(stored))
    return {item.name: item for item in found}


def _bias(job: Job) -> Expected:
    """Plain, but for a row-parallel linear's bias: its ranks' sum is the bias, in whatever shares (format 4.5)."""
    row_bias = job.name.endswith(("dense.bias", "proj.bias"))
    return replace(plain(job), job=None) if row_bias else plain(job)


def plain(job: Job) -> Expected:
    """A tensor in its own dtype."""
    values = "weight" if job.name.endswith("weight") else "finite"
    return Expected(job.name, (job.dtype,), (job.shape,), values, job=job)


def switched_off(family: Family, config: Dict[str, Any], num_layers: int) -> frozenset[str]:
    """Names of tensors that the class would have with other config fields (a bias whose flag is false)."""
    spec = spec_of(family, config)
    on = {rule.target for rule in rules_of(family, spec)}
    names: set[str] = set()
    for rule in family.rules:
        if rule.target not in on:
            names |= {rule.target.format(i=i) for i in range(num_layers if rule.stage is Stage.LAYER else 1)}
    return frozenset(names)


def dims_findings(ranks: Sequence[RankJobs], quant: Quant, tp_size: int, severity: str) -> list[Finding]:
    """Quantized linears whose dims the kernels do not take (format 4.1), one finding for each kind of layer."""
    found: dict[str, Finding] = {}
    for job in (job for rank in ranks for job in rank.jobs if is_linear(job.name)):
        own = quant.layers.get(job.group.removesuffix(".weight"), Quant()) if quant.layers else quant
        multiple = dim_multiple(own, tp_size) // tp_size
        if not multiple or own.excludes(job.name.removesuffix(".weight")):
            continue
        # On every rank: then the whole is a multiple of it times tp.
        dims = job.shape[-2:]
        groups_fit = not own.group_wise or dims[1] % own.group_size == 0
        row = job.name.endswith(("dense.weight", "proj.weight"))
        whole = (dims[0] * (1 if row else tp_size), dims[1] * (tp_size if row else 1))
        if groups_fit and not any(size % (multiple * tp_size) for size in whole):
            continue
        kind = job.name.split(".", 3)[-1]
        text = f"{kind}: both dims multiples of {multiple} x tp {tp_size}" + ("" if groups_fit else " and of the group")
        if kind not in found:
            found[kind] = find("quantization-dims", job.name, text, f"{list(whole)} in all", severity=severity)
    return list(found.values())


def renamed(name: str) -> str:
    """The name in the 1.x classes of a tensor that 0.14 named otherwise."""
    for old, new in tables.RENAMED:
        if new not in name:
            name = name.replace(old, new)
    return name
