"""What comes back of a generation: responses of the server -> chunks and whole answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

OUTPUTS = ("text_output", "num_output_tokens")
"""Tensors that every generation asks for."""
_PLAIN = (OUTPUTS, (*OUTPUTS, "num_input_tokens"))


@dataclass(frozen=True)
class Chunk:
    """Text since the last chunk, and how many tokens the engine made for it.

    `log_probs`: of these tokens, where they were asked for. `prompt_tokens`: of the prompt, where it was asked for.
    """

    text: str
    token_count: int
    final: bool = False
    log_probs: tuple[float, ...] = ()
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. `finish_reason`: `length` where max_tokens or the engine's room ended it (where the repository
    says how much there is, as those of `trtbuild repo` do), else `stop` (end token or stop word)."""

    text: str
    token_count: int
    finish_reason: str
    log_probs: tuple[float, ...] = ()
    prompt_tokens: int | None = None


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
    return Chunk(text, sum(memoryview(raw[1]).cast("i")), final, prompt_tokens=prompt)


def _by_arrays(response: Any) -> Chunk:
    from tritonclient.grpc import InferResult

    result = InferResult(response)
    texts, counts = result.as_numpy("text_output"), result.as_numpy("num_output_tokens")
    count = 0 if counts is None else int(counts.sum())
    scores, prompt = result.as_numpy("output_log_probs"), result.as_numpy("num_input_tokens")
    return Chunk(
        "" if texts is None else b"".join(texts.reshape(-1).tolist()).decode("utf-8", "replace"),
        count,
        response.parameters["triton_final_response"].bool_param,
        () if scores is None or not count else tuple(scores.reshape(-1).tolist()[-count:]),
        None if prompt is None else int(prompt.reshape(-1)[0]),
    )


def completed(chunks: Iterable[Chunk], max_tokens: int) -> Completion:
    """The answer that chunks make up."""
    pieces = list(chunks)
    count = sum(piece.token_count for piece in pieces)
    return Completion(
        "".join(piece.text for piece in pieces),
        count,
        "length" if count >= max_tokens else "stop",
        tuple(score for piece in pieces for score in piece.log_probs),
        next((piece.prompt_tokens for piece in pieces if piece.prompt_tokens is not None), None),
    )


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
    named = config["parameters"].get("preprocessing_model_name", {}).get("string_value", "")
    return str(steps[0]["model_name"] if steps else named)
