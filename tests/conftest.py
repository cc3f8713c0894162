"""Fixtures that every test may use; those of one area are in its own file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Before anything imports torch, and for every process that a test starts: with thousands of tiny operations the
# threads of torch mostly wait for each other. The runtime's kernels and the torch executor set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of what commands print, in this process or another.
os.environ["COLUMNS"] = "200"

# The cache of the user that runs the tests is not for them; tests of the cache switch it on in a folder of their own.
os.environ["TRTBUILD_NO_CACHE"] = "1"
os.environ["TRTBUILD_CACHE"] = "/nonexistent/trtbuild"

from tests.engines import demo_model, engines  # noqa: F401 - fixtures
from tests.kept import artefact, artefact_copy, cache_folder  # noqa: F401 - fixtures
from tests.native_paths import library  # noqa: F401 - a fixture
from tests.serve_fixture import tiny_server, two_ranks  # noqa: F401 - fixtures
from tests.tiny import GOLDEN, make_llama
from tests.trt import checkpoint_copy, stand_in, trt_checkpoint  # noqa: F401 - fixtures

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Several workers share the cores: a rank that waits leaves its core to others, and an engine takes one.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    os.environ.setdefault("TRTBUILD_THREADS", "1")

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing here
hypothesis.settings.load_profile("any machine")

_TOGETHER = {
    "servers": """serve_models serve_streams serve_supervise serve_processes serve_watch client
        client_answers client_llmapi client_reach openai openai_models bench_servers soak ci_examples
        upstream_calls""",  # one after the other: they measure time
    "demo": "parity inflight quality",
    "lm_head": "lm_head",
    "families": "families_parity",
    "forms": "forms",
    "moe": "moe",
    "verify": "verify verify_relaxed",
    "text": "detokenize bls_text",
    "kernels": "linear native_forms",
    "artefacts": "cache lock inspect transfer",
}
"""Files of one worker, as they share what is made for them; in the order in which they begin, the longest first."""


def pytest_runtest_setup() -> None:
    """Every test begins with the threads from above: the torch executor sets those of the whole process."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who runs what where there are several workers (pytest-xdist): a file stays on one, for its fixtures' sake."""
    order = list(_TOGETHER)
    groups = {f"test_{name}": group for group, names in _TOGETHER.items() for name in names.split()}
    items.sort(key=lambda item: order.index(groups[item.path.stem]) if item.path.stem in groups else len(order))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups.get(item.path.stem, item.path.stem)))


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
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden checkpoints in {GOLDEN}; set TRTBUILD_GOLDEN")
    return GOLDEN
