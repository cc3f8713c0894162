"""A Hugging Face checkpoint, quantized or not -> the repository of upstream's `llmapi` model (TensorRT-LLM's PyTorch).

config.pbtxt and model.yaml say the same of decoupled and the batch size: upstream leaves both to model.yaml and to
Triton's auto-completion, which upstream's own launcher (and `trtbuild serve`) switches off; every streamed answer would
then end with "Non-decoupled model cannot send more than one response".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, PlanError
from trtbuild.manifest import sha256_file, tool_versions, write_manifest
from trtbuild.repo.llm_arguments import argument_problems, flag_problems
from trtbuild.repo.options import NAME, policy_text
from trtbuild.repo.render import copy_code, render_configs
from trtbuild.staging import check_not_input, check_output, staged_dir
from trtbuild.text.tokenizer import check_tokenizer
from trtbuild.versions import MODEL_FILE

MODEL = "tensorrt_llm"
"""Upstream's name of it."""


@dataclass(frozen=True)
class LlmapiOptions:
    """What the user may choose. `arguments`: any other argument of tensorrt_llm.LLM."""

    name: str = ""
    tp_size: int = 1
    pp_size: int = 1
    decoupled: bool = True
    accumulate_tokens: bool = False
    version_policy: str | None = None
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_mem_fraction: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LlmapiModel:
    """The model of a checkpoint, ready to be written: its two files, and what the manifest says of it."""

    name: str
    config: str
    arguments: str
    source: dict[str, Any]
    options: dict[str, Any]

    @property
    def chain(self) -> dict[str, Any]:
        return {**self.source, "models": [self.name], "options": self.options}


def write_llmapi_repository(source: Path, out: Path, options: LlmapiOptions, *, force: bool = False) -> str:
    """Make the repository `out` of the checkpoint `source`, which stays where it is; returns the model's name.

    Raises:
        EngineError: `source` is no Hugging Face checkpoint. PlanError: options that do not fit. OutputError.
    """
    check_output(out, force=force)
    check_not_input(out, source)
    model = plan_llmapi(source, options)
    with staged_dir(out, force=force) as partial:
        write_llmapi(partial, model)
        write_manifest(
            partial,
            kind="repository",
            source={**model.source, "chains": {options.name: model.chain}},
            options=model.options,
            versions=tool_versions("jinja2"),
        )
    return model.name


def plan_llmapi(source: Path, options: LlmapiOptions) -> LlmapiModel:
    """The model, checked.

    Raises:
        EngineError: `source` is no Hugging Face checkpoint. PlanError: options that do not fit.
    """
    config = read_hf_config(source)
    check_tokenizer(source)
    _check(options, config)
    name = f"{options.name}_{MODEL}" if options.name else MODEL
    policy = policy_text(options.version_policy)
    values = {"names": {"llmapi": name}, "version_policy": policy, "decoupled": options.decoupled}
    values["accumulate_tokens"] = options.accumulate_tokens
    described = {
        "engine": str(source.resolve()),
        "engine_config_sha256": sha256_file(source / "config.json"),
        "target": "llmapi",
        "world_size": 1,  # the LLM class starts the processes of its other ranks itself
    }
    chosen = {**options.__dict__, "arguments": dict(options.arguments)}
    return LlmapiModel(name, render_configs(values)["llmapi"], model_yaml(source, options), described, chosen)


def write_llmapi(folder: Path, model: LlmapiModel) -> None:
    """The model as a folder of `folder`."""
    version = folder / model.name / "1"
    version.mkdir(parents=True)
    (folder / model.name / "config.pbtxt").write_text(model.config, encoding="utf-8")
    copy_code("llmapi", version)
    (version / MODEL_FILE).write_text(model.arguments, encoding="utf-8")


def model_yaml(source: Path, options: LlmapiOptions) -> str:
    """The arguments of the LLM class, and what concerns Triton."""
    import yaml

    cache: dict[str, Any] = {"enable_block_reuse": True}
    if options.max_tokens_in_paged_kv_cache is not None:
        cache["max_tokens"] = options.max_tokens_in_paged_kv_cache
    else:
        cache["free_gpu_memory_fraction"] = options.kv_cache_free_gpu_mem_fraction or 0.9
    given = dict(options.arguments)
    document = {
        "model": str(source.resolve()),
        "backend": "pytorch",
        "tensor_parallel_size": options.tp_size,
        "pipeline_parallel_size": options.pp_size,
        "enable_chunked_prefill": True,
        **given,
        "kv_cache_config": {**cache, **given.get("kv_cache_config", {})},
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": options.decoupled,
            "cancellation_check_period_ms": 100,
            "accumulate_tokens": options.accumulate_tokens,
        },
    }
    return "# All but triton_config goes to tensorrt_llm.LLM.\n" + yaml.safe_dump(document, sort_keys=False)


def read_hf_config(source: Path) -> dict[str, Any]:
    """config.json of a Hugging Face checkpoint with safetensors.

    Raises:
        EngineError: it is something else.
    """
    hint = "Make one: trtbuild checkpoint MODEL -o DIR --target llmapi"
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{source} is no Hugging Face checkpoint: {error}", hint=hint) from error
    if not isinstance(config, dict) or not config.get("architectures"):
        what = "a TensorRT-LLM engine" if isinstance(config, dict) and "build_config" in config else "something else"
        raise EngineError(f"{source} is no Hugging Face checkpoint but {what}: no architectures", hint=hint)
    if not any(source.glob("*.safetensors")):
        raise EngineError(f"{source} has no *.safetensors", hint=hint)
    return config


def _check(options: LlmapiOptions, config: Mapping[str, Any]) -> None:
    text = config.get("text_config") or config
    heads, layers = text.get("num_attention_heads"), text.get("num_hidden_layers")
    fraction, tokens = options.kv_cache_free_gpu_mem_fraction, options.max_tokens_in_paged_kv_cache
    checks = (
        (
            options.tp_size < 1 or options.pp_size < 1,
            f"tp {options.tp_size} and pp {options.pp_size} must be 1 or more",
        ),
        (
            isinstance(heads, int) and options.tp_size > 1 and heads % options.tp_size,
            f"{heads} attention heads are not divisible by tp {options.tp_size}",
        ),
        (isinstance(layers, int) and options.pp_size > layers, f"pp {options.pp_size} is more than {layers} layers"),
        (fraction is not None and not 0 < fraction < 1, f"KV cache fraction {fraction} must be above 0 and below 1"),
        (tokens is not None and tokens < 1, f"{tokens} tokens in the KV cache must be 1 or more"),
        (options.accumulate_tokens and not options.decoupled, "accumulated tokens want decoupled mode"),
        (bool(options.name) and not NAME.fullmatch(options.name), f"name {options.name!r} is no name of a model"),
    )
    problems = [sentence for wrong, sentence in checks if wrong]
    problems += flag_problems(options.arguments) + argument_problems(options.arguments)
    if problems:
        raise PlanError(problems)
