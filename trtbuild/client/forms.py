"""What a model takes and gives, by its configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError


@dataclass(frozen=True)
class Form:
    """Names of its tensors; whether they have a dimension of batches; whether each answer holds all text so far."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    batched: bool = True
    accumulates: bool = False

    @property
    def llmapi(self) -> bool:
        """It has the tensors of upstream's llmapi model, not those of the ensemble."""
        return "sampling_param_max_tokens" in self.inputs


def form_of(config: Mapping[str, Any]) -> Form:
    """The form of a model; `config`: its configuration by the names of Triton's ModelConfig."""
    parameter = (config.get("parameters") or {}).get("accumulate_tokens") or {}
    return Form(
        frozenset(str(tensor["name"]) for tensor in config.get("input") or ()),
        frozenset(str(tensor["name"]) for tensor in config.get("output") or ()),
        int(config.get("max_batch_size") or 0) > 0,
        str(parameter.get("string_value", "")).strip().lower() in {"true", "1"},
    )


def check_takes_text(form: Form, model: str) -> None:
    """Raises:
    RequestError: no prompt can be sent to it.
    """
    if "text_input" not in form.inputs:
        names = ", ".join(sorted(form.inputs)[:6]) or "none"
        raise RequestError(
            f"the model {model} takes no text (its inputs: {names}, ...)",
            hint="Ask one that does: ensemble, tensorrt_llm_bls, or the model of a llmapi repository.",
        )
