"""What a model takes and gives, by its configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError


@dataclass(frozen=True)
class Form:
    """Its inputs and their datatypes, as INT32; the names of its outputs. `known`: False where it is only assumed.

    `batched`: tensors have a dimension of batches. `accumulates`: each response holds all text so far.
    """

    inputs: Mapping[str, str]
    outputs: frozenset[str]
    batched: bool = True
    accumulates: bool = False
    known: bool = True

    @property
    def llmapi(self) -> bool:
        """It has the tensors of upstream's llmapi model, not those of the ensemble."""
        return "sampling_param_max_tokens" in self.inputs


ASSUMED = Form({}, frozenset(), known=False)
"""Of a model whose configuration the server does not give: what it lacks, the server itself will say."""


def form_of(config: Mapping[str, Any]) -> Form:
    """The form of a model; `config`: its configuration by the names of Triton's ModelConfig."""
    parameter = (config.get("parameters") or {}).get("accumulate_tokens") or {}
    return Form(
        {str(tensor["name"]): _datatype(str(tensor["data_type"])) for tensor in config.get("input") or ()},
        frozenset(str(tensor["name"]) for tensor in config.get("output") or ()),
        int(config.get("max_batch_size") or 0) > 0,
        str(parameter.get("string_value", "")).strip().lower() in {"true", "1"},
    )


def _datatype(name: str) -> str:
    """As requests have it, of what configurations have: TYPE_FP32 is FP32, TYPE_STRING is BYTES."""
    kind = name.removeprefix("TYPE_")
    return "BYTES" if kind == "STRING" else kind


def check_takes_text(form: Form, model: str) -> None:
    """Raises:
    RequestError: no prompt can be sent to it.
    """
    if form.known and "text_input" not in form.inputs:
        names = ", ".join(sorted(form.inputs)[:6]) or "none"
        raise RequestError(
            f"the model {model} takes no text (its inputs: {names}, ...)",
            hint="Ask one that does: ensemble, tensorrt_llm_bls, or the model of a llmapi repository.",
        )
