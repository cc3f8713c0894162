"""`LlmService` without a server: answers, cancelling, draining and closing, with the stand-in of the LLM class."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def test_without_an_id_nothing_is_stopped(service: LlmService) -> None:
    sender = ask(service, stop=True)
    assert sender.got == ["Trying to stop a request but request ID is not provided"]
    assert sender.codes == [TritonError.INVALID_ARG]
