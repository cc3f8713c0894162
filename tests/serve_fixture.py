"""A tiny model behind the real tritonserver, on free loopback ports; always stopped."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines import demo_folder
from tests.tiny import ROOT, make_llama

VOCAB = 49152  # of the demo model's tokenizer
LONGEST = 1024


def demo_tokenizer() -> Path:
    """The demo model's folder: a real tokenizer with emoji, CJK and single bytes."""
    return demo_folder()


def build_engine(folder: Path, tp: int, pp: int) -> Path:
    """A random Llama with the demo model's vocabulary as a cpu engine."""
    from trtbuild.engine.options import BuildOptions
    from trtbuild.pipeline import make_engine
    from trtbuild.spec import ConvertOptions

    model = make_llama(folder / "model", vocab_size=VOCAB, max_position_embeddings=LONGEST)
    options = ConvertOptions(tp_size=tp, pp_size=pp, dtype="float32")
    return make_engine(str(model), folder / "engine", options, BuildOptions(max_batch_size=32))


def build_repository(folder: Path, tp: int = 1, pp: int = 1) -> Path:
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    engine = build_engine(folder, tp, pp)
    write_repository(
        engine, folder / "repo", demo_tokenizer(), RepositoryOptions(max_tokens_in_paged_kv_cache=16 * LONGEST)
    )
    return folder / "repo"


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two ranks; read only."""
    return build_repository(tmp_path_factory.mktemp("two-ranks"), tp=1, pp=2)


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to others, and no two workers' of pytest-xdist the same."""
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


_FIRST_PORT = 20000 + 2000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + 2000))


@dataclass
class Running:
    """A `trtbuild serve` process that has said that it is ready."""

    process: subprocess.Popen[str]
    repository: Path
    log_dir: Path
    http: int
    grpc: int
    metrics: int

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def gauge(self, name: str) -> int:
        """A value of the KV cache block (or iteration) metrics, by its label."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5).read().decode()
        found = re.search(rf'nv_trt_llm_(?:kv_cache_block|general)_metrics{{.*="{name}".*}} (\d+)', page)
        assert found, page
        return int(found[1])

    def wait_for_gauge(self, name: str, wanted: int, timeout_s: float = 10) -> int:
        deadline = time.monotonic() + timeout_s
        while (value := self.gauge(name)) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return value

    def marked(self) -> list[int]:
        """Every process of this server."""
        from trtbuild.serve.processes import marked_processes

        return marked_processes("TRTBUILD_LOG_DIR", str(self.log_dir.resolve()))

    def scratch(self) -> Path:
        """The folder for what has to go with the server."""
        for pid in self.marked():
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"TRTBUILD_RUN_DIR="):
                    return Path(variable.partition(b"=")[2].decode())
        raise AssertionError("no process of the server knows it")

    def named(self, text: str) -> list[int]:
        """Processes of this server with `text` in their command line."""
        return [pid for pid in self.marked() if text in command_line(pid)]

    def rank(self, number: int) -> int:
        """The process of a rank of the cpu engine."""
        for pid in self.named("trtbuild.runtime.rank"):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"PMIX_RANK={number}".encode() in variables and "prterun" not in command_line(pid):
                return pid
        raise AssertionError(f"no rank {number}")

    def wait_for_line(self, words: str) -> None:
        """Of stderr."""
        assert self.process.stderr is not None
        for line in iter(self.process.stderr.readline, ""):
            if words in line:
                return
        raise AssertionError(f"it ended without a word of {words!r}")

    def wait_gone(self, timeout_s: float = 15) -> list[int]:
        """Processes that are left: of the server, or with the repository in their command line."""
        deadline = time.monotonic() + timeout_s
        while (left := [*self.marked(), *with_command(str(self.repository))]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def with_command(text: str) -> list[int]:
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]
    return [pid for pid in pids if text in command_line(pid)]


@contextmanager
def running(
    repository: Path, log_dir: Path, *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`trtbuild serve` in a process of its own, as a user starts it."""
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    command = [
        sys.executable,
        "-c",
        "from trtbuild.cli.app import main; main()",
        "serve",
        repository,
        *ports,
        *arguments,
    ]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **(env or {})}
    process = subprocess.Popen(
        [*map(str, command), "--log-dir", str(log_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    server = Running(process, repository, log_dir, http, grpc, metrics)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready:"):
            pytest.fail(f"not ready: {line}{process.communicate(timeout=30)[1]}")
        scratch = server.scratch()
        yield server
    finally:
        for pid in server.named(""):
            os.kill(pid, signal.SIGCONT)  # a stopped process would not hear the SIGTERM
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        assert server.wait_gone() == []
    deadline = time.monotonic() + 5  # a guard cleans up after a server that was killed
    while scratch != log_dir.resolve() and scratch.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert scratch == log_dir.resolve() or not scratch.exists()


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the tests that leave it as they find it; its engine lies beside the repository."""
    folder = tmp_path_factory.mktemp("served")
    with running(build_repository(folder), folder / "logs") as started:
        yield started
