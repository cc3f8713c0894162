"""Whoever dies, nothing is left behind, and the reason is told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.serve_fixture import LONGEST, Running, demo_tokenizer, free_ports, running, with_command
from tests.tiny import trtbuild
from trtbuild.client import Generation, generate_stream
from trtbuild.errors import ServerError, TrtbuildError
from trtbuild.serve.health import check_ports_free


@pytest.fixture
def repository(two_ranks: Path) -> Path:
    return two_ranks


def ended(server: Running) -> tuple[int, str]:
    error = server.process.communicate(timeout=40)[1]
    return server.process.returncode, error


@pytest.fixture
def two_engines(two_ranks: Path, tmp_path: Path) -> Path:
    """The same engine twice, as tensorrt_llm and as other_tensorrt_llm."""
    from trtbuild.repo.add import add_models
    from trtbuild.repo.options import RepositoryOptions

    repository = Path(shutil.copytree(two_ranks, tmp_path / "both"))
    options = RepositoryOptions(name="other", max_tokens_in_paged_kv_cache=LONGEST)
    add_models(two_ranks.parent / "engine", repository, demo_tokenizer(), options)
    return repository


def test_a_killed_rank_ends_the_server_and_is_named(two_engines: Path, tmp_path: Path) -> None:
    """With the engine that it belongs to, as the other one has a rank 1, too."""
    logs = tmp_path / "logs"
    with running(two_engines, logs) as server:
        said = {name: (logs / name / "rank1.log").read_text() for name in ("tensorrt_llm.1", "other_tensorrt_llm.1")}
        pids = {name: int(re.findall(r"rank 1 of 2, pid (\d+)", text)[0]) for name, text in said.items()}
        assert len(set(pids.values())) == 2
        open_request = generate_stream(server.url, Generation("x", max_tokens=900, end_id=-1), stall_timeout_s=20)
        next(open_request)
        os.kill(pids["other_tensorrt_llm.1"], signal.SIGKILL)
        with pytest.raises(TrtbuildError):
            list(open_request)
        code, error = ended(server)
        assert code == 5
        assert "serving other_tensorrt_llm.1: rank 1 died (signal 9" in error
        assert server.wait_gone() == []


def test_sigterm_and_a_stalling_server(repository: Path, tmp_path: Path) -> None:
    with running(repository, tmp_path / "logs") as server:
        answer = generate_stream(server.url, Generation("x", max_tokens=900, end_id=-1), stall_timeout_s=1)
        next(answer)
        triton = server.named("bin/tritonserver")[0]
        os.kill(triton, signal.SIGSTOP)
        with pytest.raises(ServerError, match="stalls: nothing came for 1 s"):
            list(answer)
        with pytest.raises(ServerError, match="does not answer"):
            list(generate_stream(server.url, Generation("x"), connect_timeout_s=0.5))
        os.kill(triton, signal.SIGCONT)
        endless = generate_stream(server.url, Generation("x", max_tokens=900, end_id=-1))
        next(endless)
        server.process.send_signal(signal.SIGTERM)  # waits for the answer
        server.wait_for_line("no new requests")
        server.process.send_signal(signal.SIGTERM)  # does not
        assert ended(server)[0] == 143
        assert server.wait_gone() == []


def test_commands_against_a_server_of_which_nothing_survives_its_supervisor(repository: Path, tmp_path: Path) -> None:
    with running(repository, tmp_path / "logs") as server:
        done = trtbuild("generate", "Hello", "--url", server.url, "-n", 12, "--temperature", 0)
        assert done.returncode == 0
        assert "TTFT" in done.stderr
        assert "tokens/s" in done.stderr
        turns = trtbuild("chat", "--repo", repository, "--url", server.url, "-n", 8, input="Hi\nAgain\n")
        assert turns.returncode == 0
        assert turns.stderr.count("TTFT") == 2
        taken = trtbuild("serve", repository, "--grpc-port", server.grpc, "--http-port", free_ports(1)[0])
        assert taken.returncode == 7
        assert f"grpc port {server.grpc} on 127.0.0.1" in taken.stderr
        assert len(server.named("trtbuild.runtime.rank")) >= 2
        server.process.kill()
        server.process.communicate()
        assert server.wait_gone() == []
        assert with_command(str(repository)) == []


def test_ports_are_checked_before_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"grpc port {port} on 127.0.0.1"):
            check_ports_free("127.0.0.1", {"http": free_ports(1)[0], "grpc": port})


def test_no_server() -> None:
    port = free_ports(1)[0]
    done = trtbuild("generate", "Hi", "--url", f"127.0.0.1:{port}")
    assert done.returncode == 7
    assert "no server at" in done.stderr
    assert "Traceback" not in done.stderr


def test_not_a_repository(tmp_path: Path) -> None:
    done = trtbuild("serve", tmp_path)
    assert done.returncode == 3
    assert "is not a repository" in done.stderr


def test_an_engine_that_cannot_load_is_the_reason(repository: Path, tmp_path: Path) -> None:
    """The rank's own words reach the user, through Triton and mpirun."""
    broken = tmp_path / "broken"
    shutil.copytree(repository.parent / "engine", broken / "engine")
    shutil.copytree(repository, broken / "repo")
    config = broken / "repo" / "tensorrt_llm" / "config.pbtxt"
    config.write_text(config.read_text().replace(str(repository.parent / "engine"), str(broken / "engine")))
    (broken / "engine" / "rank1.engine").write_bytes(b"nonsense")
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    done: subprocess.CompletedProcess[str] = trtbuild("serve", broken / "repo", *ports, "--log-dir", tmp_path / "logs")
    assert done.returncode == 5
    assert "starting the engine tensorrt_llm.1: rank 1 died" in done.stderr
    assert with_command(str(broken)) == []
