"""Which release ships what. Pure data, from two published tables.

- Triton's `docs/introduction/compatibility.md`: tag of `nvcr.io/nvidia/tritonserver:TAG-trtllm-python-py3`,
  TensorRT-LLM, TensorRT, CUDA, and the driver that comes with that CUDA (engine-build facts, section 8).
- CUDA's minor version compatibility: the oldest driver that runs any toolkit of a major release.

An engine runs only with the TensorRT and TensorRT-LLM that built it, on the architecture (SM) that built it
(section 7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtbuild.spec import SMS


@dataclass(frozen=True)
class Release:
    tag: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str
    driver: str

    @property
    def image(self) -> str:
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-trtllm-python-py3"


_ROWS = (
    # tags, TensorRT-LLM, TensorRT, CUDA, driver
    ("25.01", "0.17.0", "10.8.0.43", "12.8.0.038", "570.86.10"),
    ("25.02", "0.17.0.post1", "10.8.0.43", "12.8.0.038", "570.86.10"),
    ("25.03", "0.18.0", "10.9.0.34", "12.8.1.012", "570.124.06"),
    ("25.04", "0.18.2", "10.9.0.34", "12.8.1.012", "570.124.06"),
    ("25.05", "0.19.0", "10.9.0.34", "12.8.1.012", "570.124.06"),
    ("25.06 25.07", "0.20.0", "10.10.0.31", "12.9.0.036", "575.51.03"),
    ("25.08", "0.21.0", "10.11.0.33", "12.9.0.043", "575.51.03"),
    ("25.09 25.10", "1.0.0", "10.11.0.33", "12.9.1.010", "575.57.08"),
    ("25.11", "1.0.3.2510", "10.13.3.9", "13.0.2.006", "580.95.05"),
    ("25.12 26.01 26.02", "1.1.0", "10.13.3.9", "13.0.2.006", "580.95.05"),
    ("26.03", "1.2.0", "10.14.1.48", "13.1.0.036", "590.44.01"),
    ("26.04 26.05 26.06 26.07", "1.2.1", "10.14.1.48", "13.1.0.036", "590.44.01"),
)
RELEASES: dict[str, Release] = {tag: Release(tag, *row) for tags, *row in _ROWS for tag in tags.split()}
OURS = RELEASES["26.04"]
"""What trtbuild writes for: TensorRT-LLM 1.2.1, the last line with engines, in the first image that has it."""

OLDEST_DRIVER = {11: "450.80.02", 12: "525", 13: "580"}
"""CUDA major -> the oldest driver with minor version compatibility."""

OLDEST_SM = 80  # Volta left in 0.16; Ampere is the oldest in the support matrix (section 7)
KNOWN_SMS = SMS


def release_of(tensorrt_llm: str) -> Release | None:
    """The first image with a TensorRT-LLM version."""
    return next((row for row in RELEASES.values() if row.tensorrt_llm == tensorrt_llm), None)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "10.14.1.48.post1" -> (10, 14, 1, 48)."""
    found = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def older(version: str, wanted: str) -> bool:
    """True when `version` is known and before `wanted`, comparing the numbers that both have."""
    have, want = numbers(version), numbers(wanted)
    count = min(len(have), len(want))
    return bool(have) and have[:count] < want[:count]


def same(version: str, wanted: str, places: int = 3) -> bool:
    """Equal in the first `places` numbers; TensorRT refuses plans where these differ (section 7)."""
    have, want = numbers(version)[:places], numbers(wanted)[:places]
    count = min(len(have), len(want))
    return have[:count] == want[:count]


def post(version: str) -> str:
    """A version without its local part: "1.2.1+cu13" -> "1.2.1"."""
    return version.partition("+")[0]


def has_engines(tensorrt_llm: str) -> bool:
    """The engine backend exists up to the 1.2 line; upstream's main removed it in July 2026 (section 0)."""
    return numbers(tensorrt_llm)[:2] <= (1, 2)
