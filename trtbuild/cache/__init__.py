"""Artefacts kept by what they are made of, and the documents that say so: lock, SBOM, provenance; push and pull."""
