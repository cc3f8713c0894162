"""Each path of the C kernels, compiled once for all tests."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trtbuild.runtime.native.library import _compiled, compiler, load_library

NARROW = "-mno-avx512f"
PATHS = {"this CPU": "", "256 bits": NARROW, "plain C": f"{NARROW} -mno-avx2 -mno-fma -mno-f16c"}

# As they are outside: a test may choose one path while a fixture holds another.
_COMPILER, _USER_CACHE = compiler(), os.environ.get("XDG_CACHE_HOME")


@contextmanager
def path_chosen(name: str) -> Iterator[None]:
    """load_library gives this path; skips the test where it cannot be compiled."""
    cc, flags = _COMPILER, PATHS[name]
    if cc is None or (flags and platform.machine() != "x86_64"):
        pytest.skip("no compiler for this path")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", " ".join([*cc, flags]))
        if flags:
            patch.setenv("XDG_CACHE_HOME", _cache())
        elif _USER_CACHE is None:  # this CPU's own path is the one that everybody uses
            patch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            patch.setenv("XDG_CACHE_HOME", _USER_CACHE)
        load_library.cache_clear()
        yield
    load_library.cache_clear()


def shared_object(name: str) -> Path:
    with path_chosen(name):
        return _compiled()


@pytest.fixture(scope="module", params=PATHS)
def library(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    with path_chosen(request.param):
        yield load_library()


def _cache() -> str:
    """Kept from run to run: a file's name has the hash of source, flags and CPU in it."""
    return str(Path(_USER_CACHE or Path.home() / ".cache") / "trtbuild" / "test-kernels")
