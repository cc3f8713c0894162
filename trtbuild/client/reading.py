"""Chunks as the server sends them -> chunks as they are given out: new text only, nothing of a stop string. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from trtbuild.client.answers import Chunk
from trtbuild.client.forms import Form
from trtbuild.client.payload import Generation
from trtbuild.text.stops import StopFilter


def reading_of(generation: Generation, form: Form) -> Reading | None:
    """None where chunks need nothing, which is so for most: a token must cost little."""
    plain = not _stops(generation) and not form.accumulates and generation.sequences == 1
    return None if plain else Reading(generation, form)


def _stops(generation: Generation) -> list[str]:
    """The texts to look for."""
    return [stop for stop in generation.stop if stop] if generation.cut_stops else []


class Reading:
    """The state of one request's answers.

    The engine stops at the tokens of a stop word, which the same characters need not be made of, and leaves them in the
    text; tensorrt_llm_bls leaves them there as well. So the text is looked through here, and the server's stop words
    only spare it the work. Token counts and log probabilities are those of all tokens up to the one that completes it.
    """

    def __init__(self, generation: Generation, form: Form) -> None:
        self._accumulates = form.accumulates
        self._beams = (generation.beam_width or 1) > 1
        self._left = generation.sequences
        self._stops: defaultdict[int, StopFilter] = defaultdict(lambda: StopFilter(_stops(generation)))
        self._lengths: defaultdict[int, int] = defaultdict(int)
        self.ended = False
        """The last chunk was given out; what the server may still make of the answer is not wanted."""

    def take(self, chunk: Chunk) -> list[Chunk]:
        """What becomes of the next chunk; the last one of all has `final`."""
        found = []
        for piece in self._rows(chunk):
            stops = self._stops[piece.sequence]
            if stops.stopped:  # the server goes on with it as long as another one is open
                continue
            text = stops.push(self._new(piece))
            self._left -= stops.stopped
            reason = "stop" if stops.stopped else piece.finish_reason
            found.append(replace(piece, text=text, final=False, finish_reason=reason))
        if chunk.final:
            found += [Chunk(rest, 0, sequence=n) for n, stops in self._stops.items() if (rest := stops.flush())]
            found = [piece for piece in found if piece != Chunk("", 0, sequence=piece.sequence)]
        self.ended = chunk.final or not self._left
        if self.ended:
            last = found.pop() if found else Chunk("", 0, sequence=chunk.sequence)
            found.append(replace(last, final=True))
        return found

    def _rows(self, chunk: Chunk) -> list[Chunk]:
        if not self._beams or not chunk.beams:
            return [chunk]
        first = replace(chunk, text=chunk.beams[0], beams=())
        return [first, *(Chunk(text, 0, sequence=n) for n, text in enumerate(chunk.beams[1:], start=1))]

    def _new(self, chunk: Chunk) -> str:
        """The text that was not there before; an empty response at the end has none at all."""
        if not self._accumulates:
            return chunk.text
        before = self._lengths[chunk.sequence]
        self._lengths[chunk.sequence] = max(before, len(chunk.text))
        return chunk.text[before:]
