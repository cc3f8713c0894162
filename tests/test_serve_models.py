"""One real tritonserver with several models: two engines, tensorrt_llm_bls, versions, not decoupled, llmapi.

The llmapi model is ours; the LLM class behind it is a stand-in without a model (tests/fakes/llmapi).
"""

from __future__ import annotations

import itertools
import json
import queue
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve_fixture import LONGEST, VOCAB, Running, demo_tokenizer, running
from tests.test_serve_streams import alone
from tests.tiny import ROOT, make_llama
from trtbuild.client import Client, Generation, generate_stream
from trtbuild.errors import RequestError

PROMPTS = [f"Number {i}: " + "the quick brown fox " * (i % 3) + "👍 你好"[: i % 4] for i in range(8)]
COUNT = 24


def engine(folder: Path, seed: int) -> Path:
    """A random Llama with the demo model's vocabulary as a cpu engine of one rank; `seed` tells the weights."""
    from trtbuild.engine.options import BuildOptions
    from trtbuild.pipeline import make_engine
    from trtbuild.spec import ConvertOptions

    model = make_llama(folder / "model", seed=seed, vocab_size=VOCAB, max_position_embeddings=LONGEST)
    return make_engine(str(model), folder / "engine", ConvertOptions(dtype="float32"), BuildOptions(max_batch_size=32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One chain of engine 1, with a second tensorrt_llm_bls that streams the text so far; `plain` is not decoupled.

    `plain_tensorrt_llm` has versions 1 (engine 2) and 2 (engine 1), both served; preprocessing has two instances.
    """
    from trtbuild.repo.add import add_models, add_version
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    folder = tmp_path_factory.mktemp("models")
    repository = folder / "repo"
    engines = [engine(folder / str(seed), seed) for seed in (1, 2)]
    tokens = {"max_tokens_in_paged_kv_cache": 16 * LONGEST}
    first = RepositoryOptions(preprocessing_instances=2, **tokens)
    write_repository(engines[0], repository, demo_tokenizer(), first)
    plain = RepositoryOptions(name="plain", decoupled=False, **tokens)
    add_models(engines[1], repository, demo_tokenizer(), plain)
    add_version(engines[0], repository, 2, RepositoryOptions(name="plain", version_policy="all"))
    accumulating(repository)
    llmapi(folder / "1" / "model", repository)
    with running(repository, folder / "logs") as started:
        yield started


def llmapi(model: Path, repository: Path) -> None:
    """The model of a llmapi repository beside the others, and the stand-in where it imports from."""
    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo_tokenizer() / name, model / name)
    name = write_llmapi_repository(model, repository.parent / "llmapi", LlmapiOptions(name="hf"))
    folder = shutil.copytree(repository.parent / "llmapi" / name, repository / name)
    stand_in = ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm"
    shutil.copytree(stand_in, folder / "1" / "tensorrt_llm", ignore=shutil.ignore_patterns("__pycache__"))


def accumulating(repository: Path) -> None:
    """The same tensorrt_llm_bls under another name, with accumulate_tokens."""
    folder = shutil.copytree(repository / "tensorrt_llm_bls", repository / "so_far")
    path = folder / "config.pbtxt"
    text = path.read_text().replace('name: "tensorrt_llm_bls"', 'name: "so_far"')
    changed = re.sub(r'(key: "accumulate_tokens"\s*value { string_value: )"false"', r'\1"true"', text)
    assert changed != text
    path.write_text(changed)


@pytest.fixture(scope="module")
def expected(server: Running) -> dict[int, list[str]]:
    """Full decodes of what each engine generates without Triton."""
    folder = server.repository.parent
    return {seed: alone(folder / str(seed) / "repo", PROMPTS, COUNT) for seed in (1, 2)}


def streams(server: Running, model: str, prompts: list[str], **changes: Any) -> list[list[str]]:
    """Text outputs of each prompt's stream, all at the same time."""
    found: dict[int, list[str]] = {}

    def run(index: int) -> None:
        generation = Generation(prompts[index], max_tokens=COUNT, **changes)
        found[index] = [chunk.text for chunk in generate_stream(server.url, generation, model=model)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [found[index] for index in range(len(prompts))]


def test_eight_streams_of_each_model_at_once(server: Running, expected: dict[int, list[str]]) -> None:
    found: dict[str, list[list[str]]] = {}
    models = ("ensemble", "tensorrt_llm_bls", "so_far")
    threads = [threading.Thread(target=lambda m=m: found.update({m: streams(server, m, PROMPTS)})) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    for model in models:
        assert ["".join(texts) for texts in found[model]] == expected[1], model
        assert all(len(texts) > 4 for texts in found[model]), "it is a stream"
    raw = stream_raw(server.url, "so_far", raw_inputs(PROMPTS[0], COUNT, "\0"))  # our client takes what is new
    assert raw[-1] == expected[1][0]
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(raw))


def test_bls_answers_as_the_ensemble(server: Running, expected: dict[int, list[str]]) -> None:
    """Log probabilities, too; several sequences of one prompt, in one piece and streamed."""
    asked = Generation(PROMPTS[3], max_tokens=COUNT, log_probs=True, stream=False)
    models = ("tensorrt_llm_bls", "ensemble")
    with Client(server.url) as client:
        answers = [client.infer(asked, model=model) for model in models]
    assert answers[0] == answers[1]
    assert answers[0].text == expected[1][3]
    assert len(answers[0].log_probs) == COUNT
    for streaming in (False, True):
        two = {"num_return_sequences": np.array([[2]], dtype=np.int32), "top_k": np.array([[50]], dtype=np.int32)}
        inputs = {**raw_inputs(PROMPTS[1], COUNT, "\n\n\n"), **two, "stream": np.array([[streaming]])}
        texts = []
        for model in models:
            pieces = raw_answers(server.url, model, inputs)
            texts.append(["".join(text for text, place in pieces if place == n) for n in (0, 1)])
            assert len(pieces) == 2 or streaming
        assert texts[0] == texts[1]
        assert texts[0][0] != texts[0][1]


def generate(server: Running, model: str, **inputs: Any) -> dict[str, Any]:
    """Triton's generate extension: one answer in one piece, or its error."""
    url = f"http://127.0.0.1:{server.http}/v2/models/{model}/generate"
    request = urllib.request.Request(url, json.dumps(inputs).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return dict(json.load(reply))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


def used(server: Running, model: str, version: int = 1) -> int:
    """KV cache blocks that sequences of this model hold."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=5).read().decode()
    found = re.search(rf'type="used",model="{model}",version="{version}"}} (\d+)', page)
    assert found, page
    return int(found[1])


def wait_unused(server: Running, model: str, version: int = 1) -> int:
    deadline = time.monotonic() + 15
    while used(server, model, version) and time.monotonic() < deadline:
        time.sleep(0.05)
    return used(server, model, version)


def test_stop_words_of_the_text_end_a_stream(server: Running, expected: dict[int, list[str]]) -> None:
    """A stop word that begins and ends inside of tokens: the engine would not see it."""
    whole = expected[1][0]
    stop = whole[len(whole) // 2 - 1 : len(whole) // 2 + 2]
    wanted = whole[: whole.find(stop) + len(stop)]
    for model in ("tensorrt_llm_bls", "so_far"):
        url, generation = server.url, raw_inputs(PROMPTS[0], 900, stop)
        texts = stream_raw(url, model, generation)
        assert ("".join(texts) if model == "tensorrt_llm_bls" else texts[-1]) == wanted, model
    assert wait_unused(server, "tensorrt_llm") == 0, "the engine went on"


def raw_inputs(prompt: str, count: int, stop: str) -> dict[str, Any]:
    return {
        "text_input": np.array([[prompt.encode()]], dtype=object),
        "max_tokens": np.array([[count]], dtype=np.int32),
        "stream": np.array([[True]]),
        "stop_words": np.array([[stop.encode()]], dtype=object),
    }


def stream_raw(url: str, model: str, values: dict[str, Any]) -> list[str]:
    return [text for text, _ in raw_answers(url, model, values)]


def raw_answers(url: str, model: str, values: dict[str, Any]) -> list[tuple[str, int]]:
    """Upstream's tensors through tritonclient alone, as ours takes stop words out of the text: texts, and of which
    sequence."""
    import tritonclient.grpc as grpcclient

    client = grpcclient.InferenceServerClient(url)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs = []
    for name, value in values.items():
        kind = {"object": "BYTES", "int32": "INT32", "bool": "BOOL", "uint64": "UINT64"}[str(value.dtype)]
        inputs.append(grpcclient.InferInput(name, list(value.shape), kind))
        inputs[-1].set_data_from_numpy(value)
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, inputs, request_id="raw", enable_empty_final_response=True)
    texts = []
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            raise error
        value = result.as_numpy("text_output")  # upstream's clients read text_output[0] as a text
        if value is not None:
            place = result.as_numpy("sequence_index")
            texts.append((value[0].decode(), 0 if place is None else int(place.item())))
        if result.get_response().parameters["triton_final_response"].bool_param:
            client.stop_stream()
            client.close()
            return texts


def test_a_cancelled_stream_frees_its_blocks_and_others_go_on(server: Running, expected: dict[int, list[str]]) -> None:
    long = generate_stream(server.url, Generation("x", max_tokens=LONGEST, end_id=-1), model="tensorrt_llm_bls")
    next(long)
    time.sleep(0.3)  # two refreshes of the metrics
    assert used(server, "tensorrt_llm") >= 1
    found: list[list[list[str]]] = []
    others = threading.Thread(target=lambda: found.append(streams(server, "tensorrt_llm_bls", PROMPTS[:2])))
    others.start()
    long.close()  # type: ignore[attr-defined]
    others.join(60)
    assert ["".join(texts) for texts in found[0]] == expected[1][:2]
    assert wait_unused(server, "tensorrt_llm") == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"prompt": ""}, "the prompt is empty"), ({"top_p": 1.5}, "top_p 1.5"), ({"prompt": "word " * 2000}, "more than")],
)
def test_errors_of_inner_models_are_passed_on(server: Running, changes: dict[str, Any], words: str) -> None:
    for model in ("tensorrt_llm_bls", "ensemble"):
        with pytest.raises(RequestError, match=words):
            list(generate_stream(server.url, Generation(**{"prompt": "Hi", "max_tokens": 4, **changes}), model=model))


def test_what_has_no_model_is_refused(server: Running) -> None:
    answer = generate(server, "tensorrt_llm_bls", text_input="Hi", max_tokens=4, num_draft_tokens=3)
    assert "without draft model" in answer["error"]


def test_models_that_are_not_decoupled(server: Running, expected: dict[int, list[str]]) -> None:
    """Unary, eight at once; version 2 of its tensorrt_llm is engine 1, and the newest is served by default."""
    for model in ("plain_ensemble", "plain_tensorrt_llm_bls"):
        answers: dict[int, dict[str, Any]] = {}

        def ask(index: int, model: str = model, answers: dict[int, dict[str, Any]] = answers) -> None:
            inputs = {"text_input": PROMPTS[index], "max_tokens": COUNT, "exclude_input_in_output": True}
            answers[index] = generate(server, model, **inputs)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert [answers[index].get("text_output") for index in range(8)] == expected[1], model
        refused = generate(server, model, text_input="Hi", max_tokens=4, stream=True)
        assert "Streaming is only supported" in refused["error"]
    echoed = generate(server, "plain_tensorrt_llm_bls", text_input=PROMPTS[0], max_tokens=COUNT)
    assert echoed["text_output"] == PROMPTS[0] + expected[1][0]


def test_versions_have_their_engines(server: Running) -> None:
    inputs = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 8, "end_id": -1}
    first, second = (generate(server, f"plain_tensorrt_llm/versions/{v}", **inputs)["output_ids"] for v in (1, 2))
    assert first != second
    assert second == generate(server, "tensorrt_llm", **inputs)["output_ids"]
    assert generate(server, "plain_tensorrt_llm", **inputs)["model_version"] == "2"


def test_llmapi_streams_what_is_new(server: Running) -> None:
    base = {"text_input": np.array(["Grüße 🙂 ".encode()], dtype=object), "streaming": np.array([True])}
    count = {"sampling_param_max_tokens": np.array([20], dtype=np.int32)}
    quiet = {"sampling_param_exclude_input_from_output": np.array([True])}
    text = ("Grüße 🙂 " * 3)[:20]
    texts = stream_raw(server.url, "hf_tensorrt_llm", {**base, **count, **quiet})
    assert "".join(texts) == text
    assert len(texts) == 20
    assert "".join(stream_raw(server.url, "hf_tensorrt_llm", {**base, **count})) == "Grüße 🙂 " + text


def test_llmapi_answers_errors_and_cancels(server: Running) -> None:
    def ask(prompt: str, **changes: Any) -> dict[str, Any]:
        return generate(server, "hf_tensorrt_llm", text_input=prompt, **changes)

    quiet = {"sampling_param_exclude_input_from_output": True, "return_finish_reason": True}
    assert ask("abc", **quiet, sampling_param_max_tokens=7)["text_output"] == "abcabca"
    stopped = ask("abc", **quiet, sampling_param_stop=["ca"], return_stop_reason=True)
    assert (stopped["text_output"], stopped["finish_reason"], stopped["stop_reason"]) == ("ab", "stop", "ca")
    assert "Error generating request: no room" in ask("fail")["error"]
    assert "not empty" in ask("")["error"]
    connection = urllib.request.Request(
        f"http://127.0.0.1:{server.http}/v2/models/hf_tensorrt_llm/generate_stream",
        json.dumps({"text_input": "x", "streaming": True, "sampling_param_max_tokens": 4000, "id": "long"}).encode(),
    )
    with urllib.request.urlopen(connection, timeout=20) as reply:
        reply.readline()
    assert "aborted 1" in ask("aborts?", **quiet, sampling_param_max_tokens=1000)["text_output"], "its client has gone"
