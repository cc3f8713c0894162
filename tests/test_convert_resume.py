"""Interrupted conversions go on where they stopped; conversions shared by the processes of a real mpirun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import ROOT, edit_weights, make_llama, trtbuild
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.checkpoint import blocks
from trtbuild.errors import ToolError
from trtbuild.manifest import read_manifest
from trtbuild.mpi import find_mpirun, mpirun_command
from trtbuild.plan import ModelPlan
from trtbuild.spec import ConvertOptions

LAYERS = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 12 MB, so that a conversion has a middle."""
    return make_llama(tmp_path_factory.mktemp("resume") / "m", dtype="bfloat16", **LAYERS)


def run(model: Path, out: Path, *, kill_after: float = 0, how: str = "SIGKILL", **options: Any) -> tuple[int, int]:
    """Convert, and count what is written to rank files; in a process of its own that ends itself after some bytes.

    Returns (exit code, bytes written).
    """
    if not kill_after:
        return 0, written_here(model, out, options)
    count = out.with_name("count")
    code = f"""
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from pathlib import Path
from trtbuild import pipeline
from trtbuild.checkpoint import blocks
from trtbuild.spec import ConvertOptions
blocks.BLOCK_BYTES = 1 << 16
written, original, lock = 0, os.pwrite, threading.Lock()
def pwrite(file, data, offset):
    global written
    count = original(file, data, offset)
    with lock:
        written += count
    if written > {kill_after}:
        os.kill(os.getpid(), signal.{how})
    return count
os.pwrite = pwrite
pipeline.make_checkpoint({str(model)!r}, Path({str(out)!r}), ConvertOptions(**{options!r}))
Path({str(count)!r}).write_text(str(written))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    written = int(count.read_text()) if done.returncode == 0 else 0
    count.unlink(missing_ok=True)
    return done.returncode, written


def written_here(model: Path, out: Path, options: dict[str, Any]) -> int:
    written, original, lock = 0, os.pwrite, threading.Lock()

    def pwrite(file: int, data: bytes, offset: int) -> int:
        nonlocal written
        count = original(file, data, offset)
        with lock:
            written += count
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(blocks, "BLOCK_BYTES", 1 << 16)
        pipeline.make_checkpoint(str(model), out, ConvertOptions(**options))
    return written


def same(one: Path, two: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def plan_of(model: Path, **options: Any) -> ModelPlan:
    return pipeline.make_plan(str(model), ConvertOptions(**options))


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("SIGINT", {"tp_size": 2, "pp_size": 2}),
        ("SIGKILL", {}),
        ("SIGKILL", {"tp_size": 2, "pp_size": 2}),
        ("SIGKILL", {"tp_size": 4, "dtype": "float16"}),
    ],
    ids=str,
)
def test_what_was_finished_is_not_written_again(how: str, options: dict[str, Any], model: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    status, total = run(model, whole, **options)
    assert status == 0
    assert total >= plan_of(model, **options).checkpoint_bytes * 0.99
    out = tmp_path / "out"
    status, _ = run(model, out, kill_after=total * 0.6, how=how, **options)
    assert status != 0
    assert not out.exists()
    assert (tmp_path / ".out.partial").is_dir()
    status, again = run(model, out, **options)
    assert status == 0
    # All but the tensors that were on the way when it ended; the largest is a tenth of the model.
    assert again < total * 0.6
    assert same(whole, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("change", ["source", "option", "version", "damage"])
def test_what_no_longer_holds_is_made_anew(change: str, model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "m"
    mine.mkdir()
    for path in model.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    options: dict[str, Any] = {"tp_size": 2}
    _, total = run(mine, tmp_path / "first", **options)
    run(mine, out, kill_after=total * 0.6, **options)
    partial = tmp_path / ".out.partial"
    if change == "source":
        edit_weights(mine, lambda t: t["model.norm.weight"].add_(1))
    elif change == "option":
        options = {"tp_size": 2, "use_parallel_embedding": True}
    elif change == "version":
        (partial / ".journal" / "fingerprint").write_text("of another version")
    else:
        with (partial / "rank1.safetensors").open("r+b") as handle:
            handle.seek(5000)
            handle.write(b"damaged")
    status, again = run(mine, out, **options)
    assert status == 0
    _, expected = run(mine, tmp_path / "expected", **options)
    assert same(tmp_path / "expected", out)
    assert again == expected if change != "damage" else expected * 0.5 <= again < expected


def mpirun(processes: int, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    try:
        program = find_mpirun()
    except ToolError:
        pytest.skip("no mpirun")
    code = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"
    argv = [sys.executable, "-c", environment.pop("before", "") + code, "checkpoint", *map(str, arguments), "--mpi"]
    command = mpirun_command(program, processes, argv, as_root=os.geteuid() == 0)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_MCA_mpi_yield_when_idle": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("processes", [3, 6])
def test_processes_make_the_same_bytes(processes: int, model: Path, tmp_path: Path) -> None:
    alone = pipeline.make_checkpoint(str(model), tmp_path / "alone", ConvertOptions(2, 2, quant="auto"), workers=1)
    job = mpirun(processes, model, "-o", tmp_path / "team", "--tp", 2, "--pp", 2)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 0, said
    assert said.count("checkpoint of 4 ranks") == 1
    assert same(alone, tmp_path / "team")
    assert len(set(read_manifest(tmp_path / "team")["files"]) - set(DOCUMENTS)) == 5


def test_an_error_of_one_process_ends_all(model: Path, tmp_path: Path) -> None:
    mine = make_llama(tmp_path / "m", dtype="bfloat16", **LAYERS)
    name = "model.layers.5.mlp.up_proj.weight"  # of the last stage, so of the last process
    edit_weights(mine, lambda t: t[name].view(-1)[7:8].fill_(float("nan")))
    job = mpirun(2, mine, "-o", tmp_path / "out", "--pp", 2)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 3, said
    assert said.count(f"error: {name} in model.safetensors holds NaN or infinite weights") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_plan_that_fails_ends_all(model: Path, tmp_path: Path) -> None:
    job = mpirun(3, model, "-o", tmp_path / "out", "--tp", 3)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 3, said
    assert said.count("tp 3 does not divide 8 attention heads") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_ends_all_and_the_next_run_resumes(model: Path, tmp_path: Path) -> None:
    slow = """
import os, time
original = os.pwrite
def pwrite(file, data, offset):
    time.sleep(0.05)
    return original(file, data, offset)
os.pwrite = pwrite
"""
    job = mpirun(2, model, "-o", tmp_path / "out", "--pp", 2, before=slow)
    journals = tmp_path / ".out.partial" / ".journal"
    deadline = time.monotonic() + 60
    while len(list(journals.glob("rank*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert not (tmp_path / "out").exists()
    done = trtbuild("checkpoint", model, "-o", tmp_path / "out", "--pp", 2)
    assert done.returncode == 0, done.stderr
    alone = pipeline.make_checkpoint(str(model), tmp_path / "alone", ConvertOptions(1, 2, quant="auto"))
    assert same(alone, tmp_path / "out")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["alone", "out"]


def test_memory_is_what_the_plan_says(tmp_path: Path) -> None:
    """Peak anonymous memory of the program stays below the plan's figure, which does not depend on the model's size."""
    mine = make_llama(tmp_path / "m", hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
    plan = plan_of(mine, tp_size=2)
    assert plan.source_bytes > 400e6
    assert plan.memory_bytes < 200e6
    code = f"""
import json, threading
from pathlib import Path
from trtbuild import pipeline
from trtbuild.spec import ConvertOptions
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.002):
        line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
        peak = max(peak, int(line.split()[1]) * 1024)
watcher = threading.Thread(target=watch)
watcher.start()
pipeline.make_checkpoint({str(mine)!r}, Path({str(tmp_path / "out")!r}), ConvertOptions(2, 1, "float16"))
over.set(); watcher.join()
print(json.dumps(peak))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    peak = json.loads(done.stdout)
    assert plan.memory_bytes * 0.2 < peak < plan.memory_bytes
