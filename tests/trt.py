"""The stand-in of TensorRT-LLM for tests: where it lies, the environment that shows it, and checkpoints for it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import ROOT, make_llama
from trtbuild.building import make_engine
from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions

FAKES = ROOT / "tests" / "fakes"
SITE, GPU, BIN = FAKES / "site", FAKES / "gpu", FAKES / "bin"


def fake_environment(cache: Path) -> dict[str, str]:
    """Variables under which programs find the stand-in, with timing caches below `cache`."""
    return {
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SITE), str(GPU)]),
        "TRTBUILD_FAKE_PYTHON": sys.executable,
        "XDG_CACHE_HOME": str(cache),
    }


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This process and what it starts find the stand-in: two GPUs of SM 90, no fault, no time."""
    for name, value in fake_environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "CUDA_VISIBLE", "TRTBUILD_FAKE_F"))]:
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(SITE))
    yield monkeypatch
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt_llm", "tensorrt")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def trt_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks for target tensorrt; read only."""
    folder = tmp_path_factory.mktemp("trt")
    source = make_llama(folder / "source")
    return make_checkpoint(str(source), folder / "checkpoint", ConvertOptions(2, 1, "float16", target="tensorrt"))


@pytest.fixture
def checkpoint_copy(trt_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trt_checkpoint, tmp_path / "checkpoint"))


OPTIONS = ConvertOptions(target="tensorrt")
LIMITS = BuildOptions(max_batch_size=8, max_seq_len=128, max_num_tokens=512)


def build(checkpoint: Path, out: Path, launch: LaunchOptions | None = None, limits: BuildOptions = LIMITS) -> Path:
    """`trtbuild engine CHECKPOINT -o out --target tensorrt` in this process."""
    return make_engine(str(checkpoint), out, OPTIONS, limits, launch=launch or LaunchOptions())


def rank_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("rank"))
