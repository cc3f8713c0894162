"""Choices of a repository -> the values that its templates take. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtbuild.errors import PlanError
from trtbuild.repo.info import EngineFacts
from trtbuild.repo.parameters import LOGITS_TYPES, PARAMETERS, parameter_problems

ROLES = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
"""The models of one chain, by upstream's names."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FLAGS = {
    "max_tokens_in_paged_kv_cache": "--max-tokens-in-kv",
    "kv_cache_free_gpu_mem_fraction": "--kv-mem-fraction",
    "batch_scheduler_policy": "--batch-scheduler-policy",
    "exclude_input_in_output": "--exclude-input-in-output",
}
"""Parameters that are options of the same name, which other models see as well -> their flags."""
TENSOR_TYPES = ("FP16", "BF16", "FP32")
_POLICIES = "latest, latest:N, all, or version numbers with commas"


@dataclass(frozen=True)
class RepositoryOptions:
    """What the user may choose; None leaves it to the engine or the server.

    `name`: goes before the names of the models ("llama" gives llama_ensemble), so that several fit in one repository.
    `version_policy`: which versions the server loads: latest (a new model's), latest:N, all, or "1,3". `bls`: with
    tensorrt_llm_bls. `instances`: of the engine, each on the GPUs of its part of gpu_device_ids. The types are those of
    encoder_input_features and prompt_embedding_table, as the engine takes them.
    """

    name: str = ""
    triton_max_batch_size: int | None = None
    preprocessing_instances: int | None = None
    bls: bool = True
    bls_instances: int | None = None
    instances: int | None = None
    accumulate_tokens: bool = False
    version_policy: str | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    exclude_input_in_output: bool = False
    decoupled: bool = True
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 0
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_mem_fraction: float | None = None
    batch_scheduler_policy: str | None = None
    encoder_features_type: str = "FP16"
    prompt_table_type: str = "FP16"
    parameters: Mapping[str, str] = field(default_factory=dict)


def model_names(options: RepositoryOptions) -> dict[str, str]:
    """Role -> name of the model in the repository, for the models that these options give."""
    prefix = f"{options.name}_" if options.name else ""
    return {role: prefix + role for role in ROLES if options.bls or role != "tensorrt_llm_bls"}


def policy_text(policy: str | None) -> str:
    """A version policy as Triton's text; None is Triton's default.

    >>> policy_text("latest:2"), policy_text("all"), policy_text("1,3")
    ('latest { num_versions: 2 }', 'all { }', 'specific { versions: [ 1, 3 ] }')

    Raises:
        PlanError: it is none.
    """
    policy = "latest" if policy is None else policy
    if match := re.fullmatch(r"latest(?::([1-9]\d*))?", policy):
        return f"latest {{ num_versions: {match[1] or 1} }}"
    if policy == "all":
        return "all { }"
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", policy):
        return f"specific {{ versions: [ {', '.join(policy.split(','))} ] }}"
    raise PlanError([f"version policy {policy!r} is not {_POLICIES}"])


def check_options(options: RepositoryOptions, engine: EngineFacts, tokenizer_vocab: int) -> None:
    """Everything that the engine cannot honour, together.

    Raises:
        PlanError: one sentence for each problem.
    """
    batch = options.triton_max_batch_size
    tokens = options.max_tokens_in_paged_kv_cache
    instances = (
        ("preprocessing", options.preprocessing_instances),
        ("tensorrt_llm_bls", options.bls_instances),
        ("tensorrt_llm", options.instances),
    )
    types = (options.encoder_features_type, options.prompt_table_type)
    checks = (
        (batch is not None and batch < 1, f"max batch size {batch} must be 1 or more"),
        (
            batch is not None and batch > engine.max_batch_size,
            f"max batch size {batch} is above the engine's {engine.max_batch_size}",
        ),
        (
            tokenizer_vocab > engine.vocab_size,
            f"the tokenizer has {tokenizer_vocab} tokens, above the engine's vocabulary of {engine.vocab_size}",
        ),
        (
            tokens is not None and tokens < engine.max_seq_len,
            f"{tokens} tokens in the KV cache do not hold one sequence of max_seq_len {engine.max_seq_len}",
        ),
        (
            engine.logits_dtype not in LOGITS_TYPES,
            f"the backend returns logits as float32 or float16, not {engine.logits_dtype}",
        ),
        (
            not options.decoupled and batch is not None and batch > 1,
            f"max batch size {batch} wants decoupled mode: without it a request has one answer",
        ),
        (
            options.accumulate_tokens and not (options.bls and options.decoupled),
            "accumulated tokens want tensorrt_llm_bls and decoupled mode",
        ),
        *(
            (count is not None and count < 1, f"{count} {kind} instances must be 1 or more")
            for kind, count in instances
        ),
        (
            engine.target == "cpu" and (options.instances or 1) > 1,
            "an engine of the cpu target has one instance, which serves all requests",
        ),
        *((kind not in TENSOR_TYPES, f"type {kind} is none of {', '.join(TENSOR_TYPES)}") for kind in types),
        (
            bool(options.name) and not NAME.fullmatch(options.name),
            f"name {options.name!r} must be of letters, digits, dots, dashes and underscores",
        ),
    )
    problems = [sentence for wrong, sentence in checks if wrong] + _text_problems(options, engine)
    if problems:
        raise PlanError(problems)


def _text_problems(options: RepositoryOptions, engine: EngineFacts) -> list[str]:
    """Those of parameters and of the version policy."""
    given = {
        "batch_scheduler_policy": options.batch_scheduler_policy,
        "kv_cache_free_gpu_mem_fraction": options.kv_cache_free_gpu_mem_fraction,
    }
    named = {key: str(value) for key, value in given.items() if value is not None}
    problems = parameter_problems({**named, **options.parameters})
    twice = {key: flag for key, flag in FLAGS.items() if key in options.parameters}
    problems += [f"parameter {key} is an option of its own ({flag})" for key, flag in twice.items()]
    ours = [key for key in options.parameters if key in PARAMETERS and PARAMETERS[key].cpu_only]
    problems += [f"parameter {key} is of the cpu target only" for key in ours if engine.target != "cpu"]
    try:
        policy_text(options.version_policy)
    except PlanError as error:
        problems += error.problems
    return problems


def template_values(options: RepositoryOptions, engine: EngineFacts, tokenizer_dir: str) -> dict[str, Any]:
    """The variables of the templates; `tokenizer_dir` as pre- and postprocessing shall find it."""
    # A model that is not decoupled gives one answer for a request, so a request is one prompt.
    batch = options.triton_max_batch_size or (engine.max_batch_size if options.decoupled else 1)
    parameters = _parameters(options, engine, tokenizer_dir)
    return {
        "names": model_names(options),
        "version_policy": policy_text(options.version_policy),
        "target": engine.target,
        "engine_dir": str(engine.directory),
        "tokenizer_dir": tokenizer_dir,
        "triton_max_batch_size": batch,
        "decoupled": options.decoupled,
        "max_queue_delay_microseconds": options.max_queue_delay_microseconds,
        "max_queue_size": options.max_queue_size,
        "logits_datatype": LOGITS_TYPES[engine.logits_dtype],
        "encoder_input_features_data_type": f"TYPE_{options.encoder_features_type}",
        "prompt_embedding_table_data_type": f"TYPE_{options.prompt_table_type}",
        "instance_count": options.instances or _groups(parameters),
        "preprocessing_instance_count": options.preprocessing_instances or (1 if engine.target == "cpu" else 4),
        # A thread serves each request of a decoupled tensorrt_llm_bls; more instances spread them over processes.
        "bls_instance_count": options.bls_instances or 1,
        "accumulate_tokens": options.accumulate_tokens,
        "exclude_input_in_output": options.exclude_input_in_output,
        "cancellation_check_period_ms": parameters["cancellation_check_period_ms"],
        "add_special_tokens": options.add_special_tokens,
        "skip_special_tokens": options.skip_special_tokens,
        "max_input_len": engine.max_input_len,
        # With an encoder, prompt and answer are of two sequences.
        "max_seq_len": 0 if parameters.get("encoder_model_path") else engine.max_seq_len,
        "parameters": {key: value for key, value in parameters.items() if value is not None},
        "unset_parameters": [key for key, value in parameters.items() if value is None],
    }


def _groups(parameters: Mapping[str, str | None]) -> int:
    """Instances that the lists of GPUs and ranks are for: there is a semicolon between two."""
    return max(len((parameters.get(key) or "").split(";")) for key in ("gpu_device_ids", "participant_ids"))


def _parameters(options: RepositoryOptions, engine: EngineFacts, tokenizer_dir: str) -> dict[str, str | None]:
    """All of upstream's parameters in its order; None is left out of the file."""
    chosen: dict[str, Any] = {
        "max_beam_width": engine.max_beam_width,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": engine.directory,
        "max_tokens_in_paged_kv_cache": options.max_tokens_in_paged_kv_cache,
        "batch_scheduler_policy": options.batch_scheduler_policy,
        "kv_cache_free_gpu_mem_fraction": options.kv_cache_free_gpu_mem_fraction,
        "enable_kv_cache_reuse": engine.target != "cpu" and engine.paged_context and not engine.gathers_context_logits,
        "exclude_input_in_output": options.exclude_input_in_output,
        "cancellation_check_period_ms": 100,
        "stats_check_period_ms": 100,
        "enable_chunked_context": engine.paged_context,
        # The backend reads these three without a guard: the keys must exist.
        "tokenizer_dir": tokenizer_dir,
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
        "lora_cache_max_adapter_size": _adapter_size(engine),
    }
    chosen |= options.parameters
    given = {key: _text(value) for key, value in chosen.items() if value is not None}
    known = [key for key, parameter in PARAMETERS.items() if engine.target == "cpu" or not parameter.cpu_only]
    return {key: given.get(key, _written_default(key, given)) for key in known}


def _adapter_size(engine: EngineFacts) -> int | None:
    """The engine's LoRA rank, where the backend's own size would not hold an adapter of it."""
    build = engine.document["build_config"]
    rank = int((build.get("lora_config") or {}).get("max_lora_rank") or 0)
    usual = int(PARAMETERS["lora_cache_max_adapter_size"].default)
    return rank if (build.get("plugin_config") or {}).get("lora_plugin") and rank > usual else None


def _written_default(key: str, given: Mapping[str, str | None]) -> str | None:
    """The backend's own default, so that the file says all; None where saying it would change something."""
    parameter = PARAMETERS[key]
    if key == "kv_cache_free_gpu_mem_fraction" and "max_tokens_in_paged_kv_cache" in given:
        return None  # alone, the number of tokens holds; with a fraction, the smaller of both
    if key.startswith("lora_") and not any(name.startswith("lora_") for name in given):
        return None
    return parameter.default if parameter.is_default_written else None


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
