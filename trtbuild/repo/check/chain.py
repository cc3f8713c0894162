"""The models of one chain among each other: batch sizes, decoupled, dtypes, instances, tensorrt_llm_bls. PURE.

A chain is the models that one engine has; several chains of a repository differ by what stands before upstream's names
("llama_ensemble").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found
from trtbuild.repo.options import ROLES
from trtbuild.versions import runs_engine

_NAMED = {
    "tensorrt_llm_model_name": "tensorrt_llm",
    "preprocessing_model_name": "preprocessing",
    "tensorrt_llm_draft_model_name": "",
    "multimodal_encoders_name": "",
}
"""Parameters of tensorrt_llm_bls that name a model, and what stands for them where they are empty; "" is none."""


def role_of(name: str) -> tuple[str, str]:
    """(name of the chain, upstream's name) of a model; ("", "") for a model that is of no chain."""
    for role in sorted(ROLES, key=len, reverse=True):
        if name == role:
            return "", role
        if name.endswith(f"_{role}"):
            return name[: -len(role) - 1], role
    return "", ""


def chain_findings(configs: Mapping[str, Any]) -> Iterator[Finding]:
    """`configs`: the parsed configuration (`ModelConfig`) of each model."""
    chains: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        chain, role = role_of(name)
        if role:
            chains.setdefault(chain, {})[name] = config
    for there in chains.values():
        yield from _chain(there)
    for name, config in configs.items():
        if "tensorrt_llm_model_name" in config.parameters or role_of(name)[1] == "tensorrt_llm_bls":
            yield from _bls(name, config, configs)
        if not role_of(name)[1] and runs_engine(name, config):
            yield from _batches({name: config})
    yield from _shared_gpus(configs)


def _chain(there: Mapping[str, Any]) -> Iterator[Finding]:
    by_role = {role_of(name)[1]: (f"{name}/config.pbtxt", config) for name, config in there.items()}
    yield from _batches(there)
    if "tensorrt_llm" in by_role:
        where, llm = by_role["tensorrt_llm"]
        if llm.max_batch_size > 1 and not llm.model_transaction_policy.decoupled:
            hint = "Batch size > 1 requires the decoupled transaction policy; so does streaming."
            yield found("decoupled", where, "decoupled, or max_batch_size 1", "neither", hint)
    if "postprocessing" in by_role:
        where, post = by_role["postprocessing"]
        count = sum(group.count for group in post.instance_group)
        if "STREAM_ID" in {tensor.name for tensor in post.input} and count != 1:
            yield found("stream-order", where, "1 instance", str(count))
    kinds = {
        name: tensor.data_type
        for name, model in there.items()
        for tensor in model.input
        if tensor.name == "prompt_embedding_table"
    }
    if len(set(kinds.values())) > 1:
        where = by_role.get("ensemble", next(iter(by_role.values())))[0]
        yield found("prompt-table", where, "one dtype of prompt_embedding_table", ", ".join(kinds))


def _batches(there: Mapping[str, Any]) -> Iterator[Finding]:
    """llmapi has a batch size of 0, alone under the name tensorrt_llm."""
    sizes = {name: int(model.max_batch_size) for name, model in there.items()}
    if len(there) == 1 and not any(runs_engine(name, model) for name, model in there.items()):
        return
    if len(set(sizes.values())) > 1 or min(sizes.values()) < 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        hint = "Write the same number in all of them; 0 takes the batch dimension away, on which the models count."
        yield found("batch-size", "config.pbtxt", "one max_batch_size, 1 or more", said, hint)


def _bls(name: str, bls: Any, configs: Mapping[str, Any]) -> Iterator[Finding]:
    """A tensorrt_llm_bls, under whatever name, against the models that it calls."""
    where = f"{name}/config.pbtxt"
    for key, usual in _NAMED.items():
        called = _value(bls, key) or usual
        if called and called not in configs:
            hint = f"Add the model, or name another one in {key}" + ("." if usual else ", or leave it empty.")
            yield found("bls-model", where, f"a model {called} ({key})", f"only {', '.join(sorted(configs))}", hint)
    if "preprocessing_model_name" not in bls.parameters and "postprocessing" not in configs:
        said = f"only {', '.join(sorted(configs))}"
        hint = "Upstream's model asks it for the text, by this name; trtbuild's makes the text itself."
        yield found("bls-model", where, "a model postprocessing", said, hint)
    decoupled = bool(bls.model_transaction_policy.decoupled)
    if _value(bls, "accumulate_tokens").lower() in ("true", "yes", "1", "t") and not decoupled:
        hint = "It has no effect: a request has one answer."
        yield found("accumulate-tokens", where, "decoupled with accumulate_tokens", "not decoupled", hint)
    llm = configs.get(_value(bls, "tensorrt_llm_model_name") or "tensorrt_llm")
    if llm is None:
        return
    if bool(llm.model_transaction_policy.decoupled) != decoupled:
        said = f"{llm.name} {_word(not decoupled)}, {name} {_word(decoupled)}"
        yield found("decoupled", where, "the same flag in both", said)
    makes = {tensor.name: tensor.data_type for tensor in llm.output}
    for tensor in bls.output:
        if tensor.name in makes and makes[tensor.name] != tensor.data_type:
            hint = "The model passes the tensor on as it is."
            yield found("bls-type", where, f"the data type of {llm.name}.{tensor.name}", "another", hint)


def _value(config: Any, key: str) -> str:
    """A parameter's text; a left-over placeholder counts as nothing."""
    text = str(config.parameters[key].string_value) if key in config.parameters else ""
    return "" if text.startswith("${") else text


def _shared_gpus(configs: Mapping[str, Any]) -> Iterator[Finding]:
    """Several engines of TensorRT in one repository: each takes 0.9 of what memory is free, and its own MPI ranks."""
    engines = {name: config for name, config in configs.items() if config.backend == "tensorrtllm"}
    if len(engines) < 2:
        return
    devices = {name: set(_value(config, "gpu_device_ids").replace(";", ",").split(",")) - {""}
               for name, config in engines.items()}  # fmt: skip
    ranks: dict[str, str] = {}
    for name, config in engines.items():
        where = f"{name}/config.pbtxt"
        others = [other for other in engines if other != name]
        apart = devices[name] and not any(devices[name] & devices[other] or not devices[other] for other in others)
        if not apart and not _value(config, "max_tokens_in_paged_kv_cache"):
            hint = "The first one takes 0.9 of the free memory. Servers of several engines want orchestrator mode."
            said = f"GPUs shared with {', '.join(others)}"
            yield found("shared-gpus", where, "gpu_device_ids of its own, or max_tokens_in_paged_kv_cache", said, hint)
        for rank in set(_value(config, "participant_ids").replace(";", ",").split(",")) - {""}:
            if rank in ranks:
                yield found("participants", where, "MPI ranks of its own", f"rank {rank} is of {ranks[rank]} too")
            ranks.setdefault(rank, name)


def prompt_table_findings(
    configs: Mapping[str, Any], engines: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Finding]:
    """Models that send prompt tables to an engine which was built without; `engines`: config.json of each, by chain.

    In upstream's configurations every model may take a table; it is an ability that nobody needs to use. A model that
    makes them, or cannot be asked without one, is what an engine must be built for. Vision models with cross attention
    have an encoder instead.
    """
    for name, config in configs.items():
        chain, role = role_of(name)
        builds = [engine.get("build_config") or {} for engine in engines.get(chain, ())]
        sizes = [int(build.get("max_prompt_embedding_table_size") or 0) for build in builds]
        llm = configs.get(f"{chain}_tensorrt_llm" if chain else "tensorrt_llm")
        if not role or not sizes or max(sizes) > 0 or (llm is not None and _value(llm, "encoder_model_path")):
            continue
        makers = [key for key in ("multimodal_model_path", "multimodal_encoders_name") if _value(config, key)]
        makers += [f"{t.name} required" for t in config.input if t.name == "prompt_embedding_table" and not t.optional]
        if makers:
            hint = "Build the engine with max_prompt_embedding_table_size, images x tokens of one for each request."
            expected = f"an engine with max_prompt_embedding_table_size for {', '.join(makers)}"
            yield found("prompt-table-size", f"{name}/config.pbtxt", expected, "0", hint)


def _word(flag: bool) -> str:
    return "decoupled" if flag else "not decoupled"
