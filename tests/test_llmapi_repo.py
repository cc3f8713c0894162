"""The repository of `--target llmapi` on the real tritonserver, with a stand-in of the LLM class (tests/fakes)."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.serve_fixture import free_ports
from tests.tiny import ROOT, make_llama, trtbuild
from trtbuild.errors import EngineError, PlanError
from trtbuild.repo.check.run import check_repository
from trtbuild.repo.llmapi import LlmApiOptions, model_yaml, write_llmapi_repository
from trtbuild.serve.install import find_triton


@dataclass
class Server:
    url: str
    log: Path

    def answers(self, prompt: str, *, streaming: bool = True, take: int = 10**6, **more: Any) -> list[dict[str, Any]]:
        """Outputs of the responses to a request; an error is raised. `take`: cancel after as many."""
        import tritonclient.grpc as triton

        kinds = {"bool": "BOOL", "int": "INT32", "str": "BYTES"}
        with triton.InferenceServerClient(self.url) as client:
            found: queue.Queue[Any] = queue.Queue()
            client.start_stream(callback=lambda result, error: found.put((result, error)))
            inputs = []
            for name, value in {"text_input": prompt, "streaming": streaming, **more}.items():
                kind = kinds[type(value).__name__]
                values = np.array([value.encode() if kind == "BYTES" else value])
                tensor = triton.InferInput(name, [1], kind)
                tensor.set_data_from_numpy(values.astype({"BOOL": bool, "INT32": np.int32, "BYTES": object}[kind]))
                inputs.append(tensor)
            client.async_stream_infer("tensorrt_llm", inputs, enable_empty_final_response=True)
            responses: list[dict[str, Any]] = []
            while len(responses) < take:
                result, error = found.get(timeout=20)
                if error is not None:
                    raise error
                message = result.get_response()
                if message.outputs:
                    responses.append({o.name: result.as_numpy(o.name)[0] for o in message.outputs})
                if message.parameters["triton_final_response"].bool_param:
                    return responses
            client.stop_stream(cancel_requests=True)
            return responses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llmapi") / "model")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llmapi-server")
    options = LlmApiOptions(arguments={"kv_cache_config": {"free_gpu_memory_fraction": 0.8}})
    write_llmapi_repository(model, folder / "repo", options)
    # Triton's stub takes modules from the model's own version, and no PYTHONPATH.
    shutil.copytree(ROOT / "tests" / "fakes" / "llm", folder / "repo" / "tensorrt_llm" / "1", dirs_exist_ok=True)
    triton = find_triton(folder / "triton")
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    backends = [f"--backend-directory={triton.backends}"] if triton.backends else []
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, triton.library_dirs)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    words = [triton.binary, f"--model-repository={folder / 'repo'}", "--disable-auto-complete-config"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, words), *backends, *ports], env=environment, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        wait_ready(f"127.0.0.1:{grpc}", process, folder / "log")
        yield Server(f"127.0.0.1:{grpc}", folder / "log")
    finally:
        process.terminate()
        process.wait(30)
    assert "LLM was shut down" in (folder / "log").read_text()


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    from trtbuild.client import Client
    from trtbuild.errors import TrtbuildError

    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with Client(url) as client:
                if client.model_ready("tensorrt_llm"):
                    return
        except TrtbuildError:
            pass
        time.sleep(0.2)
    raise AssertionError("\n".join(line for line in log.read_text().splitlines() if line[:1] not in "|+I"))


def test_streams_come_in_pieces(server: Server) -> None:
    """Without auto-complete, so decoupled has to stand in config.pbtxt: the second piece would fail otherwise."""
    found = server.answers("a b c d e", sampling_param_exclude_input_from_output=True, return_finish_reason=True)
    assert [response["text_output"] for response in found] == [b"e ", b"d ", b"c ", b"b ", b"a ", b""]
    assert [response["finish_reason"] for response in found] == [b""] * 5 + [b"length"]


def test_one_answer_with_the_prompt_in_it(server: Server) -> None:
    (found,) = server.answers("x y z", streaming=False, sampling_param_max_tokens=2, return_cumulative_logprob=True)
    assert found == {"text_output": b"x y z|z y ", "cumulative_logprob": -1.5}


def test_stop_words_and_what_the_class_refuses(server: Server) -> None:
    (found,) = server.answers("one two three", streaming=False, sampling_param_stop="two", return_stop_reason=True)
    assert (found["text_output"], found["stop_reason"]) == (b"one two three|three ", b"two")
    with pytest.raises(Exception, match="ValueError: max_tokens 0 must be positive"):
        server.answers("x", sampling_param_max_tokens=0)


def test_a_client_that_leaves_is_noticed(server: Server) -> None:
    assert len(server.answers("word " * 1000, take=3, sampling_param_max_tokens=1000)) == 3
    assert len(server.answers("a b", sampling_param_exclude_input_from_output=True)) == 3


def test_the_files(model: Path, tmp_path: Path) -> None:
    done = trtbuild(
        *("repo", model, "-o", tmp_path / "repo", "--target", "llmapi", "--tp", "2"),
        *("--llm", "kv_cache_config={free_gpu_memory_fraction: 0.8}", "--llm", "max_batch_size=64"),
    )
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load((tmp_path / "repo" / "tensorrt_llm" / "1" / "model.yaml").read_text())
    assert document["model"] == str(model.resolve())
    assert (document["tensor_parallel_size"], document["max_batch_size"]) == (2, 64)
    assert document["kv_cache_config"] == {"free_gpu_memory_fraction": 0.8}
    assert document["triton_config"]["decoupled"] is True
    assert check_repository(tmp_path / "repo").findings == ()
    engine = trtbuild("repo", model, "-o", tmp_path / "other", "--tokenizer", model)
    assert (engine.returncode, "--target llmapi" in engine.stderr) == (3, True)


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        write_llmapi_repository(
            model, tmp_path / "r", LlmApiOptions(0, 1, decoupled=False, accumulate_text=True, arguments={"model": "x"})
        )
    assert len(caught.value.problems) == 3
    with pytest.raises(EngineError, match=r"config\.json"):
        write_llmapi_repository(tmp_path, tmp_path / "r2", LlmApiOptions())
    assert "accumulate_text: true" in model_yaml(model, LlmApiOptions(accumulate_text=True))
