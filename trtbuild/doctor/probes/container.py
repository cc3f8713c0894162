"""NVIDIA's image around this process, by the variables and files that it sets."""

from __future__ import annotations

import os
from pathlib import Path

from trtbuild.doctor.facts import Container

TRITON = Path("/opt/tritonserver")
_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def probe_container() -> Container:
    """Tag and versions of a Triton image; elsewhere only whether this is a container."""
    get = os.environ.get
    version_file = TRITON / "TRITON_VERSION"
    try:
        triton = version_file.read_text().strip()
    except OSError:
        triton = get("TRITON_SERVER_VERSION", "")
    return Container(
        inside=any(sign.exists() for sign in _SIGNS) or "KUBERNETES_SERVICE_HOST" in os.environ,
        product=get("NVIDIA_PRODUCT_NAME", ""),
        tag=get("NVIDIA_TRITON_SERVER_VERSION", ""),
        triton=triton,
        cuda=get("CUDA_VERSION", ""),
        tensorrt=get("TRT_VERSION", ""),
        driver=get("CUDA_DRIVER_VERSION", ""),
    )
