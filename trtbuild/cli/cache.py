"""`trtbuild cache`: what is kept, why something was not, and making room."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import line, note, print_json, progress_bar, size

if TYPE_CHECKING:
    from trtbuild.cache.key import Document
    from trtbuild.cache.store import Blob, Entry, Miss, Store
    from trtbuild.cache.timings import Timing

NAME = "cache"
PANEL = "Look"
SCHEMA = 1
app = typer.Typer(help="What the cache keeps, why something was not in it, and making room.", no_args_is_help=True)
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]


@app.command()
def ls(as_json: JsonOpt = False) -> None:
    """All artefacts in the cache, the one used last first."""
    from trtbuild.cache.prune import ago, total
    from trtbuild.cache.settings import cache_root, size_limit
    from trtbuild.cache.timings import timings

    store = _store()
    entries, kept, now = store.entries(), timings(store.root), time.time()
    on_disk, limit = total(entries), size_limit(store.root)
    if as_json:
        listed = [_entry(entry) for entry in entries]
        counts = {"schema": SCHEMA, "folder": str(store.root), "size": on_disk, "limit": limit}
        print_json({**counts, "entries": listed, "timings": [_timing(one) for one in kept]})
        return
    rows = [["KEY", "STAGE", "MODEL", "OPTIONS", "SIZE", "USED", "MADE"]]
    for entry in entries:
        described = (entry.key[:12], entry.document["stage"], _model(entry.document), _options(entry.document))
        times = (ago(now - entry.used), ago(now - entry.created))
        rows.append([*described, size(entry.size), *times])
    _table(rows)
    for one in kept:
        line(f"kernel timings  {one.name}  {size(one.size)}  used {ago(now - one.used)}")
    off = "; it is switched off" if cache_root() is None else ""
    note(f"{len(entries)} artefacts, {size(on_disk)} on disk of {size(limit)} allowed, in {store.root}{off}")


@app.command()
def why(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY|ARTEFACT]", help="A key, or its beginning; or an artefact. Default: the last miss."
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Why something was not in the cache: how it differs from the nearest artefact of the same stage that was."""
    from trtbuild.cache.explain import explain, is_kept

    store = _store()
    miss = explain(store, what)
    if miss is None:
        note("nothing was looked for in vain")
    kept = miss is not None and is_kept(store, miss)
    if as_json:
        print_json({"schema": SCHEMA, "miss": _miss(miss, kept) if miss else None})
    elif miss is not None:
        _explain(miss, kept)


@app.command()
def prune(
    unused: Annotated[
        str | None, typer.Option(metavar="AGE", help="What was not used for so long: 12h, 30d, 2w.", show_default=False)
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="What was made longer ago than that.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Down to that: 500MB, 20GB; least used first.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Remove artefacts from the cache. Without options: down to its limit, and what writers that died left behind.

    Kernel timings of TensorRT go by age, or with --all.
    """
    from trtbuild.cache.prune import Limits, choose, parse_age, parse_size, total
    from trtbuild.cache.settings import size_limit
    from trtbuild.cache.timings import outdated, timings

    store = _store()
    try:
        limits = Limits(
            unused=parse_age(unused) if unused else None,
            age=parse_age(older) if older else None,
            size=0 if everything else parse_size(max_size) if max_size else size_limit(store.root),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    entries, now = store.entries(), time.time()
    gone, old = choose(entries, limits, now), outdated(timings(store.root), limits, now)
    stay = [entry for entry in entries if entry not in gone]
    freed = total(entries) - total(stay)
    if not dry_run:
        freed = _removed([entry.key for entry in gone], [one.path for one in old])
    freed += sum(one.size for one in old)
    if as_json:
        removed = {"removed": [_entry(entry) for entry in gone], "timings": [_timing(one) for one in old]}
        print_json({"schema": SCHEMA, "dry_run": dry_run, **removed, "kept": len(stay), "freed": freed})
        return
    for entry in gone:
        line(f"{entry.key[:12]}  {entry.document['stage']}  {_model(entry.document)}  {_options(entry.document)}")
    for one in old:
        line(f"kernel timings  {one.name}")
    verb = "would be removed" if dry_run else "removed"
    note(f"{len(gone)} of {len(entries)} artefacts {verb}, {size(freed)}; files that outputs share stay there")


@app.command()
def verify(dry_run: DryRunOpt = False, as_json: JsonOpt = False) -> None:
    """Read every file of the cache and compare SHA-256. What is damaged is removed, and made again when needed.

    Exit code 3 where there was damage.
    """
    from trtbuild.errors import ArtefactError, OutputError

    store = _store()
    entries, broken = store.entries(), store.unreadable()
    refused: OSError | None = None
    faulty: dict[str, list[Blob]] = {}
    with progress_bar("verify") as progress:
        for number, entry in enumerate(entries):
            progress(number, len(entries), f"{entry.document['stage']} of {_model(entry.document)}")
            if blobs := store.damaged(entry):
                faulty[entry.key] = blobs
    if not dry_run:
        try:
            for key, blobs in faulty.items():
                store.discard(key, [blob.sha256 for blob in blobs])
            for path in broken:
                path.unlink(missing_ok=True)
        except OSError as error:
            refused = error
    damaged = {key: [blob.path for blob in blobs] for key, blobs in faulty.items()}
    if as_json:
        faults = [{**_entry(entry), "damaged": damaged[entry.key]} for entry in entries if entry.key in damaged]
        names = [str(path) for path in broken]
        counts = {"schema": SCHEMA, "dry_run": dry_run, "checked": len(entries)}
        print_json({**counts, "damaged": faults, "unreadable": names})
    else:
        _say_damage({entry.key: entry for entry in entries}, damaged, broken, dry_run or refused is not None)
    if refused is not None:
        message = f"{store.root} cannot be changed: {refused.strerror or refused}"
        raise OutputError(message, hint="What is damaged is still there, and never used.")
    if damaged or broken:
        raise typer.Exit(ArtefactError.exit_code)


def _say_damage(entries: dict[str, Entry], damaged: dict[str, list[str]], broken: list[Path], kept: bool) -> None:
    for key, names in damaged.items():
        document = entries[key].document
        line(f"{key[:12]}  {document['stage']}  {_model(document)}  damaged or missing: {', '.join(names)}")
    for path in broken:
        line(f"{path} cannot be read as an entry")
    faults = len(damaged) + len(broken)
    after = "" if not faults else ", nothing removed" if kept else ", which are removed"
    note(f"{len(entries)} artefacts read, {faults} damaged{after}")


def _explain(miss: Miss, kept: bool) -> None:
    from trtbuild.cache.lock import shown
    from trtbuild.cache.prune import ago

    stage = miss.document["stage"]
    head = f"{miss.key[:12]}  {stage} of {_model(miss.document)}, {ago(time.time() - miss.at)}"
    line(head + (" (kept since)" if kept else ""))
    if miss.damaged:
        lines = [f"{miss.damaged} of it was damaged or missing in the cache"]
    elif miss.near is None:
        lines = [f"no {stage} was in the cache"]
    elif not miss.differences:
        lines = ["it is in the cache"]
    else:
        lines = [f"the nearest in the cache, {miss.near[:12]}, differs:"]
        lines += [f"  {item.where}: {shown(item.wanted)}, kept {shown(item.kept)}" for item in miss.differences]
    for text in lines:
        line(text)


def _store() -> Store:
    from trtbuild.cache.settings import cache_folder
    from trtbuild.cache.store import Store

    return Store(cache_folder())


def _removed(keys: list[str], files: list[Path]) -> int:
    """Bytes that removing entries made free, `files` apart; raises OutputError where the cache cannot be written."""
    from trtbuild.staging import write_error

    store = _store()
    if not store.root.exists():
        return 0
    try:
        for path in files:
            path.unlink(missing_ok=True)
        return store.sweep(keys)
    except OSError as error:
        raise write_error(store.root, error) from error


def _entry(entry: Entry) -> dict[str, Any]:
    files = {blob.path: {"sha256": blob.sha256, "size": blob.size} for blob in entry.files}
    times = {"created": entry.created, "used": entry.used}
    return {"key": entry.key, "inputs": entry.document, "size": entry.size, **times, "files": files}


def _timing(timing: Timing) -> dict[str, Any]:
    return {"name": timing.name, "path": str(timing.path), "size": timing.size, "used": timing.used}


def _miss(miss: Miss, kept: bool) -> dict[str, Any]:
    return {"key": miss.key, **asdict(miss), "kept": kept}


def _model(document: Document) -> str:
    source = document["source"]
    return f"{source['model']}@{source['revision'][:8]}" if source["revision"] else str(source["model"])


def _options(document: Document) -> str:
    """Options that differ from the usual ones."""
    from trtbuild.cache.key import described, differences
    from trtbuild.engine.options import BuildOptions
    from trtbuild.spec import AUTO, ConvertOptions

    usual = {"convert": ConvertOptions(quant=AUTO), "build": BuildOptions()}
    plain = {group: described(value, str) for group, value in usual.items()}
    found = {group: value for group, value in document["options"].items() if group in usual}
    unlike = differences(found, {group: plain[group] for group in found})
    return ", ".join(f"{item.where.rpartition('.')[2]} {item.wanted}" for item in unlike) or "-"


def _table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if len(rows) > 1 else []:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
