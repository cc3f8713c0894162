"""Our own tools against a llmapi repository behind a real server; the LLM class is a stand-in (tests/fakes/llmapi)."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.serve_fixture import Running, demo_tokenizer, running
from tests.test_openai import started
from tests.tiny import ROOT, make_llama, trtbuild
from trtbuild.client import AsyncClient, Client, Generation
from trtbuild.errors import RequestError
from trtbuild.text.chat import load_chat_template

MODEL, SO_FAR = "tensorrt_llm", "far_tensorrt_llm"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two models: one streams what is new, the other all text so far."""
    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository

    folder = tmp_path_factory.mktemp("llmapi")
    model = make_llama(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo_tokenizer() / name, model / name)
    write_llmapi_repository(model, folder / "repo", LlmapiOptions())
    write_llmapi_repository(model, folder / "far", LlmapiOptions(name="far", accumulate_tokens=True))
    shutil.copytree(folder / "far" / SO_FAR, folder / "repo" / SO_FAR)
    for name in (MODEL, SO_FAR):
        place = folder / "repo" / name / "1" / "tensorrt_llm"
        shutil.copytree(ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm", place)
    with running(folder / "repo", folder / "logs") as serving:
        yield serving


@pytest.mark.parametrize("model", [MODEL, SO_FAR])
@pytest.mark.parametrize("stream", [True, False])
def test_both_clients(server: Running, model: str, stream: bool) -> None:
    asked = Generation("abc", max_tokens=7, stream=stream, count_prompt=True)

    async def asynchronously() -> object:
        async with AsyncClient(server.url, model=model) as client:
            return await client.infer(asked)

    with Client(server.url, model=model) as client:
        answer = client.infer(asked)
        assert (answer.text, answer.token_count, answer.finish_reason) == ("abcabca", 7, "length")
        assert answer.prompt_tokens == 4, "one that the tokenizer adds"
        plain = client.infer(Generation("abc", add_special_tokens=False, count_prompt=True, max_tokens=1))
        assert plain.prompt_tokens == 3
        stopped = client.infer(Generation("abc", max_tokens=50, stream=stream, stop=("bca",)))
        assert (stopped.text, stopped.finish_reason) == ("a", "stop")
        with pytest.raises(RequestError, match="no input for beam_width, log_probs"):
            client.infer(Generation("abc", beam_width=2, log_probs=True, stream=False))
    assert asyncio.run(asynchronously()) == answer


def test_a_request_of_another_client_is_stopped(server: Running) -> None:
    texts: list[str] = []
    with Client(server.url, model=MODEL) as client:
        begun = threading.Event()

        def run() -> None:
            for chunk in client.stream(Generation("ab", max_tokens=50_000), request_id="mine"):
                texts.append(chunk.text)
                begun.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(30)
        with Client(server.url) as other:
            other.stop("mine", model=MODEL)
        thread.join(30)
    assert 0 < len("".join(texts)) < 50_000


def test_generate_and_chat(server: Running) -> None:
    at = ("--url", server.url, "--model", MODEL)
    done = trtbuild("generate", "abc", *at, "-n", 7)
    assert done.stdout == "abcabca\n"
    assert ", 7 tokens" in done.stderr
    prompt = load_chat_template(demo_tokenizer()).render([{"role": "user", "content": "Hi"}])
    done = trtbuild("chat", *at, "--tokenizer", demo_tokenizer(), "-n", 9, input="Hi\n")
    assert done.stdout == prompt[:9] + "\n"


def test_bench_and_openai(server: Running) -> None:
    done = trtbuild("bench", f"grpc://{server.url}#{MODEL}", "--requests", 3, "--output-len", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    process, port = started(server, "--model", MODEL, "--tokenizer", str(demo_tokenizer()))
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        answer = client.completions.create(model=MODEL, prompt="abc", max_tokens=5)
        assert answer.choices[0].text == "abcab"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        pieces = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=6, stream=True
        )
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert text == load_chat_template(demo_tokenizer()).render([{"role": "user", "content": "Hi"}])[:6]
        with pytest.raises(openai.BadRequestError, match="log_probs"):
            client.completions.create(model=MODEL, prompt="abc", logprobs=0)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_two_files_agree(tmp_path: Path) -> None:
    """A model.yaml that was edited alone would let clients repeat text."""
    from trtbuild.errors import EngineError
    from trtbuild.triton.llmapi import LlmService

    (tmp_path / "model.yaml").write_text("model: x\ntriton_config: {decoupled: true}\n")
    config = {
        "model_transaction_policy": {"decoupled": True},
        "parameters": {"accumulate_tokens": {"string_value": "true"}},
    }
    with pytest.raises(EngineError, match="accumulate_tokens"):
        LlmService(None, config, tmp_path)
