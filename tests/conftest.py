"""Fixtures that every test may use; those of one area are in its own file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch, and for every process that a test starts: with thousands of tiny operations the
# threads of torch mostly wait for each other. The runtime's kernels and the torch executor set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The cache of the user that runs the tests is not for them; tests of the cache switch it on in a folder of their own.
os.environ["TRTBUILD_NO_CACHE"] = "1"
os.environ["TRTBUILD_CACHE"] = "/nonexistent/trtbuild"

from tests.engines import demo_model, engines  # noqa: F401 - fixtures
from tests.kept import artefact, artefact_copy, cache_folder  # noqa: F401 - fixtures
from tests.native_paths import library  # noqa: F401 - a fixture
from tests.serve_fixture import tiny_server, two_ranks  # noqa: F401 - fixtures
from tests.tiny import ROOT, make_llama
from tests.trt import checkpoint_copy, stand_in, trt_checkpoint  # noqa: F401 - fixtures


def pytest_runtest_setup() -> None:
    """Every test begins with the threads from above: the torch executor sets those of the whole process."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who runs what where there are several workers (pytest-xdist): a file stays on one, for its fixtures' sake.

    Files that start servers come first, all on the same worker: they take longest, and measure time.
    """
    servers = {item.path for item in items if _starts_servers(item)}
    items.sort(key=lambda item: item.path not in servers)
    for item in items:
        group = "servers" if item.path in servers else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def _starts_servers(item: pytest.Item) -> bool:
    module = vars(item.getparent(pytest.Module).obj)  # type: ignore[union-attr]
    return any(getattr(value, "__module__", "") == "tests.serve_fixture" for value in module.values())


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama; read only."""
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def llama_copy(llama_folder: Path, tmp_path: Path) -> Path:
    """A tiny random Llama that the test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "llama"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: on a busy machine thousands of tiny operations otherwise wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Checkpoints written by TensorRT-LLM's own converter (not part of this repository)."""
    folder = Path(os.environ.get("TRTBUILD_GOLDEN") or ROOT.parent / "shared" / "golden")
    if not folder.is_dir():
        pytest.skip(f"no golden checkpoints in {folder}; set TRTBUILD_GOLDEN")
    return folder
