"""A program: asks NVML and libcuda through ctypes and prints JSON.

In a process of its own, as a broken driver hangs or crashes whoever asks. Signatures and constants: nvml.h and cuda.h.
It uses the standard library alone.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, byref, c_char, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

_NVML_SUCCESS = 0
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE


class _Memory(ctypes.Structure):  # nvmlMemory_t
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def ask_nvml() -> dict[str, Any]:
    """NVML's version, the driver's, and the GPUs; `nvml_problem` where it does not start."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    code = nvml.nvmlInit_v2()
    if code != _NVML_SUCCESS:
        return {"nvml_problem": f"NVML: {nvml.nvmlErrorString(code).decode(errors='replace')} (code {code})"}
    text = (c_char * _NAME_BYTES)()
    found: dict[str, Any] = {"gpus": []}
    if nvml.nvmlSystemGetDriverVersion(text, c_uint(_NAME_BYTES)) == _NVML_SUCCESS:
        found["driver"] = text.value.decode()
    if nvml.nvmlSystemGetNVMLVersion(text, c_uint(_NAME_BYTES)) == _NVML_SUCCESS:
        found["nvml"] = text.value.decode()
    count = c_uint()
    nvml.nvmlDeviceGetCount_v2(byref(count))
    for index in range(count.value):
        device = c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(device)) == _NVML_SUCCESS:
            found["gpus"].append(_gpu(nvml, index, device))
    nvml.nvmlShutdown()
    return found


def _gpu(nvml: ctypes.CDLL, index: int, device: c_void_p) -> dict[str, Any]:
    row: dict[str, Any] = {"index": index, "name": ""}
    text = (c_char * _NAME_BYTES)()
    if nvml.nvmlDeviceGetName(device, text, c_uint(_NAME_BYTES)) == _NVML_SUCCESS:
        row["name"] = text.value.decode(errors="replace")
    major, minor = c_int(), c_int()
    if nvml.nvmlDeviceGetCudaComputeCapability(device, byref(major), byref(minor)) == _NVML_SUCCESS:
        row["sm"] = major.value * 10 + minor.value
    memory = _Memory()
    if nvml.nvmlDeviceGetMemoryInfo(device, byref(memory)) == _NVML_SUCCESS:  # not on GPUs that share the host's
        row["memory_bytes"], row["used_bytes"] = memory.total, memory.used
    return row


def ask_cuda() -> dict[str, Any]:
    """cuInit's code and the CUDA version that libcuda serves: with a forward compatibility package, the package's."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {}
    cuda.cuDriverGetVersion.argtypes = (POINTER(c_int),)
    version = c_int()
    found: dict[str, Any] = {"cuda_init": int(cuda.cuInit(c_uint(0)))}
    if cuda.cuDriverGetVersion(byref(version)) == 0 and version.value:
        found["cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return found


if __name__ == "__main__":
    print(json.dumps({**ask_nvml(), **ask_cuda()}))
