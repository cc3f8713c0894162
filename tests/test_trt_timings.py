"""Kernel timings of TensorRT: where they are kept, for whom, and that a build is not lost with them; and its logs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import trtbuild
from tests.trt import build, rank_files
from trtbuild.cache.prune import Limits
from trtbuild.cache.timings import Timing, outdated, timing_file, timings
from trtbuild.engine.options import LaunchOptions
from trtbuild.errors import OutputError

Patch = pytest.MonkeyPatch


def engine(checkpoint: Path, out: Path, *more: object) -> Any:
    words = ["engine", checkpoint, "-o", out, "--target", "tensorrt", "--max-seq-len", "128", "--processes", "1"]
    return trtbuild(*words, *more)


def test_timings_of_one_build_are_read_by_the_next(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    kept = tmp_path / "mine" / "model.cache"
    for number in (1, 2):
        build(trt_checkpoint, tmp_path / f"out{number}", LaunchOptions(timing_cache=kept, launcher="none"))
        assert kept.read_text() == str(number)


def test_they_lie_in_the_cache_by_release_and_gpu(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """One cache folder is all that has to be mounted; boards of one SM have different kernels, so each has its own."""
    root = tmp_path / "mounted"
    stand_in.delenv("TRTBUILD_NO_CACHE")
    stand_in.setenv("TRTBUILD_CACHE", str(root))
    for out, gpu, limit in (("a", "NVIDIA H200", 7), ("b", "NVIDIA H20", 7), ("c", "NVIDIA H200", 8)):
        stand_in.setenv("TRTBUILD_FAKE_GPU", gpu)
        done = engine(trt_checkpoint, tmp_path / out, "--max-batch-size", limit)
        assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in (root / "timing").iterdir()}
    assert found == {"1.2.1-NVIDIA-H200.cache": "2", "1.2.1-NVIDIA-H20.cache": "1"}
    assert not (tmp_path / "cache" / "trtbuild" / "timing").exists()
    plan = json.loads(engine(trt_checkpoint, tmp_path / "d", "--dry-run", "--json").stdout)
    assert plan["builds"][0]["timing_cache"] == str(root / "timing" / "1.2.1-NVIDIA-H200.cache")


def test_without_a_cache_none_are_kept(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    stand_in.delenv("TRTBUILD_NO_CACHE")
    stand_in.setenv("TRTBUILD_CACHE", str(tmp_path / "cache"))
    assert "none: the cache is off" in engine(trt_checkpoint, tmp_path / "out", "--no-cache", "--dry-run").stdout
    assert engine(trt_checkpoint, tmp_path / "out", "--no-cache").returncode == 0
    assert rank_files(tmp_path / "out")
    assert not list((tmp_path / "cache").rglob("*.cache"))


def test_a_build_stands_though_its_timings_cannot_be_kept(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch
) -> None:
    """Hours of work are not thrown away for a file that only makes the next build faster."""
    stand_in.delenv("TRTBUILD_NO_CACHE")
    stand_in.setenv("TRTBUILD_CACHE", "/proc/audit")
    done = engine(trt_checkpoint, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "warning: kernel timings are not kept: cannot write /proc/audit/timing/1.2.1-Stand-in-GPU" in done.stderr
    assert rank_files(tmp_path / "out") == ["rank0.engine", "rank1.engine"]


def test_what_was_asked_for_and_cannot_be_written_is_refused_first(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch
) -> None:
    """Both at once, by their own names, before a rank starts."""
    (tmp_path / "file").touch()
    launch = LaunchOptions(log_dir=Path("/proc/logs"), timing_cache=tmp_path / "file" / "model.cache")
    with pytest.raises(OutputError) as caught:
        build(trt_checkpoint, tmp_path / "out", launch)
    assert caught.value.message.splitlines() == [
        "cannot write /proc/logs: the path cannot be created",
        f"cannot write {tmp_path / 'file' / 'model.cache'}: a part of the path is a file",
    ]
    with pytest.raises(OutputError, match="it is a directory"):
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(timing_cache=tmp_path))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_cache_ls_and_prune_know_them(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TRTBUILD_CACHE", str(tmp_path))
    names = [timing_file(tmp_path, "1.2.1", gpu) for gpu in ("NVIDIA A100-SXM4-80GB", "NVIDIA H20", "")]
    assert {path.parent for path in names} == {tmp_path / "timing"}
    assert [path.stem for path in names] == ["1.2.1-NVIDIA-A100-SXM4-80GB", "1.2.1-NVIDIA-H20", "1.2.1-unseen"]
    names[0].parent.mkdir()
    for path, days in zip(names, (40, 10, 0), strict=True):
        path.write_bytes(b"12345")
        os.utime(path, (time.time() - days * 86400,) * 2)
    listed = json.loads(trtbuild("cache", "ls", "--json").stdout)["timings"]
    assert [(one["name"], one["size"]) for one in listed][1:] == [
        ("1.2.1-NVIDIA-H20", 5),
        ("1.2.1-NVIDIA-A100-SXM4-80GB", 5),
    ]
    assert "kernel timings  1.2.1-NVIDIA-H20  5 B  used 10 days ago" in trtbuild("cache", "ls").stdout
    would = json.loads(trtbuild("cache", "prune", "--unused", "30d", "--dry-run", "--json").stdout)
    assert (len(would["timings"]), would["freed"], len(timings(tmp_path))) == (1, 5, 3)
    assert "1.2.1-NVIDIA-A100-SXM4-80GB" in trtbuild("cache", "prune", "--unused", "30d").stdout
    assert trtbuild("cache", "prune").returncode == 0
    assert [one.path for one in timings(tmp_path)] == [names[2], names[1]]
    assert trtbuild("cache", "prune", "--all").returncode == 0
    assert timings(tmp_path) == []


def test_which_go() -> None:
    kept = [Timing(str(age), Path(str(age)), 1, 100.0 - age) for age in (1, 20)]
    assert outdated(kept, Limits(size=10), 100.0) == []
    assert outdated(kept, Limits(unused=10, size=10), 100.0) == outdated(kept, Limits(age=10), 100.0) == kept[1:]
    assert outdated(kept, Limits(size=0), 100.0) == kept
