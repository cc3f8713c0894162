"""Driver, CUDA, GPUs and their architecture. Facts: engine-build sections 4.1, 5, 7, 8; matrix.py."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Driver, Facts, Gpu
from trtbuild.doctor.finding import Finding, Level, Wish
from trtbuild.doctor.topics.words import GIB, counted, gib
from trtbuild.quantization import DATA_CENTER_BLACKWELL

_BUSY_BYTES = 1 * GIB
_RUN_WITH_GPUS = "docker run --gpus all ... (with the NVIDIA Container Toolkit on the host)"


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    driver = facts.driver
    if not driver.gpus:
        yield _no_gpu(facts, wish)
        return
    usable = visible(driver)
    yield from _count(driver, usable, wish)
    yield from _architecture(usable, wish)
    yield from _state(usable, wish)
    if driver.version:
        yield from _driver(facts, wish)
    if driver.cuda_init:
        yield Finding(
            "fail" if wish.on_gpu else "info",
            "gpu.cuda",
            f"cuInit ends with code {driver.cuda_init}{_CUDA_CODES.get(driver.cuda_init, '')}",
            "No CUDA program can start.",
            "nvidia-smi, then dmesg | grep -i nvrm; a reboot loads the driver that is installed.",
        )


_CUDA_CODES = {
    100: " (no device)",
    802: " (system not yet initialised: on NVSwitch machines the fabric manager does not run)",
    803: " (kernel driver and user-mode driver do not match)",
    804: " (forward compatibility on a GPU that is not a data centre GPU)",
}


def visible(driver: Driver) -> tuple[Gpu, ...]:
    """GPUs that CUDA_VISIBLE_DEVICES leaves; UUIDs are not looked up, only counted."""
    if driver.visible is None:
        return driver.gpus
    names = [name.strip() for name in driver.visible.split(",")]
    chosen: list[Gpu] = []
    for name in names:
        if name.isdigit():
            match = next((gpu for gpu in driver.gpus if gpu.index == int(name)), None)
            if match is None:
                break  # CUDA stops at the first that does not exist
            chosen.append(match)
        elif name.startswith(("GPU-", "MIG-")) and len(chosen) < len(driver.gpus):
            chosen.append(driver.gpus[len(chosen)])
        else:
            break
    return tuple(chosen)


def _no_gpu(facts: Facts, wish: Wish) -> Finding:
    problem = facts.driver.problem
    found = f"no GPU: {problem}" if problem else "no GPU, and no NVIDIA driver"
    if not wish.on_gpu:
        return Finding("info", "gpu.count", found, f"The {wish.target} target needs none.")
    if "version mismatch" in problem:
        remedy = "sudo reboot (the driver was updated, its old kernel module is still loaded)"
    elif "communicate with the NVIDIA driver" in problem or "Driver Not Loaded" in problem:
        remedy = "sudo modprobe nvidia, or install the driver for this kernel; dmesg | grep -i nvrm says why not"
    elif facts.container.inside:
        remedy = _RUN_WITH_GPUS
    else:
        remedy = f"Build on a GPU host: docker run --gpus all --shm-size=2g --ulimit memlock=-1 {matrix.OURS.image}"
    return Finding("fail", "gpu.count", found, "TensorRT times its kernels on the GPU that will run them.", remedy)


def _count(driver: Driver, usable: tuple[Gpu, ...], wish: Wish) -> Iterator[Finding]:
    kinds = {gpu.name: sum(other.name == gpu.name for other in driver.gpus) for gpu in driver.gpus}
    names = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    limited = "" if driver.visible is None else f"; CUDA_VISIBLE_DEVICES={driver.visible} leaves {len(usable)}"
    if wish.target == "cpu" or len(usable) >= wish.gpus:
        yield Finding("ok" if usable else "info", "gpu.count", names + limited)
        return
    yield Finding(
        "fail" if wish.on_gpu else "warn",
        "gpu.count",
        f"{names}{limited}; {wish.gpus} wanted",
        "A server runs one rank a GPU. Building alone can go on: ranks are built one after another on fewer GPUs "
        "of the same model.",
        "unset CUDA_VISIBLE_DEVICES"
        if len(driver.gpus) >= wish.gpus
        else f"Convert with tp x pp = {len(usable) or 1}.",
    )


def _architecture(usable: tuple[Gpu, ...], wish: Wish) -> Iterator[Finding]:
    sms = sorted({gpu.sm for gpu in usable if gpu.sm is not None})
    level: Level = "fail" if wish.on_gpu else "info"
    if not sms:
        return
    text = ", ".join(f"SM {sm}" for sm in sms)
    if len(sms) > 1 and wish.on_gpu:
        yield Finding(
            "fail" if wish.gpus > 1 else "warn",
            "gpu.sm",
            f"GPUs of several architectures: {text}",
            "An engine runs only on the architecture that built it.",
            "export CUDA_VISIBLE_DEVICES= the GPUs of one kind",
        )
    elif sms[0] < matrix.OLDEST_SM:
        yield Finding(
            level,
            "gpu.sm",
            text,
            f"TensorRT-LLM {matrix.OURS.tensorrt_llm} supports SM {matrix.OLDEST_SM} (Ampere) and newer.",
            "Use an A100, A10, L4, L40S, H100 or newer; the cpu target runs here.",
        )
    elif not set(sms) <= set(matrix.KNOWN_SMS):
        yield Finding(
            "warn" if wish.on_gpu else "info",
            "gpu.sm",
            text,
            f"Not in the support matrix of {matrix.OURS.tensorrt_llm}: {', '.join(map(str, matrix.KNOWN_SMS))}.",
            "Build a small model first.",
        )
    else:
        limits = "no INT8, INT4, SmoothQuant or row-wise FP8 weights and no INT8 KV cache"
        note = limits if sms[0] in DATA_CENTER_BLACKWELL else "no FP8 below SM 89" if sms[0] < 89 else ""
        yield Finding("ok", "gpu.sm", text, note)


def _state(usable: tuple[Gpu, ...], wish: Wish) -> Iterator[Finding]:
    if not wish.on_gpu:
        return
    for gpu in usable[: wish.gpus]:
        where = f"GPU {gpu.index}"
        if gpu.compute_mode == "Prohibited":
            yield Finding(
                "fail", "gpu.mode", f"{where} is in compute mode Prohibited", "", f"sudo nvidia-smi -i {gpu.index} -c 0"
            )
        elif gpu.compute_mode == "Exclusive_Process":
            yield Finding(
                "warn",
                "gpu.mode",
                f"{where} is in compute mode Exclusive_Process",
                "Only one process may use it: the build and a server, or two models, exclude each other.",
                f"sudo nvidia-smi -i {gpu.index} -c 0",
            )
        if gpu.mig == "Enabled":
            yield Finding(
                "warn",
                "gpu.mig",
                f"{where} has MIG enabled",
                "An instance has a part of the memory and no peer access; tensor parallel ranks cannot use it.",
                f"sudo nvidia-smi -i {gpu.index} -mig 0",
            )
        if gpu.memory_bytes is None:
            yield Finding("info", "gpu.memory", f"{where} does not say its memory: it shares the host's.")
        elif (gpu.used_bytes or 0) > _BUSY_BYTES:
            yield Finding(
                "warn",
                "gpu.memory",
                f"{where}: {gib(gpu.used_bytes or 0)} of {gib(gpu.memory_bytes)} are in use",
                "Tactics that do not fit are skipped, and the KV cache takes what is free at the start.",
                f"nvidia-smi -i {gpu.index} --query-compute-apps=pid,name,used_memory --format=csv",
            )
    sizes = [gpu.memory_bytes for gpu in usable if gpu.memory_bytes]
    if sizes:
        yield Finding("info", "gpu.memory", f"{gib(min(sizes))} on each of {counted(len(sizes), 'GPU')}")


def _driver(facts: Facts, wish: Wish) -> Iterator[Finding]:
    """Section 8 gives the driver of each image; an older one of the same CUDA major works with limits (matrix.py)."""
    driver = facts.driver
    image = matrix.RELEASES.get(facts.container.tag)
    llm = facts.software.packages.get("tensorrt-llm", "")
    release = image or matrix.release_of(matrix.post(llm)) or matrix.OURS
    cuda = facts.container.cuda or release.cuda
    wanted = facts.container.driver or release.driver
    what = f"image {facts.container.tag}" if facts.container.tag else release.image
    found = f"driver {driver.version}, which serves CUDA {driver.cuda or 'unknown'}"
    oldest = matrix.OLDEST_DRIVER.get(matrix.numbers(cuda)[0], wanted)
    update = f"Install driver {wanted} or newer on the host; or a tag with an older CUDA: " + _fitting(driver.version)
    if not wish.on_gpu or not matrix.older(driver.version, wanted):
        yield Finding("ok" if wish.on_gpu else "info", "gpu.driver", found)
    elif not matrix.older(driver.version, oldest):
        yield Finding(
            "warn",
            "gpu.driver",
            f"{found}; {what} comes with CUDA {cuda} and driver {wanted}",
            f"Minor version compatibility: CUDA {matrix.numbers(cuda)[0]}.x runs from driver {oldest} on, without what "
            "needs the newer driver (PTX compiled at run time).",
            update,
        )
    elif facts.container.tag and driver.cuda_init == 0 and not matrix.older(driver.cuda, _two(cuda)):
        yield Finding(
            "warn",
            "gpu.driver",
            f"{found} through the image's forward compatibility package; its own is {wanted}",
            "That package works on data centre GPUs and for some driver branches only; here cuInit succeeded.",
            update,
        )
    else:
        yield Finding(
            "fail",
            "gpu.driver",
            f"{found}; {what} needs CUDA {cuda}",
            f"CUDA {matrix.numbers(cuda)[0]}.x needs driver {oldest} or newer; older ones only work with NVIDIA's "
            "forward compatibility package, on data centre GPUs.",
            update,
        )


def _two(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _fitting(version: str) -> str:
    """The newest image whose own driver is not newer than this one."""
    fits = [row for row in matrix.RELEASES.values() if not matrix.older(version, row.driver)]
    if not fits:
        return "none in the matrix"
    return f"{fits[-1].image} (TensorRT-LLM {fits[-1].tensorrt_llm}; then rebuild engines there)"
