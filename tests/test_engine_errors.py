"""What a user sees when an engine build or a running engine goes wrong: real processes, real signals."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.disks import disk_of
from tests.engines import Engines, greedy
from tests.tiny import ROOT, trtbuild
from trtbuild import building, mpi, pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import EngineError, OutputError, ToolError
from trtbuild.pipeline import make_engine
from trtbuild.runtime.group import RankGroup
from trtbuild.runtime.request import Output
from trtbuild.spec import ConvertOptions


def pids_running(module: str, *words: str) -> list[int]:
    """Processes whose command line runs `python -m module` and holds all `words`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if module in command and "mpirun" not in command[0] and all(any(w in c for c in command) for w in words):
                found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> object:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen in time")


def rank_pid(run_dir: Path, rank: int) -> int:
    log = run_dir / f"rank{rank}.log"
    match = wait_for(lambda: log.exists() and re.search(r"pid (\d+)", log.read_text()))
    assert isinstance(match, re.Match)
    return int(match.group(1))


def test_mpirun_is_missing(llama_folder: Path, tmp_path: Path) -> None:
    env = {"TRTBUILD_MPIRUN": "/nowhere/mpirun", "TMPDIR": str(tmp_path)}
    done = trtbuild("engine", llama_folder, "-o", tmp_path / "out", "--tp", "2", env=env)
    assert done.returncode == 5
    assert "mpirun was not found at /nowhere/mpirun" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_rank_dies_while_building(engines: Engines, tmp_path: Path) -> None:
    model = engines.tiny(num_hidden_layers=8)
    out = tmp_path / "out"
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.is_set():
            for pid in pids_running("trtbuild.engine.cpu_rank", str(tmp_path)):
                with suppress(OSError):  # it may just have ended
                    environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                    if "OMPI_COMM_WORLD_RANK=1" in environment:
                        os.kill(pid, signal.SIGKILL)
                        return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        with pytest.raises(ToolError, match=r"engine build: rank 1 died \(signal 9"):
            make_engine(str(model), out, ConvertOptions(tp_size=2), BuildOptions())
    finally:
        stop.set()
        killer.join()
    assert not any(tmp_path.iterdir())
    assert not pids_running("trtbuild.engine.cpu_rank", str(tmp_path))
    assert make_engine(str(model), out, ConvertOptions(tp_size=2), BuildOptions()).is_dir()


def change(checkpoint: Path, tensor: str, how: Callable[[Any], object]) -> None:
    """Write rank 0's file again with one tensor changed."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "rank0.safetensors")
    how(tensors[tensor])
    save_file(tensors, checkpoint / "rank0.safetensors")


def started(model: Path, out: Path, **more: str) -> subprocess.Popen[bytes]:
    """`trtbuild engine MODEL -o out --tp 2` whose ranks run; `more`: variables of its environment."""
    program = "from trtbuild.cli.app import main; main()"
    command = [sys.executable, "-c", program, "engine", model, "-o", out, "--tp", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: pids_running("trtbuild.engine.cpu_rank", str(out.parent)))
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_the_middle(llama_folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """Neither the output nor the folder of its logs is left."""
    (tmp_path / "t").mkdir()
    process = started(llama_folder, tmp_path / "out", TMPDIR=str(tmp_path / "t"))
    assert list((tmp_path / "t").glob("trtbuild-*"))
    process.send_signal(number)
    assert process.wait(60) == code
    assert not list((tmp_path / "t").glob("trtbuild-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_killed_in_the_middle_then_run_again(llama_folder: Path, tmp_path: Path) -> None:
    """SIGKILL of trtbuild itself: no engine appears, its ranks end, and the same command works afterwards."""
    out = tmp_path / "out"
    process = started(llama_folder, out)
    process.kill()
    process.wait()
    wait_for(lambda: not pids_running("trtbuild.engine.cpu_rank", str(tmp_path)))
    assert not out.exists()
    again = trtbuild("engine", llama_folder, "-o", out, "--tp", "2")
    assert again.returncode == 0, again.stderr
    whole = sorted(["config.json", "kernels.json", "rank0.engine", "rank1.engine", *DOCUMENTS])
    assert sorted(p.name for p in out.iterdir()) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("checked", [True, False])
def test_the_disk_is_full(llama_folder: Path, tmp_path: Path, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before the ranks start; and when it fills up under them, a rank's error becomes the same message."""
    checkpoint = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", ConvertOptions())
    size = (checkpoint / "rank0.safetensors").stat().st_size
    if not checked:
        monkeypatch.setattr(building, "check_disk", lambda *_: None)
    with disk_of(tmp_path / "small", size // 2048) as folder:
        with pytest.raises(OutputError, match="the disk is full"):
            make_engine(str(checkpoint), folder / "out", ConvertOptions(), BuildOptions())
        assert list(folder.iterdir()) == []


def test_an_output_that_exists_is_kept(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    done = trtbuild("engine", llama_folder, "-o", out)
    assert done.returncode == 4
    assert "exists and is not empty" in done.stderr
    assert [p.name for p in out.iterdir()] == ["precious"]


def test_limits_that_contradict_each_other(llama_folder: Path, tmp_path: Path) -> None:
    done = trtbuild("engine", llama_folder, "-o", tmp_path / "out", "--max-batch-size", "64", "--max-num-tokens", "8")
    assert done.returncode == 3
    assert "max_num_tokens 8 is below max_batch_size 64" in done.stderr


def test_options_that_contradict_a_checkpoint(llama_folder: Path, tmp_path: Path) -> None:
    checkpoint = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", ConvertOptions(tp_size=2))
    done = trtbuild("engine", checkpoint, "-o", tmp_path / "out", "--tp", "4", "--dtype", "float32")
    assert done.returncode == 3
    assert "--tp 4 was asked for, but the checkpoint was made with 2" in done.stderr
    assert "--dtype float32" in done.stderr
    assert trtbuild("engine", checkpoint, "-o", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("kept", [True, False])
def test_a_checkpoint_that_was_tampered_with(llama_folder: Path, tmp_path: Path, kept: bool) -> None:
    """A scale that is another than trtbuild wrote: no engine and no other layout of it, with the cache or without."""
    quantized = ConvertOptions(dtype="float16", quant="fp8_rowwise")
    checkpoint = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", quantized)
    change(checkpoint, "transformer.layers.0.mlp.proj.per_channel_scale", lambda scale: scale.mul_(1000))
    options = () if kept else ("--no-cache",)
    for command in ("engine", "checkpoint"):
        done = trtbuild(command, checkpoint, "-o", tmp_path / "out", *(("--tp", "2") * (command != "engine")), *options)
        assert done.returncode == 3, done.stderr
        assert re.search("rank0.safetensors: not what trtbuild.json recorded|manifest-digest: rank0", done.stderr)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint"]
    (checkpoint / "trtbuild.json").unlink()
    assert trtbuild("engine", checkpoint, "-o", tmp_path / "out", *options).returncode == 0


def test_nan_in_a_checkpoint_names_the_tensor(llama_folder: Path, tmp_path: Path) -> None:
    checkpoint = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", ConvertOptions())
    name = "transformer.layers.2.mlp.proj.weight"
    change(checkpoint, name, lambda weight: weight[3].fill_(float("nan")))
    (checkpoint / "trtbuild.json").unlink()
    done = trtbuild("engine", checkpoint, "-o", tmp_path / "out")
    assert done.returncode == 5
    assert f"{name} holds NaN or infinity" in done.stderr


def test_a_truncated_checkpoint(llama_folder: Path, tmp_path: Path) -> None:
    """Made by somebody else, so nothing says how long its files were: found before ranks start."""
    checkpoint = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", ConvertOptions(tp_size=2))
    (checkpoint / "trtbuild.json").unlink()
    data = (checkpoint / "rank1.safetensors").read_bytes()
    (checkpoint / "rank1.safetensors").write_bytes(data[: len(data) // 2])
    done = trtbuild("engine", checkpoint, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "rank1.safetensors" in done.stderr
    assert "rank-file-unreadable" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def engine_copy(engines: Engines, tmp_path: Path) -> Path:
    """An engine of two ranks that the test may damage."""
    return Path(shutil.copytree(engines.engine(engines.tiny(), 2), tmp_path / "engine"))


def test_truncated_engine(engine_copy: Path) -> None:
    data = (engine_copy / "rank1.engine").read_bytes()
    (engine_copy / "rank1.engine").write_bytes(data[: len(data) // 2])
    with pytest.raises(ToolError, match=r"rank 1 died.*rank1.engine is damaged".replace(".*", r"(.|\n)*")):
        RankGroup(engine_copy)


def test_missing_rank_and_foreign_engines(engine_copy: Path) -> None:
    (engine_copy / "rank1.engine").unlink()
    with pytest.raises(EngineError, match=r"lacks rank1.engine"):
        RankGroup(engine_copy)
    config = json.loads((engine_copy / "config.json").read_text())
    (engine_copy / "config.json").write_text(json.dumps({**config, "trtbuild": {}, "version": "1.2.1"}))
    with pytest.raises(EngineError, match="tensorrt engine"):
        RankGroup(engine_copy)
    (engine_copy / "config.json").write_text("{")
    with pytest.raises(EngineError, match="not valid JSON"):
        RankGroup(engine_copy)


def test_a_rank_dies_while_serving(engines: Engines, tmp_path: Path) -> None:
    """Every open request ends in an error, the failure names the rank, and nothing is left running."""
    failures: queue.Queue[ToolError] = queue.Queue()
    outputs: queue.Queue[Output] = queue.Queue()
    engine = engines.engine(engines.tiny(), 2, 2)
    group = RankGroup(engine, run_dir=tmp_path, on_failure=failures.put)
    try:
        group.submit(greedy("a", (1, 2, 3), 480), outputs.put)
        outputs.get(timeout=60)
        os.kill(rank_pid(tmp_path, 3), signal.SIGKILL)
        failure = failures.get(timeout=60)
        assert "rank 3 died (signal 9" in failure.message
        while not (output := outputs.get(timeout=60)).finish_reason:
            pass
        assert output.finish_reason == "error"
        assert "rank 3" in output.error
        with pytest.raises(ToolError, match="rank 3"):
            group.submit(greedy("b", (1,), 2), outputs.put)
    finally:
        group.close()
    wait_for(lambda: not mpi.session_members(group.session))


def test_the_ranks_end_with_the_process_that_started_them(engines: Engines, tmp_path: Path) -> None:
    engine = engines.engine(engines.tiny(), 2)
    program = (
        f"from pathlib import Path; from trtbuild.runtime.group import RankGroup; import time\n"
        f"g = RankGroup(Path({str(engine)!r}), run_dir=Path({str(tmp_path)!r}))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    pids = [rank_pid(tmp_path, rank) for rank in (0, 1)]
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)
