"""`trtbuild inspect`: sound artefacts pass, and every planted fault is found and named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.encoders import CASES, make_model
from tests.kept import edit_json, flip, run, run_json
from trtbuild.cache.inspect import inspect_artefact
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions

MANIFEST, LOCK = "trtbuild.json", "trtbuild.lock.json"
SBOM, STATEMENT = "sbom.cdx.json", "provenance.intoto.json"


def test_a_sound_artefact(artefact: Path, llama_folder: Path) -> None:
    """What is printed, beside hashlib and the manifest."""
    found = run_json("inspect", artefact)
    assert (found["sound"], found["kind"], found["stage"]) == (True, "checkpoint", "checkpoint")
    assert found["source"]["model"] == llama_folder.name
    weights = hashlib.sha256((llama_folder / "model.safetensors").read_bytes()).hexdigest()
    assert found["source"]["files"]["model.safetensors"] == weights
    assert (found["options"]["tp_size"], found["options"]["dtype"]) == (2, "float16")
    assert found["versions"]["trtbuild"]
    assert [check["check"] for check in found["checks"]] == ["files", "lock", "sbom", "statement"]
    assert not any(check["faults"] for check in found["checks"])
    assert set(found["files"]) == {path.name for path in artefact.iterdir()}
    for name, file in found["files"].items():
        assert file["sha256"] == hashlib.sha256((artefact / name).read_bytes()).hexdigest()
    shown = run("inspect", artefact)
    assert "checkpoint (key " in shown
    assert "statement: agrees" in shown


def test_the_documents_by_their_own_standards(artefact: Path) -> None:
    """CycloneDX by its strict schema; the statement by the fields of in-toto Statement v1 and SLSA Provenance v1."""
    bill = (artefact / SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    statement = json.loads((artefact / STATEMENT).read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}
    assert {"buildType", "externalParameters", "resolvedDependencies"} <= set(statement["predicate"]["buildDefinition"])
    assert statement["predicate"]["runDetails"]["builder"]["id"]
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
    for name in {path.name for path in artefact.iterdir()} - {STATEMENT}:
        assert subjects.pop(name) == hashlib.sha256((artefact / name).read_bytes()).hexdigest()
    assert not subjects


def json_edit(name: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, edit)


def set_in(*way: Any) -> Callable[[Any], None]:
    """Sets the last of `way` where the steps before it lead."""
    *steps, last, value = way

    def edit(document: Any) -> None:
        for step in steps:
            document = document[step]
        document[last] = value

    return edit


def stripped(folder: Path, **manifest: str) -> None:
    """Lock, SBOM and statement gone, and so from the manifest; `manifest`: what it says otherwise."""
    for name in (LOCK, SBOM, STATEMENT):
        (folder / name).unlink()
    edit_json(folder / MANIFEST, lambda d: [d["files"].pop(name) for name in (LOCK, SBOM)] and d.update(manifest))


def forged(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    """The manifest edited, and its one hash, in the statement, set right."""

    def plant(folder: Path) -> None:
        edit_json(folder / MANIFEST, edit)
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        subjects = {"name": MANIFEST, "digest": {"sha256": digest}}
        edit_json(
            folder / STATEMENT,
            lambda d: d.update(subject=[subjects if s["name"] == MANIFEST else s for s in d["subject"]]),
        )

    return plant


def linked(folder: Path) -> None:
    """The same bytes, elsewhere."""
    (folder / "rank0.safetensors").rename(folder.parent / "rank0.safetensors")
    (folder / "rank0.safetensors").symlink_to("../rank0.safetensors")


def foreign(folder: Path) -> None:
    (folder.parent / "foreign").mkdir()
    (folder.parent / "foreign" / "model.py").write_text("")
    (folder / "more").symlink_to(folder.parent / "foreign", target_is_directory=True)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte in a rank file": (lambda f: flip(f / "rank1.safetensors"), "rank1.safetensors was changed"),
    "a missing rank file": (lambda f: (f / "rank0.safetensors").unlink(), "rank0.safetensors is missing"),
    "a file too many": (lambda f: (f / "rank2.safetensors").touch(), "rank2.safetensors is not of this artefact"),
    "config.json edited": (json_edit("config.json", set_in("dtype", "bfloat16")), "config.json was changed"),
    "manifest: an option": (json_edit(MANIFEST, set_in("options", "tp_size", 4)), "options.tp_size 2, 4"),
    "manifest: a version": (json_edit(MANIFEST, set_in("versions", "numpy", "1.0")), f"SHA-256 of.{MANIFEST}"),
    "manifest: the revision": (json_edit(MANIFEST, set_in("source", "revision", "f" * 40)), f"SHA-256 of.{MANIFEST}"),
    "manifest: a digest": (
        json_edit(MANIFEST, set_in("files", "config.json", "0" * 64)),
        f"{MANIFEST} says 0000",
    ),
    "manifest: damaged": (lambda f: (f / MANIFEST).write_text("{"), f"{MANIFEST} is damaged"),
    "lock: an input": (json_edit(LOCK, set_in("inputs", "options", "convert", "tp_size", 4)), "its key is not that"),
    "lock: a file": (json_edit(LOCK, set_in("files", "rank0.safetensors", "0" * 64)), "files.rank0.safetensors"),
    "lock: gone": (lambda f: (f / LOCK).unlink(), f"{LOCK} is missing"),
    "SBOM: a hash": (
        json_edit(SBOM, set_in("metadata", "component", "components", 0, "hashes", 0, "content", "0" * 64)),
        f"{SBOM}: SHA-256 of",
    ),
    "SBOM: a library": (json_edit(SBOM, set_in("components", 1, "version", "9.9")), f"{SBOM}: components.1.version"),
    "SBOM: no CycloneDX": (json_edit(SBOM, set_in("components", 1, "type", "thing")), "is no CycloneDX 1.6: 'thing'"),
    "statement: a subject": (
        json_edit(STATEMENT, set_in("subject", 0, "digest", "sha256", "0" * 64)),
        f"{STATEMENT}: SHA-256 of",
    ),
    "statement: a subject less": (json_edit(STATEMENT, lambda d: d["subject"].pop(0)), f"{STATEMENT}: SHA-256 of"),
    "statement: the builder": (
        json_edit(STATEMENT, set_in("predicate", "runDetails", "builder", "id", "urn:other")),
        "builder.id is urn:other",
    ),
    "statement: a source": (
        json_edit(STATEMENT, lambda d: d["predicate"]["buildDefinition"]["resolvedDependencies"].pop()),
        "resolvedDependencies",
    ),
    "stripped of its documents": (stripped, f"{LOCK}, {SBOM}, {STATEMENT} are missing, which a checkpoint has"),
    "stripped, as what has none": (
        lambda f: stripped(f, kind="repository"),
        "are missing, which what holds rank0.safetensors, rank1.safetensors has",
    ),
    "manifest and statement: the source": (forged(set_in("source", "model", "other")), "source.model llama, other"),
    "manifest and statement: a source file": (
        forged(set_in("source", "files", "model.safetensors", 1)),
        "source.files.model.safetensors",
    ),
    "manifest and statement: the kind": (forged(set_in("kind", "engine")), "kind checkpoint, engine"),
    "a rank file that is a link": (linked, "rank0.safetensors is a symbolic link to ../rank0.safetensors"),
    "a linked folder": (foreign, "more is a symbolic link to "),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe is neither file nor folder"),
    "statement: gone": (lambda f: (f / STATEMENT).unlink(), f"{STATEMENT} is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults(artefact_copy: Path, fault: str) -> None:
    plant, said = FAULTS[fault]
    plant(artefact_copy)
    faults = inspect_artefact(artefact_copy).faults
    assert any(said in text for text in faults), faults


def test_exit_code_and_all_faults_at_once(artefact_copy: Path, tmp_path: Path) -> None:
    flip(artefact_copy / "rank0.safetensors")
    (artefact_copy / STATEMENT).unlink()
    said = run("inspect", artefact_copy, code=3)
    assert "rank0.safetensors was changed" in said
    assert f"{STATEMENT} is missing" in said
    assert run_json("inspect", artefact_copy, code=3)["sound"] is False
    assert "no such folder" in run("inspect", tmp_path / "nothing", code=3)
    assert "has no trtbuild.json" in run("inspect", tmp_path, code=3)


def test_forgery_that_is_consistent_is_another_artefact(artefact_copy: Path, artefact: Path, tmp_path: Path) -> None:
    """Whoever writes all documents anew makes another statement: its digest is what a signature is for."""
    before = hashlib.sha256((artefact / STATEMENT).read_bytes()).hexdigest()
    again = make_checkpoint(str(artefact), tmp_path / "again", ConvertOptions(tp_size=1))
    assert not inspect_artefact(again).faults
    assert inspect_artefact(again).lock.stage == "reshard"  # type: ignore[union-attr]
    assert hashlib.sha256((again / STATEMENT).read_bytes()).hexdigest() != before


def test_the_bill_names_all_that_the_lock_pins(artefact: Path) -> None:
    """Every library of the lock's key and of the manifest, by its package URL; Open MPI is no Python package."""
    lock, manifest = (json.loads((artefact / name).read_text()) for name in (LOCK, MANIFEST))
    parts = json.loads((artefact / SBOM).read_text())["components"]
    listed = {part["name"]: part for part in parts if part["type"] == "library"}
    pinned = {**lock["inputs"]["versions"], **manifest["versions"]}
    assert listed.keys() == pinned.keys() - {"trtbuild", "trtbuild code"}
    assert {"torch", "transformers", "safetensors", "tokenizers", "numpy"} <= listed.keys()
    for name, part in listed.items():
        assert part["version"] == pinned[name]
        assert part["purl"].startswith("pkg:generic/" if name == "openmpi" else "pkg:pypi/")


def test_llmapi_and_two_halves(llama_folder: Path, tmp_path: Path) -> None:
    """Artefacts of other forms agree with themselves too."""
    made = make_checkpoint(str(llama_folder), tmp_path / "hf", ConvertOptions(target="llmapi"))
    assert not inspect_artefact(made).faults
    t5 = make_model(CASES["t5"], tmp_path / "t5")
    made = make_checkpoint(str(t5), tmp_path / "halves", ConvertOptions())
    assert "decoder/rank0.safetensors" in inspect_artefact(made).files
    assert not inspect_artefact(made).faults
