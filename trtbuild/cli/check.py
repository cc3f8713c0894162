"""`trtbuild check`: everything that is wrong with a TensorRT-LLM checkpoint or a Triton repository, whoever made it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import data, note, print_json, progress_bar
from trtbuild.errors import CheckpointError
from trtbuild.spec import TARGETS

if TYPE_CHECKING:
    from trtbuild.finding import Finding, Report

NAME = "check"
PANEL = "Look"
SCHEMA = 1
_SHOWN = 40  # findings of one rule in the table; --json lists all
_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def _target(value: str) -> str:
    if value not in ("", *TARGETS):
        raise typer.BadParameter(f"unknown target {value!r}; supported: {', '.join(TARGETS)}")
    return value


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|REPOSITORY",
            help="Folder with config.json and rankN.safetensors, or of models with a config.pbtxt.",
        ),
    ],
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Read headers only, no numbers and no tokenizer: finishes at once.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            callback=_target,
            help="Whose demands count; by default those of trtbuild.json, else tensorrt.",
        ),
    ] = "",
    as_json: JsonOpt = False,
) -> None:
    """Check a checkpoint (names, shapes, dtypes, numbers), or a repository against its engine and tokenizer."""
    from trtbuild import pipeline

    with progress_bar("check") as progress:
        report = pipeline.check_artifact(checkpoint, read_data=not no_data, target=target, progress=progress)
    report = report.strict() if strict else report
    if as_json:
        print_json(document(checkpoint, report))
    else:
        _show(checkpoint, report)
    if report.count("error"):
        raise typer.Exit(CheckpointError.exit_code)


def document(checkpoint: Path, report: Report) -> dict[str, Any]:
    """The report as JSON. `schema` changes when a key is removed or changes its meaning; rule ids are stable."""
    return {
        "schema": SCHEMA,
        "checkpoint": str(checkpoint),
        "kind": report.kind,
        "architecture": report.architecture,
        "family": report.family,
        "quant_algo": report.quant_algo or None,
        "tp": report.tp_size,
        "pp": report.pp_size,
        "tensors": report.num_tensors,
        "data_checked": report.data_checked,
        "ok": not report.count("error"),
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "findings": [asdict(finding) for finding in report.findings],
    }


def _show(checkpoint: Path, report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    if report.findings:
        table = Table(title=Text(_printable(str(checkpoint))), show_lines=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("where", overflow="fold")
        table.add_column("expected, found, what to do", overflow="fold")
        for finding in _some(report.findings):
            place = _printable(f"{finding.folder}/{finding.where}" if finding.folder else finding.where)
            place += "" if finding.rank is None else f"\nrank {finding.rank}"
            rule = Text(finding.severity, style=_STYLES[finding.severity]).append(f"\n{finding.rule}", style="default")
            lines = [f"expected {finding.expected}", f"found {finding.found}", finding.hint]
            cells = (place, "\n".join(_printable(line) for line in lines if line))
            table.add_row(rule, *(Text(cell) for cell in cells))
        data.print(table)
        hidden = len(report.findings) - len(_some(report.findings))
        if hidden:
            note(f"and {hidden} more of the same rules; --json lists all")
    counts = [_counted(report.count("error"), "error"), _counted(report.count("warning"), "warning")]
    counts += [f"{report.count('info')} to know"] if report.count("info") else []
    what = f"{report.architecture or report.kind}, {_counted(report.num_tensors, 'tensor')}"
    layout = f", tp {report.tp_size} x pp {report.pp_size}" if report.tp_size else ""
    algo = f", {report.quant_algo}" if report.quant_algo else ""
    looked = "" if report.data_checked or not report.num_tensors else " (numbers were not read)"
    note(_printable(f"{what}{layout}{algo}: {', '.join(counts)}{looked}"))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _some(findings: tuple[Finding, ...]) -> list[Finding]:
    """At most _SHOWN findings of each rule."""
    seen: dict[str, int] = {}
    shown = []
    for finding in findings:
        seen[finding.rule] = seen.get(finding.rule, 0) + 1
        if seen[finding.rule] <= _SHOWN:
            shown.append(finding)
    return shown


def _printable(text: str) -> str:
    """Names come from files: control characters and lone surrogates are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
