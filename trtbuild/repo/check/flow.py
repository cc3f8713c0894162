"""The way of tensors through the ensembles of a repository. PURE.

Triton checks the same when it loads the models, one fault after the other and in words of its own; a map that it
accepts can still deadlock a request ("at least one output is not set while no more ensemble steps can be made").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found


@dataclass(frozen=True)
class _Tensor:
    """A tensor as one model declares it. `kind`: Triton's data type. `batched`: -1 goes before `dims`, for rows."""

    kind: int
    dims: tuple[int, ...]
    batched: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims

    def fits(self, other: _Tensor) -> bool:
        """Whether Triton takes both for one tensor: dims fit with or without the batch dimension.

        Source: ValidateTensorConsistency of triton-inference-server/core, src/ensemble_scheduler/ensemble_utils.cc.
        """
        return _fit(self.dims, other.dims) or _fit(self.shape, other.shape)


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _declared(tensor: Any, model: Any, *, outside: bool = False) -> _Tensor:
    """`outside`: of the ensemble itself, whose reshape counts; a step's dims are those that it is called with."""
    dims = tensor.reshape.shape if outside and tensor.HasField("reshape") else tensor.dims
    return _Tensor(tensor.data_type, tuple(dims), model.max_batch_size > 0)


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
    # by name in the ensemble; None where it cannot be told
    known: dict[str, _Tensor | None] = {t.name: _declared(t, config, outside=True) for t in config.input}
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
        else:
            findings += _differences(where, tensor.name, _declared(tensor, config, outside=True), known[tensor.name])
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


def _step(where: str, step: Any, model: Any, known: dict[str, _Tensor | None]) -> list[Finding]:
    findings: list[Finding] = []
    inputs = {tensor.name: tensor for tensor in model.input}
    outputs = {tensor.name: tensor for tensor in model.output}
    for inner, outer in sorted(step.input_map.items()):
        if inner not in inputs:
            findings.append(found("ensemble-tensor", where, f"an input of {step.model_name}", inner))
        elif outer not in known:
            hint = "No input of the ensemble and no step makes it."
            findings.append(found("ensemble-tensor", where, f"a source for {step.model_name}.{inner}", outer, hint))
        else:
            expected = _declared(inputs[inner], model)
            findings += _differences(where, f"{step.model_name}.{inner}", expected, known[outer])
    for inner, tensor in inputs.items():
        if not tensor.optional and inner not in step.input_map:
            findings.append(found("ensemble-required", where, f"a source for {step.model_name}.{inner}", "none"))
    for inner, outer in sorted(step.output_map.items()):
        if inner not in outputs:
            findings.append(found("ensemble-tensor", where, f"an output of {step.model_name}", inner))
        known[outer] = _declared(outputs[inner], model) if inner in outputs else None
    return findings


def _differences(where: str, tensor: str, expected: _Tensor, source: _Tensor | None) -> list[Finding]:
    """Of what a tensor must be, and what comes; both faults of it at once."""
    from tritonclient.grpc import model_config_pb2

    if source is None:
        return []
    findings, name = [], model_config_pb2.DataType.Name
    if source.kind != expected.kind:
        hint = "Give both the same data_type in their config.pbtxt."
        findings.append(found("ensemble-type", where, f"{name(expected.kind)} for {tensor}", name(source.kind), hint))
    if not source.fits(expected):
        said, hint = (
            f"{list(source.shape)} from its source",
            "The server says: inconsistent shape. -1 takes any length.",
        )
        findings.append(found("ensemble-dims", where, f"dims {list(expected.shape)} for {tensor}", said, hint))
    return findings
