"""Python, its packages, and the compiler of the native kernels."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Facts
from trtbuild.doctor.finding import Finding, Level, Wish

OLDEST, NEWEST = (3, 10), (3, 13)  # requires-python of pyproject.toml
_NEEDED = {
    "cpu": ("torch", "numpy", "safetensors", "transformers", "tritonclient"),
    "tensorrt": ("torch", "numpy", "safetensors", "transformers"),
    "llmapi": ("torch", "numpy", "safetensors", "transformers"),
}
_EXTRA = {"cpu": "cpu", "tensorrt": "convert", "llmapi": "convert"}


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    software = facts.software
    minor = matrix.numbers(software.python)[:2]
    fits = OLDEST <= minor <= NEWEST
    yield Finding(
        "ok" if fits else "fail",
        "software.python",
        f"Python {software.python} on {software.system} {software.machine}",
        "" if fits else "trtbuild runs on Python 3.10 to 3.13.",
        "" if fits else "python3.12 -m venv .venv",
    )
    if software.system != "Linux":
        yield Finding(
            "fail",
            "software.system",
            software.system,
            "tritonserver and mpirun are used on Linux.",
            "Take a Linux host, WSL 2, or a Linux container",
        )
    if wish.on_gpu and fits and minor not in ((3, 10), (3, 12)):
        yield Finding(
            "info",
            "software.python",
            f"the {matrix.OURS.tag} image has Python 3.12",
            "Wheels of TensorRT-LLM are made for few Pythons.",
        )
    missing = [name for name in _NEEDED[wish.target] if name not in software.packages]
    if missing:
        yield Finding(
            "fail",
            "software.packages",
            f"missing: {', '.join(missing)}",
            "Conversion and the engine build import them.",
            f"pip install 'trtbuild[{_EXTRA[wish.target]}]'",
        )
    else:
        text = ", ".join(f"{name} {software.packages[name]}" for name in _NEEDED[wish.target])
        yield Finding("ok", "software.packages", text)
    yield _compiler(facts, wish)


def _compiler(facts: Facts, wish: Wish) -> Finding:
    software = facts.software
    if software.compiler:
        return Finding("ok", "software.compiler", f"{software.compiler} {software.compiler_version}".strip())
    level: Level = "warn" if wish.target == "cpu" else "info"
    return Finding(
        level,
        "software.compiler",
        "no C compiler",
        "The cpu target's native kernels are compiled for this CPU; without them torch computes, slower.",
        "apt-get install gcc libc6-dev (or set CC)",
    )
