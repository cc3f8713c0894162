"""Rules of a mixture: does quant_cfg.json speak of this model, and can TensorRT-LLM mix what it says? PURE."""

from __future__ import annotations

from trtbuild.layout import RankJobs
from trtbuild.lint.finding import WARNING, Finding, find
from trtbuild.lint.forms import is_linear
from trtbuild.lint.quantization import Quant
from trtbuild.mixed import MIXABLE
from trtbuild.quantization import unlike_stages


def mixture_findings(
    jobs: tuple[RankJobs, ...], quant: Quant, num_layers: int, pp_size: int, severity: str
) -> list[Finding]:
    """`severity`: of what only TensorRT-LLM cannot do. Paths have the numbers of the whole model."""
    if not quant.layers:
        return []
    modules = {job.group.removesuffix(".weight") for rank in jobs for job in rank.jobs if job.name.endswith(".weight")}
    found = [
        find("quant-cfg", f"quant_cfg.json: {name}", "a module of the model", "no such module", severity=WARNING)
        for name in quant.layers
        if name not in modules
    ]
    linears = sorted(module for module in modules if is_linear(f"{module}.weight"))
    labels = {module: _label(quant.layers.get(module, Quant())) for module in linears}
    found += _methods(quant, severity)
    for module, label in labels.items():
        gate = f"{module.removesuffix('fc')}gate" if module.endswith(".fc") else ""
        if labels.get(gate, label) != label:
            hint = "TensorRT-LLM's fused MLP makes one matrix of both."
            found.append(find("quant-cfg", f"quant_cfg.json: {gate}", f"{label}, as {module}", labels[gate], hint))
    unlike = unlike_stages(labels, pp_size, num_layers)
    for module, read in list(unlike.items())[:1]:
        hint = "Layers count from 0 on every stage there, with one table for all: make stages alike, or use pp 1."
        text = labels[module] + (f" (and {len(unlike) - 1} more modules)" if len(unlike) > 1 else "")
        wanted = f"{labels[read]}: TensorRT-LLM reads {read}"
        found.append(find("quant-cfg", f"quant_cfg.json: {module}", wanted, text, hint, severity=severity))
    return found


def _label(quant: Quant) -> str:
    groups = f" in groups of {quant.group_size}" if quant.group_wise else ""
    return f"{quant.algo or 'plain'}{groups}"


def _methods(quant: Quant, severity: str) -> list[Finding]:
    """Algorithms that exporters do not write into a mixture, each once."""
    found = []
    strange = {own.algo: module for module, own in quant.layers.items() if own.algo not in ("", *MIXABLE)}
    for algo, module in strange.items():
        hint, level = "No exporter writes this into a mixture; whether it loads is unconfirmed.", WARNING
        if algo == "FP8_PER_CHANNEL_PER_TOKEN":
            hint, level = "Its classes replace whole attentions, MLPs and norms; a single linear stays plain.", severity
        text = f"{', '.join(MIXABLE)}, or plain weights"
        found.append(find("quant-cfg", f"quant_cfg.json: {module}.quant_algo", text, algo, hint, severity=level))
    return found
