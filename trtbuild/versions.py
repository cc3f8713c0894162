"""Which models run engines, which versions of a model a server loads, and which engine each of them runs.

`trtbuild repo --add`, `trtbuild check` and `trtbuild serve` ask here, so that an engine which no version policy serves
stands in nobody's way, and one that is served is looked at before a server starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENGINE_FILE = "engine.json"
"""In a version folder of `tensorrt_llm` (cpu target): the engine of that version, instead of gpt_model_path."""
MODEL_FILE = "model.yaml"
"""In a version folder of a llmapi model: the arguments of tensorrt_llm.LLM."""


def runs_engine(name: str, config: Any) -> bool:
    """Whether a model, of the folder `name`, runs an engine itself: by TensorRT-LLM's backend, its Python variant or
    ours.

    `config`: its configuration (`ModelConfig`). No parameter is needed to know it, as a missing one may be the fault.
    A front of disaggregated serving has the same tensors and names other models; one of llmapi may have the same name.
    """
    if config.backend == "tensorrtllm" or "gpt_model_type" in config.parameters:
        return True
    inputs = {tensor.name for tensor in config.input}
    if config.platform == "ensemble" or "context_model_name" in config.parameters or "text_input" in inputs:
        return False
    named = name == "tensorrt_llm" or name.endswith("_tensorrt_llm")
    keys = {"gpt_model_path", "encoder_model_path"} & set(config.parameters)
    return named or ({"input_lengths", "request_output_len"} <= inputs and bool(keys))


def served_versions(policy: Any, there: Iterable[int]) -> tuple[int, ...]:
    """The versions that Triton loads of those that are there, in their order.

    `policy`: a `ModelVersionPolicy` of Triton's model_config.proto; without a choice it is the newest one.
    """
    versions = sorted(there)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return tuple(versions)
    if choice == "specific":
        return tuple(version for version in versions if version in policy.specific.versions)
    newest = int(policy.latest.num_versions) if choice == "latest" else 1
    return tuple(versions[-(newest or 1) :])


def served_engines(config: Any, own: Mapping[int, str]) -> dict[int, str]:
    """Engine of each version that a server loads; "" where none is named.

    `config`: the model's configuration (`ModelConfig`). `own`: the versions that are there, with what their ENGINE_FILE
    names. Only our Python model reads that file; TensorRT-LLM's backend has one gpt_model_path for all versions.
    """
    text = str(config.parameters["gpt_model_path"].string_value) if "gpt_model_path" in config.parameters else ""
    usual = "" if text.startswith("${") else text
    served = served_versions(config.version_policy, own)
    return {version: (own[version] if config.backend == "python" else "") or usual for version in served}


def own_engines(model: Path) -> tuple[dict[int, str], dict[int, str]]:
    """(What the ENGINE_FILE of each version folder of `model` names, "" without one; what is wrong with it)."""
    found, problems = {}, {}
    for folder in sorted(path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()):
        path, version = folder / ENGINE_FILE, int(folder.name)
        found[version] = ""
        if not path.is_file():
            continue
        try:
            found[version] = str(json.loads(path.read_text(encoding="utf-8"))["gpt_model_path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems[version] = f"{path} names no gpt_model_path: {type(error).__name__}: {error}"
    return found, problems
