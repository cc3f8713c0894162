"""The `tensorrt_llm` model against its engine's config.json: what the backend refuses, or quietly switches off. PURE.

Sources: what TensorRT-LLM 1.2's Triton backend and executor check when they load and when a request comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtbuild.finding import ERROR, Finding
from trtbuild.repo.check.rules import found
from trtbuild.repo.parameters import LOGITS_TYPES, PARAMETERS, RETIRED, TRUE, together_problems

_BUILT_FOR = {4: "medusa", 8: "lookahead", 16: "redrafter", 32: "eagle"}
"""speculative_decoding_mode of an engine -> decoding_mode of the server."""
RELEASE = "1.2.1"


def parameter_findings(where: str, values: Mapping[str, str], backend: str) -> Iterator[Finding]:
    """Faults of single parameters; `values`: key -> text of the file.

    Keys that are read without a guard are the C++ backend's; a Python model takes a default. A backend of another name
    is a fault of its own, and most likely meant to be the C++ one.
    """
    if backend != "python":
        yield from _unguarded(where, values)
    for key, text in sorted(values.items()):
        if key in RETIRED:
            yield found("parameter-value", where, RETIRED[key], f"{key}, which is retired")
        elif key not in PARAMETERS or (PARAMETERS[key].cpu_only and backend == "tensorrtllm"):
            yield found("parameter-unknown", where, "a parameter of the backend", key)
        elif text and not text.startswith("${") and (problem := PARAMETERS[key].problem(text)):
            yield found("parameter-value", where, PARAMETERS[key].meaning, problem)
    for problem in together_problems({key: text for key, text in values.items() if not text.startswith("${")}):
        yield found("parameter-value", where, "parameters that go together", problem)


def _unguarded(where: str, values: Mapping[str, str]) -> Iterator[Finding]:
    """Keys that the C++ backend cannot do without."""
    for key, parameter in PARAMETERS.items():
        if not parameter.required:
            continue
        text = values.get(key)
        if parameter.never_empty and (not text or text.startswith("${")):
            hint = f"The server says: Invalid {key}; it has no default. `trtbuild repo` writes {parameter.choices[0]}."
            rule = "parameter-missing" if text is None else "parameter-value"
            said = "none" if text is None else repr(text)
            yield found(rule, where, f"{key}, one of {', '.join(parameter.choices)}", said, hint)
        elif text is None:
            yield found("parameter-missing", where, f"parameter {key}", "none", "It may be empty, but must be there.")


def engine_findings(where: str, values: Mapping[str, str], config: Any, engine: Mapping[str, Any]) -> Iterator[Finding]:
    """Faults between parameters, the configuration (`ModelConfig`) and the engine's config.json."""
    pretrained, build = engine.get("pretrained_config") or {}, engine.get("build_config") or {}
    cpu = (engine.get("trtbuild") or {}).get("target") == "cpu"
    plugins = build.get("plugin_config") or {}
    yield from _limits(where, values, config, build)
    yield from _logits(where, config, str(pretrained.get("logits_dtype") or "float32"))
    yield from _placing(where, values, config, _world_size(pretrained))
    if not cpu:
        yield from _abilities(where, values, build, plugins)
        version = str(engine.get("version", ""))
        if version != RELEASE:
            hint = "Engines run only in the release, and on the kind of GPU, that built them."
            yield found("engine-version", where, f"an engine of {RELEASE}", version or "no version", hint)


def _world_size(pretrained: Mapping[str, Any]) -> int:
    mapping = pretrained.get("mapping") or {}
    size = 1
    for axis in ("tp_size", "pp_size", "cp_size"):
        size *= int(mapping.get(axis) or 1)
    return size


def _on(values: Mapping[str, str], key: str) -> bool:
    """A switch as the backend reads it: what it cannot read is its default."""
    text = values.get(key, "")
    return text in TRUE if PARAMETERS[key].problem(text) == "" and text else PARAMETERS[key].default == "true"


def _number(values: Mapping[str, str], key: str) -> float | None:
    text = values.get(key, "")
    return float(text) if text and not PARAMETERS[key].problem(text) else None


def _limits(where: str, values: Mapping[str, str], config: Any, build: Mapping[str, Any]) -> Iterator[Finding]:
    beams, built = _number(values, "max_beam_width"), int(build.get("max_beam_width") or 1)
    if beams is not None and beams > built:
        yield found("beam-width", where, f"max_beam_width within the engine's {built}", f"{beams:g}")
    largest = int(build.get("max_batch_size") or 0)
    if largest and config.max_batch_size > largest:
        hint = "Requests are answered row by row, so it works, but rows wait."
        yield found("batch-above-engine", where, f"at most {largest}", str(config.max_batch_size), hint)
    tokens, longest = _number(values, "max_tokens_in_paged_kv_cache"), int(build.get("max_seq_len") or 0)
    if tokens is not None and tokens < longest:
        hint = f"Sequences end at {tokens:g} tokens; raise it, or build with a smaller max_seq_len."
        yield found("kv-tokens", where, f"{longest} tokens, one sequence", f"{tokens:g}", hint)
    step = int(build.get("max_num_tokens") or 0)
    if step and step < longest - 1 and not _on(values, "enable_chunked_context"):
        hint = "Longer ones are refused; chunked context lifts the limit."
        yield found("input-length", where, f"prompts up to {longest - 1} tokens", f"up to max_num_tokens {step}", hint)


def _logits(where: str, config: Any, dtype: str) -> Iterator[Finding]:
    from tritonclient.grpc import model_config_pb2

    wanted = LOGITS_TYPES.get(dtype)
    if wanted is None:
        yield found("logits-type", where, "an engine with float32 or float16 logits", dtype)
        return
    for tensor in (*config.input, *config.output):
        kind = model_config_pb2.DataType.Name(tensor.data_type)
        if tensor.name in ("draft_logits", "context_logits", "generation_logits") and kind != wanted:
            yield found("logits-type", where, f"{wanted} for {tensor.name}, as the engine's {dtype}", kind)


def _abilities(
    where: str, values: Mapping[str, str], build: Mapping[str, Any], plugins: Mapping[str, Any]
) -> Iterator[Finding]:
    """What an engine of TensorRT can only do when it was built for it."""
    paged = str(build.get("kv_cache_type") or "paged").lower() == "paged"
    for name, good in (
        ("gpt_attention_plugin", bool(plugins.get("gpt_attention_plugin", True))),
        ("remove_input_padding", bool(plugins.get("remove_input_padding", True))),
        ("a paged KV cache", paged),
    ):
        if not good:
            yield found("engine-plugins", where, name, "an engine without", "Build it again with it.")
    chunks = bool(plugins.get("context_fmha", True)) and bool(plugins.get("use_paged_context_fmha")) and paged
    if _on(values, "enable_chunked_context") and not chunks:
        hint = "Set it to false, or build with use_paged_context_fmha."
        yield found("chunked-context", where, "paged context attention in the engine", "none", hint)
    gathers = bool(build.get("gather_context_logits"))
    if _on(values, "enable_kv_cache_reuse") and (gathers or not plugins.get("use_paged_context_fmha")):
        why = "the engine gathers context logits" if gathers else "no paged context attention"
        yield found("kv-reuse", where, "an engine that can reuse blocks", why, "The server switches it off silently.")
    share = _number(values, "gpu_weights_percent")
    if share is not None and share < 1 and not build.get("weight_streaming"):
        yield found("weight-streaming", where, "an engine with weight_streaming", f"gpu_weights_percent {share:g}")
    lora = [key for key in values if key.startswith("lora_") and values[key]]
    if lora and not plugins.get("lora_plugin"):
        yield found("lora-plugin", where, "an engine with lora_plugin", ", ".join(sorted(lora)))
    encoder = bool(values.get("encoder_model_path"))
    if encoder != bool(values.get("cross_kv_cache_fraction")):
        has = "an encoder and no fraction" if encoder else "a fraction and no encoder"
        yield found("cross-attention", where, "cross_kv_cache_fraction with encoder_model_path", has)
    built, mode = _BUILT_FOR.get(int(build.get("speculative_decoding_mode") or 1)), values.get("decoding_mode", "")
    if mode in _BUILT_FOR.values() and mode != built:
        yield found("decoding-mode", where, f"an engine built for {mode}", built or "no speculative decoding")


def _placing(where: str, values: Mapping[str, str], config: Any, world_size: int) -> Iterator[Finding]:
    """GPUs, ranks and instances."""
    nodes = int(_number(values, "num_nodes") or 1)
    groups = values.get("gpu_device_ids", "")
    if groups and not PARAMETERS["gpu_device_ids"].problem(groups):
        for group in groups.split(";"):
            count = len(group.split(","))
            if count * nodes != world_size:
                said = f"{count} x num_nodes {nodes} in {group!r}"
                yield found("device-ids", where, f"{world_size} GPUs, one for each rank", said)
    ids = values.get("participant_ids", "")
    if ids and not PARAMETERS["participant_ids"].problem(ids):
        for group in ids.split(";"):
            if len(group.split(",")) != world_size:
                yield found("participants", where, f"{world_size} ranks of {group!r}", str(len(group.split(","))))
    if config.backend != "tensorrtllm":
        return
    tokens = values.get("max_tokens_in_paged_kv_cache")
    for group in config.instance_group:
        kind = {0: "KIND_AUTO", 1: "KIND_GPU", 2: "KIND_CPU"}.get(group.kind, str(group.kind))
        if kind != "KIND_CPU":
            hint = "Each GPU would get an instance with the whole engine in it."
            yield found("instance-group", where, "KIND_CPU", kind, hint)
        elif group.count > len(groups.split(";")) * bool(groups) and group.count > 1 and not tokens:
            hint = "The first instance takes 90 % of what is free, and the others find nothing."
            said = f"{group.count} instances without a gpu_device_ids of their own, or max_tokens_in_paged_kv_cache"
            yield found("instance-group", where, "a share of the memory for each", said, hint, ERROR)
