"""`trtbuild inspect`: what an artefact is, and whether it still is what was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import line, print_json, progress_bar, size
from trtbuild.errors import ArtefactError

if TYPE_CHECKING:
    from trtbuild.cache.inspect import Inspection

NAME = "inspect"
PANEL = "Look"
SCHEMA = 1


def command(
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="Folder of a checkpoint, engine or repository.")],
    as_json: JsonOpt = False,
) -> None:
    """What an artefact is, and whether files, manifest, lock, SBOM and provenance agree. Exit code 3 if not."""
    from trtbuild.cache.inspect import inspect_artefact

    with progress_bar("inspect") as progress:
        found = inspect_artefact(artefact, progress)
    if as_json:
        print_json(document(artefact, found))
    else:
        _show(artefact, found)
    if found.faults and as_json:
        raise typer.Exit(ArtefactError.exit_code)
    if found.faults:
        raise ArtefactError(artefact, found.faults, hint="Make it again, or fetch it anew.")


def document(folder: Path, found: Inspection) -> dict[str, Any]:
    """Everything as JSON; `schema` changes when a key is removed or changes its meaning."""
    inputs = found.lock.inputs if found.lock else {}
    return {
        "schema": SCHEMA,
        "artefact": str(folder),
        "sound": not found.faults,
        "kind": found.manifest.get("kind"),
        "stage": inputs.get("stage"),
        "key": found.lock.document()["key"] if found.lock else None,
        "source": inputs.get("source") or found.manifest.get("source"),
        "options": found.manifest.get("options"),
        "versions": found.manifest.get("versions"),
        "machine": inputs.get("machine"),
        "files": {name: _file(folder / name, digest) for name, digest in found.files.items()},
        "checks": [{"check": name, "faults": faults} for name, faults in found.checks.items()],
        "notes": found.notes,
    }


def _file(path: Path, digest: str) -> dict[str, Any]:
    return {"sha256": digest, "size": path.stat().st_size}


def _show(folder: Path, found: Inspection) -> None:
    whole = document(folder, found)
    source = whole["source"] or {}
    _say("what", f"{whole['kind']}" + (f" (key {whole['key'][:12]})" if whole["key"] else ""))
    at = f" at {source['revision']}" if source.get("revision") else ""
    _say("of", f"{source.get('model') or source.get('engine')}{at}")
    options = whole["options"] if isinstance(whole["options"], dict) else {}
    _say("options", ", ".join(f"{name} {value}" for name, value in options.items() if not isinstance(value, dict)))
    _say("versions", ", ".join(f"{name} {value}" for name, value in (whole["versions"] or {}).items()))
    for name, file in whole["files"].items():
        _say("file", f"{file['sha256'][:16]}  {size(file['size']):>9}  {name}")
    for check in whole["checks"]:
        faults = len(check["faults"])
        _say("check", f"{check['check']}: {'agrees' if not faults else f'{faults} faults'}")
    for text in found.notes:
        _say("note", text)


def _say(what: str, text: str) -> None:
    line(f"{what:<9}{text}")
