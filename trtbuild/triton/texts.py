"""Responses of `tensorrt_llm` -> the `text_output` of `tensorrt_llm_bls`: the text state of one request. Pure.

The text is exact in every form: joined pieces equal the decoding of all tokens. Nothing of a stop word, nor what comes
after it, is ever given out, whatever tokens it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtbuild.text.detokenize import Decodes, IncrementalDecoder
from trtbuild.text.stops import StopFilter
from trtbuild.triton.chain import TextRequest

Place = tuple[int, int]
"""(row of the batch, number of the sequence)."""


@dataclass
class _Sequence:
    decoder: IncrementalDecoder
    stops: StopFilter
    text: str = ""
    ended: bool = False

    def add(self, piece: str, *, last: bool) -> str:
        """What is certain of a piece; at the end also what was held back."""
        sure = self.stops.push(piece)
        if last and not self.stops.stopped:
            sure += self.stops.flush()
        self.text += sure
        self.ended = self.ended or last or self.stops.stopped
        return sure


@dataclass
class Texts:
    """The sequences of one request. `accumulate`: a streamed `text_output` is all text so far, not the new piece."""

    request: TextRequest
    tokenizer: Decodes
    skip_special_tokens: bool = True
    accumulate: bool = False
    _sequences: dict[Place, _Sequence] = field(default_factory=dict)

    def text_of(self, tensors: Mapping[str, Any]) -> list[str] | None:
        """`text_output` of a response, one text a beam; None where its sequence has ended before.

        IS_FINAL in `tensors` says whether a sequence ends; a backend that has none ends them by `rest`.
        """
        rows, lengths = tensors["output_ids"], tensors["sequence_length"].reshape(-1)
        beams = rows.reshape(lengths.size, -1)
        ids = [row[: int(length)].tolist() for row, length in zip(beams, lengths, strict=True)]
        place = (_index(tensors, "batch_index"), _index(tensors, "sequence_index"))
        if not self.request.streaming or len(ids) > 1:
            return [self._whole(beam, place[0]) for beam in ids]
        sequence = self._sequence(place)
        if sequence.ended:
            return None
        last = bool(tensors["IS_FINAL"].all()) if "IS_FINAL" in tensors else False
        piece = sequence.decoder.push(ids[0]) + (sequence.decoder.flush() if last else "")
        sure = sequence.add(piece, last=last)
        return [sequence.text if self.accumulate else sure]

    def rest(self) -> list[tuple[Place, str]]:
        """Texts that were held back in sequences whose end nothing told, after the last response."""
        found = []
        for place, sequence in self._sequences.items():
            if not sequence.ended:
                sure = sequence.add(sequence.decoder.flush(), last=True)
                if sure:
                    found.append((place, sequence.text if self.accumulate else sure))
        return found

    @property
    def done(self) -> bool:
        """Whether all sequences have ended, by a stop word or by themselves."""
        return self._ended() == self.request.sequences

    @property
    def stopped(self) -> bool:
        """Whether a stop word in the text has ended all sequences, so that the engine need not go on."""
        return self.done and any(sequence.stops.stopped for sequence in self._sequences.values())

    def _ended(self) -> int:
        return sum(sequence.ended for sequence in self._sequences.values())

    def _sequence(self, place: Place) -> _Sequence:
        if place not in self._sequences:
            decoder = IncrementalDecoder(self.tokenizer, skip_special_tokens=self.skip_special_tokens)
            self._sequences[place] = _Sequence(decoder, StopFilter(self.request.stops[place[0]]))
        return self._sequences[place]

    def _whole(self, ids: Sequence[int], row: int) -> str:
        """The text of all tokens, cut at a stop word; one in a prompt that is part of the answer does not count."""
        text, prompt = self._decoded(ids), self.request.prompts[row]
        start = 0
        if tuple(ids[: len(prompt)]) == prompt and not self._without_prompt():
            echoed = self._decoded(prompt)
            start = len(echoed) if text.startswith(echoed) else 0
        stops = StopFilter(self.request.stops[row])
        kept = stops.push(text[start:])
        return text[:start] + kept + ("" if stops.stopped else stops.flush())

    def _without_prompt(self) -> bool:
        exclude = self.request.inner.get("exclude_input_in_output")
        return exclude is not None and bool(exclude.all())

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=self.skip_special_tokens)


def _index(tensors: Mapping[str, Any], name: str) -> int:
    return int(tensors[name].reshape(-1)[0]) if name in tensors else 0
