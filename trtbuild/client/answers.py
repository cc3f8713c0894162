"""What comes back of a generation: responses of the server -> chunks and whole answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

OUTPUTS = ("text_output", "num_output_tokens")
"""Tensors that every generation asks for."""


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
    """A whole answer. `finish_reason`: `length` where max_tokens ended it, else `stop` (end token or stop word)."""

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
    if len(raw) != len(OUTPUTS) or tuple(tensor.name for tensor in response.outputs) != OUTPUTS:
        return _by_arrays(response)
    data, pieces, at = raw[0], [], 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        pieces.append(data[start:at])
    text = b"".join(pieces).decode("utf-8", "replace")
    final = response.parameters["triton_final_response"].bool_param
    return Chunk(text, sum(memoryview(raw[1]).cast("i")), final)


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
