"""Finds a tritonserver on this machine, and readies the one of nvidia-pytriton's wheel."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from trtbuild.errors import ToolError
from trtbuild.serve.command import TritonInstall


def find_triton(scratch: Path) -> TritonInstall:
    """tritonserver of PATH, else of the wheel; `scratch` receives links to the wheel's backends.

    Raises:
        ToolError: there is none, or none for this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return TritonInstall(Path(on_path).resolve())
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ToolError(
            "tritonserver was not found",
            hint="pip install 'trtbuild[cpu]' brings one; on a GPU host use NVIDIA's container.",
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    triton = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ToolError(f"nvidia-pytriton brings no tritonserver backend for Python {version}")
    # The wheel keeps one stub for each Python apart; the server looks for it beside the backend.
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for file in (*(triton / "backends" / "python").iterdir(), stub):
        link = backend / file.name
        if file.is_file() and not link.exists():
            link.symlink_to(file)
    libraries = (
        package.parent / "nvidia_pytriton.libs",
        triton / "external_libs",
        Path(sysconfig.get_config_var("LIBDIR") or "/"),
    )
    return TritonInstall(triton / "bin" / "tritonserver", backend.parent, tuple(p for p in libraries if p.is_dir()))
