"""llmapi alone behind a real server; the LLM class is a stand-in without a model (tests/fakes/llmapi)."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.serve_fixture import Running, demo_tokenizer, running
from tests.test_serve_processes import ended
from tests.tiny import ROOT, make_llama


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository

    model = make_llama(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo_tokenizer() / name, model / name)
    name = write_llmapi_repository(model, tmp_path / "repo", LlmapiOptions())
    stand_in = ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm"
    folder = tmp_path / "repo" / name / "1" / "tensorrt_llm"
    shutil.copytree(stand_in, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "repo"


def stream(server: Running, count: int, begun: threading.Event) -> str:
    """Triton's generate extension; the whole text."""
    inputs = {"text_input": "abc", "streaming": True, "sampling_param_max_tokens": count}
    quiet = {"sampling_param_exclude_input_from_output": True}
    url = f"http://127.0.0.1:{server.http}/v2/models/tensorrt_llm/generate_stream"
    request = urllib.request.Request(url, json.dumps({**inputs, **quiet}).encode())
    text = ""
    with urllib.request.urlopen(request, timeout=60) as reply:
        for line in reply:
            if line.startswith(b"data: "):
                text += json.loads(line[6:]).get("text_output", "")
                begun.set()
    return text


def test_sigterm_lets_an_open_stream_end(repository: Path, tmp_path: Path) -> None:
    texts: list[str] = []
    begun = threading.Event()
    with running(repository, tmp_path / "logs", "--drain-s", 60, "--exit-timeout", 0) as server:
        thread = threading.Thread(target=lambda: texts.append(stream(server, 600, begun)))
        thread.start()
        assert begun.wait(30)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("no new requests")
        thread.join()
        assert texts == ["abc" * 200]
        code, said = ended(server)
        assert (code, "drained" in said) == (0, True), said
        assert server.wait_gone() == []
