"""Which image this is, and whether it still is what it was. Facts: engine-build section 8."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Facts
from trtbuild.doctor.finding import Finding, Wish


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    container = facts.container
    if not container.tag:
        where = "a container, not one of Triton's" if container.inside else "not in a container"
        yield Finding(
            "info",
            "container.tag",
            where,
            f"{matrix.OURS.image} has the versions that fit each other." if wish.on_gpu else "",
        )
        return
    release = matrix.RELEASES.get(container.tag)
    llm = facts.software.packages.get("tensorrt-llm", "")
    known = max(matrix.RELEASES)
    if release is None:
        newer = container.tag > known
        yield Finding(
            "fail" if wish.on_gpu and newer and not (llm and matrix.has_engines(llm)) else "warn",
            "container.tag",
            f"Triton image {container.tag}, not in the matrix ({min(matrix.RELEASES)} to {known})",
            "TensorRT-LLM removed the engine backend after the 1.2 line." if newer else "",
            f"docker pull {matrix.OURS.image}",
        )
        return
    flavour = "tensorrtllm" in facts.triton.backends or bool(llm)
    if wish.on_gpu and not flavour:
        yield Finding(
            "fail",
            "container.flavour",
            f"Triton image {container.tag} without TensorRT-LLM",
            "The plain tags ship another TensorRT and CUDA than the trtllm tags of the same month.",
            f"docker pull {release.image}",
        )
        return
    ships = f"TensorRT-LLM {release.tensorrt_llm}, TensorRT {release.tensorrt}, CUDA {release.cuda}"
    if not wish.on_gpu or release.tensorrt_llm == matrix.OURS.tensorrt_llm:
        yield Finding("ok" if flavour else "info", "container.tag", f"Triton image {container.tag}: {ships}")
    else:
        yield Finding(
            "warn",
            "container.tag",
            f"Triton image {container.tag}: {ships}",
            f"trtbuild writes checkpoints and build configurations of {matrix.OURS.tensorrt_llm}; converter and "
            "builder must be of one release.",
            f"docker pull {matrix.OURS.image}",
        )
    yield from _changed(facts, release, wish)


def _changed(facts: Facts, release: matrix.Release, wish: Wish) -> Iterator[Finding]:
    """Packages that are no longer those of the image: a pip install on top."""
    installed = facts.software.packages
    pairs = (("tensorrt-llm", release.tensorrt_llm), ("tensorrt", facts.container.tensorrt or release.tensorrt))
    for name, wanted in pairs:
        have = installed.get(name, "")
        equal = matrix.same(have, wanted) if name == "tensorrt" else _same_release(have, wanted)
        if have and not equal:
            yield Finding(
                "fail" if wish.on_gpu else "info",
                "container.changed",
                f"{name} {have} is installed over the image's {wanted}",
                "The image's C++ backend and plugins were built for the image's own version.",
                f"Start the image anew, or: pip install {name}=={wanted}",
            )


def _same_release(have: str, wanted: str) -> bool:
    """The wheel of an image may carry a local or fourth part: 1.0.3.2510, 1.2.1+cu13."""
    return matrix.post(have) == matrix.post(wanted) or matrix.numbers(have)[:3] == matrix.numbers(wanted)[:3]
