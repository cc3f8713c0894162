"""The `tensorrt_llm` model against its engine's config.json: what the backend refuses, or quietly switches off. PURE.

Sources: what TensorRT-LLM 1.2's Triton backend and executor check when they load and when a request comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtbuild.finding import ERROR, WARNING, Finding
from trtbuild.repo.check.rules import found
from trtbuild.repo.parameters import LOGITS_TYPES, PARAMETERS, RETIRED, TRUE, together_problems

_BUILT_FOR = {4: "medusa", 8: "lookahead", 16: "redrafter", 32: "eagle"}
"""speculative_decoding_mode of an engine -> decoding_mode of the server."""
_DRAFT_TOKENS_EXTERNAL = 2
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
    filled = {key: text for key, text in values.items() if not text.startswith("${")}
    for problem in together_problems(filled, backend):
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
    """Faults between parameters, the configuration (`ModelConfig`) and the config.json of gpt_model_path."""
    pretrained, build = engine.get("pretrained_config") or {}, engine.get("build_config") or {}
    plugins = build.get("plugin_config") or {}
    yield from _limits(where, values, config, build)
    yield from _logits(where, config, str(pretrained.get("logits_dtype") or "float32"))
    yield from _placing(where, values, config, _world_size(pretrained))
    if not _is_cpu(engine):
        yield from _abilities(where, values, build, plugins)
        yield from _lora(where, values, build, plugins)
        yield from _cross_attention(where, values, pretrained)
        yield from _speculation(where, values, config, build)
        yield from _release(where, engine)


def encoder_findings(
    where: str, values: Mapping[str, str], config: Any, engine: Mapping[str, Any]
) -> Iterator[Finding]:
    """The same for the engine of an encoder (encoder_model_path), alone or with a decoder. It has no KV cache."""
    if not values.get("gpt_model_path"):
        yield from _placing(where, values, config, _world_size(engine.get("pretrained_config") or {}))
    if not _is_cpu(engine):
        yield from _release(where, engine)


def target_findings(where: str, backend: str, engine: Mapping[str, Any], *, is_ours: bool) -> Iterator[Finding]:
    """An engine behind a backend that cannot read it; `is_ours`: the Python model is the one for cpu engines."""
    if _is_cpu(engine) and backend == "tensorrtllm":
        hint = "Make the repository with `trtbuild repo` from this engine, or build the engine for TensorRT."
        yield found("engine-target", where, "an engine of TensorRT behind tensorrtllm", "a cpu engine", hint)
    elif not _is_cpu(engine) and backend == "python" and is_ours:
        hint = 'Make the repository with `trtbuild repo` from this engine: its backend is "tensorrtllm".'
        yield found("engine-target", where, "a cpu engine behind trtbuild's model.py", "an engine of TensorRT", hint)


def _is_cpu(engine: Mapping[str, Any]) -> bool:
    return (engine.get("trtbuild") or {}).get("target") == "cpu"


def _release(where: str, engine: Mapping[str, Any]) -> Iterator[Finding]:
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
    lacking = _no_reuse(build, plugins)
    if _on(values, "enable_kv_cache_reuse") and lacking:
        yield found(
            "kv-reuse", where, "an engine that can reuse blocks", lacking, "The server switches it off silently."
        )
    if not _on(values, "kv_cache_onboard_blocks") and plugins.get("use_paged_context_fmha"):
        hint = "Take the key away: it is internal, and fails with this engine."
        yield found("kv-onboard", where, "kv_cache_onboard_blocks true with paged context attention", "false", hint)
    share = _number(values, "gpu_weights_percent")
    if share is not None and share < 1 and not build.get("weight_streaming"):
        yield found("weight-streaming", where, "an engine with weight_streaming", f"gpu_weights_percent {share:g}")


def _no_reuse(build: Mapping[str, Any], plugins: Mapping[str, Any]) -> str:
    """Why an engine cannot reuse KV blocks; empty where it can."""
    if build.get("gather_context_logits"):
        return "the engine gathers context logits"
    return "" if plugins.get("use_paged_context_fmha") else "no paged context attention"


def _lora(
    where: str, values: Mapping[str, str], build: Mapping[str, Any], plugins: Mapping[str, Any]
) -> Iterator[Finding]:
    given = [key for key in values if key.startswith("lora_") and values[key]]
    if not plugins.get("lora_plugin"):
        if given:
            yield found("lora-plugin", where, "an engine with lora_plugin", ", ".join(sorted(given)))
        return
    rank = int((build.get("lora_config") or {}).get("max_lora_rank") or 0)
    key = "lora_cache_max_adapter_size"
    size = _number(values, key) or float(PARAMETERS[key].default)
    if size < rank:
        hint = "An adapter of that rank may find no room: 'Not enough space allocated to host/device LoRA cache'."
        yield found("lora-cache", where, f"{key} of the engine's max_lora_rank {rank}", f"{size:g}", hint)


def _cross_attention(where: str, values: Mapping[str, str], pretrained: Mapping[str, Any]) -> Iterator[Finding]:
    """A decoder that attends to an encoder (its checkpoint names the encoder's sizes) wants one, and KV for both."""
    keys = ("encoder_model_path", "cross_kv_cache_fraction")
    given = [key for key in keys if values.get(key)]
    decoder = bool(pretrained.get("encoder_hidden_size"))
    if (decoder or "encoder_model_path" in given) and len(given) < len(keys):
        who = "the decoder of an encoder-decoder model" if decoder else "a decoder with an encoder"
        said = f"only {given[0]}" if given else "neither"
        yield found("cross-attention", where, f"{' and '.join(keys)} for {who}", said, "Set both, or neither.")
    elif given == ["cross_kv_cache_fraction"]:
        hint = "Take the key away: 'Do not set crossKvCacheFraction for decoder-only model'."
        yield found("cross-attention", where, f"{keys[1]} only with encoder_model_path", "no encoder", hint)


def _speculation(where: str, values: Mapping[str, str], config: Any, build: Mapping[str, Any]) -> Iterator[Finding]:
    """Speculative decoding: the mode is the engine's, what it needs beside is the server's."""
    number, mode = int(build.get("speculative_decoding_mode") or 1), values.get("decoding_mode", "")
    built = _BUILT_FOR.get(number)
    if mode in _BUILT_FOR.values() and mode != built:
        yield found("decoding-mode", where, f"an engine built for {mode}", built or "no speculative decoding")
    elif built and mode and mode != built:
        hint = "The server takes the engine's mode, with a warning in its log."
        yield found("decoding-mode", where, f"{built}, as the engine, or none", mode, hint, WARNING)
    lookahead = [key for key in PARAMETERS if key.startswith("lookahead_")]
    if built == "lookahead" and mode != built and not any(values.get(key) for key in lookahead):
        # With decoding_mode, or some of the three, parameter-value says it already.
        yield found("decoding-mode", where, f"{', '.join(lookahead)} for a lookahead engine", "none", "Set all three.")
    lacking = _no_reuse(build, build.get("plugin_config") or {})
    if number == _DRAFT_TOKENS_EXTERNAL and (lacking or not _on(values, "enable_kv_cache_reuse")):
        hint = "Set it to true; the engine must be built with use_paged_context_fmha, without gather_context_logits."
        said = lacking or "enable_kv_cache_reuse false"
        yield found("draft-tokens", where, "KV reuse with an engine of draft_tokens_external", said, hint)
    ranks = values.get("participant_ids", "")
    if _on(values, "speculative_decoding_fast_logits") and (
        config.backend != "tensorrtllm" or not ranks or "0" in ranks.replace(";", ",").split(",")
    ):
        hint = "The server switches it off with a warning in its log; participant_ids from 1 are that mode's."
        said = f"backend {config.backend}, " + (f"participant_ids {ranks}" if ranks else "no participant_ids")
        yield found("fast-logits", where, "orchestrator mode without spawning (tensorrtllm backend)", said, hint)


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
