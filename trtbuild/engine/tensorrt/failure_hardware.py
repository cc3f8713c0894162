"""The rows of `failure_table` about memory, disks, GPUs and drivers. PURE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """A row. All `patterns` must be in the log; their named groups fill `sentence`, which follows "rank N: ".

    A part of the sentence in brackets is left out where a group of it took no part in the match.
    """

    name: str
    patterns: tuple[str, ...]
    sentence: str
    remedy: str
    source: str


_LLM = "NVIDIA/TensorRT-LLM"
_LESS_GPU = (
    "Lower max_num_tokens, max_batch_size or max_seq_len, spread the model over more GPUs (--tp, --pp), or free the "
    "GPU: `nvidia-smi` lists who uses it."
)
_LESS_HOST = (
    "Build fewer ranks at once (--processes), or raise the memory limit of the container or the job: a build needs "
    "about twice the weights of a rank in host memory, for each process."
)
_GPU_KIND = (
    "Convert the model again with a quantization that this GPU has: `trtbuild plan --target tensorrt` checks it."
)

HARDWARE: tuple[Failure, ...] = (
    # memory of the GPU
    Failure(
        "gpu-memory-tactics",
        (
            r"Could not find any implementation for node (?P<node>\{[^}\n]+\}|[^\n]{1,80})",
            r"(?:insufficient memory|Device memory is insufficient|OutOfMemory)",
            r"(?:Tactic Device request: (?P<asked>\d+MB) Available: (?P<free>\d+MB)|insufficient memory|OutOfMemory)",
        ),
        "no kernel of TensorRT fits into the GPU's memory[ (asked {asked}, free {free})], at node {node}",
        _LESS_GPU,
        f"{_LLM}#743, #1077; modal-labs/modal-examples#747",
    ),
    Failure(
        "gpu-memory",
        (
            r"(?:resizePhysical\]? ?.*OutOfMemory|Requested amount of GPU memory \((?P<bytes>\d+) bytes\) could not be "
            r"allocated|CUDA out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|"
            r"Error Code 2: OutOfMemory|CUDA error: out of memory|[Cc]uda ?[Mm]alloc.*out of memory)",
        ),
        "the GPU's memory is used up[ (a request of {bytes} bytes failed)]",
        _LESS_GPU,
        f"engine-build 9.1; {_LLM}#1543, #2451, #59",
    ),
    # memory of the host
    Failure(
        "host-memory",
        (
            r"(?:oom[-_]kill event|Out Of Memory|OOM[- ]killed|^Killed\b|task \d+: Killed|std::bad_alloc|\bMemoryError|"
            r"Cannot allocate memory)",
        ),
        "the host's memory is used up",
        _LESS_HOST,
        f"engine-build 9.1; {_LLM}#102, #538, #743, #1543, #2451",
    ),
    Failure(
        "disk-full",
        (r"(?:No space left on device|Disk quota exceeded)",),
        "the disk is full",
        "Make room where the output is, or choose another place: an engine is about as large as its checkpoint.",
        f"{_LLM}#4375",
    ),
    Failure(
        "cannot-write",
        (r"(?:PermissionError: \[Errno 13\].*?'(?P<path>[^']+)'|Read-only file system: '(?P<place>[^']+)')",),
        "it may not write {path}{place}",
        "The output, its logs and the timing cache must be writable on every host.",
        "Python's own wording",
    ),
    # GPUs and drivers
    Failure(
        "no-gpu",
        (
            r"(?:No CUDA GPUs are available|no CUDA-capable device is detected|max_workers must be greater than 0|"
            r"Found no NVIDIA driver|CUDA_ERROR_NO_DEVICE)",
        ),
        "it sees no GPU",
        "Start the container with --gpus all, and look at CUDA_VISIBLE_DEVICES; `trtbuild doctor` tests it.",
        f"{_LLM}#1164, #1523; triton_cli#65",
    ),
    Failure(
        "gpu-number",
        (r"invalid device ordinal",),
        "there are more processes on the host than GPUs",
        "Start one process a GPU (--processes, or slots=GPUS in the hostfile), and leave CUDA_VISIBLE_DEVICES whole.",
        "engine-build 5",
    ),
    Failure(
        "driver-old",
        (
            r"(?:CUDA driver version is insufficient|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH|"
            r"forward compatibility was attempted|driver on your system is too old \(found version (?P<found>\d+)|"
            r"built for NVIDIA Driver Release (?P<wanted>[\d.]+) or later)",
        ),
        "the driver is older than the container's CUDA[ (it is for CUDA {found})][ (release {wanted} is wanted)]",
        "TensorRT-LLM 1.2.1 is built for CUDA 13.1: install driver 590 or newer, or take an older container.",
        f"engine-build 8; {_LLM}#23, #83, #92; NVIDIA/nvidia-docker#400",
    ),
    Failure(
        "fabric-manager",
        (r"(?:[Ss]ystem not yet initialized|cudaErrorSystemNotReady|CUDA_ERROR_SYSTEM_NOT_READY)",),
        "the GPUs are joined by NVSwitch, and the service that sets it up does not run (CUDA error 802)",
        "On the host: systemctl start nvidia-fabricmanager, of the driver's version; nvidia-smi -q shows it as Fabric.",
        f"{_LLM}#398; pytorch/pytorch#35710",
    ),
    Failure(
        "gpu-busy",
        (r"CUDA-capable device(?:s|\(s\) is/)? ?are busy or unavailable",),
        "another process has the GPU for itself, or the driver does not give it out",
        "nvidia-smi shows the compute mode and who uses it; `nvidia-smi -c 0` lets several processes share it.",
        "NVIDIA/TensorRT#3822",
    ),
    Failure(
        "gpu-broken",
        (r"(?P<what>uncorrectable ECC error encountered|GPU has fallen off the bus|GPU is lost)",),
        "the GPU does not work any more: {what}",
        "dmesg has its Xid errors; reset the GPU (nvidia-smi --gpu-reset) or the host, or leave the GPU out.",
        "CUDA's and the driver's own wording",
    ),
    Failure(
        "gpu-too-old",
        (
            r"(?:Unsupported [Aa]rch(?:itecture)? \([^)]*(?:fmhaRunner|cutlass_preprocessors)|"
            r"Unsupported SM|no kernel image is available for execution)",
        ),
        "TensorRT-LLM 1.2 has no kernels for this GPU generation",
        "It needs an Ampere GPU (SM 80) or newer.",
        f"{_LLM}#198, #1515; Tlntin/Qwen-TensorRT-LLM#15",
    ),
    Failure(
        "sm100",
        (
            r"(?P<what>INT8/INT4 quantization|SmoothQuant|Per-channel or per-token scaling) is not supported on "
            r"SM ?>= ?100",
        ),
        "{what} is not supported on Blackwell GPUs",
        "Convert the model again in FP8 (--quant fp8) or leave it in bfloat16.",
        "engine-build 4.1",
    ),
    Failure(
        "plugin-sm",
        (r"NotImplementedError: (?P<what>\w+)=(?P<value>\S+) is not supported on SM (?P<sm>\d+)",),
        "{what} {value} is not supported on SM {sm}",
        "Leave the plugin out (--set NAME=disable).",
        "engine-build 3.2",
    ),
    Failure(
        "fp8-gpu",
        (
            r"(?:Networks with FP8 Q/DQ layers require hardware with FP8 support|FP8 FMHA cannot be enabled except on|"
            r"FP8 FMHA cannot be enabled on Pre-)",
        ),
        "this GPU has no fp8 (SM 89 or newer has)",
        _GPU_KIND,
        f"{_LLM}#1864, #2855; NVIDIA/Model-Optimizer#70",
    ),
)
