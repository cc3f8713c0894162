"""What comes back of a generation: responses of the server -> chunks and whole answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OUTPUTS = ("text_output", "num_output_tokens")
"""Tensors that every generation asks for."""
_PLAIN = (OUTPUTS, (*OUTPUTS, "num_input_tokens"))
_READ = {*OUTPUTS, "output_log_probs", "num_input_tokens", "sequence_index", "finish_reason", "batch_index"}
"""Those that have a field of a chunk."""


@dataclass(frozen=True)
class Chunk:
    """Text since the last chunk, and how many tokens the engine made for it.

    `token_count`: 0 where the model does not count (upstream's own llmapi). `log_probs`: of these tokens, where they
    were asked for. `prompt_tokens`: of the prompt, where it was asked for. `sequence`: of which answer, where there are
    several. `finish_reason`: `stop` where a stop string ended it, and whatever the server tells of its end. `tensors`:
    other outputs, asked for by name. `beams`: the texts of a response that holds several.
    """

    text: str
    token_count: int
    final: bool = False
    log_probs: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    sequence: int = 0
    finish_reason: str | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict, hash=False)
    beams: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Completion:
    """A whole answer. `finish_reason`: `length` where max_tokens or the engine's room ended it (where the repository
    says how much there is, as those of `trtbuild repo` do), else `stop` (end token or stop word).

    `others`: the second answer and more, where several were asked for. `tensors`: outputs that were asked for by name;
    each as the last response had it.
    """

    text: str
    token_count: int
    finish_reason: str
    log_probs: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict, hash=False)
    others: tuple[Completion, ...] = ()


def chunk_of(response: Any) -> Chunk:
    """The chunk of one ModelInferResponse; the final-response flag says whether it is the last.

    Where it is only text, which is for nearly every token, no array is made of it. Strings lie one after the other,
    each behind its length in four bytes (Triton's binary tensor data).
    """
    raw = response.raw_output_contents
    names = tuple(tensor.name for tensor in response.outputs)
    if len(raw) != len(names) or names not in _PLAIN:
        return _by_arrays(response)
    data, pieces, at = raw[0], [], 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        pieces.append(data[start:at])
    text = b"".join(pieces).decode("utf-8", "replace")
    final = response.parameters["triton_final_response"].bool_param
    prompt = int.from_bytes(raw[2], "little") if len(raw) > len(OUTPUTS) else None
    count, beams = sum(memoryview(raw[1]).cast("i")), _decoded(pieces) if len(pieces) > 1 else ()
    return Chunk(text, count, final, prompt_tokens=prompt, beams=beams)


def _by_arrays(response: Any) -> Chunk:
    from tritonclient.grpc import InferResult

    result = InferResult(response)

    def cells(name: str) -> list[Any]:
        values = result.as_numpy(name)
        return [] if values is None else list(values.reshape(-1).tolist())

    texts, count = cells("text_output"), sum(cells("num_output_tokens"))
    prompt, sequence, reason = (cells(name) for name in ("num_input_tokens", "sequence_index", "finish_reason"))
    return Chunk(
        b"".join(texts).decode("utf-8", "replace"),
        count,
        response.parameters["triton_final_response"].bool_param,
        tuple(cells("output_log_probs")[-count:]) if count else (),
        int(prompt[0]) if prompt else None,
        int(sequence[0]) if sequence else 0,
        (reason[0].decode("utf-8", "replace") or None) if reason else None,
        {tensor.name: result.as_numpy(tensor.name) for tensor in response.outputs if tensor.name not in _READ},
        _decoded(texts) if len(texts) > 1 else (),
    )


def _decoded(texts: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(text.decode("utf-8", "replace") for text in texts)


def completed(chunks: Iterable[Chunk], max_tokens: int) -> Completion:
    """The answer that chunks make up; the first of several holds the others."""
    found: dict[int, list[Chunk]] = {0: []}
    for chunk in chunks:
        found.setdefault(chunk.sequence, []).append(chunk)
    prompt = next((c.prompt_tokens for pieces in found.values() for c in pieces if c.prompt_tokens is not None), None)
    first, *others = (_completion(found[number], max_tokens, prompt) for number in sorted(found))
    return replace(first, others=tuple(others))


def _completion(pieces: list[Chunk], max_tokens: int, prompt_tokens: int | None) -> Completion:
    count = sum(piece.token_count for piece in pieces)
    told = [piece.finish_reason for piece in pieces if piece.finish_reason]
    return Completion(
        "".join(piece.text for piece in pieces),
        count,
        finish_reason(told[-1] if told else None, count, max_tokens),
        tuple(score for piece in pieces for score in piece.log_probs),
        prompt_tokens,
        {name: values for piece in pieces for name, values in piece.tensors.items()},
    )


def finish_reason(told: str | None, token_count: int, max_tokens: int) -> str:
    """Why an answer ended; `told`: what its chunks say of it."""
    return told or ("length" if token_count >= max_tokens else "stop")


def within(answer: Completion, room: int | None) -> Completion:
    """The answer, ended by `length` where it and its prompt fill the `room` of the engine (None: not known)."""
    full = room is not None and answer.prompt_tokens is not None and answer.prompt_tokens + answer.token_count >= room
    return replace(answer, finish_reason="length") if full else answer


def room_of(config: Mapping[str, Any]) -> int | None:
    """max_seq_len of a model's configuration, in tokens; None where it does not say."""
    text = str(config["parameters"].get("max_seq_len", {}).get("string_value", ""))
    return int(text) or None if text.isdecimal() else None


def model_before(config: Mapping[str, Any]) -> str:
    """The model that tokenizes for a model: the first step of an ensemble, what a tensorrt_llm_bls names; or none."""
    steps = (config.get("ensemble_scheduling") or {}).get("step", ())
    if steps:
        return str(steps[0]["model_name"])
    if "tensorrt_llm_model_name" not in config["parameters"]:
        return ""
    named = config["parameters"].get("preprocessing_model_name", {}).get("string_value", "")
    return str(named or "preprocessing")
