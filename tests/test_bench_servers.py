"""`trtbuild bench` against a real tritonserver, our OpenAI endpoint before it, and endpoints with other habits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.bench_server import Habits, server
from tests.serve_fixture import LONGEST, Running, demo_tokenizer
from tests.test_openai import started
from tests.tiny import trtbuild
from trtbuild.bench import memory
from trtbuild.bench.asking import Asking
from trtbuild.bench.endpoint import endpoints
from trtbuild.bench.record import PROFILING, REFUSED, TIMEOUT, record_of
from trtbuild.bench.run import Options, measure
from trtbuild.bench.workload import Length, Level, Written
from trtbuild.client import Client
from trtbuild.errors import BenchError, ServerError
from trtbuild.progress import silent

KEY = "secret-2"


@dataclass
class Both:
    triton: Running
    port: int
    process: subprocess.Popen[bytes]

    @property
    def urls(self) -> list[str]:
        return [f"triton=grpc://{self.triton.url}", f"openai=http://127.0.0.1:{self.port}/v1"]

    def pieces(self) -> int:
        """Responses of the engine so far: each goes through the postprocessing model."""
        with Client(self.triton.url) as client:
            return int(client.statistics("postprocessing")[0]["inference_count"])

    def requests(self) -> int:
        with Client(self.triton.url) as client:
            return int(client.statistics("ensemble")[0]["inference_stats"]["success"]["count"])

    def counted(self) -> tuple[int, int]:
        """Prompt and completion tokens that the OpenAI endpoint counted so far."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        found = [
            re.search(rf"^trtbuild_openai_{name}_tokens_total (\S+)$", page, re.M) for name in ("prompt", "completion")
        ]
        return tuple(int(float(one[1])) for one in found if one)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def both(tiny_server: Running) -> Iterator[Both]:
    process, port = started(tiny_server, "--repo", str(tiny_server.repository), "--api-key", KEY)
    try:
        yield Both(tiny_server, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_one_command_over_two_endpoints(both: Both, tmp_path: Path) -> None:
    pieces, requests, counted = both.pieces(), both.requests(), both.counted()
    options = ["--concurrency", "1,3", "--requests", 6, "--input-len", 24, "--output-len", 12, "--output-len-stddev", 3]
    out = tmp_path / "out"
    env = {"BENCH_KEY": KEY}
    done = trtbuild("bench", *both.urls, *options, "--api-key-env", "BENCH_KEY", "-o", out, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (out / "summary.md").read_text()
    assert KEY not in "".join(path.read_text() for path in out.iterdir() if path.suffix != ".png")
    records = [record_of(json.loads(line)) for line in (out / "records.jsonl").read_text().splitlines()]
    assert all(record.ok and record.output_tokens == record.max_tokens for record in records)
    of = {name: [r for r in records if r.endpoint == name] for name in ("triton", "openai")}
    assert [len(of[name]) for name in of] == [2 + 6 + 3 + 6] * 2  # two of warm-up, then three
    # The server's own counts: those of the records, and 2 tokens of the first request to each.
    after = both.counted()
    assert after[1] - counted[1] == sum(r.output_tokens or 0 for r in of["openai"]) + 2
    assert after[0] - counted[0] == sum(r.input_tokens or 0 for r in of["openai"]) + 8
    assert both.requests() - requests == len(records) + 2
    through_triton = sum(len(r.arrivals) for r in of["triton"])
    assert sum(tokens or 0 for r in of["triton"] for _, tokens in r.arrivals) == sum(
        r.output_tokens or 0 for r in of["triton"]
    )
    assert through_triton <= both.pieces() - pieces - 2 <= sum(r.output_tokens or 0 for r in records) + len(records) + 4
    runs = json.loads((out / "summary.json").read_text())["runs"]
    assert [(run["endpoint"], run["level"]) for run in runs] == [
        ("triton", 1),
        ("openai", 1),
        ("triton", 3),
        ("openai", 3),
    ]
    for run in runs:
        measured = [r for r in of[run["endpoint"]] if r.phase == PROFILING and r.level == run["level"]]
        assert run["input_sequence_length"]["avg"] == 24  # words of one token each
        first = [(r.arrivals[0][0] - r.sent_ns) / 1e6 for r in measured]
        assert run["time_to_first_token"]["p90"] == pytest.approx(np.percentile(first, 90))
        tokens = sum(r.output_tokens or 0 for r in measured)
        seconds = (max(r.last_ns for r in measured) - min(r.sent_ns for r in measured)) / 1e9
        assert run["output_token_throughput"]["avg"] == pytest.approx(tokens / seconds)
        assert run["notes"] == []
    open_at_once = [sum(o.sent_ns <= r.sent_ns < o.end_ns for o in measured) for r in measured]
    assert max(open_at_once) == 3
    # An endpoint's memory is that of the server behind it too.
    behind = {p["pid"] for p in runs[0]["server_processes"]}
    assert behind == set(both.triton.marked()) & behind
    assert any("triton_python_backend_stub" in p["command"] for p in runs[0]["server_processes"])
    assert behind | {both.process.pid} == {p["pid"] for p in runs[1]["server_processes"]}
    assert runs[1]["server_memory_pss"]["avg"] > runs[0]["server_memory_pss"]["avg"] > 0.05


def test_a_long_prompt_is_a_failure_that_is_counted(both: Both) -> None:
    """One prompt of four does not fit the engine."""
    written = [Written("short", 4)] * 3 + [Written("long " * (LONGEST + 10), 4)]
    options = Options(
        [Level("concurrency", 2)], requests=8, warmup=0, written=written, goodput={"request_latency": 1e5}
    )
    records, (run,) = measure(endpoints(both.urls[:1]), options, silent)
    assert [r.error_kind for r in records] == ["", "", "", REFUSED] * 2
    assert run["request_count"]["avg"] == 6
    assert run["error_request_count"]["avg"] == 2
    assert run["good_request_count"]["avg"] == 6
    assert run["errors"][0]["count"] == 2
    assert "2 of 8 requests failed" in run["notes"][0]


def test_poisson_over_triton(both: Both) -> None:
    options = Options([Level("request_rate", 20)], duration_s=1.5, input=Length(8), output=Length(4), seed=7)
    records, (run,) = measure(endpoints(both.urls[:1]), options, silent)
    measured = [r for r in records if r.phase == PROFILING]
    gaps = np.random.default_rng([7, 2]).exponential(1 / 20, 200).cumsum()
    due = gaps[gaps <= 1.5]
    scheduled = np.array([r.scheduled_ns for r in measured])
    assert len(measured) == len(due)
    assert (np.diff(scheduled) / 1e9) == pytest.approx(np.diff(due), abs=1e-6)
    assert all(r.sent_ns - r.scheduled_ns >= 0 for r in measured)
    assert run["schedule_delay"]["p50"] < 50
    assert run["input_config"]["request_rate"] == 20


def test_latencies_are_those_of_the_server() -> None:
    """A word each 20 ms."""
    with server(Habits(pause_s=0.02)) as url:
        options = Options([Level("concurrency", 2)], requests=10, input=Length(5), output=Length(6))
        _, (run,) = measure(endpoints([f"known={url}"]), options, silent)
    assert run["time_to_first_token"]["min"] >= 20
    assert 20 <= run["inter_token_latency"]["p50"] < 40
    assert 120 <= run["request_latency"]["p50"] < 240
    assert run["input_sequence_length"]["avg"] == 5
    assert run["output_sequence_length"]["avg"] == 6


def test_a_slow_server_does_not_set_the_pace() -> None:
    """20 ms for each request, one at a time, asked 100 times a second: every next one waits longer."""
    with server(Habits(pause_s=0.02, one_at_a_time=True)) as url:
        options = Options([Level("request_rate", 100)], requests=40, warmup=1, input=Length(5), output=Length(1))
        records, (run,) = measure(endpoints([f"slow={url}"]), options, silent)
    waits = [r.time_to_first_token or 0 for r in records if r.phase == PROFILING]
    assert run["benchmark_duration"]["avg"] > 40 * 0.02
    assert max(waits) > 300  # what a closed loop would have called 20
    assert np.polyfit(range(40), waits, 1)[0] > 5


def test_fields_that_a_server_does_not_know_are_left_out() -> None:
    habits = Habits(refuses=("ignore_eos", "stream_options", "max_tokens"), pause_s=0.001)
    options = Options([Level("concurrency", 1)], requests=3, warmup=0, output=Length(4))
    with server(habits) as url, pytest.raises(BenchError, match="sends no usage"):
        measure(endpoints([f"a={url}"]), options, silent)
    asking = Asking(tokenizer=demo_tokenizer(), api_key="k", chat=True)
    options = Options([Level("concurrency", 1)], requests=3, warmup=0, output=Length(4), asking=asking)
    with server(habits) as url:
        records, (run,) = measure(endpoints([f"a={url}"]), options, silent)
    assert [r.output_tokens for r in records] == [4, 4, 4]  # " word" is one token
    assert {r.counted_by for r in records} == {"tokenizer"}
    assert run["input_config"]["fields"] == "min_tokens, max_completion_tokens"
    assert any("counted with --tokenizer" in note for note in run["notes"])
    last = habits.bodies[-1]
    assert (last["model"], last["min_tokens"], last["authorization"]) == ("some/model", 4, "Bearer k")


def test_failures_have_their_kind() -> None:
    # The warm-up and the first request are good, those with a forbidden word are not.
    habits = Habits(pause_s=0.001, hangs=("stuck",))
    written = [Written("fine", 3), Written("stuck", 3)]
    options = Options([Level("concurrency", 2)], requests=4, warmup=0, written=written, asking=Asking(timeout_s=0.5))
    with server(habits) as url:
        records, (run,) = measure(endpoints([f"a={url}"]), options, silent)
    assert [r.error_kind for r in records] == ["", TIMEOUT] * 2
    assert all(400 < (r.end_ns - r.sent_ns) / 1e6 < 2000 for r in records if not r.ok)
    assert run["error_request_count"]["avg"] == 2
    options = Options([Level("concurrency", 2)], requests=4, warmup=0, written=[Written("fine", 5)])
    with (
        server(Habits(pause_s=0.001, breaks_off_at=3)) as url,
        pytest.raises(ServerError, match="no request was answered"),
    ):
        measure(endpoints([f"a={url}"]), options, silent)
    with server(Habits(status=503)) as url, pytest.raises(ServerError, match=r"HTTP 503.*not now"):
        measure(endpoints([f"a={url}"]), options, silent)


def test_a_key_that_is_missing_or_wrong_is_looked_for_where_it_was_named() -> None:
    for key, words in (("", "AK is not set"), ("k", "The key in AK is not its")):
        options = Options([Level("concurrency", 1)], requests=1, asking=Asking(api_key=key, api_key_env="AK"))
        with server(Habits(status=401)) as url, pytest.raises(ServerError, match="HTTP 401") as caught:
            measure(endpoints([f"a={url}"]), options, silent)
        assert words in caught.value.hint


def test_a_silent_server_is_named_in_time() -> None:
    """One that takes the first request and never answers; the other one is asked all the same."""
    options = Options([Level("concurrency", 1)], requests=1, asking=Asking(timeout_s=0.5))
    with server(Habits(hangs=("",))) as silent_one, server(Habits(status=503)) as other:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"2 of 2(?s:.*)a: no answer .* within 0.5 s\n(?s:.*)503"):
            measure(endpoints([f"a={silent_one}", f"b={other}"]), options, silent)
        assert time.monotonic() - start < 30


def test_all_endpoints_that_are_away_are_named_at_once(both: Both) -> None:
    done = trtbuild("bench", "a=grpc://127.0.0.1:1", "b=http://127.0.0.1:2/v1", both.urls[0], "--requests", 1)
    assert done.returncode == 7
    assert done.stdout == ""
    assert all(word in done.stderr for word in ("2 of 3 endpoints", "127.0.0.1:1", "b: ConnectError"))
    nowhere = trtbuild("bench", "--concurrency", "1", "--request-rate", "2")
    assert nowhere.returncode == 2


def test_memory_of_processes() -> None:
    """A child with 200 MB of its own, half of it shared with a fork."""
    program = (
        "import os, socket, sys; data = bytearray(os.urandom(1 << 20)) * 100; pid = os.fork()\n"
        "more = bytearray(b'x') * (100 << 20) if not pid else b''\n"
        "s = socket.create_server(('127.0.0.1', 0)) if pid else None\n"
        "print(s.getsockname()[1] if s else '', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        port = int("".join(child.stdout.readline() for _ in range(2)))  # both are there
        found = memory.processes(memory.server_pids(port))
        assert child.pid in {p.pid for p in found}
        assert len(found) == 2
        for one in found:
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            resident = int(re.search(r"^Rss:\s+(\d+)", rollup, re.M)[1]) * 1024  # type: ignore[index]
            assert one.command == f"{sys.executable} -c"
            assert one.rss == pytest.approx(resident, rel=0.05)
        shares = sum(p.pss or 0 for p in found)
        assert 200e6 < shares < sum(p.rss for p in found) - 80e6  # what they share is there once
    finally:
        child.communicate("")
    assert memory.is_here("127.0.0.1")
    assert not memory.is_here("192.0.2.1")


def test_the_arguments_of_a_server_are_kept_for_nobody(tmp_path: Path) -> None:
    """Keys are among them, and summaries are passed on."""
    (tmp_path / "serve.py").write_text("import time; time.sleep(60)")
    waits = "import time; time.sleep(60)"
    children = {
        f"{sys.executable} -m http.server": [sys.executable, "-m", "http.server", "0", "--cgi"],
        f"{sys.executable} {tmp_path}/serve.py": [sys.executable, "-u", f"{tmp_path}/serve.py", "--api-key", "SECRET"],
        f"{sys.executable} -c": [sys.executable, "-c", waits, "SECRET"],
        "sleep": ["sleep", "60"],
    }
    for shown, argv in children.items():
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not Path(f"/proc/{child.pid}/cmdline").read_bytes():  # the kernel has not written it yet
                time.sleep(0.01)
            assert [one.command for one in memory.processes([child.pid])] == [shown]
        finally:
            child.kill()
            child.wait()


def test_gpu_memory_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '12, 100'\necho '13, 50'\necho '14, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert memory.gpu_bytes([12, 13, 99]) == 150 * 2**20
    assert memory.gpu_bytes([14, 99]) is None
    page = tmp_path / "metrics"
    page.write_text('# HELP\nnv_gpu_memory_used_bytes{gpu_uuid="a"} 1.5e9\nnv_gpu_memory_used_bytes{gpu_uuid="b"} 10\n')
    assert memory.gpu_bytes_of_metrics(page.as_uri()) == 1_500_000_010
    assert memory.gpu_bytes_of_metrics((tmp_path / "none").as_uri()) is None


def test_ctrl_c_ends_the_requests(both: Both, tmp_path: Path) -> None:
    """Nothing is left behind, on the server or on the disk."""
    program = "import signal, sys; signal.signal(2, signal.default_int_handler); sys.argv[0] = 'trtbuild'\n"
    program += "from trtbuild.cli.app import main; main()"
    argv = [sys.executable, "-c", program, "bench", both.urls[0], "--output-len", "900", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    end = time.monotonic() + 30
    while both.triton.gauge("used") == 0 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert both.triton.wait_for_gauge("used", 0, 20) == 0
    assert list(tmp_path.iterdir()) == []
