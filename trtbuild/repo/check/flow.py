"""The way of tensors through the ensembles of a repository. PURE.

Triton checks the same when it loads the models, one fault after the other and in words of its own; a map that it
accepts can still deadlock a request ("at least one output is not set while no more ensemble steps can be made").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found


def flow_findings(configs: Mapping[str, Any]) -> list[Finding]:
    """Faults of every ensemble; `configs`: the parsed configuration (`ModelConfig`) of each model."""
    findings: list[Finding] = []
    for name, config in configs.items():
        if config.platform == "ensemble":
            findings += _ensemble(name, config, configs)
    return findings


def _ensemble(name: str, config: Any, configs: Mapping[str, Any]) -> list[Finding]:
    where = f"{name}/config.pbtxt"
    findings: list[Finding] = []
    known = {tensor.name: tensor.data_type for tensor in config.input}  # by name in the ensemble
    for step in _in_order(config.ensemble_scheduling.step, set(known)):
        model = configs.get(step.model_name)
        if model is None:
            have = ", ".join(sorted(configs))
            findings.append(found("ensemble-model", where, f"a model {step.model_name}", f"only {have}"))
            known |= dict.fromkeys(step.output_map.values(), None)
            continue
        findings += _step(where, step, model, known)
    for tensor in config.output:
        if tensor.name not in known:
            hint = "Map an output of a step to it; a request would end in a deadlock."
            findings.append(found("ensemble-output", where, f"a step that makes {tensor.name}", "none", hint))
        elif known[tensor.name] not in (None, tensor.data_type):
            findings.append(_types(where, tensor.name, tensor.data_type, known[tensor.name]))
    return findings


def _in_order(steps: Any, known: set[str]) -> list[Any]:
    """Steps so that each comes after those whose tensors it reads, as Triton runs them; cycles stay as written."""
    waiting, ordered = list(steps), []
    while waiting:
        ready = next((step for step in waiting if set(step.input_map.values()) <= known), waiting[0])
        waiting.remove(ready)
        ordered.append(ready)
        known |= set(ready.output_map.values())
    return ordered


def _step(where: str, step: Any, model: Any, known: dict[str, Any]) -> list[Finding]:
    findings = []
    inputs = {tensor.name: tensor for tensor in model.input}
    outputs = {tensor.name: tensor for tensor in model.output}
    for inner, outer in sorted(step.input_map.items()):
        if inner not in inputs:
            findings.append(found("ensemble-tensor", where, f"an input of {step.model_name}", inner))
        elif outer not in known:
            hint = "No input of the ensemble and no step makes it."
            findings.append(found("ensemble-tensor", where, f"a source for {step.model_name}.{inner}", outer, hint))
        elif known[outer] not in (None, inputs[inner].data_type):
            findings.append(_types(where, f"{step.model_name}.{inner}", inputs[inner].data_type, known[outer]))
    for inner, tensor in inputs.items():
        if not tensor.optional and inner not in step.input_map:
            findings.append(found("ensemble-required", where, f"a source for {step.model_name}.{inner}", "none"))
    for inner, outer in sorted(step.output_map.items()):
        if inner not in outputs:
            findings.append(found("ensemble-tensor", where, f"an output of {step.model_name}", inner))
        known[outer] = outputs[inner].data_type if inner in outputs else None
    return findings


def _types(where: str, tensor: str, expected: int, is_now: int) -> Finding:
    from tritonclient.grpc import model_config_pb2

    name = model_config_pb2.DataType.Name
    return found("ensemble-type", where, f"{name(expected)} for {tensor}", name(is_now))
