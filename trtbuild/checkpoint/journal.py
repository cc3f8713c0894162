"""What an unfinished conversion has already written, so that the next run goes on where it stopped.

`.journal/fingerprint` says what the files are made of. `.journal/rankN.safetensors` gets a line when a tensor is
complete: bytes of data so far, and SHA-256 of the file up to there. The next run verifies that hash before it trusts
the bytes, so a power failure that lost some of them costs time but cannot do harm.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FOLDER = ".journal"
_FINGERPRINT = "fingerprint"


class Journal:
    """The journal of one output directory; written by the process that writes the rank file."""

    def __init__(self, directory: Path, part: str = "") -> None:
        """`part`: the subfolder of the output that the rank files are in, for one half of a model."""
        self._directory = directory
        self._folder = directory / FOLDER
        self._lines = self._folder / part

    def open(self, fingerprint: str) -> bool:
        """Keep what is there if it has the same fingerprint, else clear the directory; whether something was kept."""
        marker = self._folder / _FINGERPRINT
        try:
            if marker.read_text() == fingerprint:
                return True
        except OSError:
            pass
        for path in self._directory.iterdir():
            if path.name == ".lock":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._folder.mkdir()
        marker.write_text(fingerprint)
        return False

    def last(self, name: str) -> tuple[int, str] | None:
        """(bytes of data, SHA-256 of the file up to there) of the last complete line about a rank file."""
        try:
            lines = (self._lines / name).read_text().split("\n")[:-1]  # what follows the last newline was cut off
            count, digest = lines[-1].split()
            return int(count), digest
        except (OSError, ValueError, IndexError):
            return None

    def record(self, name: str, count: int, digest: str) -> None:
        """Add a line about a rank file."""
        handle = os.open(self._lines / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, f"{count} {digest}\n".encode())
        finally:
            os.close(handle)

    def forget(self, name: str) -> None:
        """A rank file begins anew."""
        self._lines.mkdir(exist_ok=True)
        (self._lines / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """The conversion is complete."""
        shutil.rmtree(self._folder)
