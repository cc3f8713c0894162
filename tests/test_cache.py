"""The artefact cache: what is a hit, why something is not, damage, crashes, full disks, and the commands about it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.disks import disk_of
from tests.kept import FOUR, contents, convert, edit_json, flip, run, run_json
from tests.tiny import ROOT, edit_weights, make_llama, trtbuild
from trtbuild.cache import facts
from trtbuild.cache.files import COPIED, place
from trtbuild.cache.hashing import Memo
from trtbuild.cache.inspect import inspect_artefact
from trtbuild.cache.key import differences
from trtbuild.cache.prune import Limits, choose, parse_age, parse_size, total
from trtbuild.cache.stage import open_cache
from trtbuild.cache.store import Blob, Entry, Store
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import CheckpointError
from trtbuild.pipeline import make_checkpoint, make_engine
from trtbuild.spec import CALIBRATION, ConvertOptions

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rank files are large enough to be linked."""
    return make_llama(tmp_path_factory.mktemp("large") / "llama", vocab_size=4096, num_hidden_layers=1, hidden_size=128)


def hits(notes: list[str]) -> list[str]:
    return [text.split(" from ")[0] for text in notes if " from the cache" in text]


def test_the_second_time_nothing_is_computed(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """The same bytes, by any number of workers, and the stage itself is not entered."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert hits(convert(llama_folder, one, workers=1).notes) == []
    seen: list[float] = []
    assert hits(convert(llama_folder, two, workers=3, progress=lambda d, t, s="": seen.append(d)).notes) == [
        "checkpoint"
    ]
    assert contents(one) == contents(two)
    assert seen == []
    assert not inspect_artefact(two).faults


def test_a_first_conversion_does_not_wait_for_digests(
    llama_copy: Path, tmp_path: Path, cache_folder: Path, monkeypatch: Patch
) -> None:
    """Nothing kept could be a hit: sources are hashed beside the work, each once, the stages within one another too."""
    from trtbuild.cache import hashing

    works, read, real = threading.Event(), list[str](), hashing.sha256_file

    def waits(path: Path, go_on: Any) -> str:
        read.append(path.name)
        assert works.wait(60), "the stage began only after the digests"
        return real(path, go_on)

    monkeypatch.setattr(hashing, "sha256_file", waits)
    cache = open_cache()
    limits = BuildOptions(max_batch_size=4)
    make_engine(
        str(llama_copy), tmp_path / "one", ConvertOptions(), limits, cache=cache, progress=lambda *_: works.set()
    )
    assert sorted(name for name in read if name != "calibration.txt") == ["config.json", "model.safetensors"]
    assert not inspect_artefact(tmp_path / "one").faults
    assert run_json("cache", "why")["miss"]["near"] is None
    assert len(Store(cache_folder).entries()) == 2
    assert hits(convert(llama_copy, tmp_path / "two", ConvertOptions()).notes) == ["checkpoint"]


def test_unknown_files_under_a_known_name_may_be_a_hit(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """The same model from another folder: it is hashed first, and then nothing is computed."""
    convert(llama_folder, tmp_path / "one")
    copy = tmp_path / "elsewhere" / llama_folder.name
    shutil.copytree(llama_folder, copy)
    assert hits(convert(copy, tmp_path / "two").notes) == ["checkpoint"]


@pytest.mark.parametrize("edit", [lambda path: path.touch(), lambda path: path.unlink()])
def test_a_source_that_changes_meanwhile_is_refused(
    edit: Any, llama_copy: Path, tmp_path: Path, cache_folder: Path
) -> None:
    """What was read may be neither the old file nor the new one."""
    weights = llama_copy / "model.safetensors"
    done: list[Any] = []

    def once(*_: Any) -> None:
        if not done:
            done.append(edit(weights))

    with pytest.raises(CheckpointError, match=r"changed while|cannot be read"):
        convert(llama_copy, tmp_path / "out", progress=once)
    assert not (tmp_path / "out").exists()
    assert Store(cache_folder).entries() == []


def test_off(llama_folder: Path, tmp_path: Path, cache_folder: Path, monkeypatch: Patch) -> None:
    """--no-cache, and the variable; a library call without a cache keeps nothing either."""
    run("checkpoint", llama_folder, "-o", tmp_path / "a", "--no-cache")
    make_checkpoint(str(llama_folder), tmp_path / "b", ConvertOptions())
    assert not cache_folder.exists()
    monkeypatch.setenv("TRTBUILD_NO_CACHE", "1")
    run("checkpoint", llama_folder, "-o", tmp_path / "c")
    assert not cache_folder.exists()


CHANGES: dict[str, dict[str, Any]] = {
    "tp_size": {"tp_size": 1},
    "pp_size": {"pp_size": 1},
    "dtype": {"dtype": "float32"},
    "quant": {"quant": "int8"},
    "use_parallel_embedding": {"use_parallel_embedding": True},
    "sm": {"sm": 90},
}


def test_every_option_is_part_of_the_key(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    convert(llama_folder, tmp_path / "out")
    for number, change in enumerate(CHANGES.values()):
        assert not hits(convert(llama_folder, tmp_path / f"out{number}", replace(FOUR, **change)).notes), change
    kept = Store(cache_folder).entries()
    assert len(kept) == 1 + len(CHANGES)
    named = {item.name for item in fields(ConvertOptions)}
    assert all(set(entry.document["options"]["convert"]) == named for entry in kept)


def test_source_code_versions_and_calibration_are_part_of_it(
    llama_copy: Path, tmp_path: Path, cache_folder: Path, monkeypatch: Patch
) -> None:
    """One weight, the tool's code, a library's version; `why` names exactly that."""
    convert(llama_copy, tmp_path / "out")
    edit_weights(llama_copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert not hits(convert(llama_copy, tmp_path / "out2").notes)
    assert [d["where"] for d in run_json("cache", "why")["miss"]["differences"]] == ["source.files.model.safetensors"]
    monkeypatch.setattr(facts, "code_digest", lambda: "0" * 64)
    assert not hits(convert(llama_copy, tmp_path / "out3").notes)
    assert "versions.trtbuild code: 0000000000000000, kept" in run("cache", "why")
    monkeypatch.undo()


def test_calibration_text_counts_where_it_is_used(tmp_path: Path, llama_folder: Path) -> None:
    """By its content: another name for the same path is the same, and a method without calibration ignores it."""
    from trtbuild.caching import checkpoint_run
    from trtbuild.hub.snapshot import ModelSource

    def key(text: Path | None, quant: str) -> dict[str, Any]:
        source = ModelSource(llama_folder)
        cache = open_cache()
        run_ = checkpoint_run(cache, source, ConvertOptions(quant=quant), replace(CALIBRATION, text=text))
        return run_.document()

    text = tmp_path / "text.txt"
    text.write_text("one")
    assert key(text, "int8") == key(None, "int8")
    first = key(text, "int4_awq")
    assert first["options"]["calibration"]["text"]["name"] == "text.txt"
    text.write_text("two")
    assert [d.where for d in differences(key(text, "int4_awq"), first)] == ["options.calibration.text.sha256"]
    assert key(None, "int4_awq")["options"]["calibration"]["text"]["name"] == "calibration.txt"
    assert first["machine"]["cpu"]


def test_the_code_of_trtbuild_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "plan.py").write_text("a = 1")
    (tmp_path / "cli" / "app.py").write_text("b = 1")
    one = facts.code_digest(tmp_path)
    (tmp_path / "cli" / "app.py").write_text("b = 2")
    assert facts.code_digest(tmp_path) == one, "what writes no artefact is no part of it"
    (tmp_path / "plan.py").write_text("a = 2")
    assert facts.code_digest(tmp_path) != one


def test_engines(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """Of a model: the checkpoint on the way is shared by engines that differ in their limits. Of a checkpoint."""
    one = open_cache()
    four, plain = BuildOptions(max_batch_size=4), ConvertOptions()
    make_engine(str(llama_folder), tmp_path / "one", plain, four, cache=one)
    other = open_cache()
    make_engine(str(llama_folder), tmp_path / "other", plain, BuildOptions(max_batch_size=8), cache=other)
    assert hits(other.notes) == ["checkpoint"]
    again = open_cache()
    make_engine(str(llama_folder), tmp_path / "again", plain, four, cache=again)
    assert hits(again.notes) == ["engine"]
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert not inspect_artefact(tmp_path / "again").faults
    assert "options.build.max_batch_size: 8, kept 4" in run("cache", "why")


def test_large_files_are_linked_and_a_write_through_the_link_is_found(
    large: Path, tmp_path: Path, cache_folder: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    convert(large, one, ConvertOptions())
    rank = one / "rank0.safetensors"
    assert rank.stat().st_size > COPIED
    good = rank.read_bytes()
    blob = next((cache_folder / "blobs").glob("*/" + inspect_artefact(one).files[rank.name]))
    if blob.stat().st_ino != rank.stat().st_ino:
        pytest.skip("this file system shares blocks, so that nothing can be written through")
    rank.chmod(0o644)
    with rank.open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(bytes([good[-1] ^ 1]))
    notes = convert(large, two, ConvertOptions()).notes
    assert notes == ["rank0.safetensors in the cache is damaged or missing; made again"]
    assert (two / rank.name).read_bytes() == good
    assert "rank0.safetensors of it was damaged" in run("cache", "why")
    assert hits(convert(large, tmp_path / "three", ConvertOptions()).notes) == ["checkpoint"]


def test_a_touched_file_is_read_once_and_used(large: Path, tmp_path: Path, cache_folder: Path) -> None:
    convert(large, tmp_path / "one", ConvertOptions())
    for path in (cache_folder / "blobs").glob("*/*"):
        os.utime(path)
    assert hits(convert(large, tmp_path / "two", ConvertOptions()).notes) == ["checkpoint"]
    stamps = {path.name: path.stat().st_mtime_ns for path in (cache_folder / "blobs").glob("*/*")}
    entry = Store(cache_folder).entries()[0]
    assert all(stamps[blob.sha256] == blob.mtime_ns for blob in entry.files)


def _entry(folder: Path) -> Path:
    return next((folder / "entries").glob("*.json"))


DAMAGE: dict[str, Any] = {
    "cut off": lambda folder: _entry(folder).write_text(_entry(folder).read_text()[:200]),
    "empty": lambda folder: _entry(folder).write_text(""),
    "another key document": lambda folder: edit_json(_entry(folder), lambda d: d["document"].update(stage="engine")),
    "a file less": lambda folder: edit_json(_entry(folder), lambda d: d["files"].pop(1)),
    "two files exchanged": lambda folder: edit_json(
        _entry(folder), lambda d: d["files"][1].update({**d["files"][2], "path": d["files"][1]["path"]})
    ),
    "a blob gone": lambda folder: max((folder / "blobs").glob("*/*"), key=lambda p: p.stat().st_size).unlink(),
    "a small blob changed": lambda folder: flip(min((folder / "blobs").glob("*/*"), key=lambda p: p.stat().st_size)),
    "a blob is a folder": lambda folder: _folder(min((folder / "blobs").glob("*/*"))),
}


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_never_used(damage: str, llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """It is a miss, and what is made then is the right thing."""
    convert(llama_folder, tmp_path / "one")
    DAMAGE[damage](cache_folder)
    assert hits(convert(llama_folder, tmp_path / "two").notes) == []
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    if damage != "a blob is a folder":  # which stays in the way, and is said
        assert hits(convert(llama_folder, tmp_path / "three").notes) == ["checkpoint"]


def test_verify_finds_what_looks_good(large: Path, tmp_path: Path, cache_folder: Path) -> None:
    """A large file whose size and time stamp are right and whose content is not; verify removes it."""
    convert(large, tmp_path / "one", ConvertOptions())
    assert run_json("cache", "verify")["damaged"] == []
    flip(max((cache_folder / "blobs").glob("*/*"), key=lambda path: path.stat().st_size))
    (cache_folder / "entries" / f"{'0' * 64}.json").write_text("{")
    found = run_json("cache", "verify", "--dry-run", code=3)
    assert [entry["damaged"] for entry in found["damaged"]] == [["rank0.safetensors"]]
    assert len(found["unreadable"]) == 1
    assert "damaged or missing: rank0.safetensors" in run("cache", "verify", code=3)
    assert run_json("cache", "verify")["checked"] == 0
    assert hits(convert(large, tmp_path / "two", ConvertOptions()).notes) == []


def test_verify_of_a_cache_that_cannot_be_changed(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """The damage is said, and that it stays."""
    convert(llama_folder, tmp_path / "one")
    _folder(min((cache_folder / "blobs").glob("*/*")))
    assert "cannot be changed: Is a directory" in run("cache", "verify", code=4)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from trtbuild.cache import store
from trtbuild.cache.stage import open_cache
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions
real, count = store.place, [0]
def place(*paths):
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*paths)
store.place = place
cache = open_cache()
make_checkpoint(sys.argv[1], Path(sys.argv[2]), ConvertOptions(), cache=cache)
print(*cache.notes)
"""


def start(model: Path, out: Path, die_at: int = 0) -> subprocess.Popen[str]:
    """A build in a process of its own, which kills itself before it keeps file `die_at`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PROGRAM, str(model), str(out), str(die_at)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle(large: Path, tmp_path: Path, cache_folder: Path) -> None:
    """SIGKILL while it is kept, then while it is restored: nothing that looks whole, and the rest is swept."""
    process = start(large, tmp_path / "killed", die_at=3)
    assert process.wait(60) == -signal.SIGKILL
    assert not inspect_artefact(tmp_path / "killed").faults, "the artefact itself stood already"
    assert Store(cache_folder).entries() == []
    assert len(list((cache_folder / "blobs").glob("*/*"))) == 2
    assert hits(convert(large, tmp_path / "one", ConvertOptions()).notes) == []
    (cache_folder / "blobs" / "ab").mkdir(exist_ok=True)
    (cache_folder / "blobs" / "ab" / "abcd.1.2").write_text("unfinished")
    process = start(large, tmp_path / "restored", die_at=3)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "restored").exists()
    assert hits(convert(large, tmp_path / "restored", ConvertOptions()).notes) == ["checkpoint"]
    assert run_json("cache", "prune")["freed"] == len("unfinished")
    assert run_json("cache", "verify")["checked"] == 1


def test_two_processes_make_the_same(large: Path, tmp_path: Path, cache_folder: Path) -> None:
    both = [start(large, tmp_path / name) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(Store(cache_folder).entries()) == 1
    assert run_json("cache", "verify")["damaged"] == []
    assert hits(convert(large, tmp_path / "three", ConvertOptions()).notes) == ["checkpoint"]


def test_an_output_that_is_replaced_meanwhile_is_not_kept(
    llama_folder: Path, tmp_path: Path, cache_folder: Path, monkeypatch: Patch
) -> None:
    """Two builds of one output with --force: what the other one put there never gets this one's key."""
    from trtbuild.cache import store

    out, real = tmp_path / "out", store.place

    def replaced(source: Path, target: Path) -> str:
        monkeypatch.setattr(store, "place", real)
        make_checkpoint(str(llama_folder), out, ConvertOptions(quant="int8"), force=True)
        return real(source, target)

    monkeypatch.setattr(store, "place", replaced)
    notes = convert(llama_folder, out).notes
    assert "not kept in the cache" in notes[0]
    assert Store(cache_folder).entries() == []


def test_a_full_disk_is_a_note(large: Path, tmp_path: Path, monkeypatch: Patch, cache_folder: Path) -> None:
    with disk_of(tmp_path / "small", 300) as folder:
        monkeypatch.setenv("TRTBUILD_CACHE", str(folder / "cache"))
        monkeypatch.setenv("TRTBUILD_CACHE_LIMIT", "1GB")
        done = trtbuild("checkpoint", large, "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "not kept in the cache: No space left on device" in done.stderr
        assert Store(folder / "cache").entries() == []
        assert not inspect_artefact(tmp_path / "out").faults
        assert not [path for path in (folder / "cache").rglob("*") if path.is_file() and ".1" in path.suffix]


def test_a_cache_that_cannot_be_made_is_a_note(llama_folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("TRTBUILD_NO_CACHE")
    monkeypatch.setenv("TRTBUILD_CACHE", str(tmp_path / "file" / "cache"))
    assert "not kept in the cache: Not a directory" in convert(llama_folder, tmp_path / "out").notes[0]
    monkeypatch.setenv("TRTBUILD_CACHE_LIMIT", "much")
    assert "'much' is no size" in run("checkpoint", llama_folder, "-o", tmp_path / "two", code=4)


def test_the_limit(llama_folder: Path, tmp_path: Path, cache_folder: Path, monkeypatch: Patch) -> None:
    """What was used longest ago goes; an artefact that is larger than the whole cache is not kept."""
    one = convert(llama_folder, tmp_path / "one")
    size = total(Store(cache_folder).entries())
    monkeypatch.setenv("TRTBUILD_CACHE_LIMIT", str(int(size * 1.5)))
    assert one.notes == []
    time.sleep(0.01)
    notes = convert(llama_folder, tmp_path / "two", replace(FOUR, pp_size=1)).notes
    assert "removed 1 old entries" in notes[0]
    assert [entry.document["options"]["convert"]["pp_size"] for entry in Store(cache_folder).entries()] == [1]
    blobs = {path.name for path in (cache_folder / "blobs").glob("*/*")}
    assert blobs == {blob.sha256 for entry in Store(cache_folder).entries() for blob in entry.files}
    monkeypatch.setenv("TRTBUILD_CACHE_LIMIT", "1kB")
    assert "its limit is" in convert(llama_folder, tmp_path / "three").notes[0]


def test_ls_and_prune(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    assert run_json("cache", "ls")["entries"] == []
    assert run_json("cache", "why")["miss"] is None
    for pp in (1, 2, 4):
        convert(llama_folder, tmp_path / f"out{pp}", ConvertOptions(pp_size=pp))
    assert "no checkpoint was in the cache" in run("cache", "why", run_json("cache", "ls")["entries"][2]["key"][:10])
    shown = run("cache", "ls").splitlines()
    assert shown[0].split() == ["KEY", "STAGE", "MODEL", "OPTIONS", "SIZE", "USED", "MADE"]
    assert [" ".join(line.split()[3:6]) for line in shown[1:3]] == ["pp_size 4, quant", "pp_size 2, quant"]
    now, entries = time.time(), Store(cache_folder).entries()
    for entry, days in zip(entries, (0, 10, 40), strict=True):
        os.utime(cache_folder / "entries" / f"{entry.key}.json", (now - days * 86400,) * 2)
    would = run_json("cache", "prune", "--unused", "30d", "--dry-run")
    assert [entry["key"] for entry in would["removed"]] == [entries[2].key]
    assert len(Store(cache_folder).entries()) == 3
    assert run_json("cache", "prune", "--unused", "30d")["freed"] == would["freed"] > 0
    assert [entry.key for entry in Store(cache_folder).entries()] == [entry.key for entry in entries[:2]]
    assert len(run_json("cache", "prune", "--older", "1d")["removed"]) == 0
    assert len(run_json("cache", "prune", "--size", f"{entries[0].size}B")["removed"]) == 1
    assert run_json("cache", "prune", "--all")["kept"] == 0
    assert list((cache_folder / "blobs").glob("*/*")) == []
    run("cache", "prune", "--unused", "long", code=2)
    assert not inspect_artefact(tmp_path / "out1").faults, "outputs do not depend on the cache"


def test_why_of_an_artefact(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    convert(llama_folder, tmp_path / "one")
    make_checkpoint(str(llama_folder), tmp_path / "two", replace(FOUR, dtype="bfloat16"))
    assert "options.convert.dtype: bfloat16, kept float16" in run("cache", "why", tmp_path / "two")
    assert "it is in the cache" in run("cache", "why", tmp_path / "one")
    assert "no artefact lies there" in run("cache", "why", "nothing", code=3)


def test_choose() -> None:
    """By hand: names are (age in days, days since use, size)."""

    def entry(made: int, used: int, size: int, digest: str = "") -> Entry:
        digest = digest or f"{made}-{used}-{size}"
        return Entry(digest, {}, (Blob("f", digest, size, 0),), -made * 86400.0, -used * 86400.0)

    three = [entry(5, 1, 10), entry(50, 2, 20), entry(9, 8, 5)]
    assert choose(three, Limits(), 0) == []
    assert choose(three, Limits(unused=7 * 86400), 0) == three[2:]
    assert choose(three, Limits(age=7 * 86400), 0) == three[1:]
    assert choose(three, Limits(size=15), 0) == three[1:], "no gaps: the last fits, but was used longer ago"
    assert choose(three, Limits(size=0), 0) == three
    assert choose(three, Limits(size=0, least=1), 0) == three[1:]
    assert total([entry(1, 1, 7, "same"), entry(2, 2, 7, "same")]) == 7
    assert [parse_size(t) for t in ("5", "1.5kB", "2 GiB", "1T")] == [5, 1500, 2 << 30, 10**12]
    assert [parse_age(t) for t in ("90s", "2h", "1d", "1w")] == [90, 7200, 86400, 604800]


def test_files_are_placed(tmp_path: Path) -> None:
    small, big = tmp_path / "small", tmp_path / "big"
    small.write_bytes(b"x")
    big.write_bytes(bytes(COPIED))
    assert place(small, tmp_path / "a") == "copy"
    assert place(big, tmp_path / "b") in ("reflink", "hardlink")
    assert (tmp_path / "b").read_bytes() == bytes(COPIED)


def test_the_memo(tmp_path: Path) -> None:
    """A digest is remembered on disk once the file is settled, and forgotten when it is written."""
    path, memo = tmp_path / "file", Memo(tmp_path / "hashes")
    path.write_text("one")
    digest = memo.sha256(path)
    assert memo.known(path) == digest
    assert Memo(tmp_path / "hashes").known(path) is None, "it may change within its time stamp's resolution"
    os.utime(path, (1, 1))
    memo.sha256(path)
    assert Memo(tmp_path / "hashes").known(path) == digest
    path.write_text("two!")
    assert Memo(tmp_path / "hashes").known(path) is None
    hub = tmp_path / "models--a--b" / "blobs"
    hub.mkdir(parents=True)
    (hub / digest).write_text("one")
    assert memo.sha256(hub / digest) == digest
    (hub / digest).write_text("damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        memo.sha256(hub / digest)


def test_ctrl_c_does_not_wait_for_the_digests(tmp_path: Path) -> None:
    """Files of 1 TB without blocks: a process that hashes them for a quarter of an hour ends at SIGINT."""
    for name in ("a", "b", "c"):
        with (tmp_path / name).open("wb") as handle:
            handle.truncate(1 << 40)
    code = "import sys; from pathlib import Path; from trtbuild.cache.hashing import Memo, hash_files\n"
    code += "hash_files(Path(sys.argv[1]), 'abc', Memo(), lambda d, t, s: print(s, flush=True))"
    words = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "SHA-256 of a\n"
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(60) == -signal.SIGINT
    finally:
        process.kill()


def test_commands_about_the_cache_load_nothing_heavy(tmp_path: Path, cache_folder: Path) -> None:
    code = "from typer.testing import CliRunner; from trtbuild.cli.app import app; import sys, json\n"
    code += "print(CliRunner().invoke(app, ['cache', 'ls', '--json']).exit_code, [n for n in sys.modules if n in "
    code += "('torch', 'numpy', 'transformers', 'boto3', 'cyclonedx', 'huggingface_hub', 'safetensors')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "0 []", json.dumps(done.stdout)
