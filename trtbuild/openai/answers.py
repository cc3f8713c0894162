"""Answers by OpenAI's names. Pure: ids and times come in as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trtbuild.openai.tokens import Token


@dataclass(frozen=True)
class Piece:
    """Text of one choice since its last piece; `reason` in the last one of each choice.

    `tokens`: those whose text is complete now, where log probabilities are asked for.
    """

    index: int
    text: str
    token_count: int = 0
    tokens: tuple[Token, ...] = ()
    prompt_tokens: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Frame:
    """What all answers to one request have in common. `chat`: chat completions, else plain ones.

    `log_probs`: of the chosen tokens. `top`: plain completions list them as the likeliest, too.
    """

    id: str
    created: int
    model: str
    chat: bool
    log_probs: bool = False
    top: bool = False

    def chunk(self, piece: Piece, *, first: bool = False) -> dict[str, Any]:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.reason, "logprobs": None}
        if self.chat:
            choice["delta"] = ({"role": "assistant"} if first else {}) | (
                {"content": piece.text} if piece.text or first else {}
            )
        else:
            choice["text"] = piece.text
        if piece.tokens:
            choice["logprobs"] = self._scores(piece.tokens)
        return self._head("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The event before the last, where include_usage asks for it."""
        return self._head("chat.completion.chunk" if self.chat else "text_completion", []) | {"usage": usage}

    def whole(self, choices: list[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The one answer where nothing is streamed."""
        listed = []
        for choice in choices:
            entry: dict[str, Any] = {"index": choice.index, "finish_reason": choice.reason, "logprobs": None}
            if self.chat:
                entry["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            else:
                entry["text"] = choice.text
            if self.log_probs:
                entry["logprobs"] = self._scores([token for piece in choice.pieces for token in piece.tokens])
            listed.append(entry)
        return self._head("chat.completion" if self.chat else "text_completion", listed) | {"usage": usage}

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _scores(self, tokens: Sequence[Token]) -> dict[str, Any]:
        if not self.chat:
            return {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.score for token in tokens],
                "top_logprobs": [{token.text: token.score} for token in tokens] if self.top else None,
                "text_offset": [token.offset for token in tokens],
            }
        content = [
            {"token": token.text, "logprob": token.score, "bytes": token.bytes, "top_logprobs": []} for token in tokens
        ]
        return {"content": content, "refusal": None}


@dataclass
class Choice:
    """One choice as its pieces come in."""

    index: int
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def reason(self) -> str | None:
        return self.pieces[-1].reason if self.pieces else None


@dataclass
class Usage:
    """Tokens of one request: each prompt once, all that was generated."""

    prompts: dict[int, int] = field(default_factory=dict)
    completion: int = 0

    def count(self, piece: Piece, prompt: int) -> None:
        self.completion += piece.token_count
        if piece.prompt_tokens is not None:
            self.prompts[prompt] = piece.prompt_tokens

    def document(self) -> dict[str, int]:
        asked = sum(self.prompts.values())
        return {"prompt_tokens": asked, "completion_tokens": self.completion, "total_tokens": asked + self.completion}
