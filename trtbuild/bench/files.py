"""EDGE: records.jsonl, summary.json, summary.md and the pictures of a benchmark; and summaries read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtbuild.bench import plots
from trtbuild.bench.record import Record
from trtbuild.bench.table import markdown
from trtbuild.errors import BenchError
from trtbuild.manifest import tool_versions, write_manifest
from trtbuild.staging import staged_dir

SUMMARY = "summary.json"
SCHEMA = 1


def summary_document(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each run has genai-perf's layout: a metric a key, and input_config."""
    return {"schema": SCHEMA, "kind": "bench", "versions": tool_versions("tritonclient", "httpx"), "runs": list(runs)}


def write_run(out: Path, runs: Sequence[dict[str, Any]], records: Sequence[Record], *, force: bool) -> None:
    """Everything into `out`, which appears whole or not at all.

    Raises:
        OutputError: it exists, or cannot be written.
    """
    with staged_dir(out, force=force) as folder:
        with (folder / "records.jsonl").open("w", encoding="utf-8") as handle:
            for record in records:
                handle.write(json.dumps(record.document(), separators=(",", ":")) + "\n")
        (folder / SUMMARY).write_text(json.dumps(summary_document(runs), indent=2) + "\n", encoding="utf-8")
        (folder / "summary.md").write_text(markdown(runs), encoding="utf-8")
        if plots.available():
            plots.write_plots(runs, records, folder)
        options = runs[0]["input_config"] if runs else {}
        source = {"endpoints": list(dict.fromkeys(run["endpoint"] for run in runs))}
        versions = tool_versions("tritonclient", "httpx", "matplotlib")
        write_manifest(folder, kind="bench", source=source, options=options, versions=versions)


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of a directory that `write_run` made, or of its summary.json alone.

    Raises:
        BenchError: there is no such summary.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError([f"cannot read {file}: {error}"]) from error
    runs = document.get("runs") if isinstance(document, dict) and document.get("kind") == "bench" else None
    if not isinstance(runs, list) or not runs:
        raise BenchError([f"{file} is no summary of `trtbuild bench`"])
    if document.get("schema") != SCHEMA:
        raise BenchError([f"{file} has schema {document.get('schema')}, this trtbuild reads {SCHEMA}"])
    return runs
