"""Driver and GPUs: nvidia-smi, and NVML and libcuda through ctypes in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from trtbuild.doctor import nvidia_smi
from trtbuild.doctor.facts import Driver, Gpu
from trtbuild.doctor.probes.process import run

_LIMIT_S = 20.0  # without persistence mode the first call on a machine with eight GPUs takes several seconds
_LIBRARIES = Path(__file__).with_name("nvidia_libraries.py")


def probe_driver() -> Driver:
    """What is known of the driver; where nvidia-smi is missing (slim containers), NVML knows the GPUs too."""
    driver = _from_nvidia_smi()
    said = run([sys.executable, str(_LIBRARIES)], _LIMIT_S)
    try:
        found = json.loads(said.out)
    except ValueError:  # it crashed or hung, which is a fact about the driver
        found = {}
        driver = replace(driver, problem=driver.problem or f"libcuda does not answer: {said.err.strip()[-200:]}")
    gpus = driver.gpus or tuple(Gpu(**row) for row in found.get("gpus", ()))
    return replace(
        driver,
        gpus=gpus,
        version=driver.version or found.get("driver", ""),
        cuda=found.get("cuda", "") or driver.cuda,
        cuda_init=found.get("cuda_init"),
        nvml=found.get("nvml", ""),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        problem="" if gpus else driver.problem or found.get("nvml_problem", ""),
    )


def _from_nvidia_smi() -> Driver:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Driver()
    fields: tuple[str, ...] = nvidia_smi.FIELDS
    said = run([program, *nvidia_smi.query(fields)], _LIMIT_S)
    while (unknown := nvidia_smi.unknown_field(said.text)) in fields:
        fields = tuple(name for name in fields if name != unknown)
        said = run([program, *nvidia_smi.query(fields)], _LIMIT_S)
    driver = replace(nvidia_smi.read_csv(said.text), nvidia_smi=program)
    return nvidia_smi.read_header(driver, run([program], _LIMIT_S).out)
