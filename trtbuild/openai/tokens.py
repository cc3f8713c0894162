"""Log probabilities of tokens beside the text that is given out. Pure.

The server gives both together. Text that could become a stop string is given out later, and what a stop string takes is
never; a token goes out once its last character has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Token:
    """`text`: what it completes; empty for all but the last token of a character of several, and for special tokens.

    `score`: its log probability. `offset`: of its text, in characters of the answer.
    """

    text: str
    score: float
    offset: int

    @property
    def bytes(self) -> list[int] | None:
        """Those of `text`; None where there is none, as OpenAI has it for tokens without: the server gives no ids."""
        return list(self.text.encode()) or None


class TokenLine:
    """The tokens of one choice that wait for their text."""

    def __init__(self) -> None:
        self._waiting: deque[Token] = deque()
        self._made = self._given = 0  # characters

    def push(self, text: str, scores: Sequence[float]) -> None:
        """A chunk of the server. Where it holds several tokens, the first one stands for the text of all."""
        if scores:
            self._waiting.append(Token(text, scores[0], self._made))
        elif self._waiting and text:
            self._waiting[-1] = replace(self._waiting[-1], text=self._waiting[-1].text + text)
        self._made += len(text)
        self._waiting.extend(Token("", score, self._made) for score in scores[1:])

    def take(self, text: str, *, ended: bool) -> tuple[Token, ...]:
        """The tokens that are complete with `text` given out; at the end also the beginning of one that was cut."""
        self._given += len(text)
        taken = []
        while self._waiting and self._waiting[0].offset + len(self._waiting[0].text) <= self._given:
            taken.append(self._waiting.popleft())
        if ended and self._waiting and self._waiting[0].offset < self._given:
            cut = self._waiting[0]
            taken.append(replace(cut, text=cut.text[: self._given - cut.offset]))
        return tuple(taken)
