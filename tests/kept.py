"""The artefact cache for tests: a folder of its own, commands in this process, and an artefact to damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trtbuild.cache import provenance
from trtbuild.cache.stage import Cache, open_cache
from trtbuild.cli.app import app
from trtbuild.errors import TrtbuildError
from trtbuild.manifest import MANIFEST
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions

OUTERMOST = (MANIFEST, provenance.NAME)
"""Files that a manifest does not list: itself, and the statement, which lists the manifest."""
FOUR = ConvertOptions(tp_size=2, pp_size=2, dtype="float16")


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache is on, in a folder of this test."""
    monkeypatch.delenv("TRTBUILD_NO_CACHE")
    monkeypatch.setenv("TRTBUILD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def artefact(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks with all its documents; read only."""
    out = tmp_path_factory.mktemp("artefact") / "checkpoint"
    return make_checkpoint(str(llama_folder), out, ConvertOptions(tp_size=2))


@pytest.fixture
def artefact_copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "artefact"))


def convert(model: Path, out: Path, options: ConvertOptions = FOUR, **more: Any) -> Cache:
    """`trtbuild checkpoint MODEL -o out` in this process; the cache with its notes."""
    cache = open_cache(locked=more.pop("locked", None))
    make_checkpoint(str(model), out, options, cache=cache, **more)
    return cache


def run(*words: object, code: int = 0) -> str:
    """A command in this process, which must end with `code`; its stdout, or the message of its error."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, TrtbuildError):
        assert done.exception.exit_code == code, done.exception.message
        return done.exception.message
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def run_json(*words: object, code: int = 0) -> Any:
    return json.loads(run(*words, "--json", code=code))


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Load a JSON file, let `edit` change it, and save it in the form that trtbuild writes."""
    document = json.loads(path.read_text())
    edit(document)
    path.chmod(0o644)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def flip(path: Path, at: int = -1) -> None:
    """Change one byte of a file, as a bad disk does: size and time stamp stay."""
    stamp, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
