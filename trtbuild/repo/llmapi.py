"""The Triton repository of the llmapi target: one model around TensorRT-LLM's LLM class, and its model.yaml."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, PlanError
from trtbuild.manifest import sha256_file, tool_versions, write_manifest
from trtbuild.repo.render import render_config, templates_dir
from trtbuild.staging import check_not_input, check_output, staged_dir

TEMPLATE, MODEL = "llmapi", "tensorrt_llm"
_OURS = ("model", "tensor_parallel_size", "pipeline_parallel_size", "triton_config")


@dataclass(frozen=True)
class LlmApiOptions:
    """`arguments`: of the LLM class by name, such as kv_cache_config; they go to model.yaml as they are."""

    tp_size: int = 1
    pp_size: int = 1
    decoupled: bool = True
    accumulate_text: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def write_llmapi_repository(model: Path, out: Path, options: LlmApiOptions, *, force: bool = False) -> None:
    """Make the repository `out` for a Hugging Face folder, which stays where it is.

    Raises:
        EngineError: not a Hugging Face model. PlanError: options that contradict. OutputError.
    """
    check_output(out, force=force)
    check_not_input(out, model)
    architectures = _architectures(model)
    _check(options)
    config = render_config(TEMPLATE, MODEL, {"decoupled": options.decoupled})
    with staged_dir(out, force=force) as partial:
        version = partial / MODEL / "1"
        version.mkdir(parents=True)
        (partial / MODEL / "config.pbtxt").write_text(config, encoding="utf-8")
        shutil.copyfile(templates_dir() / TEMPLATE / "1" / "model.py", version / "model.py")
        (version / "model.yaml").write_text(model_yaml(model.resolve(), options), encoding="utf-8")
        source = {
            "model": str(model.resolve()),
            "architectures": architectures,
            "config_sha256": sha256_file(model / "config.json"),
            "target": "llmapi",
            "world_size": 1,  # one tritonserver: LLM starts its own workers
        }
        chosen = {**asdict(options), "arguments": dict(options.arguments)}
        write_manifest(partial, kind="repository", source=source, options=chosen, versions=tool_versions("jinja2"))


def llm_arguments(texts: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of the LLM class, each written in YAML.

    Raises:
        PlanError: one sentence for each that is not YAML.
    """
    import yaml

    found, problems = {}, []
    for name, text in texts.items():
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"--llm {name}: {text!r} is not YAML")
    if problems:
        raise PlanError(problems)
    return found


def model_yaml(model: Path, options: LlmApiOptions) -> str:
    """All keys but triton_config are arguments of the LLM class (triton-repo, section 9)."""
    import yaml

    document = {
        "model": str(model),
        "backend": "pytorch",
        "tensor_parallel_size": options.tp_size,
        "pipeline_parallel_size": options.pp_size,
        **options.arguments,
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": options.decoupled,
            "cancellation_check_period_ms": 100,
            "accumulate_text": options.accumulate_text,
        },
    }
    return str(yaml.safe_dump(document, sort_keys=False))


def _check(options: LlmApiOptions) -> None:
    problems = [f"--llm {name} has an option of its own" for name in _OURS if name in options.arguments]
    sizes = {"tp_size": options.tp_size, "pp_size": options.pp_size}
    problems += [f"{name} {value} must be 1 or more" for name, value in sizes.items() if value < 1]
    if options.accumulate_text and not options.decoupled:
        problems.append("accumulate_text is of streams, which want decoupled")
    if problems:
        raise PlanError(problems)


def _architectures(model: Path) -> list[str]:
    hint = "Pass what `trtbuild checkpoint --target llmapi` wrote, or another Hugging Face model."
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(f"{model} has no config.json of a model: {error}", hint=hint) from error
    if not found or not any(model.glob("*.safetensors")):
        raise EngineError(f"{model} is no Hugging Face model: no architectures, or no safetensors", hint=hint)
    return list(found)
