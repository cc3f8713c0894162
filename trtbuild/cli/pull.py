"""`trtbuild pull`: an artefact from where it was pushed to."""

from __future__ import annotations

from typing import Annotated

import typer

from trtbuild.cli.options import ForceOpt, JsonOpt, OutputOpt
from trtbuild.cli.output import note, print_json, progress_bar, size

NAME = "pull"
PANEL = "Build"
SCHEMA = 1


def command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder, s3://bucket/prefix or hf://owner/name[@revision].")
    ],
    output: OutputOpt,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Fetch an artefact. It appears when its files, manifest, lock, SBOM and provenance agree, and not before."""
    from trtbuild.cache.transfer import pull

    with progress_bar("pull") as progress:
        done = pull(source, output, force=force, progress=progress)
    if as_json:
        facts = {"files": done.files, "size": done.size, "manifest": done.manifest}
        print_json({"schema": SCHEMA, "output": str(output), **facts})
    else:
        note(f"{done.files} files, {size(done.size)}, in {output}")
