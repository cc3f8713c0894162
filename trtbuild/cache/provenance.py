"""Where an artefact comes from, as an in-toto Statement v1 with the SLSA Provenance v1 predicate. PURE.

Fields: in-toto/attestation spec/v1/statement.md and slsa.dev/provenance/v1. Its subjects are all other files of the
artefact, so who signs it signs everything; that is the builder's (`cosign attest-blob` and the like take the predicate
or the whole statement). No time is stated, so that the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtbuild.cache.key import Document, key_of

NAME = "provenance.intoto.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


def provenance(inputs: Document, versions: Mapping[str, str], files: Mapping[str, str]) -> Document:
    """The statement. `versions`: of the manifest; `files`: SHA-256 of all other files by path, manifest included."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"urn:trtbuild:stage:{inputs['stage']}:v{inputs['schema']}",
                "externalParameters": {"model": inputs["source"]["model"], "options": inputs["options"]},
                "internalParameters": {"machine": inputs["machine"]},
                "resolvedDependencies": [*_source(inputs["source"]), *_texts(inputs["options"])],
            },
            "runDetails": {
                "builder": {"id": "urn:trtbuild", "version": dict(sorted(versions.items()))},
                "metadata": {"invocationId": key_of(inputs)},
            },
        },
    }


def subjects(statement: Document) -> dict[str, str]:
    """SHA-256 by path, as a statement says; raises KeyError, TypeError for what is none."""
    return {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}


def _source(source: Document) -> list[dict[str, Any]]:
    """Every file of the source, with its address on the hub where it came from there."""
    at = f"https://huggingface.co/{source['repo_id']}/resolve/{source['revision']}/" if source["repo_id"] else ""
    return [
        {**({"uri": at + name} if at else {}), "name": name, "digest": {"sha256": digest}}
        for name, digest in sorted(source["files"].items())
    ]


def _texts(options: Document) -> list[dict[str, Any]]:
    text = (options.get("calibration") or {}).get("text")
    return [{"name": text["name"], "digest": {"sha256": text["sha256"]}}] if text else []
