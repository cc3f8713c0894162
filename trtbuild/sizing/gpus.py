"""The GPUs, as data.

`memory_gib` is what a CUDA process sees as the total, which is less than the board's name says: as printed by
TensorRT-LLM ("total: 79.10 GiB") or PyTorch ("total capacity of 139.80 GiB") in public logs. Where `seen` is false no
such log was found, and 96 % of the board's gigabytes (as GiB) are assumed. Bandwidths (of memory, and of NVLink in both
directions together), and which NVLinks are bridges of two boards, are those of NVIDIA's data sheets. PURE.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from trtbuild.errors import PlanError
from trtbuild.quantization import DATA_CENTER_BLACKWELL

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """`sm`: compute capability without its dot. `nvlink`: GB/s of all its links, 0 where it has none; `bridged`: a
    bridge joins two boards by them, and further ones are on PCIe.

    `bandwidth`: GB/s of its memory. `refused`: why TensorRT-LLM 1.2 does not run on it, or nothing.
    """

    name: str
    aliases: tuple[str, ...]
    sm: int
    memory_gib: float
    bandwidth: int
    nvlink: int = 0
    seen: bool = True
    refused: str = ""
    bridged: bool = False

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    @property
    def layout_sm(self) -> int | None:
        """What a conversion must name as `sm`: kernels of SM 90 have a layout of their own, the rest the default.

        What it cannot run is for `legality` to say, beside what does not fit it.
        """
        return self.sm if self.sm == 90 else None

    @property
    def fp8(self) -> bool:
        """Whether it has fp8 tensor cores (Ada, Hopper, Blackwell; engine-build 7)."""
        return self.sm >= 89

    @property
    def int8(self) -> bool:
        """Whether TensorRT-LLM has its int8 and int4 kernels for it (engine-build 4.1: not on SM 100 to 119)."""
        return not self.refused and self.sm not in DATA_CENTER_BLACKWELL


_TURING = "TensorRT-LLM supports Ampere and newer (SM 80 up); Turing was never on its list"
_VOLTA = "TensorRT-LLM dropped Volta (SM 70) in release 0.16"

GPUS: tuple[Gpu, ...] = (
    Gpu("A100-SXM-80GB", ("A100", "A100-80GB", "A100-SXM4-80GB"), 80, 79.15, 2039, 600),
    Gpu("A100-PCIe-80GB", ("A100-80GB-PCIe",), 80, 79.15, 1935, 600, bridged=True),
    Gpu("A100-SXM-40GB", ("A100-40GB", "A100-SXM4-40GB"), 80, 39.39, 1555, 600),
    Gpu("A100-PCIe-40GB", ("A100-40GB-PCIe",), 80, 39.39, 1555, 600, bridged=True),
    Gpu("A30", ("A30-24GB",), 80, 23.04, 933, 200, seen=False, bridged=True),
    Gpu("A10", ("A10-24GB",), 86, 21.99, 600),
    Gpu("A10G", ("A10G-24GB",), 86, 22.05, 600),
    Gpu("A40", ("A40-48GB",), 86, 44.34, 696, 112, bridged=True),
    Gpu("RTX-A6000", ("A6000",), 86, 47.40, 768, 112, bridged=True),
    Gpu("RTX-3090", ("3090", "GeForce-RTX-3090"), 86, 23.68, 936, 112, bridged=True),
    Gpu("L4", ("L4-24GB",), 89, 22.03, 300),
    Gpu("L40", ("L40-48GB",), 89, 44.39, 864),
    Gpu("L40S", ("L40S-48GB",), 89, 44.39, 864),
    Gpu("RTX-4090", ("4090", "GeForce-RTX-4090"), 89, 23.52, 1008),
    Gpu("RTX-6000-Ada", ("6000-Ada", "RTX-6000-Ada-Generation"), 89, 47.40, 960),
    Gpu("H100-SXM", ("H100", "H100-80GB", "H100-SXM5-80GB", "H100-80GB-HBM3"), 90, 79.10, 3350, 900),
    Gpu("H100-PCIe", ("H100-80GB-PCIe",), 90, 79.10, 2000, 600, bridged=True),
    Gpu("H100-NVL", ("H100-NVL-94GB",), 90, 93.10, 3938, 600, bridged=True),
    Gpu("H20", ("H20-96GB",), 90, 95.00, 4000, 900),
    Gpu("H200", ("H200-SXM", "H200-141GB"), 90, 139.80, 4800, 900),
    Gpu("GH200", ("GH200-96GB",), 90, 94.50, 4000, 900),
    Gpu("GH200-144GB", ("GH200-HBM3e",), 90, 138.24, 4900, 900, seen=False),
    Gpu("B200", ("B200-SXM", "B200-180GB"), 100, 178.35, 8000, 1800),
    Gpu("GB200", ("GB200-NVL72",), 100, 184.31, 8000, 1800),
    Gpu("RTX-5090", ("5090", "GeForce-RTX-5090"), 120, 31.34, 1792),
    Gpu("RTX-PRO-6000", ("RTX-PRO-6000-Blackwell", "PRO-6000"), 120, 94.97, 1792),
    Gpu("T4", ("Tesla-T4",), 75, 14.56, 320, refused=_TURING),
    Gpu("RTX-2080-Ti", ("2080-Ti",), 75, 10.56, 616, seen=False, refused=_TURING),
    Gpu("V100-16GB", ("Tesla-V100-16GB",), 70, 15.75, 900, 300, refused=_VOLTA),
    Gpu("V100-32GB", ("V100", "Tesla-V100"), 70, 30.72, 900, 300, seen=False, refused=_VOLTA),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of that name or alias, whatever its case, spaces and dashes, "NVIDIA" in front or not.

    Raises:
        PlanError: there is none; says the nearest names.
    """
    known = {_plain(alias): gpu for gpu in GPUS for alias in (gpu.name, *gpu.aliases)}
    wanted = _plain(name)
    if wanted in known:
        return known[wanted]
    near = list(dict.fromkeys(known[close].name for close in get_close_matches(wanted, known, 4, 0.5)))
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"known: {', '.join(gpu.name for gpu in GPUS)}"
    raise PlanError((f"unknown GPU {name!r}; {hint}",))


def _plain(name: str) -> str:
    text = "".join(char for char in name.lower() if char.isalnum())
    return text.removeprefix("nvidia")
