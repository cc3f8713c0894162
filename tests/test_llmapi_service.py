"""`LlmService` without a server: answers, cancelling, draining and closing, with the stand-in of the LLM class."""

from __future__ import annotations

import importlib.util
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import demo_folder
from tests.serve_fixture import free_ports
from tests.tiny import ROOT
from tests.triton_stub import Backend, Sender, TritonError
from trtbuild.triton.llmapi import LlmService

CONFIG = {"name": "hf", "model_transaction_policy": {"decoupled": True}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version folder; tensorrt_llm is the stand-in."""
    path = ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm" / "__init__.py"
    spec = importlib.util.spec_from_file_location("tensorrt_llm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", module)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.yaml").write_text("model: x\ntriton_config: {decoupled: true}\n")
    return tmp_path / "1"


@pytest.fixture
def service(folder: Path) -> Iterator[LlmService]:
    started = LlmService(Backend({}), CONFIG, folder)
    yield started
    started.close()


def ask(service: LlmService, prompt: str = "ab", *, name: str = "", wait: bool = True, **changes: Any) -> Sender:
    base = {"text_input": np.array([prompt.encode()], dtype=object), "streaming": np.array([True])}
    quiet = {"sampling_param_exclude_input_from_output": np.array([True])}
    sender = Sender()
    service.execute(name, {**base, **quiet, **{k: np.array([v]) for k, v in changes.items()}}, sender)
    assert not wait or sender.done.wait(10), sender.got
    return sender


def test_a_stop_string_never_gets_out(service: LlmService) -> None:
    stop = {"sampling_param_stop": b"cdab", "return_stop_reason": True}
    sender = ask(service, "abcd", **stop)
    assert [text for (text,) in sender.texts() if text] == ["a", "b"]
    assert isinstance(sender.got[-1], dict)
    assert sender.got[-1]["stop_reason"].tolist() == [b"cdab"]


@pytest.mark.parametrize("started", [True, False])
def test_a_cancelled_request_is_ended(service: LlmService, started: bool) -> None:
    """Also before its task has begun: then the loop has not seen it yet."""
    held = threading.Event()
    if not started:
        service._loop.call_soon_threadsafe(held.wait)
    sender = ask(service, name="mine", wait=False, sampling_param_max_tokens=5000)
    if started:
        time.sleep(0.1)
    stop = ask(service, name="mine", wait=False, stop=True)
    held.set()
    assert sender.done.wait(5)
    assert stop.done.wait(5)
    assert bool(sender.got) == started


def test_closing_ends_what_is_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = LlmService(Backend({}), CONFIG, folder)
    senders = [ask(service, wait=False, sampling_param_max_tokens=5000) for _ in range(3)]
    service.close()
    assert all(sender.done.is_set() for sender in senders)
    assert "LLM was shut down" in capsys.readouterr().out


def test_a_server_that_drains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New requests are refused, an open one goes on and may be stopped; it is counted where `trtbuild serve` reads."""
    monkeypatch.setenv("TRTBUILD_RUN_DIR", str(folder))
    pb = Backend({})
    service = LlmService(pb, CONFIG, folder)
    active = ("nv_trt_llm_request_metrics", "hf", "1", "active")
    for streaming in (True, False):
        open_one = ask(service, name="mine", wait=False, streaming=streaming, sampling_param_max_tokens=5000)
        wait_for(lambda: pb.gauges[active] == 1)
        (folder / "draining").touch()
        refused = ask(service)
        assert refused.got == ["the server is draining and takes no new requests"]
        assert refused.codes == [TritonError.UNAVAILABLE]
        assert not open_one.done.is_set()
        ask(service, name="mine", stop=True)
        assert open_one.done.wait(5)
        wait_for(lambda: pb.gauges[active] == 0)
        (folder / "draining").unlink()
    assert {name for name, *_ in pb.gauges} == {active[0]}, "of steps and KV cache nothing is known"
    service.close()


def wait_for(done: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done()


def test_without_an_id_nothing_is_stopped(service: LlmService) -> None:
    sender = ask(service, stop=True)
    assert sender.got == ["Trying to stop a request but request ID is not provided"]
    assert sender.codes == [TritonError.INVALID_ARG]


def test_triton_lets_the_llm_go(tmp_path: Path) -> None:
    """The real tritonserver, here without metrics: it ends after a stream was cancelled, and the LLM is shut down."""
    import tritonclient.grpc as grpcclient

    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository
    from trtbuild.serve.install import find_triton

    model = write_llmapi_repository(demo_folder(), tmp_path / "repo", LlmapiOptions())
    stand_in = ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm"
    shutil.copytree(stand_in, tmp_path / "repo" / model / "1" / "tensorrt_llm")
    triton, (http, grpc) = find_triton(tmp_path / "triton"), free_ports(2)
    words = [triton.binary, f"--model-repository={tmp_path / 'repo'}", "--disable-auto-complete-config"]
    words += [f"--http-port={http}", f"--grpc-port={grpc}", "--allow-metrics=false", "--exit-timeout-secs=15"]
    words += [f"--backend-directory={triton.backends}"] if triton.backends else []
    paths = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, triton.library_dirs)), "PYTHONPATH": str(ROOT)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, **paths, "PATH": path}
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment)
    try:
        client, answers = grpcclient.InferenceServerClient(f"127.0.0.1:{grpc}"), queue.Queue[Any]()
        wait_for(lambda: ready(client), 60)
        client.start_stream(lambda result, error: answers.put(error or result))
        values = {"text_input": np.array([b"ab"], dtype=object), "streaming": np.array([True])}
        values["sampling_param_max_tokens"] = np.array([100_000], dtype=np.int32)
        inputs = [
            grpcclient.InferInput(n, [1], {"object": "BYTES", "bool": "BOOL", "int32": "INT32"}[str(v.dtype)])
            for n, v in values.items()
        ]
        for tensor, value in zip(inputs, values.values(), strict=True):
            tensor.set_data_from_numpy(value)
        client.async_stream_infer(model, inputs)
        assert answers.get(timeout=10).as_numpy("text_output").tolist() == [b"aba"]
        client.stop_stream(cancel_requests=True)
    finally:
        process.terminate()
        process.wait(20)
    assert "LLM was shut down" in (tmp_path / "log").read_text()


def ready(client: Any) -> bool:
    try:
        return bool(client.is_server_ready())
    except Exception:  # nobody listens yet
        return False
