"""Python, packages by their metadata, and the compiler; nothing is imported."""

from __future__ import annotations

import platform
import re
import shutil

from trtbuild.doctor.facts import Software
from trtbuild.doctor.probes.process import run
from trtbuild.manifest import tool_versions
from trtbuild.runtime.native.library import compiler

_PACKAGES = (
    "tensorrt",
    "tensorrt-llm",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "tritonclient",
    "mpi4py",
    "nvidia-pytriton",
    "nvidia-modelopt",
)


def probe_software() -> Software:
    """Versions; a compiler is asked for its own, so that a broken one shows."""
    packages = tool_versions(*_PACKAGES)
    for name in ("tensorrt-cu13", "tensorrt-cu12"):  # the wheels that `tensorrt` installs
        if name in packages:
            packages.setdefault("tensorrt", packages[name])
            del packages[name]
    cc = compiler() or []
    said = run([*cc, "--version"], 10.0) if cc else None
    first = said.out.partition("\n")[0] if said and said.code == 0 else ""
    found = re.search(r"\d+\.\d+(\.\d+)?", first)
    return Software(
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        packages=packages,
        trtllm_build=shutil.which("trtllm-build") or "",
        compiler=" ".join(cc) if first else "",
        compiler_version=found[0] if found else "",
    )
