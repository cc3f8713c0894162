"""`trtbuild doctor`: is this machine ready for a target, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import console, data, note, print_json
from trtbuild.errors import NOT_READY, ArtefactError, EngineError
from trtbuild.spec import TARGETS

if TYPE_CHECKING:
    from trtbuild.doctor.facts import Facts
    from trtbuild.doctor.finding import Report

NAME = "doctor"
PANEL = "Look"
SCHEMA = 1
_STYLES = {"fail": "bold red", "warn": "yellow", "info": "dim", "ok": "green"}


def _target(value: str) -> str:
    if value not in ("", *TARGETS):
        raise typer.BadParameter(f"unknown target {value!r}; supported: {', '.join(TARGETS)}")
    return value


def command(
    artefact: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ARTEFACT]",
            help="A checkpoint, engine or repository: can this machine run it?",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            callback=_target,
            help="cpu, tensorrt or llmapi. Default: the artefact's, else cpu.",
        ),
    ] = "",
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="GPUs (cpu: ranks) that are wanted. Default: the artefact's ranks, else 1.", show_default=False
        ),
    ] = None,
    facts_file: Annotated[
        Path | None,
        typer.Option(
            "--facts", metavar="FILE", help="Judge what `doctor --json` wrote on another machine.", show_default=False
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Is this machine ready for a target? Exit code 9 if not; every finding says why it matters and what to do."""
    from trtbuild.doctor.examine import examine, with_artefact
    from trtbuild.doctor.judge import judge, wish_for
    from trtbuild.doctor.probes.artefact import probe_artefact

    if artefact is not None and not artefact.is_dir():
        raise ArtefactError(artefact, ["there is no such folder"])
    if facts_file is not None:
        facts = _recorded(facts_file)
        facts = with_artefact(facts, artefact) if artefact else facts
    else:
        ranks = gpus or (probe_artefact(artefact).world_size if artefact else 1)
        with console.status("looking at this machine", spinner="dots"):
            facts = examine(ranks, artefact)
    report = judge(facts, wish_for(facts, target, gpus))
    if as_json:
        print_json(document(report, facts))
    else:
        _show(report)
    if not report.ready:
        raise typer.Exit(NOT_READY)


def document(report: Report, facts: Facts) -> dict[str, Any]:
    """The report as JSON, with the facts under it: what `--facts` reads. Tokens are never in it."""
    from trtbuild.doctor.facts import dump

    return {
        "schema": SCHEMA,
        "target": report.wish.target,
        "gpus": report.wish.gpus,
        "ready": report.ready,
        "counts": {level: report.count(level) for level in ("fail", "warn", "info", "ok")},
        "findings": [asdict(finding) for finding in report.findings],
        "facts": dump(facts),
    }


def _recorded(path: Path) -> Facts:
    from trtbuild.doctor.facts import load

    try:
        content = json.loads(path.read_text())
        return load(content["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is not a record of the doctor: {error}", hint="Make one there: trtbuild doctor --json > FILE"
        ) from error


def _show(report: Report) -> None:
    from rich.text import Text

    topic = ""
    for finding in report.findings:
        if finding.topic != topic:
            topic = finding.topic
            data.print(Text(topic, style="bold"))
        line = Text("  ").append(f"{finding.level:<5}", style=_STYLES[finding.level])
        data.print(line.append(finding.found), soft_wrap=True)
        if finding.level in ("fail", "warn", "info"):
            for text in filter(None, (finding.why, finding.remedy and f"→ {finding.remedy}")):
                # Never wrapped: a remedy is there to be copied.
                data.print(Text(" " * 7 + text, style="" if text.startswith("→") else "dim"), soft_wrap=True)
    wish = report.wish
    what = f"{wish.target} with {wish.gpus} {'rank' if wish.target == 'cpu' else 'GPU'}{'' if wish.gpus == 1 else 's'}"
    counts = f"{report.count('fail')} to mend, {report.count('warn')} to know of"
    note(f"{'ready' if report.ready else 'not ready'} for {what}: {counts}")
