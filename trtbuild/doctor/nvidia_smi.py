"""Reading what nvidia-smi prints. Pure. Columns and units as `nvidia-smi --help-query-gpu` names them."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

from trtbuild.doctor.facts import Driver, Gpu

FIELDS = (
    "index",
    "name",
    "compute_cap",
    "memory.total",
    "memory.used",
    "driver_version",
    "compute_mode",
    "mig.mode.current",
)
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')


def query(fields: tuple[str, ...]) -> list[str]:
    """Arguments; with a header, so that columns are found by name and sizes have their unit."""
    return [f"--query-gpu={','.join(fields)}", "--format=csv"]


def unknown_field(said: str) -> str:
    """The field that this nvidia-smi is too old for (compute_cap came after driver 470), or empty."""
    found = _UNKNOWN_FIELD.search(said)
    return found[1] if found else ""


def read_csv(text: str) -> Driver:
    """Driver version and GPUs of a CSV with its header; "[N/A]" and the like are unknown values.

    Text that is no such table (messages of a broken driver, "No devices were found") becomes `problem`.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if "name" in re.split(r"\s*,\s*", line.strip())), None)
    if start is None:
        return Driver(problem=" ".join(line.strip() for line in lines) or "nvidia-smi printed nothing")
    header = [re.sub(r"\s*\[.*", "", name.strip()) for name in lines[start].split(",")]
    gpus: list[Gpu] = []
    version = ""
    for cells in csv.reader(lines[start + 1 :], skipinitialspace=True):
        if len(cells) != len(header):
            continue  # a warning between the rows
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        version = version or _known(row.get("driver_version", ""))
        gpus.append(
            Gpu(
                index=int(row["index"]) if row.get("index", "").isdigit() else len(gpus),
                name=row.get("name", ""),
                sm=_sm(row.get("compute_cap", "")),
                memory_bytes=_size(row.get("memory.total", "")),
                used_bytes=_size(row.get("memory.used", "")),
                compute_mode=_known(row.get("compute_mode", "")),
                mig=_known(row.get("mig.mode.current", "")),
            )
        )
    return Driver(version=version, gpus=tuple(gpus), problem="" if gpus else "nvidia-smi lists no GPU")


def read_header(driver: Driver, text: str) -> Driver:
    """The CUDA version in the box at the top of plain `nvidia-smi`; a driver without libcuda says N/A."""
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", text)
    version = re.search(r"Driver Version:\s*([\d.]+)", text)
    return replace(
        driver, cuda=cuda[1] if cuda else driver.cuda, version=driver.version or (version[1] if version else "")
    )


def _known(cell: str) -> str:
    return (
        ""
        if re.fullmatch(r"\[?(N/A|Not Supported|Unknown Error|Insufficient Permissions|.*Error.*)\]?", cell)
        else cell
    )


def _sm(cell: str) -> int | None:
    found = re.fullmatch(r"(\d+)\.(\d)", cell)
    return int(found[1]) * 10 + int(found[2]) if found else None


def _size(cell: str) -> int | None:
    found = re.fullmatch(r"([\d.]+) (\w+)", cell)
    return int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else None
