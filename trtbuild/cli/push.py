"""`trtbuild push`: an artefact to a folder, an S3-compatible store or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import note, print_json, progress_bar, size

NAME = "push"
PANEL = "Build"
SCHEMA = 1


def command(
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="Folder of a checkpoint, engine or repository.")],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder, s3://bucket/prefix or hf://owner/name[@branch].")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace another artefact that lies there.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Bring an artefact to another place, if it is sound. Where the same one lies there already, nothing is done.

    S3 is reached as boto3 is set up (AWS_PROFILE, AWS_ENDPOINT_URL, ...), the hub with HF_TOKEN; a new repository of
    the hub is private.
    """
    from trtbuild.cache.transfer import push

    with progress_bar("push") as progress:
        done = push(artefact, destination, force=force, progress=progress)
    if as_json:
        facts = {"needed": done.needed, "files": done.files, "size": done.size, "manifest": done.manifest}
        print_json({"schema": SCHEMA, "destination": destination, **facts})
    elif done.needed:
        note(f"{done.files} files, {size(done.size)}, in {destination}")
    else:
        note(f"the same artefact is in {destination} already")
