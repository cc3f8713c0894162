"""Token ids of responses -> text pieces of streams; the state behind `postprocessing`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from trtbuild.text.detokenize import Decodes, IncrementalDecoder

_MOST_STREAMS = 4096
"""Decoders kept; beyond it the one unused for longest is dropped (streams whose last response never came)."""


class Pieces:
    """One incremental decoder for each stream in flight."""

    def __init__(
        self, tokenizer: Decodes, *, skip_special_tokens: bool = True, eager: bool = False, most: int = _MOST_STREAMS
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._eager = eager
        self._most = most
        self._decoders: OrderedDict[Hashable, IncrementalDecoder] = OrderedDict()

    def __len__(self) -> int:
        return len(self._decoders)

    def next(self, stream: Hashable, ids: Sequence[int], *, final: bool) -> str:
        """The text that `ids` complete; with `final` also what was held back, and the stream is forgotten."""
        decoder = self._decoders.pop(stream, None)
        if decoder is None:
            decoder = IncrementalDecoder(self._tokenizer, skip_special_tokens=self._skip, eager=self._eager)
        text = decoder.push(ids)
        if final:
            return text + decoder.flush()
        self._decoders[stream] = decoder
        if len(self._decoders) > self._most:
            self._decoders.popitem(last=False)
        return text

    def whole(self, ids: Sequence[int]) -> str:
        """The text of an answer that comes in one piece."""
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def drop(self, stream: Hashable) -> None:
        self._decoders.pop(stream, None)
