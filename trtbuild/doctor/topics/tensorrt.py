"""TensorRT-LLM and TensorRT. Facts: engine-build sections 0, 7 and 8."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Facts
from trtbuild.doctor.finding import Finding, Wish

_OURS = matrix.OURS


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    if wish.target == "cpu":
        return
    llm = facts.software.packages.get("tensorrt-llm", "")
    rt = facts.software.packages.get("tensorrt", "")
    if wish.target == "llmapi":
        found = f"tensorrt-llm {llm}" if llm else "tensorrt-llm is not installed"
        yield Finding("info", "tensorrt.llm", found, "Exporting needs none; TensorRT-LLM or vLLM serve elsewhere.")
        return
    yield _llm(llm, facts)
    if llm and not facts.software.trtllm_build and matrix.has_engines(llm):
        yield Finding(
            "warn",
            "tensorrt.trtllm_build",
            "trtllm-build is not on PATH",
            "The wheel installs it beside Python; trtbuild builds in-process without it.",
            'export PATH="$(dirname "$(python3 -c "import sys; print(sys.executable)")"):$PATH"',
        )
    release = matrix.release_of(matrix.post(llm)) or _OURS
    if not rt:
        yield Finding(
            "fail",
            "tensorrt.tensorrt",
            "tensorrt is not installed",
            f"TensorRT-LLM {release.tensorrt_llm} was built against TensorRT {release.tensorrt}.",
            f"docker pull {release.image}",
        )
    elif llm and not matrix.same(rt, release.tensorrt):
        yield Finding(
            "fail",
            "tensorrt.tensorrt",
            f"tensorrt {rt}, but TensorRT-LLM {llm} goes with {release.tensorrt}",
            "A plan of another TensorRT is refused: 'The engine plan file is not compatible with this version of "
            "TensorRT'.",
            f"pip install 'tensorrt~={'.'.join(release.tensorrt.split('.')[:3])}', or {release.image}",
        )
    else:
        yield Finding("ok", "tensorrt.tensorrt", f"tensorrt {rt}")


def _llm(llm: str, facts: Facts) -> Finding:
    if not llm:
        return Finding(
            "fail",
            "tensorrt.llm",
            "tensorrt-llm is not installed",
            "It builds and runs the engines.",
            f"docker pull {_OURS.image}; or, with Python 3.12 and CUDA 13: pip install "
            f"tensorrt-llm=={_OURS.tensorrt_llm} (it fetches the wheel from NVIDIA's index)",
        )
    if not matrix.has_engines(llm):
        return Finding(
            "fail",
            "tensorrt.llm",
            f"tensorrt-llm {llm}",
            "The engine backend (trtllm-build, tensorrt_llm.build) was removed after the 1.2 line.",
            f"docker pull {_OURS.image}; or use --target llmapi",
        )
    if matrix.post(llm) != _OURS.tensorrt_llm:
        return Finding(
            "warn",
            "tensorrt.llm",
            f"tensorrt-llm {llm}",
            f"trtbuild's checkpoints and options are those of {_OURS.tensorrt_llm}.",
            f"docker pull {_OURS.image}",
        )
    return Finding("ok", "tensorrt.llm", f"tensorrt-llm {llm}")
