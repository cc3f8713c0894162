"""EDGE: the place where an engine grows, and which of its ranks are finished.

Beside the engine's files a staging directory has `.build`, which never becomes part of the engine:

    fingerprint         what the engine is made of; another one clears the directory
    build_config.json   as it is given to TensorRT-LLM
    job.json            what our ranks read
    done/rankN.json     {"files": {name: SHA-256}, "facts": {...}}, written when rank N stands under its name
    logs/               one log a process, and a rank
    ticks/              CPU ticks of each process
    timing/model.cache  the timing cache of this build
    checkpoint/         where the engine is of a model: its checkpoint, which whoever made it knows whether to keep
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbuild.manifest import sha256_file
from trtbuild.mpi import put_logs_aside

FOLDER, CHECKPOINT = ".build", "checkpoint"


@dataclass(frozen=True)
class Workplace:
    """A staging directory; `engine` is where the rank files go."""

    engine: Path
    log_dir: Path | None = None

    @property
    def folder(self) -> Path:
        return self.engine / FOLDER

    @property
    def build_config(self) -> Path:
        return self.folder / "build_config.json"

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def logs(self) -> Path:
        return self.log_dir or self.folder / "logs"

    @property
    def ticks(self) -> Path:
        return self.folder / "ticks"

    @property
    def timing_cache(self) -> Path:
        return self.folder / "timing" / "model.cache"

    def done(self, rank: int) -> Path:
        return self.folder / "done" / f"rank{rank}.json"

    def open(self, fingerprint: str, *, keep: bool) -> None:
        """Keep what lies here of the same build if `keep`, remove what else is, and make room for this run's logs."""
        marker = self.folder / "fingerprint"
        if not keep or not marker.is_file() or marker.read_text() != fingerprint:
            others = [path for path in self.engine.iterdir() if path.name not in (FOLDER, ".lock")]
            others += [path for path in self.folder.glob("*") if CHECKPOINT not in path.name]
            for path in others:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (self.ticks, self.folder / "logs"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "done", self.logs, self.ticks, self.timing_cache.parent):
            path.mkdir(parents=True, exist_ok=True)
        put_logs_aside([self.logs], ("rank*.log", "process*.log", "launcher.log"))  # in a folder that the user named
        marker.write_text(fingerprint)

    def close(self) -> None:
        """The engine is complete."""
        shutil.rmtree(self.folder)


def record_done(path: Path, files: Dict[str, str], facts: Dict[str, Any]) -> None:
    """Say that a rank is finished; whole or not at all, and after its files are."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as handle:
        json.dump({"files": dict(files), "facts": dict(facts)}, handle, indent=2)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(path)


def finished_ranks(place: Workplace, world_size: int) -> dict[int, dict[str, Any]]:
    """Rank -> its record, of the ranks whose files have the recorded hashes; the records of others are removed."""
    found = {}
    for rank in range(world_size):
        path = place.done(rank)
        try:
            record: dict[str, Any] = json.loads(path.read_text())
            same = all(sha256_file(place.engine / name) == digest for name, digest in record["files"].items())
        except (OSError, ValueError, KeyError):
            same = False
        if same:
            found[rank] = record
        else:
            path.unlink(missing_ok=True)
    return found
