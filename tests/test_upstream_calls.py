"""Calls as NVIDIA's own clients make them, with raw tritonclient: the same tensors, shapes, dtypes and ways of ending.

Two servers of one engine, as upstream needs two: a decoupled repository for streams, and one that is not for unary
calls. `scripts/try_nvidia_clients.py` runs the clients themselves.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.serve_fixture import LONGEST, VOCAB, Running, demo_tokenizer, running

IDS = np.array([[5, 6, 7, 8]], dtype=np.int32)
PROMPTS = ["The quick brown", "👍 你好", "a b c"]


@pytest.fixture
def decoupled(tiny_server: Running) -> Running:
    return tiny_server


@pytest.fixture(scope="module")
def unary(tmp_path_factory: pytest.TempPathFactory, tiny_server: Running) -> Iterator[Running]:
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    folder = tmp_path_factory.mktemp("unary")
    wrap = {"out_of_vocabulary_ids": "wrap"}
    options = RepositoryOptions(max_tokens_in_paged_kv_cache=16 * LONGEST, decoupled=False, parameters=wrap)
    write_repository(tiny_server.repository.parent / "engine", folder / "repo", demo_tokenizer(), options)
    with running(folder / "repo", folder / "logs") as server:
        yield server


def tensors(module: Any, values: dict[str, Any]) -> list[Any]:
    from tritonclient.utils import np_to_triton_dtype

    made = []
    for name, value in values.items():
        array = np.array(value)
        wanted = {"i": np.int32, "f": np.float32, "U": object}.get(array.dtype.kind)
        array = array if wanted is None else array.astype(wanted)
        made.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def llm_inputs(**changes: Any) -> dict[str, Any]:
    """What inflight_batcher_llm_client.py always sends."""
    return {
        "input_ids": IDS,
        "input_lengths": [[IDS.shape[1]]],
        "request_output_len": [[12]],
        "beam_width": [[1]],
        "temperature": [[1.0]],
        "streaming": [[False]],
        "end_id": [[-1]],
        "pad_id": [[50256 % VOCAB]],
        "runtime_top_k": [[1]],
        "runtime_top_p": [[0.0]],
        **changes,
    }


def stream(server: Running, model: str, values: dict[str, Any], outputs: list[str] | None = None) -> list[Any]:
    """One request over a stream that is closed at once: `stop_stream` waits for all answers.."""
    import tritonclient.grpc as grpcclient

    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.url) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        asked = None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs]
        client.async_stream_infer(model, tensors(grpcclient, values), outputs=asked, request_id="")
        client.stop_stream()
    return list(answers.queue)


def sequences(answers: list[Any]) -> dict[tuple[int, int], list[int]]:
    """Tokens by (batch_index, sequence_index), as the clients put them together."""
    found: dict[tuple[int, int], list[int]] = {}
    for answer in answers:
        key = tuple(
            0 if (index := answer.as_numpy(name)) is None else int(index[0][0])
            for name in ("batch_index", "sequence_index")
        )
        found.setdefault((key[0], key[1]), []).extend(answer.as_numpy("output_ids")[0][0].tolist())
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_several_sequences_draw_from_the_next_seeds(decoupled: Running, streaming: bool) -> None:
    sampled = {
        "runtime_top_k": [[50]],
        "streaming": [[streaming]],
        "exclude_input_in_output": [[True]],
        "temperature": [[2.0]],
    }
    several = {**sampled, "num_return_sequences": [[3]], "seed": np.array([[7]], np.uint64)}
    found = sequences(stream(decoupled, "tensorrt_llm", llm_inputs(**several)))
    for number in range(3):
        single = {**sampled, "seed": np.array([[7 + number]], np.uint64)}
        alone = sequences(stream(decoupled, "tensorrt_llm", llm_inputs(**single)))
        assert found[0, number] == alone[0, 0]
    assert len({tuple(tokens) for tokens in found.values()}) == 3


def test_the_text_is_one_row_for_every_sequence_of_a_batch(decoupled: Running) -> None:
    """end_to_end_grpc_client.py reads text_output[0] as a text, and joins by batch_index and sequence_index."""
    values = {
        "text_input": [[prompt] for prompt in PROMPTS],
        "max_tokens": [[9]] * 3,
        "stream": [[True]] * 3,
        "beam_width": [[1]] * 3,
        "temperature": [[1.0]] * 3,
        "num_return_sequences": [[2]] * 3,
        "end_id": [[-1]] * 3,
        "return_log_probs": [[True]] * 3,
    }
    names = ["text_output", "cum_log_probs", "output_log_probs", "sequence_index", "batch_index"]
    texts: dict[tuple[int, int], str] = {}
    for answer in stream(decoupled, "ensemble", values, names):
        assert answer.as_numpy("text_output").shape == (1,)
        assert answer.as_numpy("output_log_probs").shape[:2] == (1, 1)
        key = int(answer.as_numpy("batch_index")[0][0]), int(answer.as_numpy("sequence_index")[0][0])
        texts[key] = texts.get(key, "") + answer.as_numpy("text_output")[0].decode()
    whole = {"exclude_input_in_output": [[True]], "end_id": [[-1]]}
    for index, prompt in enumerate(PROMPTS):
        answers = stream(decoupled, "ensemble", {"text_input": [[prompt]], "max_tokens": [[9]], **whole})
        assert texts[index, 0] == texts[index, 1] == answers[0].as_numpy("text_output")[0].decode()


def test_only_the_requested_outputs_come(decoupled: Running) -> None:
    asked = ["output_ids", "sequence_length"]
    for answer in stream(decoupled, "tensorrt_llm", llm_inputs(streaming=[[True]]), asked):
        assert sorted(output.name for output in answer.get_response().outputs) == asked


def test_a_cancelled_stream_and_one_stopped_by_its_id(decoupled: Running) -> None:
    import tritonclient.grpc as grpcclient

    for cancel in (True, False):
        answers: queue.Queue[Any] = queue.Queue()
        with grpcclient.InferenceServerClient(decoupled.url) as client:
            client.start_stream(callback=lambda result, error, to=answers: to.put(error or result))
            inputs = tensors(grpcclient, llm_inputs(request_output_len=[[LONGEST]], streaming=[[True]]))
            client.async_stream_infer("tensorrt_llm", inputs, request_id="77")
            answers.get(timeout=60)
            if not cancel:
                client.async_stream_infer("tensorrt_llm", tensors(grpcclient, stop_signal()), request_id="77")
            client.stop_stream(cancel_requests=cancel)
        assert decoupled.wait_for_gauge("used", 0) == 0
        last = list(answers.queue)[-1]
        assert len(answers.queue) < LONGEST - 20
        assert (last.status() == "StatusCode.CANCELLED") if cancel else last.as_numpy("output_ids") is not None


def stop_signal() -> dict[str, Any]:
    return {"input_ids": [[0]], "input_lengths": [[0]], "request_output_len": [[0]], "stop": [[True]]}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_chain_by_hand_equals_the_ensemble(unary: Running, protocol: str) -> None:
    """end_to_end_test.py: unary calls, request ids used again for every model, the prompt in the answer."""
    import importlib

    module = importlib.import_module(f"tritonclient.{protocol}")
    address = unary.url if protocol == "grpc" else f"127.0.0.1:{unary.http}"
    words = {"BAD_WORDS_DICT": [[""]], "STOP_WORDS_DICT": [[""]]}
    with module.InferenceServerClient(address) as client:
        ask = partial(_ask, client, module)
        for number, prompt in enumerate(PROMPTS * 2):
            ready = ask("preprocessing", number, {"QUERY": [[prompt]], "REQUEST_OUTPUT_LEN": [[10]], **words})
            names = {
                "input_ids": "INPUT_ID",
                "decoder_input_ids": "DECODER_INPUT_ID",
                "input_lengths": "REQUEST_INPUT_LEN",
                "request_output_len": "REQUEST_OUTPUT_LEN",
                "end_id": "OUT_END_ID",
                "pad_id": "OUT_PAD_ID",
            }
            values = {name: ready.as_numpy(source) for name, source in names.items()}
            answer = ask("tensorrt_llm", number, {**values, "return_log_probs": [[True]]})
            tokens = {"TOKENS_BATCH": "output_ids", "SEQUENCE_LENGTH": "sequence_length"}
            by_hand = ask("postprocessing", 0, {name: answer.as_numpy(source) for name, source in tokens.items()})
            asked = {"text_input": [[prompt]], "max_tokens": [[10]], "bad_words": [[""]], "stop_words": [[""]]}
            whole = ask("ensemble", number, {**asked, "return_log_probs": [[True]]})
            assert by_hand.as_numpy("OUTPUT") == whole.as_numpy("text_output")
            assert whole.as_numpy("text_output")[0].decode().startswith(prompt)
            for name in ("cum_log_probs", "output_log_probs"):
                assert (answer.as_numpy(name) == whole.as_numpy(name)).all()


def _ask(client: Any, module: Any, model: str, number: int, values: dict[str, Any]) -> Any:
    return client.infer(model, tensors(module, values), request_id=str(number))


def test_unary_calls_run_side_by_side_and_say_the_same_as_a_stream(decoupled: Running, unary: Running) -> None:
    import tritonclient.grpc as grpcclient

    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(unary.url) as client:
        for number in range(24):
            inputs = tensors(grpcclient, llm_inputs(runtime_top_k=[[40]], seed=np.array([[number]], np.uint64)))
            client.async_infer(
                "tensorrt_llm", inputs, lambda result, error: answers.put(error or result), request_id=str(number)
            )
        results = [answers.get(timeout=120) for _ in range(24)]
    got = {int(result.get_response().id): result.as_numpy("output_ids")[0][0].tolist() for result in results}
    for number in (0, 11, 23):
        seed = {"runtime_top_k": [[40]], "seed": np.array([[number]], np.uint64)}
        assert sequences(stream(decoupled, "tensorrt_llm", llm_inputs(**seed)))[0, 0] == got[number]


@pytest.mark.parametrize("cancel", [True, False])
def test_a_unary_call_that_is_cancelled_or_stopped(unary: Running, cancel: bool) -> None:
    import tritonclient.grpc as grpcclient

    answers: queue.Queue[Any] = queue.Queue()
    put = lambda result, error: answers.put(error or result)  # noqa: E731
    with grpcclient.InferenceServerClient(unary.url) as client:
        before = unary.gauge("iteration_counter")
        inputs = tensors(grpcclient, llm_inputs(request_output_len=[[LONGEST]]))
        future = client.async_infer("tensorrt_llm", inputs, put, request_id="7")
        began = threading.Event()
        while unary.gauge("iteration_counter") < before + 3:
            began.wait(0.05)
        if cancel:
            future.cancel()
            assert answers.get(timeout=30).status() == "StatusCode.CANCELLED"
        else:
            client.async_infer("tensorrt_llm", tensors(grpcclient, stop_signal()), put, request_id="7")
            lengths = [answer.as_numpy("output_ids") for answer in (answers.get(timeout=30), answers.get(timeout=30))]
            assert sorted(ids is None for ids in lengths) == [False, True]
            assert next(ids for ids in lengths if ids is not None).size < LONGEST
        assert unary.wait_for_gauge("used", 0) == 0
        assert client.infer("tensorrt_llm", tensors(grpcclient, llm_inputs())).as_numpy("output_ids").size == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streaming": [[True]]}, "Streaming is only supported if model is deployed using decoupled mode"),
        ({"num_return_sequences": [[2]]}, "num_return_sequences 2 > 1 requires the decoupled transaction policy"),
        ({"beam_width": [[2]]}, "beam_width 2: the cpu runtime does no beam search"),
    ],
)
def test_what_one_response_cannot_hold_is_refused(unary: Running, changes: dict[str, Any], words: str) -> None:
    import tritonclient.grpc as grpcclient
    from tritonclient.utils import InferenceServerException

    with (
        grpcclient.InferenceServerClient(unary.url) as client,
        pytest.raises(InferenceServerException, match=words),
    ):
        client.infer("tensorrt_llm", tensors(grpcclient, llm_inputs(**changes)))


def test_random_numbers_as_ids_are_wrapped_where_asked_for(decoupled: Running, unary: Running) -> None:
    """benchmark_core_model.py token-norm-dist sends numbers up to 2^31 as ids."""
    import tritonclient.grpc as grpcclient

    huge = np.array([[2**31 - 1, 5, VOCAB, VOCAB + 7]], dtype=np.int32)
    with grpcclient.InferenceServerClient(unary.url) as client:
        excluded = {"exclude_input_in_output": [[True]]}
        got, expected = (
            client.infer("tensorrt_llm", tensors(grpcclient, llm_inputs(input_ids=ids, **excluded))).as_numpy(
                "output_ids"
            )
            for ids in (huge, huge % VOCAB)
        )
    assert (got == expected).all()
    assert "outside the vocabulary" in str(stream(decoupled, "tensorrt_llm", llm_inputs(input_ids=huge))[0])


def test_the_repositories_say_what_they_are(decoupled: Running, unary: Running) -> None:
    for server, flag in ((decoupled, True), (unary, False)):
        options = json.loads((server.repository / "trtbuild.json").read_text())["options"]
        assert options["decoupled"] is flag
