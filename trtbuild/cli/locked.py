"""Options of a command that a lock settles: `--locked`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from trtbuild.cache.lock import merged, read_lock
from trtbuild.cache.stage import Cache, open_cache
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import LockError
from trtbuild.spec import AUTO, CALIBRATION, CalibrationOptions, ConvertOptions


@dataclass(frozen=True)
class Asked:
    """What a command was asked for. `limits`: of an engine, else None."""

    model: str | None
    revision: str | None
    options: ConvertOptions
    calibration: CalibrationOptions
    allow_pickle: bool
    limits: BuildOptions | None = None
    cache: Cache = field(default_factory=Cache)

    @property
    def shared(self) -> dict[str, Any]:
        """Keyword arguments that every stage of the pipeline has."""
        names = ("revision", "calibration", "allow_pickle", "cache")
        return {name: getattr(self, name) for name in names}

    @property
    def source(self) -> str:
        """The model; raises typer.BadParameter where there is none."""
        if self.model is None:
            raise typer.BadParameter("give MODEL, a folder or a hub id")
        return self.model


def settled(asked: Asked, locked: Path | None, no_cache: bool) -> Asked:
    """What is to be made, with the cache; with a lock its options take the place of what is left out.

    Raises:
        LockError: what is asked for beside is not what the lock says, all of it.
    """
    if locked is None:
        asked.source  # noqa: B018 - refuses before anything is read
        return replace(asked, cache=open_cache(keep=not no_cache))
    lock = read_lock(locked)
    stages = ("checkpoint", "reshard") if asked.limits is None else ("engine",)
    if lock.stage not in stages:
        command = "engine" if lock.stage == "engine" else "checkpoint"
        raise LockError([f"{locked} is of an artefact of `trtbuild {command}`"], hint="Use that command.")
    return replace(_with(asked, lock.inputs), cache=open_cache(keep=not no_cache, locked=lock))


def _with(asked: Asked, inputs: dict[str, Any]) -> Asked:
    groups, source = inputs["options"], inputs["source"]
    problems: list[str] = []

    def take(group: str, own: Any, usual: Any) -> Any:
        if groups.get(group) is None:
            return own
        try:
            return merged(own, usual, groups[group], group)
        except LockError as error:
            problems.extend(error.problems)
            return own

    options = take("convert", asked.options, ConvertOptions(quant=AUTO))
    calibration = take("calibration", asked.calibration, CALIBRATION)
    limits = take("build", asked.limits, BuildOptions())
    if source["repo_id"] and asked.model is None and asked.revision not in (None, source["revision"]):
        problems.append(f"revision: locked {source['revision']}, asked for {asked.revision}")
    if problems:
        raise LockError(problems, hint="Leave the options out: --locked takes all of them from the lock.")
    model, revision = asked.model, asked.revision
    if model is None and source["repo_id"]:
        model, revision = f"hf:{source['repo_id']}", source["revision"]
    if model is None:
        raise typer.BadParameter(f"give MODEL: the lock names {source['model']}, a folder and no model of the hub")
    pickle = asked.allow_pickle or bool(groups.get("allow_pickle"))
    return replace(
        asked,
        model=model,
        revision=revision,
        options=options,
        calibration=calibration,
        limits=limits,
        allow_pickle=pickle,
    )
