"""tritonserver and its backends. Facts: triton-repo sections 1, 2 and 14."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Facts, Triton
from trtbuild.doctor.finding import Finding, Level, Wish


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    triton = facts.triton
    image = f"docker pull {matrix.OURS.image}"
    bad: Level = {"cpu": "fail", "tensorrt": "warn"}.get(wish.target, "info")  # type: ignore[assignment]
    if facts.artefact is not None and facts.artefact.kind == "repository" and wish.target != "llmapi":
        bad = "fail"  # nothing else runs a repository
    if not triton.binary:
        yield Finding(
            bad,
            "triton.server",
            triton.problem or "tritonserver was not found",
            "`trtbuild serve` starts it; engines can be built without.",
            "pip install 'trtbuild[cpu]'" if wish.target == "cpu" else image,
        )
        return
    if triton.problem:
        remedy = "ldd " + triton.binary
        yield Finding(bad, "triton.server", f"{triton.binary} {triton.problem}", "", remedy)
        return
    yield Finding("ok", "triton.server", f"tritonserver {_version(triton)} ({triton.binary})")
    wanted = ["python", *(["tensorrtllm"] if wish.on_gpu else [])]
    missing = [name for name in wanted if name not in triton.backends]
    have = ", ".join(triton.backends) or "none"
    if missing:
        yield Finding(
            bad,
            "triton.backends",
            f"backends {have}; missing {', '.join(missing)}",
            "'unable to find backend library for backend' is what follows. preprocessing and postprocessing run in the "
            "python backend, engines in tensorrtllm.",
            image if wish.on_gpu else "pip install 'trtbuild[cpu]'",
        )
    else:
        yield Finding("ok", "triton.backends", f"backends {have}")


def _version(triton: Triton) -> str:
    return "of the nvidia-pytriton wheel" if triton.bundled else triton.version or "of unknown version"
