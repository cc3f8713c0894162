"""One request of `tensorrt_llm_bls`, from its tensors to its last response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.text.detokenize import Decodes
from trtbuild.triton.bls_tensors import PASSED_ON, check_request, engine_tensors, flag, prompt_tensors, stop_words
from trtbuild.triton.bls_text import RowText
from trtbuild.triton.call import Call

_PROMPT_OUTPUTS = (
    "INPUT_ID", "REQUEST_INPUT_LEN", "DECODER_INPUT_ID", "REQUEST_DECODER_INPUT_LEN", "REQUEST_OUTPUT_LEN",
    "STOP_WORDS_IDS", "BAD_WORDS_IDS", "OUT_END_ID", "OUT_PAD_ID",
)  # fmt: skip


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
    """The text of every row, and the responses that carry it."""

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
        self._rows: list[RowText] = []
        self._stopped = False

    def run(self, tensors: Mapping[str, Any], wanted: set[str]) -> None:
        """`wanted`: the outputs that the client asked for.

        Raises:
            InnerError: a model that was called refused. RequestError: this one does.
        """
        settings = self._settings
        check_request(tensors)
        self._tensors = tensors
        prompts = self._preprocess()
        self._rows = [self._row(index) for index in range(len(prompts["INPUT_ID"]))]
        if not flag(tensors, "stream") and not flag(tensors, "exclude_input_in_output", settings.exclude_input):
            for row, length in zip(self._rows, prompts["REQUEST_INPUT_LEN"], strict=True):
                row.skip_search(int(length.item()))
        if self._call.client_left():
            self._call.finish()
            return
        passed = [name for name in PASSED_ON if name in wanted or name == "batch_index"]
        final = [settings.final_output] if settings.final_output else []
        request = self._ask(
            settings.llm, engine_tensors(tensors, prompts), ["output_ids", "sequence_length", *passed, *final]
        )
        responses: Iterable[Any] = request.exec(decoupled=True) if settings.decoupled else [request.exec()]
        for response in responses:
            self._take(response)
        self._end()

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

    def _row(self, index: int) -> RowText:
        return RowText(
            self._tokenizer,
            stop_words(self._tensors, index),
            skip_special_tokens=self._settings.skip_special_tokens,
            accumulate=self._settings.accumulate,
        )

    def _take(self, response: Any) -> None:
        """One response of tensorrt_llm; the last one of a stream may be empty."""
        if response.has_error():
            raise InnerError(response.error())
        tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
        if "output_ids" not in tensors or self._stopped:
            return
        index = int(tensors["batch_index"].as_numpy().item()) if "batch_index" in tensors else 0
        final = self._is_final(tensors)
        row = self._rows[index]
        if row.stopped:
            return
        text = self._text(tensors, row, final=final)
        last = row.stopped or final
        if last and all(other.stopped or other.ended for other in self._rows):
            self._stopped = row.stopped
            self._send(text, tensors, final=True)
            if row.stopped and not final:
                self._stop_engine()
        else:
            self._send(text, tensors, final=False)

    def _is_final(self, tensors: Mapping[str, Any]) -> bool:
        if not self._settings.decoupled:
            return True
        name = self._settings.final_output
        return bool(name) and name in tensors and bool(tensors[name].as_numpy().item())

    def _text(self, tensors: Mapping[str, Any], row: RowText, *, final: bool) -> list[str]:
        lengths = tensors["sequence_length"].as_numpy().reshape(-1)
        ids = tensors["output_ids"].as_numpy().reshape(lengths.size, -1)
        beams = [beam[: int(length)].tolist() for beam, length in zip(ids, lengths, strict=True)]
        if len(beams) == 1:
            return [row.push(beams[0], final=final)]
        if self._settings.accumulate:
            raise RequestError("Accumulation of tokens is only implemented for beam width = 1")
        row.ended = row.ended or final
        return [self._row(0).push(beam, final=True) for beam in beams]  # beams come whole, in every response

    def _send(self, texts: list[str], tensors: Mapping[str, Any], *, final: bool) -> None:
        import numpy as np

        values = np.array([[text.encode() for text in texts]], dtype=object)
        passed = [tensor for name, tensor in tensors.items() if name in PASSED_ON]
        if len(self._rows) == 1:
            passed = [tensor for tensor in passed if tensor.name() != "batch_index"]
        self._call.send([self._pb.Tensor("text_output", values), *passed], final=final)

    def _end(self) -> None:
        """After the engine's last response: text that was held back, where no response was marked as the last."""
        import numpy as np

        for index, row in enumerate(self._rows):
            if row.ended or row.stopped or self._call.cancelled:
                continue
            before = row.length
            text = row.push([], final=True)
            if row.length > before:
                place = [self._pb.Tensor("batch_index", np.array([[index]], dtype=np.int32))]
                self._send([text], {t.name(): t for t in place}, final=False)
        self._call.finish()
