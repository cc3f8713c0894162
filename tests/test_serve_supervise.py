"""A real server under a real launcher: frozen, restarted, drained, and without room for its logs."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import triton_stand_in
from tests.disks import disk_of
from tests.serve_fixture import Running, running
from tests.test_serve_processes import ended
from trtbuild.client import Client, Generation, Reach, Retry
from trtbuild.errors import ServerError

LONG = Generation("x", max_tokens=900, end_id=-1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A repository of a TensorRT engine of two ranks, and the environment of a host for it."""
    folder = tmp_path_factory.mktemp("container")
    return triton_stand_in.repository(folder / "model"), triton_stand_in.container(folder / "host")


def test_a_frozen_rank_is_noticed_and_the_server_restarted_once(two_ranks: Path, tmp_path: Path) -> None:
    with running(two_ranks, tmp_path / "logs", "--restart", "on-failure:1", "--watch-s", 3) as server:
        frozen, began = server.rank(1), time.monotonic()
        os.kill(frozen, signal.SIGSTOP)
        server.wait_for_line(f"rank 1 (process {frozen}) gives no sign of life")
        assert 2.4 < time.monotonic() - began < 60
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("ready:")
        assert (tmp_path / "logs" / "tensorrt_llm.1" / "rank1.log.1").is_file()
        with Client(server.url) as client:
            assert client.infer(Generation("x", max_tokens=2, end_id=-1)).token_count == 2
            answer = client.stream(LONG)
            next(answer)
            os.kill(server.named("bin/tritonserver")[0], signal.SIGKILL)
            with pytest.raises(ServerError, match="cut the answer off"):
                list(answer)
        code, error = ended(server)
        assert code == 5
        assert "tritonserver was killed by signal 9" in error
        assert server.wait_gone() == []


def test_sigterm_lets_open_streams_end_and_no_other_in(two_ranks: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    began = threading.Barrier(3)

    def stream(server: Running) -> None:
        with Client(server.url) as client:
            answer = client.stream(Generation("x", max_tokens=60, end_id=-1))
            first = next(answer)
            began.wait()
            counts.append(first.token_count + sum(chunk.token_count for chunk in answer))

    with running(two_ranks, tmp_path / "logs", "--drain-s", 300) as server:
        threads = [threading.Thread(target=stream, args=(server,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        began.wait()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("no new requests")
        with Client(server.url, reach=Reach(retry=Retry(times=0))) as client:
            with pytest.raises(ServerError, match="is ending"):
                client.infer(Generation("late", max_tokens=1))
            with pytest.raises(ServerError, match="is ending"):
                client.infer(Generation("late", max_tokens=1), model="ensemble")
        for thread in threads:
            thread.join()
        code, said = ended(server)
        assert counts == [60, 60]
        assert code == 0
        assert "drained" in said
        assert server.wait_gone() == []


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def test_a_full_disk_for_logs_ends_the_server(two_ranks: Path, tmp_path: Path) -> None:
    with disk_of(tmp_path / "small", 512) as disk, running(two_ranks, disk / "logs") as server:
        began = time.monotonic()
        fill(disk / "ballast")
        code, error = ended(server)
        assert time.monotonic() - began < 60
        assert code == 4
        assert "the logs cannot be written" in error
        assert "the disk is full" in error
        assert server.wait_gone() == []


def test_leader_mode_under_mpirun_with_a_frozen_rank(stand_in: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Two real tritonservers, the hosts from a file; the second one never answers anybody."""
    folder, environment = stand_in
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    arguments = ("--hostfile", tmp_path / "hosts", "--watch-s", 3)
    with running(folder, tmp_path / "logs", *arguments, env=environment) as server:
        assert "stand-in rank 1 of 2" in (tmp_path / "logs" / "rank1.log").read_text()
        with Client(server.url) as client:
            assert client.infer(Generation("x", max_tokens=5, end_id=-1)).token_count == 5
        pid = int((tmp_path / "logs" / "rank1.state").read_text().split()[1])
        os.kill(pid, signal.SIGSTOP)
        code, error = ended(server)
        assert code == 5
        assert re.search(rf"rank 1 \(process {pid}\) gives no sign of life for .* s: it is stopped", error)
        assert "stand-in rank 1 of 2" in error
        assert server.wait_gone() == []


def test_under_srun_open_streams_are_cut_off_in_the_end(stand_in: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, environment = stand_in
    slurm = {**environment, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    with (
        running(folder, tmp_path / "logs", "--slurm", "--drain-s", 1, env=slurm) as server,
        Client(server.url) as client,
    ):
        answer = client.stream(LONG)
        next(answer)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("1 request(s) were cut off after 1 s")
        assert ended(server)[0] == 0
        with pytest.raises(ServerError, match="cut the answer off"):
            list(answer)
        assert server.wait_gone() == []
