"""What a command is asked for, and how `--locked` settles it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from trtbuild.cache.lock import filled, read_lock
from trtbuild.cache.stage import Cache, open_cache
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import LockError
from trtbuild.spec import AUTO, CALIBRATION, CalibrationOptions, ConvertOptions


@dataclass(frozen=True)
class Asked:
    """What `trtbuild checkpoint` or `trtbuild engine` was asked for; `limits` are of an engine only."""

    model: str | None
    revision: str | None
    options: ConvertOptions
    calibration: CalibrationOptions
    allow_pickle: bool
    limits: BuildOptions = field(default_factory=BuildOptions)
    cache: Cache = field(default_factory=Cache)

    @property
    def shared(self) -> dict[str, Any]:
        """Keyword arguments that both stages have."""
        names = ("revision", "calibration", "allow_pickle", "cache")
        return {name: getattr(self, name) for name in names}

    @property
    def source(self) -> str:
        """The model; raises typer.BadParameter where there is none."""
        if self.model is None:
            raise typer.BadParameter("give MODEL, a folder or a hub id")
        return self.model


def settled(asked: Asked, command: str, locked: Path | None, no_cache: bool) -> Asked:
    """The same with the cache, and with the options of a lock in the place of what was left out.

    The stage itself compares the whole with the lock, so that all differences are told at once.

    Raises:
        LockError: the lock cannot be read, or is of another command's artefact.
    """
    if locked is None:
        asked.source  # noqa: B018 - refuses before anything is read
        return replace(asked, cache=open_cache(keep=not no_cache))
    lock = read_lock(locked)
    made_by = "engine" if lock.stage == "engine" else "checkpoint"  # which re-shards, too
    if made_by != command:
        raise LockError([f"{locked} is of an artefact of `trtbuild {made_by}`"], hint="Use that command.")
    try:
        return replace(_with(asked, lock.inputs), cache=open_cache(keep=not no_cache, locked=lock))
    except (KeyError, TypeError, AttributeError) as error:
        raise LockError([f"{locked} is damaged: {error!r}"]) from error


def _with(asked: Asked, inputs: dict[str, Any]) -> Asked:
    groups, source = inputs["options"], inputs["source"]
    model, revision = asked.model, asked.revision
    if model is None and not source["repo_id"]:
        raise typer.BadParameter(f"give MODEL: the lock names {source['model']}, a folder and no model of the hub")
    if model is None:
        model, revision = f"hf:{source['repo_id']}", revision or source["revision"]
    return replace(
        asked,
        model=model,
        revision=revision,
        options=filled(asked.options, ConvertOptions(quant=AUTO), groups["convert"]),
        calibration=filled(asked.calibration, CALIBRATION, groups.get("calibration") or {}),
        limits=filled(asked.limits, BuildOptions(), groups.get("build") or {}),
        allow_pickle=asked.allow_pickle or bool(groups.get("allow_pickle")),
    )
