"""When a process counts as dead, frozen or hung, and that neither work nor a busy machine does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.engines import Engines
from tests.tiny import ROOT
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.request import Request
from trtbuild.serve.health import read_progress
from trtbuild.serve.signs import Beats, Crew, StateFiles
from trtbuild.serve.watch import GONE, Progress, Quiet, Stall, Stalls, Vital, judge

WATCH_S = 5.0


@pytest.mark.parametrize(
    ("vital", "words"),
    [
        (Vital("rank 1", 7, 4.9, "T", rank=1), None),
        (Vital("rank 1", 7, 5.0, "T", rank=1), "rank 1 (process 7) gives no sign of life for 5.0 s: it is stopped"),
        (Vital("rank 1", 7, 6.0, "S", rank=1), "it sleeps"),
        (Vital("rank 1", 7, 6.0, "R", cpu_s=3.0), None),  # it works, so it holds the interpreter
        (Vital("rank 1", 7, 31.0, "R", cpu_s=30.0), "it runs"),
        (Vital("rank 1", 7, 0.1, GONE, rank=1), "rank 1 (process 7) is gone"),
        (Vital("tritonserver", 0, 5.5), "tritonserver gives no sign of life for 5.5 s: it does not answer"),
    ],
)
def test_verdicts(vital: Vital, words: str | None) -> None:
    verdict = judge([Vital("rank 0", 3, 0.4, "S"), vital], WATCH_S)
    assert (verdict is None) == (words is None)
    assert verdict is None or (words in verdict.text and verdict.rank == vital.rank)


def test_the_dead_come_before_the_frozen_and_the_stopped_before_those_that_wait_for_them() -> None:
    waits, stopped, gone = (
        Vital("rank 0", 1, 9.0, "S", rank=0),
        Vital("rank 1", 2, 6.0, "T", rank=1),
        Vital("rank 2", 3, 0.0, GONE, rank=2),
    )
    assert judge([waits, stopped], WATCH_S) == judge([stopped], WATCH_S)
    assert judge([waits, stopped, gone], WATCH_S) == judge([gone], WATCH_S)


def test_a_stall_is_open_requests_without_a_step() -> None:
    stall = Stall("", 10.0)
    assert stall.seen(0.0, Progress(2, 5)) is None
    assert stall.seen(9.0, Progress(2, 5)) is None
    assert stall.seen(9.5, Progress(1, 6)) is None  # it steps
    assert stall.seen(19.0, Progress(1, 6)) is None
    stall.shift(5.0)  # this process itself was stopped
    assert stall.seen(24.0, Progress(1, 6)) is None
    found = stall.seen(24.5, Progress(1, 6))
    assert found is not None
    assert found.text == "the engine stalls: 1 open request(s), and no step for 10 s"
    assert stall.seen(99.0, Progress(0, 6)) is None  # nothing to do
    assert Stall("", 0.0).seen(1e6, Progress(1, 1)) is None
    uncounted = Stall("", 10.0)
    assert [uncounted.seen(now, Progress(1, None)) for now in (0.0, 99.0)] == [None, None]


def test_a_long_step_on_the_cpu_is_no_stall_but_one_without_end_is() -> None:
    """Ranks that compute, and then wait for a message that does not come, or spin."""
    stall = Stall("", 10.0)
    assert [stall.seen(t, Progress(1, 5, 0.9 * t)) for t in range(0, 60, 5)] == [None] * 12
    assert [stall.seen(t, Progress(1, 6, 0.9 * t)) for t in range(60, 120, 5)] == [None] * 12
    idle = [stall.seen(t, Progress(1, 6, 108.0 + 0.01 * t)) for t in range(120, 135, 5)]
    assert "no step for 60 s" in str(next(filter(None, idle)))
    spins = Stall("", 10.0)
    found = [spins.seen(t, Progress(3, 6, 1.0 * t)) for t in range(0, 65, 5)]
    assert found[:-1] == [None] * 12
    assert found[-1] is not None
    assert found[-1].text == "the engine stalls: 3 open request(s), and no step for 60 s, although it uses the CPU"


def test_an_engine_that_stalls_is_noticed_while_another_works() -> None:
    stalls = Stalls(10.0)
    for now in range(10):
        assert stalls.seen(now, {"a.1": Progress(1, now, 1.0 * now), "b.1": Progress(2, 7, 0.1)}) is None
    found = stalls.seen(10.0, {"a.1": Progress(1, 10, 10.0), "b.1": Progress(2, 7, 0.1)})
    assert found is not None
    assert (found.text, found.engine) == (
        "the engine b.1 stalls: 2 open request(s), and no step for 10 s",
        "b.1",
    )
    assert stalls.seen(10.5, {"a.1": Progress(1, 11, 10.5)}) is None  # it was unloaded


def test_a_server_that_does_not_tell_is_not_drained() -> None:
    """As when its metrics page is late: three requests are open until somebody says that they are not."""
    quiet = Quiet(0.5)
    assert [quiet.seen(now, None) for now in (0.0, 1.0)] == [False, False]
    assert quiet.left is None
    pages = [(1.1, 3), (2.0, None), (3.0, None), (3.1, 0), (3.5, 0), (3.55, None), (4.0, 0), (4.4, 0)]
    assert not any(quiet.seen(now, left) for now, left in pages[:3])
    assert quiet.left == 3
    assert not any(quiet.seen(now, left) for now, left in pages[3:])
    assert quiet.seen(4.5, 0)


def test_counters_of_triton() -> None:
    page = """\
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 3.000000
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="2"} 1
nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"} 77
nv_trt_llm_general_metrics{general_type="timestamp",model="tensorrt_llm",version="1"} 1e9
nv_trt_llm_request_metrics{request_type="active"} 4
"""
    assert read_progress(page) == {
        "tensorrt_llm.1": Progress(5, 77),
        "tensorrt_llm.2": Progress(1, None),
        "": Progress(4, None),
    }
    assert read_progress("nv_inference_count 3\n") == {}


_BEATING = """
import os, sys, time
from pathlib import Path
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.heartbeat import Heartbeat
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.request import Request
generators = [Generator(Path(sys.argv[1]), RuntimeOptions(executor=name)) for name in ("native", "torch")]
Heartbeat(0)
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
for generator, length in zip(generators, (1000, 250)):
    generator.add(Request("a", tuple(range(length)), 1))
    generator.step()
os._exit(0)
"""


def test_work_on_a_busy_machine_does_not_silence_a_rank(engines: Engines) -> None:
    """Python, native kernels and torch, a long step each, beside four other processes; a beat is due every 0.5 s."""
    model = engines.tiny(hidden_size=512, intermediate_size=2048, vocab_size=1024, max_position_embeddings=1024)
    name = f"trtbuild-test-{os.getpid()}"
    beats, busy = Beats(name), []
    process = subprocess.Popen(
        [sys.executable, "-c", _BEATING, str(engines.engine(model))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRTBUILD_BEATS": name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
        assert process.stdin is not None
        process.stdin.close()
        longest = 0.0
        while process.poll() is None:
            vitals = beats.vitals(time.monotonic())
            longest = max([longest, *(vital.silent_s for vital in vitals)])
            time.sleep(0.02)
        assert process.returncode == 0
        assert 0 < longest < WATCH_S / 2
    finally:
        for each in (*busy, process):
            each.kill()
            each.wait()
        beats.close()


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_every_operation_of_a_step_is_told_while_it_runs(engines: Engines, executor: str) -> None:
    """Otherwise one long step could not be told from a rank that spins."""
    model = engines.tiny(hidden_size=512, intermediate_size=2048, vocab_size=1024, max_position_embeddings=1024)
    generator = Generator(engines.engine(model), RuntimeOptions(executor=executor))
    generator.add(Request("a", tuple(range(200)), 1))
    before, seen = generator.model.work, set[int]()
    step = threading.Thread(target=generator.step)
    step.start()
    while step.is_alive():
        seen.add(generator.model.work - before)
    assert generator.model.work - before >= len(generator.model.program.ops)
    assert len(seen) > 4


def test_state_files_tell_of_a_stopped_process_of_any_host(tmp_path: Path) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    files = StateFiles(tmp_path, 2)
    assert files.vitals(0.0) == []

    def write(number: int, state: str) -> None:
        (tmp_path / "rank1.state").write_text(f"{number} 77 (triton server) {state} {' '.join(stat[1:])}\n")

    write(1, "S")
    assert [(v.rank, v.pid, v.silent_s) for v in files.vitals(10.0)] == [(1, 77, 0.0)]
    write(2, "S")
    assert files.vitals(11.0)[0].silent_s == 0.0
    write(3, "T")
    assert (files.vitals(12.0)[0].silent_s, files.vitals(12.0)[0].state) == (1.0, "T")
    assert files.vitals(17.0)[0].silent_s == 6.0  # the host is gone, or the shell
    (tmp_path / "rank1.state").write_text("")
    assert files.vitals(17.5)[0].silent_s == 6.5  # half written


def test_processes_of_a_server_are_known_by_their_mark() -> None:
    mark = ("TRTBUILD_TEST_MARK", f"{os.getpid()}")
    sleeper = subprocess.Popen(["/bin/sleep", "60"], env={mark[0]: mark[1]})
    try:
        crew = Crew(mark)
        assert list(crew.vitals(10.0)) == []
        os.kill(sleeper.pid, 19)
        deadline = time.monotonic() + 5
        while not (found := list(crew.vitals(20.0))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [(v.pid, v.state) for v in found] == [(sleeper.pid, "T")]
        assert next(iter(crew.vitals(26.0))).silent_s == 6.0
    finally:
        sleeper.kill()
        sleeper.wait()
    assert list(crew.vitals(27.0)) == []


def test_signs_of_several_engines_and_nonsense() -> None:
    """The one that a process gives last counts; ranks of the same number are told apart by their engine."""
    name = f"trtbuild-test-{os.getpid()}-signs"
    beats = Beats(name)
    other = subprocess.Popen(["/bin/sleep", "60"])
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for words in ("x", "1 2 3", "0 1 2 three ", f"0 {os.getpid()} 4 2 a.1", f"0 {other.pid} 1 0 my model.2"):
                sender.sendto(words.encode(), "\0" + name)
        deadline = time.monotonic() + 5
        while len(beats.progress()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {key: (own.open_requests, own.steps) for key, own in beats.progress().items()} == {
            "a.1": (2, 4),
            "my model.2": (0, 1),
        }
        assert {vital.who for vital in beats.vitals(time.monotonic())} == {"rank 0 of a.1", "rank 0 of my model.2"}
    finally:
        other.kill()
        other.wait()
        beats.close()
