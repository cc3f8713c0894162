"""`tensorrt_llm_bls` as a whole, without a server: what is asked of the models behind it, and every response.

The engine is a script, in the form of the C++ backend (no response is marked as the last) or of the cpu target's
(IS_FINAL is); preprocessing and the tokenizer are real. `tests/test_serve_models.py` has the server and the cpu target.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from tests.test_detokenize import real_tokenizer
from tests.triton_stub import (
    Backend,
    InferenceResponse,
    Request,
    Sender,
    Tensor,
    TritonError,
    TritonModelException,
    ids_of,
)
from trtbuild.text.tokenizer import Tokenizer
from trtbuild.triton.bls import Bls
from trtbuild.triton.bls_tensors import PASSED_ON
from trtbuild.triton.prompts import Prompts

Answers = Iterable[InferenceResponse]
PLACE = ("batch_index", "sequence_index")


@pytest.fixture
def tokenizer() -> Tokenizer:
    """One with byte tokens, and with a first space that is dropped: Llama 2's."""
    return real_tokenizer("llama2")


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def backend(tokenizer: Tokenizer, engine: Callable[[Any], Answers]) -> Backend:
    def preprocessing(request: Any) -> Answers:
        outputs = Prompts(tokenizer).process(request.values())
        yield InferenceResponse([Tensor(name, outputs[name]) for name in request.requested_output_names])

    def llm(request: Any) -> Answers:
        return iter([InferenceResponse()] if "stop" in request.values() else engine(request))

    return Backend({"preprocessing": preprocessing, "tensorrt_llm": llm})


def tensors(prompts: list[str], *, stream: bool = False, **changes: Any) -> dict[str, Any]:
    cells = np.array([[prompt.encode()] for prompt in prompts], dtype=object)
    found = {"text_input": cells, "max_tokens": np.full((len(prompts), 1), 9), "stream": np.array([[stream]])}
    return found | {name: np.array(value) for name, value in changes.items()}


def model(pb: Backend, tokenizer: Tokenizer, *, decoupled: bool = True, **parameters: Any) -> Bls:
    config = {
        "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
        "model_transaction_policy": {"decoupled": decoupled},
    }
    return Bls(pb, config, tokenizer)


def start(bls: Bls, inputs: dict[str, Any], **how: Any) -> Sender:
    sender = Sender(**how)
    bls.execute(Request({*PASSED_ON, "text_output"}), inputs, sender)
    return sender


def ask(pb: Backend, tokenizer: Tokenizer, inputs: dict[str, Any], *, told: bool = False, **parameters: Any) -> Sender:
    """Every response to one request; `told`: the engine marks the last ones."""
    bls = model(pb, tokenizer, final_output="IS_FINAL" if told else "", **parameters)
    sender = start(bls, inputs, decoupled=parameters.get("decoupled", True))
    assert sender.done.wait(20), sender.got
    bls.close()
    return sender


def streamed(tokenizer: Tokenizer, texts: dict[tuple[int, int], str], *, told: bool) -> list[InferenceResponse]:
    """Token by token, the sequences in turn; an empty response ends it all, as the C++ backend's does."""
    rows = []
    for place, text in texts.items():
        ids = encoded(tokenizer, text)
        marks = [{"IS_FINAL": at == len(ids) - 1} if told else {} for at in range(len(ids))]
        rows.append(
            [ids_of([[i]], **dict(zip(PLACE, place, strict=True)), **m) for i, m in zip(ids, marks, strict=True)]
        )
    found = [one for step in itertools.zip_longest(*rows) for one in step if one is not None]
    return [*found, *([] if told else [InferenceResponse()])]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
def test_every_sequence_of_a_stream_has_its_text(tokenizer: Tokenizer, told: bool, accumulate: bool) -> None:
    """Two prompts with two sequences each, of different lengths; one ends in a byte token, which is held back."""
    texts = {(0, 0): "Hello\n", (0, 1): "World of 👍 words", (1, 0): "naïve", (1, 1): "你好，世界"}
    pb = backend(tokenizer, lambda _: streamed(tokenizer, texts, told=told))
    inputs = tensors(["a", "b"], stream=True, num_return_sequences=[2, 2])
    sender = ask(pb, tokenizer, inputs, told=told, accumulate_tokens=accumulate)
    pieces: dict[tuple[int, int], list[str]] = {place: [] for place in texts}
    for place, (text,) in zip(sender.places(), sender.texts(), strict=True):
        pieces[place].append(text)
    assert {place: each[-1] if accumulate else "".join(each) for place, each in pieces.items()} == texts
    assert set(PLACE) <= set(pb.requests[-1].requested_output_names)
    assert not pb.stopped(), "the engine has ended"


@pytest.mark.parametrize("told", [True, False])
def test_sequences_in_one_piece(tokenizer: Tokenizer, told: bool) -> None:
    """Each is one response, the last with FINAL; a stop word in the echoed prompt does not count."""
    prompt = "one stop two"

    def engine(request: Any) -> Answers:
        ids = request.values()["input_ids"][0].tolist()
        for number, text in enumerate(["Hello stop more", "World\n"]):
            mark = {"IS_FINAL": True} if told else {}
            yield ids_of([ids + encoded(tokenizer, text)], sequence_index=number, cum_log_probs=-number, **mark)

    pb = backend(tokenizer, engine)
    inputs = tensors([prompt], num_return_sequences=[2], stop_words=[[b"stop"]])
    sender = ask(pb, tokenizer, inputs, told=told)
    assert sender.texts() == [[f"{prompt} Hello stop"], [f"{prompt} World\n"]]
    assert [one["cum_log_probs"].item() for one in sender.got if isinstance(one, dict)] == [0, -1]
    assert sender.places() == [(0, 0), (0, 1)]


def test_a_whole_answer_is_one_response(tokenizer: Tokenizer) -> None:
    """/generate takes no other; of the C++ backend, whose answer ends in a byte token."""
    ids = encoded(tokenizer, "Hello\n")
    assert tokenizer.is_byte(ids[-1])
    pb = backend(tokenizer, lambda _: [ids_of([ids], output_log_probs=-0.5)])
    sender = ask(pb, tokenizer, tensors(["x"], exclude_input_in_output=[[True]]))
    assert sender.texts() == [["Hello\n"]]
    assert isinstance(sender.got[0], dict)
    assert set(sender.got[0]) == {"text_output", "output_log_probs"}


def test_a_stop_word_ends_its_sequence_only(tokenizer: Tokenizer) -> None:
    """The engine is stopped when all have ended, not before."""
    texts = {(0, 0): "a b stop c d e f g", (0, 1): "eins zwei drei vier stop sechs sieben acht"}
    pb = backend(tokenizer, lambda _: streamed(tokenizer, texts, told=False))
    sender = ask(pb, tokenizer, tensors(["x"], stream=True, num_return_sequences=[2], stop_words=[[b"stop"]]))
    joined = ["".join(t for p, (t,) in zip(sender.places(), sender.texts(), strict=True) if p[1] == n) for n in (0, 1)]
    assert joined == ["a b stop", "eins zwei drei vier stop"]
    assert len(pb.stopped()) == 1


def test_beams_have_the_stop_words_of_their_row(tokenizer: Tokenizer) -> None:
    words = [[b"red"], [b"blue"]]

    def engine(request: Any) -> Answers:
        lengths = request.values()["input_lengths"].reshape(-1)
        for row, prompt in enumerate(request.values()["input_ids"].tolist()):
            whole = prompt[: lengths[row]]
            beams = [whole + encoded(tokenizer, text) for text in ("red and blue and", "blue, red or green")]
            yield ids_of(beams, batch_index=row)

    inputs = tensors(["red blue", "blue red and more"], beam_width=[[2], [2]], stop_words=words)
    sender = ask(backend(tokenizer, engine), tokenizer, inputs)
    assert sender.texts() == [
        ["red blue red", "red blue blue, red"],
        ["blue red and more red and blue", "blue red and more blue"],
    ]
    streaming = tensors(["x"], stream=True, beam_width=[[2]])
    refused = ask(backend(tokenizer, engine), tokenizer, streaming, accumulate_tokens=True)
    assert refused.got == ["Accumulation of tokens is only implemented for beam width = 1"]


def test_an_error_of_the_engine_is_the_answer(tokenizer: Tokenizer) -> None:
    error = InferenceResponse(error=TritonError("no room", TritonError.UNAVAILABLE))
    pb = backend(tokenizer, lambda _: [*streamed(tokenizer, {(0, 0): "a b"}, told=False)[:1], error])
    sender = ask(pb, tokenizer, tensors(["x"], stream=True, num_return_sequences=[2]))
    assert sender.got[1:] == ["no room"]
    assert sender.codes == [TritonError.UNAVAILABLE]
    assert len(pb.stopped()) == 1, "the other sequence"


def test_what_fails_inside_is_told_and_the_next_is_served(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the only thread; the trace goes to the log."""
    logged: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda said: logged.append(said.exc_type))

    def engine(_: Any) -> Answers:
        raise failures.pop()

    failures = [ValueError("a mistake"), TritonModelException("model 'tensorrt_llm' is not ready")]
    bls = model(backend(tokenizer, engine), tokenizer, concurrent_requests=1)
    senders = [start(bls, tensors(["x"])) for _ in range(2)]
    assert all(sender.done.wait(5) for sender in senders)
    assert [sender.got for sender in senders] == [
        ["model 'tensorrt_llm' is not ready"],
        ["tensorrt_llm_bls failed; the server's log says why"],
    ]
    failures.append(TritonModelException("again"))
    assert start(bls, tensors(["x"])).done.wait(5)
    bls.close()
    until = time.monotonic() + 5  # the client is told before the thread has ended
    while not logged and time.monotonic() < until:
        time.sleep(0.005)
    assert logged == [ValueError]


def test_one_response_where_it_is_not_decoupled(tokenizer: Tokenizer) -> None:
    ids = encoded(tokenizer, "Hello\n")
    pb = backend(tokenizer, lambda _: [ids_of([ids])])
    inputs = tensors(["x"], exclude_input_in_output=[[True]])
    assert ask(pb, tokenizer, inputs, decoupled=False).texts() == [["Hello\n"]]


class Endless:
    """An engine that generates until it is stopped, or until `broken`, when stopping fails."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token, self.stopped, self.asked = encoded(tokenizer, "a")[:1], threading.Event(), 0
        self.most = self.now = 0
        self.broken = False

    def __call__(self, _: Any) -> Answers:
        self.asked, self.now = self.asked + 1, self.now + 1
        self.most = max(self.most, self.now)
        while not self.stopped.wait(0.01):
            yield ids_of([self.token])
        self.now -= 1

    def backend(self, tokenizer: Tokenizer) -> Backend:
        pb = backend(tokenizer, self)
        models, inner = pb.models, pb.models["tensorrt_llm"]

        def llm(request: Any) -> Answers:
            if "stop" in request.values() and self.broken:
                self.broken = False
                raise TritonModelException("no such model")
            if "stop" in request.values():
                self.stopped.set()
            return inner(request)

        models["tensorrt_llm"] = llm
        return pb


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done()


def test_a_client_that_leaves_stops_the_engine(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the first try fails, and others are served meanwhile."""
    engine = Endless(tokenizer)
    engine.broken = True
    bls = model(engine.backend(tokenizer), tokenizer, cancellation_check_period_ms=10)
    sender = start(bls, tensors(["x"], stream=True))
    wait_for(lambda: len(sender.got) > 2)
    sender.cancelled = True
    assert sender.done.wait(5)
    assert engine.stopped.is_set()
    assert "no such model" in capsys.readouterr().err
    bls.close()


def test_requests_wait_for_a_thread(tokenizer: Tokenizer) -> None:
    """Two at once; one whose client leaves while it waits is never asked of the engine, nor is one left at the end."""
    engine = Endless(tokenizer)
    bls = model(engine.backend(tokenizer), tokenizer, concurrent_requests=2, cancellation_check_period_ms=10)
    first = [start(bls, tensors(["x"], stream=True)) for _ in range(2)]
    wait_for(lambda: all(sender.got for sender in first))
    left, last = (start(bls, tensors(["x"], stream=True)) for _ in range(2))
    left.cancelled = True
    assert left.done.wait(5)
    assert not left.got
    threading.Timer(0.3, engine.stopped.set).start()
    bls.close()
    assert last.got == ["tensorrt_llm_bls: the model is unloaded"]
    assert [sender.done.is_set() for sender in first] == [True, True]
    assert (engine.asked, engine.most) == (2, 2)


def test_closing_calls_no_model(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton lets none be called while a model is finalized; what is open gets a moment."""
    monkeypatch.setattr("trtbuild.triton.bls._CLOSING_S", 0.2)
    engine = Endless(tokenizer)
    pb = engine.backend(tokenizer)
    bls = model(pb, tokenizer)
    sender = start(bls, tensors(["x"], stream=True))
    wait_for(lambda: bool(sender.got))
    bls.close()
    assert not pb.stopped()
    engine.stopped.set()
    assert sender.done.wait(5)


def test_no_thread_for_a_request(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    bls = model(backend(tokenizer, lambda _: []), tokenizer)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        sender = start(bls, tensors(["x"]))
    assert sender.got == ["tensorrt_llm_bls: can't start new thread"]
    assert sender.codes == [TritonError.UNAVAILABLE]
    assert start(bls, tensors(["x"])).done.wait(5)
    bls.close()
