"""Token ids -> text as `tensorrt_llm_bls` gives it: exact, cut at stop words, whole on request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from trtbuild.text.detokenize import Decodes, IncrementalDecoder
from trtbuild.text.stops import find_stops


class RowText:
    """The text of one row. Joined pieces equal the decode of all ids, up to the end of the first stop word.

    A stop word stays in the text, as the engine leaves its tokens there. With `accumulate` every push returns the text
    so far instead of what is new.
    """

    def __init__(
        self,
        tokenizer: Decodes,
        stops: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        accumulate: bool = False,
    ) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._stops = [stop for stop in stops if stop]
        self._tail = ""  # the end of the generated text, in which a stop word can have begun
        self._echo: list[int] = []
        self._to_come = 0  # ids of the echo
        self._echo_rest = ""  # what the decoder has not given out of it yet
        self._accumulate = accumulate
        self._text = ""
        self.length = 0
        """Characters that were given out."""
        self.stopped = False
        """A stop word was found; nothing is given out any more."""
        self.ended = False

    def skip_search(self, count: int) -> None:
        """The first `count` ids are an echo of the prompt: stop words are looked for in what is generated."""
        self._to_come = count

    def push(self, ids: Sequence[int], *, final: bool = False) -> str:
        """The text of the next ids; with `final` also what was held back."""
        if self.stopped:
            return self._text if self._accumulate else ""
        piece = self._decoder.push(ids)
        if final:
            piece += self._decoder.flush()
        at = self._echoed(ids, piece)
        piece = piece[:at] + self._cut(piece[at:])
        self.ended = self.ended or final
        self.length += len(piece)
        if not self._accumulate:
            return piece
        self._text += piece
        return self._text

    def _echoed(self, ids: Sequence[int], piece: str) -> int:
        """How many characters of `piece` are the prompt's. The decoder may give them out later than the prompt's ids;
        where the prompt ends inside of a character, its decode ends with another one than the whole text has there.
        """
        if self._to_come:
            self._echo += ids[: self._to_come]
            self._to_come = max(0, self._to_come - len(ids))
            decoded = self._tokenizer.decode(self._echo, skip_special_tokens=self._skip_special_tokens)
            self._echo_rest = decoded[self.length :]
        pairs = zip(self._echo_rest, piece, strict=False)
        count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._echo_rest = self._echo_rest[count:] if count == len(piece) else ""
        return count

    def _cut(self, piece: str) -> str:
        if not self._stops or not piece:
            return piece
        seen = self._tail + piece
        ends = [end for _, end in find_stops(seen, self._stops)]
        if ends:
            self.stopped = True
            return piece[: min(ends) - len(self._tail)]
        keep = max(len(stop) for stop in self._stops) - 1
        self._tail = seen[-keep:] if keep else ""
        return piece
