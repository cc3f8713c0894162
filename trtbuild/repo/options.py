"""Choices of a repository -> the values that its templates take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtbuild.errors import PlanError
from trtbuild.repo.info import EngineFacts
from trtbuild.repo.parameters import PARAMETERS, parameter_problems

_LOGITS = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}


@dataclass(frozen=True)
class RepositoryOptions:
    """What the user may choose; None leaves it to the engine or the server."""

    triton_max_batch_size: int | None = None
    preprocessing_instances: int | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    exclude_input_in_output: bool = False
    decoupled: bool = True
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 0
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_mem_fraction: float | None = None
    batch_scheduler_policy: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


def check_options(options: RepositoryOptions, engine: EngineFacts, tokenizer_vocab: int) -> None:
    """Everything that the engine cannot honour, together.

    Raises:
        PlanError: one sentence for each problem.
    """
    batch = options.triton_max_batch_size
    tokens = options.max_tokens_in_paged_kv_cache
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
            engine.logits_dtype not in _LOGITS,
            f"the backend returns logits as float32 or float16, not {engine.logits_dtype}",
        ),
        (
            batch is not None and batch > 1 and not options.decoupled,
            f"max batch size {batch} wants decoupled; a model that is not takes one prompt a request",
        ),
    )
    given = {
        "batch_scheduler_policy": options.batch_scheduler_policy,
        "kv_cache_free_gpu_mem_fraction": options.kv_cache_free_gpu_mem_fraction,
    }
    named = {key: str(value) for key, value in given.items() if value is not None}
    problems = [sentence for wrong, sentence in checks if wrong]
    problems += parameter_problems({**named, **options.parameters})
    if problems:
        raise PlanError(problems)


def template_values(options: RepositoryOptions, engine: EngineFacts, tokenizer_dir: str) -> dict[str, Any]:
    """The variables of the templates; `tokenizer_dir` as pre- and postprocessing shall find it."""
    batch = options.triton_max_batch_size or (engine.max_batch_size if options.decoupled else 1)
    parameters = _parameters(options, engine, tokenizer_dir)
    return {
        "target": engine.target,
        "engine_dir": str(engine.directory),
        "tokenizer_dir": tokenizer_dir,
        "triton_max_batch_size": batch,
        "decoupled": options.decoupled,
        "max_queue_delay_microseconds": options.max_queue_delay_microseconds,
        "max_queue_size": options.max_queue_size,
        "logits_datatype": _LOGITS[engine.logits_dtype],
        "encoder_input_features_data_type": "TYPE_FP16",
        "prompt_embedding_table_data_type": "TYPE_FP16",
        "preprocessing_instance_count": options.preprocessing_instances or (1 if engine.target == "cpu" else 4),
        "add_special_tokens": options.add_special_tokens,
        "skip_special_tokens": options.skip_special_tokens,
        "max_input_len": engine.max_input_len,
        "parameters": {key: value for key, value in parameters.items() if value is not None},
        "unset_parameters": [key for key, value in parameters.items() if value is None],
    }


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
    }
    chosen |= options.parameters
    return {key: _text(chosen.get(key)) for key in PARAMETERS}


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
