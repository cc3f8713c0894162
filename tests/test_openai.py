"""OpenAI's own client against the endpoint in front of a real tritonserver."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve_fixture import LONGEST, Running, free_ports, running
from tests.tiny import ROOT
from trtbuild.client import Client, Generation
from trtbuild.text.chat import load_chat_template

KEY = "secret-1"
MESSAGES: Any = [{"role": "user", "content": "Name three rivers."}]
ENDLESS = {"ignore_eos": True}


@dataclass
class Endpoint:
    port: int
    triton: Running

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)

    def metric(self, name: str) -> float:
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        found = re.search(rf"^trtbuild_openai_{re.escape(name)} ([0-9.e+]+)$", page, re.M)
        assert found, page
        return float(found[1])

    def wait_for(self, name: str, wanted: float) -> None:
        end = time.monotonic() + 10
        while self.metric(name) != wanted:
            assert time.monotonic() < end, (name, self.metric(name))
            time.sleep(0.05)


def started(triton: Running, *options: str) -> tuple[subprocess.Popen[bytes], int]:
    (port,) = free_ports(1)
    program = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"
    argv = [sys.executable, "-c", program, "openai", "--url", triton.url, "--port", str(port), *options]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.05)
    raise AssertionError("trtbuild openai does not listen")


@pytest.fixture(scope="module")
def endpoint(tiny_server: Running) -> Iterator[Endpoint]:
    limits = ("--api-key", f"other,{KEY}", "--max-concurrency", "4", "--max-prompt", "2000", "--max-body", "20000")
    process, port = started(tiny_server, "--repo", str(tiny_server.repository), *limits)
    try:
        yield Endpoint(port, tiny_server)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 143, -signal.SIGTERM)


def straight(endpoint: Endpoint, prompt: str, **options: Any) -> str:
    with Client(endpoint.triton.url) as client:
        return client.infer(Generation(prompt, end_id=-1, temperature=0, **options)).text


def test_chat_is_what_the_model_says_to_its_own_template(endpoint: Endpoint) -> None:
    template = load_chat_template(endpoint.triton.repository / "preprocessing" / "tokenizer")
    wanted = straight(endpoint, template.render(MESSAGES), max_tokens=12, add_special_tokens=False)
    ask: dict[str, Any] = {"model": "ensemble", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    answer = endpoint.client.chat.completions.create(**ask, extra_body=ENDLESS)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    chunks = list(
        endpoint.client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}, logprobs=True, extra_body=ENDLESS
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
    scores = [
        token
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert len(scores) == 12
    assert chunks[-1].usage == answer.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_completions(endpoint: Endpoint) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    wanted = [straight(endpoint, prompt, max_tokens=8) for prompt in prompts]
    answer = endpoint.client.completions.create(
        model="ensemble", prompt=prompts, n=2, max_tokens=8, temperature=0, extra_body=ENDLESS, logprobs=0
    )
    assert [choice.text for choice in answer.choices] == [wanted[0], wanted[0], wanted[1], wanted[1]]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs or ()) == 8
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 32
    together: dict[int, str] = {}
    for chunk in endpoint.client.completions.create(
        model="ensemble", prompt=prompts, max_tokens=8, temperature=0, stream=True, extra_body=ENDLESS
    ):
        together[chunk.choices[0].index] = together.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert together == dict(enumerate(wanted))


def test_seeds_and_stop_strings(endpoint: Endpoint) -> None:
    def ask(**options: Any) -> list[str]:
        answer = endpoint.client.completions.create(
            model="ensemble", prompt="Once upon", max_tokens=16, extra_body=ENDLESS, **options
        )
        return [choice.text for choice in answer.choices]

    assert ask(seed=7, n=2) == ask(seed=7, n=2)
    assert len(set(ask(seed=7, n=3))) == 3
    assert ask() != ask()
    (whole,) = ask(temperature=0)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    answer = endpoint.client.completions.create(
        model="ensemble", prompt="Once upon", max_tokens=16, temperature=0, stop=[stop, "\0never"], extra_body=ENDLESS
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_that_fills_the_engine(endpoint: Endpoint) -> None:
    ask: Any = {"model": "ensemble", "prompt": "\u0fd0" * 330, "max_tokens": 5000, "extra_body": ENDLESS}
    answer = endpoint.client.completions.create(**ask)
    assert answer.usage is not None
    assert answer.usage.total_tokens == LONGEST
    assert answer.choices[0].finish_reason == "length"
    *_, last = endpoint.client.completions.create(**ask, stream=True)
    assert last.choices[0].finish_reason == "length"


def test_echo(endpoint: Endpoint) -> None:
    ask: Any = {"model": "ensemble", "prompt": ["One", "Two"], "n": 2, "max_tokens": 4, "temperature": 0, "echo": True}
    whole = [choice.text for choice in endpoint.client.completions.create(**ask).choices]
    assert [text[:3] for text in whole] == ["One", "One", "Two", "Two"]
    pieces: dict[int, list[str]] = {}
    for chunk in endpoint.client.completions.create(**ask, stream=True):
        pieces.setdefault(chunk.choices[0].index, []).append(chunk.choices[0].text)
    assert ["".join(pieces[index]) for index in range(4)] == whole


def test_log_probabilities_beside_a_stop_string_that_is_held_back(endpoint: Endpoint) -> None:
    ask: Any = {"model": "ensemble", "prompt": "Once upon", "max_tokens": 24, "temperature": 0, "logprobs": 1}
    free = endpoint.client.completions.create(**ask, extra_body=ENDLESS).choices[0]
    assert free.logprobs is not None
    tokens, offsets = free.logprobs.tokens or [], free.logprobs.text_offset or []
    assert "".join(tokens) == free.text
    assert len(tokens) == 24
    assert [free.text[at : at + len(token)] for at, token in zip(offsets, tokens, strict=True)] == tokens
    assert [list(top) for top in free.logprobs.top_logprobs or []] == [[token] for token in tokens]
    held = {**ask, "stop": [free.text[3:15] + "\0", free.text[20:] + "\0"]}
    for stop in (held, {**held, "stream": True}):
        scored = endpoint.client.completions.create(**stop, extra_body=ENDLESS)
        found = [each.choices[0].logprobs for each in (scored if stop is not held else [scored])]
        assert [token for each in found if each for token in each.tokens or []] == tokens
        assert [at for each in found if each for at in each.text_offset or []] == offsets
    middle = offsets[12]
    cut = endpoint.client.completions.create(**ask, stop=free.text[middle : middle + 4], extra_body=ENDLESS).choices[0]
    assert cut.logprobs is not None
    assert (
        "".join(cut.logprobs.tokens or []) == cut.text == free.text[: free.text.index(free.text[middle : middle + 4])]
    )
    chat = endpoint.client.chat.completions.create(
        model="ensemble", messages=MESSAGES, max_tokens=24, temperature=0, logprobs=True, extra_body=ENDLESS
    )
    scores = chat.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    joined = bytes(byte for token in scores.content for byte in token.bytes or [])
    assert joined.decode() == chat.choices[0].message.content
    assert all(token.bytes is None for token in scores.content if not token.token)


def test_null_is_nothing_said(endpoint: Endpoint) -> None:
    nothing = dict.fromkeys(
        (
            "n",
            "stream",
            "echo",
            "stop",
            "logprobs",
            "best_of",
            "max_tokens",
            "stream_options",
            "response_format",
            "tools",
        )
    )
    body: dict[str, Any] = {"model": "ensemble", "prompt": "x", **nothing, "max_tokens": 2}
    assert post(endpoint, "/v1/completions", json.dumps(body).encode())[0] == 200
    said = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "audio": None}
    body = {**body, "messages": [*MESSAGES, said, *MESSAGES], "top_logprobs": None}
    for key in ("prompt", "echo", "best_of"):
        del body[key]
    status, document = post(endpoint, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200, document
    assert document["usage"]["completion_tokens"] == 2


def test_a_client_that_leaves_before_the_first_token(endpoint: Endpoint) -> None:
    before = endpoint.metric("cancelled_total")
    ranks = endpoint.triton.named("trtbuild.runtime.rank")
    assert ranks
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    try:
        for stream in (True, False):
            with pytest.raises(openai.APITimeoutError):
                endpoint.client.with_options(timeout=0.3).completions.create(
                    model="ensemble", prompt="x", max_tokens=LONGEST, stream=stream, extra_body=ENDLESS
                )
        endpoint.wait_for("cancelled_total", before + 2)
        endpoint.wait_for("requests_in_flight", 0)
        page = urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=5).read().decode()
        assert 'route="/v1/completions",status="499"' in page
    finally:
        for rank in ranks:
            os.kill(rank, signal.SIGCONT)
    assert endpoint.triton.wait_for_gauge("used", 0) == 0


def test_clients_that_go_away(endpoint: Endpoint) -> None:
    before = endpoint.metric("cancelled_total")
    stream = endpoint.client.completions.create(
        model="ensemble", prompt="x", max_tokens=LONGEST, stream=True, extra_body=ENDLESS
    )
    next(iter(stream))
    stream.close()
    endpoint.wait_for("cancelled_total", before + 1)
    with pytest.raises(openai.APITimeoutError):
        endpoint.client.with_options(timeout=0.3).completions.create(
            model="ensemble", prompt="x", max_tokens=LONGEST, extra_body=ENDLESS
        )
    endpoint.wait_for("cancelled_total", before + 2)
    endpoint.wait_for("requests_in_flight", 0)
    assert endpoint.triton.wait_for_gauge("used", 0) == 0


def test_limits(endpoint: Endpoint) -> None:
    client = endpoint.client
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="secret", max_retries=0).models.list()
    assert [model.id for model in client.models.list()] == ["ensemble"]
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.APIStatusError, match="characters") as caught:
        client.completions.create(model="ensemble", prompt="x" * 2001)
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="ensemble", prompt="x" * 30000)
    assert caught.value.status_code == 413
    open_streams = [
        client.completions.create(model="ensemble", prompt="x", max_tokens=LONGEST, stream=True, extra_body=ENDLESS)
        for _ in range(4)
    ]
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="ensemble", prompt="x")
    for stream in open_streams:
        stream.close()
    endpoint.wait_for("requests_in_flight", 0)


BAD_BODIES: dict[str, Any] = {
    "empty": b"",
    "not JSON": b"{",
    "a list": [],
    "a number": 7,
    "not UTF-8": b'{"model": "\xff"}',
    "no model": {"prompt": "x"},
    "model null": {"model": None, "prompt": "x"},
    "no prompt": {"model": "ensemble"},
    "prompt null": {"model": "ensemble", "prompt": None},
    "prompt number": {"model": "ensemble", "prompt": 1},
    "prompt ids": {"model": "ensemble", "prompt": [1, 2]},
    "prompt of nothing": {"model": "ensemble", "prompt": []},
    "too many prompts": {"model": "ensemble", "prompt": ["x"] * 17},
    "echo with logprobs": {"model": "ensemble", "prompt": "x", "echo": True, "logprobs": 1},
    "lone surrogate": b'{"model": "ensemble", "prompt": "\\ud800"}',
    "too long for the engine": {"model": "ensemble", "prompt": "\u0fd0" * 1900},
    **{
        f"{key} {value!r}": {"model": "ensemble", "prompt": "x", key: value}
        for key, values in {
            "n": (0, -1, 17, "a", 1.5),
            "max_tokens": (0, -1, 2**31, "x", 1.5, True and [1]),
            "temperature": (-0.1, 2.1, "hot", [1]),
            "top_p": (0, 1.1, -1, "x"),
            "top_k": (-1, 2**31),
            "seed": (-1, 2**63, "x"),
            "presence_penalty": (-3, 3, "x"),
            "frequency_penalty": (-3, 3),
            "repetition_penalty": (0, -1),
            "stop": (1, [1], ["x"] * 17, {}),
            "stream": ("maybe", 7),
            "stream_options": ({"include_usage": True},),
            "logprobs": (2, 6, -1, "x"),
            "best_of": (3, 0),
            "logit_bias": ({"1": 1},),
            "response_format": ({"type": "json_object"}, {"type": "xml"}, {"type": "json_schema"}),
            "tools": ([{"type": "function"}],),
            "unknown_key": (1,),
        }.items()
        for value in values
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_malformed_requests_are_the_clients_fault(endpoint: Endpoint, name: str) -> None:
    body = BAD_BODIES[name]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, document = post(endpoint, "/v1/completions", raw)
    assert status == 400, document
    assert document["error"]["type"] == "invalid_request_error"
    assert document["error"]["message"]


def test_malformed_chats(endpoint: Endpoint) -> None:
    for messages in (
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": 1}],
        "x",
    ):
        status, document = post(
            endpoint, "/v1/chat/completions", json.dumps({"model": "ensemble", "messages": messages}).encode()
        )
        assert status == 400, (messages, document)
    parts = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert (
        post(endpoint, "/v1/chat/completions", json.dumps({"model": "ensemble", "messages": parts}).encode())[0] == 400
    )
    scored = {"model": "ensemble", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    status, document = post(endpoint, "/v1/chat/completions", json.dumps(scored).encode())
    assert status == 400
    assert "top_logprobs 2 is not served here: the server gives" in document["error"]["message"]
    assert post(endpoint, "/v1/nothing", b"{}")[0] == 404
    assert endpoint.client.completions.create(model="ensemble", prompt="alive?", max_tokens=1).usage


def post(endpoint: Endpoint, path: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
    connection.request("POST", path, body, {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    return response.status, document


def test_health_is_a_real_token_and_a_server_away_is_503(endpoint: Endpoint, tmp_path: Path) -> None:
    page = urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/health", timeout=20)
    assert json.load(page) == {"status": "ok", "tokens": 1}
    (dead,) = free_ports(1)
    away = Running(endpoint.triton.process, tmp_path, tmp_path, dead, dead, dead)
    process, port = started(away)
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20)
        assert caught.value.code == 503
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="no server at") as failed:
                client.completions.create(model="ensemble", prompt="x", stream=stream)
            assert failed.value.status_code == 503
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_that_stops_is_503_and_another_one_is_asked(
    endpoint: Endpoint, two_ranks: Path, tmp_path: Path
) -> None:
    """Once tritonserver itself is asked to end, it still answers, and its schedulers refuse what is new."""
    ask: Any = {"model": "ensemble", "prompt": "x", "max_tokens": 2, "extra_body": ENDLESS}
    with (
        running(two_ranks, tmp_path / "logs", "--watch-s", 120, "--exit-timeout", 60) as stopping,
        Client(stopping.url) as client,
    ):
        process, port = started(stopping)
        pair, pair_port = started(stopping, "--url", f"{stopping.url},{endpoint.triton.url}")
        try:
            answer = client.stream(Generation("x", max_tokens=LONGEST, end_id=-1))
            next(answer)
            os.kill(stopping.rank(0), signal.SIGSTOP)  # the stream stays open
            os.kill(stopping.named("bin/tritonserver")[0], signal.SIGTERM)
            time.sleep(1)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20)
            assert caught.value.code == 503
            alone, two = (
                openai.OpenAI(base_url=f"http://127.0.0.1:{each}/v1", api_key="x", max_retries=0)
                for each in (port, pair_port)
            )
            with pytest.raises(openai.InternalServerError, match="is ending") as failed:
                alone.completions.create(**ask)
            assert failed.value.status_code == 503
            wanted = endpoint.client.completions.create(**ask, temperature=0).choices[0].text
            for _ in range(4):
                assert two.completions.create(**ask, temperature=0).choices[0].text == wanted
            answer.close()
        finally:
            for each in (process, pair):
                each.terminate()
                each.wait(30)


def test_no_generated_request_is_a_server_error(endpoint: Endpoint) -> None:
    """Valid and invalid requests made from the OpenAPI document itself."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(
        f"http://127.0.0.1:{endpoint.port}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}
    )
    statuses: dict[str, set[int]] = {}
    for operation in schema.get_all_operations():
        call = operation.ok()
        modes = [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * (call.method == "post")
        for mode in modes:

            @given(case=call.as_strategy(generation_mode=mode))
            @settings(
                max_examples=15,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def check(case: Any) -> None:
                response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
                statuses.setdefault(case.operation.path, set()).add(response.status_code)
                assert response.status_code < 500, (case.body, response.text)

            check()
    assert statuses["/v1/models"] >= {200}
    assert 400 in statuses["/v1/completions"]
    assert 400 in statuses["/v1/chat/completions"]
