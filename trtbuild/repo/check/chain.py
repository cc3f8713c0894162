"""The models of one chain among each other: batch sizes, decoupled, dtypes, instances; llmapi's model.yaml. PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found

CHAIN = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")


def chain_findings(configs: Mapping[str, Any]) -> Iterator[Finding]:
    """`configs`: the parsed configuration (`ModelConfig`) of each model."""
    there = {name: configs[name] for name in CHAIN if name in configs}
    if len(there) > 1:
        yield from _batches(there)
    llm, bls = there.get("tensorrt_llm"), there.get("tensorrt_llm_bls")
    if llm is not None and bls is not None:
        flags = [bool(model.model_transaction_policy.decoupled) for model in (llm, bls)]
        if flags[0] != flags[1]:
            said = f"tensorrt_llm {_word(flags[0])}, tensorrt_llm_bls {_word(flags[1])}"
            yield found("decoupled", "tensorrt_llm_bls/config.pbtxt", "the same flag in both", said)
    if llm is not None and llm.max_batch_size > 1 and not llm.model_transaction_policy.decoupled:
        hint = "Batch size > 1 requires the decoupled transaction policy; so does streaming."
        yield found("decoupled", "tensorrt_llm/config.pbtxt", "decoupled, or max_batch_size 1", "neither", hint)
    post = there.get("postprocessing")
    if post is not None and "STREAM_ID" in {tensor.name for tensor in post.input}:
        count = sum(group.count for group in post.instance_group)
        if count != 1:
            yield found("stream-order", "postprocessing/config.pbtxt", "1 instance", str(count))
    kinds = {
        name: tensor.data_type
        for name, model in there.items()
        for tensor in model.input
        if tensor.name == "prompt_embedding_table"
    }
    if len(set(kinds.values())) > 1:
        yield found("prompt-table", "ensemble/config.pbtxt", "one dtype of prompt_embedding_table", ", ".join(kinds))


def _batches(there: Mapping[str, Any]) -> Iterator[Finding]:
    sizes = {name: int(model.max_batch_size) for name, model in there.items()}
    if len(set(sizes.values())) > 1 or min(sizes.values()) < 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        hint = "0 takes the batch dimension away, on which the models count."
        yield found("batch-size", "config.pbtxt", "one max_batch_size, 1 or more", said, hint)


def llmapi_findings(where: str, config: Any, document: Mapping[str, Any] | None) -> Iterator[Finding]:
    """An `llmapi` model: launchers switch auto-complete off, so config.pbtxt must say what model.yaml says."""
    if document is None:
        yield found("llmapi-yaml", f"{where}/1/model.yaml", "a YAML mapping", "none that can be read")
        return
    triton = document.get("triton_config") or {}
    said, declared = bool(triton.get("decoupled", False)), bool(config.model_transaction_policy.decoupled)
    if said != declared:
        hint = "The server would refuse every streamed answer after the first: write both the same."
        yield found("llmapi-yaml", f"{where}/config.pbtxt", f"decoupled: {_word(said)}", _word(declared), hint)
    batch = int(triton.get("max_batch_size", 0) or 0)
    if batch != config.max_batch_size:
        yield found("llmapi-yaml", f"{where}/config.pbtxt", f"max_batch_size {batch}", str(config.max_batch_size))


def _word(flag: bool) -> str:
    return "decoupled" if flag else "not decoupled"
