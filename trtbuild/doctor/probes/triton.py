"""The tritonserver that `trtbuild serve` would start, and its backends."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from trtbuild.doctor.facts import Triton
from trtbuild.doctor.probes.process import run
from trtbuild.errors import ToolError
from trtbuild.serve.command import TritonInstall
from trtbuild.serve.install import find_triton


def probe_triton(container_version: str) -> Triton:
    """Binary, version and backends. Whether it loads is tried: the usual failure is a missing library."""
    with tempfile.TemporaryDirectory(prefix="trtbuild-doctor-") as scratch:
        try:
            install = find_triton(Path(scratch))
        except ToolError as error:
            return Triton(problem=error.message)
        backends = install.backends or install.binary.parent.parent / "backends"
        return Triton(
            binary=str(install.binary),
            version=container_version,
            backends=tuple(sorted(folder.name for folder in backends.iterdir())) if backends.is_dir() else (),
            bundled=install.backends is not None,
            problem=_loads(install),
        )


def _loads(install: TritonInstall) -> str:
    """Empty, or why the program does not start. `--help` is the one option that ends by itself."""
    paths = [str(path) for path in install.library_dirs]
    paths += [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    said = run([str(install.binary), "--help"], 20.0, env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)})
    if "--model-repository" in said.text:
        return ""
    missing = re.search(r"error while loading shared libraries: (\S+)", said.text)
    return f"lacks the library {missing[1].rstrip(':')}" if missing else f"does not start: {said.text[-200:]}"
