"""One request of `tensorrt_llm_bls`, from its tensors to its last response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.text.detokenize import Decodes
from trtbuild.triton.bls_tensors import (
    PASSED_ON,
    check_request,
    engine_tensors,
    number,
    prompt_tensors,
    stop_words,
)
from trtbuild.triton.bls_text import RowText
from trtbuild.triton.call import Call
from trtbuild.triton.tensors import flag

_PROMPT_OUTPUTS = (
    "INPUT_ID", "REQUEST_INPUT_LEN", "DECODER_INPUT_ID", "REQUEST_DECODER_INPUT_LEN", "REQUEST_OUTPUT_LEN",
    "STOP_WORDS_IDS", "BAD_WORDS_IDS", "OUT_END_ID", "OUT_PAD_ID",
)  # fmt: skip
_PLACE = ("batch_index", "sequence_index")


@dataclass(frozen=True)
class Settings:
    """Parameters of the model. `final_output`: the output of tensorrt_llm that marks the last response, if any does."""

    decoupled: bool
    accumulate: bool
    skip_special_tokens: bool
    exclude_input: bool
    llm: str
    preprocessing: str
    final_output: str


class InnerError(Exception):
    """A model that was called answered with an error: its message and Triton's code go to the client."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.code: int = error.code()


Ask = Callable[[str, Mapping[str, Any], Sequence[str]], Any]
"""(model, inputs, outputs) -> a request of the Python backend, to be executed."""


class Answer:
    """The text of every sequence, and the responses that carry it.

    A request of N prompts has N texts, times `num_return_sequences`; beams come together, in every response.
    """

    def __init__(
        self, pb: Any, settings: Settings, tokenizer: Decodes, call: Call, ask: Ask, stop_engine: Callable[[], None]
    ) -> None:
        self._pb = pb
        self._settings = settings
        self._tokenizer = tokenizer
        self._call = call
        self._ask = ask
        self._stop_engine = stop_engine
        self._tensors: Mapping[str, Any] = {}
        self._wanted: set[str] = set()
        self._echoed: list[int] = []
        """Tokens of each prompt that the answer repeats."""
        self._texts: dict[tuple[int, int], RowText] = {}
        """By batch_index and sequence_index; `_most` of them are to come."""
        self._most = 0
        self._streaming = self._done = False

    def run(self, tensors: Mapping[str, Any], wanted: set[str]) -> None:
        """`wanted`: the outputs that the client asked for.

        Raises:
            InnerError: a model that was called refused. RequestError: this one does.
        """
        settings = self._settings
        check_request(tensors)
        self._tensors, self._wanted = tensors, wanted
        self._streaming = flag(tensors, "stream")
        prompts = self._preprocess()
        self._begin(prompts)
        if self._call.client_left():
            self._call.finish()
            return
        outputs = [name for name in PASSED_ON if name in wanted or name in _PLACE]
        final = [settings.final_output] if settings.final_output else []
        request = self._ask(
            settings.llm, engine_tensors(tensors, prompts), ["output_ids", "sequence_length", *outputs, *final]
        )
        responses: Iterable[Any] = request.exec(decoupled=True) if settings.decoupled else [request.exec()]
        try:
            for response in responses:
                self._take(response)
        except InnerError:
            if self._most > 1:  # nobody waits for the others any more
                self._stop_engine()
            raise
        self._end()

    def _begin(self, prompts: Mapping[str, Any]) -> None:
        """How many texts there will be, and what of them is an echo."""
        echo = not self._streaming and not flag(self._tensors, "exclude_input_in_output", self._settings.exclude_input)
        self._echoed = [int(length) if echo else 0 for length in prompts["REQUEST_INPUT_LEN"].reshape(-1)]
        for row in range(len(self._echoed)):
            beams = number(self._tensors, "beam_width", row, 1)
            if beams > 1 and self._streaming and self._settings.accumulate:
                raise RequestError("Accumulation of tokens is only implemented for beam width = 1")
            self._most += 1 if beams > 1 else max(1, number(self._tensors, "num_return_sequences", row, 1))

    def _preprocess(self) -> dict[str, Any]:
        inputs = prompt_tensors(self._tensors)
        outputs = [
            *_PROMPT_OUTPUTS,
            *(["EMBEDDING_BIAS"] if "EMBEDDING_BIAS_WORDS" in inputs else []),
            *(["OUT_PROMPT_TABLE_EXTRA_IDS"] if "PROMPT_TABLE_EXTRA_ID" in inputs else []),
        ]
        response = self._ask(self._settings.preprocessing, inputs, outputs).exec()
        if response.has_error():
            raise InnerError(response.error())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}

    def _text(self, row: int) -> RowText:
        text = RowText(
            self._tokenizer,
            stop_words(self._tensors, row),
            skip_special_tokens=self._settings.skip_special_tokens,
            accumulate=self._settings.accumulate,
        )
        text.skip_search(self._echoed[row])
        return text

    def _take(self, response: Any) -> None:
        """One response of tensorrt_llm; the last one of a stream may be empty."""
        if response.has_error():
            raise InnerError(response.error())
        tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
        if "output_ids" not in tensors or self._done:
            return
        row, sequence = (int(tensors[n].as_numpy().item()) if n in tensors else 0 for n in _PLACE)
        if (row, sequence) not in self._texts:
            self._texts[row, sequence] = self._text(row)
        text, final = self._texts[row, sequence], self._is_final(tensors)
        if text.stopped:
            text.ended = text.ended or final
            return
        said = self._say(tensors, row, text, final=final)
        over = [each for each in self._texts.values() if each.stopped or each.ended]
        self._done = len(over) == self._most or not self._settings.decoupled
        self._send(said, tensors, final=self._done)
        if self._done and not all(each.ended for each in over):
            self._stop_engine()

    def _is_final(self, tensors: Mapping[str, Any]) -> bool:
        """Whether it is the last response of its sequence: its only one, or one that is marked."""
        if not self._settings.decoupled or not self._streaming:
            return True
        name = self._settings.final_output
        return bool(name) and name in tensors and bool(tensors[name].as_numpy().item())

    def _say(self, tensors: Mapping[str, Any], row: int, text: RowText, *, final: bool) -> list[str]:
        lengths = tensors["sequence_length"].as_numpy().reshape(-1)
        ids = tensors["output_ids"].as_numpy().reshape(lengths.size, -1)
        said = [beam[: int(length)].tolist() for beam, length in zip(ids, lengths, strict=True)]
        if len(said) == 1 and number(self._tensors, "beam_width", row, 1) <= 1:
            return [text.push(said[0], final=final)]
        beams = [self._text(row) for _ in said]  # they come whole, in every response
        texts = [beam.push(tokens, final=True) for beam, tokens in zip(beams, said, strict=True)]
        text.ended = text.ended or final
        text.stopped = all(beam.stopped for beam in beams)
        return texts

    def _send(self, texts: list[str], tensors: Mapping[str, Any], *, final: bool) -> None:
        import numpy as np

        # One row of texts, without the batch dimension, as postprocessing's: upstream's clients read text_output[0].
        values = np.array([text.encode() for text in texts], dtype=object)
        told = {"batch_index": len(self._echoed) > 1, "sequence_index": self._most > len(self._echoed)}
        passed = [tensors[n] for n in PASSED_ON if n in tensors and n in self._wanted and told.get(n, True)]
        self._call.send([self._pb.Tensor("text_output", values), *passed], final=final)

    def _end(self) -> None:
        """After the engine's last response: text that was held back, where no response was marked as the last."""
        import numpy as np

        for place, text in self._texts.items():
            if text.ended or text.stopped or self._call.cancelled:
                continue
            before = text.length
            rest = text.push([], final=True)
            if text.length > before:
                named = zip(_PLACE, place, strict=True)
                tensors = {name: self._pb.Tensor(name, np.array([[at]], dtype=np.int32)) for name, at in named}
                self._send([rest], tensors, final=False)
        self._call.finish()
