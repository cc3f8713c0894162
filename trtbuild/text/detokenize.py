"""Token ids that arrive in pieces -> text in pieces, exact to the byte.

The law: the joined pieces equal `tokenizer.decode(all ids)`. One token is often only a part of a character (emoji,
CJK) and a SentencePiece tokenizer drops the first space of what it decodes, so no piece can be decoded alone.
Instead a short window of tokens is decoded twice, without and with the new ones; the difference is the new text:

    window   [ anchor tokens, text known ][ new tokens ]
    emitted        decode(anchor)           decode(window) minus decode(anchor)

Text is held back while it can still change: it ends in U+FFFD (a character that is not complete), or the last token
is a byte token such as `<0xE4>` (a run of them is decoded as a whole, and one bad byte spoils the run).
The window is cut whenever text was emitted, so the cost of a token does not grow with the length of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "�"
_COMPACT_ABOVE = 12
"""Tokens in the window from which on a run of invalid bytes is cut; longer than any character."""


class Decodes(Protocol):
    """What the decoder needs of a tokenizer; `trtbuild.text.tokenizer.Tokenizer` has it."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def is_byte(self, token_id: int) -> bool:
        """True for a byte-fallback token such as `<0xE4>`."""
        ...

    def is_silent(self, token_id: int, skip_special_tokens: bool) -> bool:
        """True for a token that leaves no trace in the text: unknown ids, and special tokens when skipped."""
        ...


class IncrementalDecoder:
    """The state of one stream. `push` returns the text that is certain by now, `flush` what was held back.

    `eager` is for streams whose end is never told: whole characters made of byte tokens are given out at once. Only
    where invalid bytes follow valid ones in the same run can the text then differ from the full decode.
    """

    def __init__(self, tokenizer: Decodes, *, skip_special_tokens: bool = True, eager: bool = False) -> None:
        self._tokenizer = tokenizer
        self._eager = eager
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._anchor = 0  # how many tokens of the window are known: their text was given out
        self._previous = 0  # the same before the last emission; like `_anchor` a place where no character is cut
        self._known = ""  # decode(window[:anchor])

    def push(self, ids: Sequence[int]) -> str:
        """Take the next token ids and return the text that they complete."""
        fresh = [i for i in map(int, ids) if not self._tokenizer.is_silent(i, self._skip)]
        if not fresh:
            return ""
        self._window.extend(fresh)
        if not self._eager and self._tokenizer.is_byte(self._window[-1]):
            return ""
        text = self._decode(self._window)
        if not text.startswith(self._known):
            return ""
        if text.endswith(_REPLACEMENT):
            return self._cut_invalid_run(text)
        piece = text[len(self._known) :]
        self._move_anchor(text)
        return piece

    def flush(self) -> str:
        """The text still held back, at the end of the stream."""
        piece = self._decode(self._window)[len(self._known) :]
        self._window, self._anchor, self._previous, self._known = [], 0, 0, ""
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip) if ids else ""

    def _move_anchor(self, text: str) -> None:
        """All of the window is given out: keep the newest tokens that have a text as the anchor.

        An anchor without text would not protect the first space of what follows.
        """
        for start in (self._anchor, self._previous):
            tail = self._window[start:]
            known = self._decode(tail) if start else text
            if known:
                self._window, self._known = tail, known
                self._previous, self._anchor = max(0, self._anchor - start), len(tail)
                return
        self._previous, self._anchor, self._known = self._anchor, len(self._window), text

    def _cut_invalid_run(self, text: str) -> str:
        """Bytes that never become a character: give out all but the last 4 tokens (a character has up to 4 bytes)."""
        cut = len(self._window) - 4
        if cut < self._anchor + _COMPACT_ABOVE:
            return ""
        head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
        if head + tail != text:
            return ""
        piece = head[len(self._known) :]
        self._window, self._anchor, self._previous, self._known = self._window[cut:], 0, 0, ""
        return piece
