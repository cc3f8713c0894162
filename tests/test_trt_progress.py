"""What is heard of a build while it runs: by whoever passes a progress, and as lines of a log that is no terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import trtbuild
from tests.trt import LIMITS, OPTIONS
from trtbuild.engine.options import LaunchOptions
from trtbuild.errors import ToolError
from trtbuild.pipeline import make_engine
from trtbuild.progress import Milestones

Patch = pytest.MonkeyPatch
STAGES = ("starts", "loads weights", "has its network", "is built by TensorRT", "is built", "is written", "is finished")


def heard(checkpoint: Path, out: Path, launch: LaunchOptions) -> list[tuple[float, str]]:
    """(fraction, text) of every call, in order."""
    calls: list[tuple[float, str]] = []

    def progress(done: float, total: float, text: str = "") -> None:
        calls.append((done / total, text))

    try:
        make_engine(str(checkpoint), out, OPTIONS, LIMITS, launch=launch, progress=progress)
    except ToolError:
        calls.append((-1.0, "failed"))
    return calls


def ranks_of(calls: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The calls of the build itself, without those of the linter before it."""
    return [call for call in calls if " ranks" in call[1] or call[1] == "done"]


@pytest.mark.parametrize("mode", ["in-process", "command"])
def test_stages_and_ranks_are_heard_of(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch, mode: Any) -> None:
    """From the logs of two ranks under mpirun: never backwards, which rank does what, and the whole at the end."""
    stand_in.setenv("TRTBUILD_FAKE_SECONDS", "3")
    calls = ranks_of(heard(trt_checkpoint, tmp_path / "out", LaunchOptions(mode=mode)))
    fractions, texts = zip(*calls, strict=True)
    assert list(fractions) == sorted(fractions)
    assert (fractions[0], fractions[-1], texts[-1]) == (0.0, 1.0, "done")
    assert any(0.15 <= fraction <= 0.9 for fraction in fractions), "it is not 0 until it is 1"
    assert "0/2 ranks, rank 0 is built by TensorRT" in texts or "0/2 ranks, rank 1 is built by TensorRT" in texts
    told = [re.fullmatch(r"[0-2]/2 ranks(?:, rank [01] (.+))?", text) for text in texts[:-1]]
    assert {match[1] for match in told if match} - {None} <= set(STAGES)
    assert all(told)


def test_a_resumed_build_begins_where_the_last_one_ended(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "exit:1")
    launch = LaunchOptions(processes=1)
    assert heard(trt_checkpoint, tmp_path / "out", launch)[-1] == (-1.0, "failed")
    stand_in.delenv("TRTBUILD_FAKE_FAULT")
    fraction, text = ranks_of(heard(trt_checkpoint, tmp_path / "out", launch))[0]
    assert fraction == 0.5
    assert text.startswith("1/2 ranks")


def test_a_log_that_is_no_terminal_gets_lines(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """Hours in a CI or Slurm log are not silent; on stderr, as stdout is for data."""
    stand_in.setattr("trtbuild.progress.QUIET_S", 0.3)
    stand_in.setattr("trtbuild.progress.EVERY_S", 0.5)
    stand_in.setenv("TRTBUILD_FAKE_SECONDS", "3")
    words = ["engine", trt_checkpoint, "-o", tmp_path / "out", "--target", "tensorrt", "--max-seq-len", "128"]
    done = trtbuild(*words, "--processes", "1")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^engine \d+% after 0:\d\d \d/2 ranks, rank [01] is built by TensorRT$", done.stderr, re.M)
    assert len(lines) >= 2
    assert done.stdout == ""


def lines(calls: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """What Milestones writes for (seconds, text)."""
    milestones = Milestones(0.0)
    made = [(now, milestones.line(now, now, 1000.0, text)) for now, text in calls]
    return [(now, line) for now, line in made if line]


def test_short_work_is_silent_and_long_work_is_not() -> None:
    tensors = [(second / 2, f"tensor {second}") for second in range(401)]  # another every half second, to 200 s
    assert lines(tensors[:40]) == []
    assert [now for now, _ in lines(tensors)] == [20, 80, 140, 200]
    assert lines(tensors)[1][1] == "8% after 1:20 tensor 160"


def test_a_stage_that_ends_is_told_at_once() -> None:
    calls = [
        (float(second), "loads" if second < 33 else "builds" if second < 150 else "writes") for second in range(160)
    ]
    assert [(now, line.split()[-1]) for now, line in lines(calls)] == [
        (20, "loads"),
        (33, "builds"),
        (93, "builds"),
        (150, "writes"),
    ]
    assert Milestones(0.0).line(30.0, 0, 0, "") == "0% after 0:30"
