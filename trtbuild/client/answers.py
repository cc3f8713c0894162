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


def chunk_of(result: Any) -> Chunk:
    """The chunk of one response (tritonclient's InferResult); the final-response flag says whether it is the last."""
    response = result.get_response()
    final = response.parameters["triton_final_response"].bool_param
    texts, counts = result.as_numpy("text_output"), result.as_numpy("num_output_tokens")
    text = "" if texts is None else b"".join(texts.reshape(-1).tolist()).decode("utf-8", "replace")
    count = 0 if counts is None else int(counts.sum())
    if len(response.outputs) <= len(OUTPUTS):
        return Chunk(text, count, final)
    scores, prompt = result.as_numpy("output_log_probs"), result.as_numpy("num_input_tokens")
    return Chunk(
        text,
        count,
        final,
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
