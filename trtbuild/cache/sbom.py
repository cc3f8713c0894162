"""The bill of materials of an artefact in CycloneDX 1.6 JSON. PURE.

Written by hand, since every artefact has one and its bytes may depend on nothing but what the artefact is made of: no
clock, the serial number from the content, and no library whose next release writes it otherwise. `trtbuild inspect`
and the tests validate it against the strict schema in cyclonedx-python-lib.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from trtbuild.cache.key import Document, canonical

NAME = "sbom.cdx.json"
SPEC = "1.6"
_OURS = ("trtbuild", "trtbuild code")
_NOT_PYTHON = ("openmpi",)


def sbom(inputs: Document, versions: Mapping[str, str], files: Mapping[str, str]) -> Document:
    """The document. `versions`: of the manifest, to which those of the key are added, as the bytes depend on both;
    `files`: SHA-256 of the artefact's files by path.
    """
    source, stage = inputs["source"], inputs["stage"]
    tool = _tool(versions.get("trtbuild", ""))
    named = sorted({*versions.items(), *inputs["versions"].items()})
    libraries = {_purl(*one): _library(*one) for one in named if one[0] not in _OURS}
    parts = [_source(source), *_texts(inputs["options"]), *libraries.values()]
    made = [_file(f"file:{name}", name, digest) for name, digest in sorted(files.items())]
    subject = {
        "type": "machine-learning-model",
        "bom-ref": "artefact",
        "name": f"{source['model']} ({stage})",
        "properties": [{"name": "trtbuild:stage", "value": stage}, *_properties(inputs["machine"])],
        "components": made,
    }
    document: Document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": subject},
        "components": parts,
        "dependencies": [
            {"ref": "artefact", "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
    return {**document, "serialNumber": serial_number(document)}


def serial_number(document: Document) -> str:
    """The serial number that a document of this content has."""
    content = {name: value for name, value in document.items() if name != "serialNumber"}
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, canonical(content).decode())}"


def file_hashes(document: Document) -> dict[str, str]:
    """SHA-256 by path of the artefact's files, as a document states them; raises KeyError, TypeError for others."""
    made = document["metadata"]["component"]["components"]
    return {item["name"]: next(h["content"] for h in item["hashes"] if h["alg"] == "SHA-256") for item in made}


def _tool(version: str) -> Document:
    return {"type": "application", "name": "trtbuild", "version": version}


def _source(source: Document) -> Document:
    """The model, with its files inside."""
    found: Document = {"type": "machine-learning-model", "bom-ref": "source", "name": source["model"]}
    if source["revision"]:
        found["version"] = source["revision"]
    if source["repo_id"]:  # package-url: the type huggingface, whose version is a commit
        found["purl"] = f"pkg:huggingface/{source['repo_id']}" + (
            f"@{source['revision']}" if source["revision"] else ""
        )
    found["components"] = [_file(f"source:{name}", name, sha) for name, sha in sorted(source["files"].items())]
    return found


def _texts(options: Document) -> list[Document]:
    """The calibration text, where the stage has one."""
    text = (options.get("calibration") or {}).get("text")
    if not text:
        return []
    return [{"type": "data", "bom-ref": "calibration", "name": text["name"], "hashes": _hashes(text["sha256"])}]


def _library(name: str, version: str) -> Document:
    purl = _purl(name, version)
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _purl(name: str, version: str) -> str:
    """Python distributions, but for what a wheel, a Linux distribution or an image may bring alike."""
    kind = "generic" if name in _NOT_PYTHON else "pypi"
    return f"pkg:{kind}/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def _file(ref: str, name: str, digest: str) -> Document:
    return {"type": "file", "bom-ref": ref, "name": name, "hashes": _hashes(digest)}


def _hashes(digest: str) -> list[Document]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(machine: Document) -> list[Document]:
    return [{"name": f"trtbuild:machine:{name}", "value": str(value)} for name, value in sorted(machine.items())]
