"""A model of upstream's `llmapi`: model.yaml against config.pbtxt, and against what tensorrt_llm.LLM takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found
from trtbuild.repo.llm_arguments import argument_problems, unknown_arguments
from trtbuild.repo.llmapi import read_hf_config
from trtbuild.versions import MODEL_FILE


def llmapi_findings(where: str, config: Any, document: Mapping[str, Any] | None) -> Iterator[Finding]:
    """`where`: the version folder; `document`: its model.yaml, None where it cannot be read.

    Launchers switch auto-complete off, so config.pbtxt must say what model.yaml says.
    """
    path = f"{where}/{MODEL_FILE}"
    if document is None or not isinstance(document.get("triton_config") or {}, dict):
        yield found("llmapi-yaml", path, "a YAML mapping", "none that can be read")
        return
    pbtxt, triton = f"{config.name}/config.pbtxt", document.get("triton_config") or {}
    said, declared = bool(triton.get("decoupled", False)), bool(config.model_transaction_policy.decoupled)
    if said != declared:
        hint = "The server would refuse every streamed answer after the first: write both the same."
        yield found("llmapi-yaml", pbtxt, f"decoupled: {said}".lower(), f"{declared}".lower(), hint)
    batch = int(triton.get("max_batch_size", 0) or 0)
    if batch != config.max_batch_size:
        yield found("llmapi-yaml", pbtxt, f"max_batch_size {batch}", str(config.max_batch_size))
    arguments = {key: value for key, value in document.items() if key not in ("triton_config", "model")}
    for problem in argument_problems(arguments):
        yield found("llmapi-argument", path, "arguments of tensorrt_llm.LLM 1.2", problem)
    for sentence in unknown_arguments(arguments):
        hint = "The class refuses names that its release does not have."
        yield found("llmapi-unknown", path, "arguments of tensorrt_llm.LLM 1.2", sentence, hint)
    yield from _model(path, str(document.get("model") or ""))


def _model(where: str, model: str) -> Iterator[Finding]:
    if not model:
        yield found("llmapi-model", where, "model: a checkpoint", "none")
    elif Path(model).is_absolute():  # anything else may be a hub id
        try:
            read_hf_config(Path(model))
        except EngineError as error:
            yield found("llmapi-model", where, "a Hugging Face checkpoint", error.message, error.hint or "")
