"""Output directories that replace another one: what stands, and what is left, after a kill or Ctrl-C at any moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trtbuild import staging
from trtbuild.manifest import MANIFEST
from trtbuild.staging import staged_dir

Patch = pytest.MonkeyPatch


def write(out: Path, text: str, *, force: bool = True) -> None:
    with staged_dir(out, force=force) as folder:
        (folder / "file").write_text(text)
        (folder / MANIFEST).write_text("{}")


def standing(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_half_removed_old_output_is_not_in_the_way(tmp_path: Path) -> None:
    """What a kill left while an old output was removed: later runs replace as ever, and clear it."""
    out = tmp_path / "a[b]"
    write(out, "one")
    for name in (".a[b].old", ".a[b].old-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    write(out, "two")
    assert standing(tmp_path) == {"a[b]/file": "two", f"a[b]/{MANIFEST}": "{}", ".a[b].old/file": ""}


def test_interrupted_while_the_old_one_is_removed(tmp_path: Path, monkeypatch: Patch) -> None:
    """The new output stands, without the mark of its writer; the old one is never restored by halves."""
    out, real = tmp_path / "out", shutil.rmtree
    write(out, "one")

    def interrupted(path: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(out, "two")
    monkeypatch.setattr(staging.shutil, "rmtree", real)
    assert standing(out) == {"file": "two", MANIFEST: "{}"}
    real(out)
    with pytest.raises(RuntimeError), staged_dir(out):
        raise RuntimeError
    assert not out.exists(), "the old one lost its manifest first"
    write(out, "three")
    assert standing(tmp_path) == {"out/file": "three", f"out/{MANIFEST}": "{}"}


def test_killed_between_the_renames(tmp_path: Path, monkeypatch: Patch) -> None:
    """The old output is back with the next run, even one that fails."""
    out, real = tmp_path / "out", Path.rename
    write(out, "one")

    def killed(path: Path, target: Path) -> Path:
        if path.name == ".out.partial":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(out, "two")
    monkeypatch.setattr(Path, "rename", real)
    assert not out.exists()
    with pytest.raises(RuntimeError), staged_dir(out, force=True):
        raise RuntimeError
    assert standing(tmp_path) == {"out/file": "one", f"out/{MANIFEST}": "{}"}
