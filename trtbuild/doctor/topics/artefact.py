"""Whether this machine can run an engine, repository or checkpoint. Facts: engine-build sections 4.1, 6, 7, 9.2."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Artefact, Facts
from trtbuild.doctor.finding import Finding, Wish
from trtbuild.doctor.topics.gpu import visible
from trtbuild.doctor.topics.host import usable_bytes
from trtbuild.doctor.topics.words import gib
from trtbuild.quantization import (
    DATA_CENTER_BLACKWELL,
    KV_LEAST_SM,
    KV_NOT_ON_BLACKWELL,
    LEAST_SM,
    NOT_ON_BLACKWELL,
)


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    artefact = facts.artefact
    if artefact is None:
        return
    for problem in artefact.problems:
        yield Finding("fail", "artefact.files", problem, "", "Build it again, or copy it whole.")
    if not artefact.kind:
        return
    algo = f", {artefact.quant_algo}" if artefact.quant_algo else ""
    what = (
        f"{artefact.kind} for {artefact.target}, {artefact.world_size} rank(s){algo}, {gib(sum(artefact.rank_bytes))}"
    )
    if artefact.target != wish.target and artefact.kind != "checkpoint":
        yield Finding(
            "fail",
            "artefact.target",
            f"{what}; asked for {wish.target}",
            "An engine runs on the target that it was built for.",
            f"trtbuild doctor {artefact.path} --target {artefact.target}",
        )
        return
    yield Finding("info", "artefact.what", what)
    if wish.gpus < artefact.world_size and artefact.kind != "checkpoint":
        yield Finding(
            "fail",
            "artefact.ranks",
            f"{artefact.world_size} ranks on {wish.gpus}",
            "The MPI world must equal tp x pp ('MPI size %d != TP size %d * PP size %d').",
            f"trtbuild doctor {artefact.path} --gpus {artefact.world_size}",
        )
    if wish.target == "cpu":
        yield from _on_cpu(facts, artefact)
    if wish.on_gpu:
        yield from _versions(facts, artefact)
        yield from _architecture(facts, artefact)
        if artefact.kind != "checkpoint":
            yield from _fits(facts, artefact)
        else:
            yield from _builds(facts, artefact, wish)


def _on_cpu(facts: Facts, artefact: Artefact) -> Iterator[Finding]:
    needed, usable = sum(artefact.rank_bytes), usable_bytes(facts.host)
    if needed > usable:
        yield Finding(
            "warn",
            "artefact.memory",
            f"{gib(needed)} of weights, {gib(usable)} of memory",
            "Weights are memory-mapped: it runs, but from the disk.",
            "trtbuild engine ... --quant int8",
        )
    else:
        yield Finding("ok", "artefact.memory", f"{gib(needed)} of weights, {gib(usable)} of memory")


def _versions(facts: Facts, artefact: Artefact) -> Iterator[Finding]:
    """config.json has TensorRT-LLM's version, which C++ only logs; TensorRT's is in our manifest (sections 6.2, 7)."""
    packages = facts.software.packages
    llm, rt = packages.get("tensorrt-llm", ""), packages.get("tensorrt", "")
    if artefact.tensorrt_llm and llm and matrix.post(artefact.tensorrt_llm) != matrix.post(llm):
        built = matrix.release_of(matrix.post(artefact.tensorrt_llm))
        yield Finding(
            "fail",
            "artefact.tensorrt_llm",
            f"built with TensorRT-LLM {artefact.tensorrt_llm}, here is {llm}",
            "Plugins of another release fail to deserialize ('Assertion failed: d == a + length').",
            f"Build it again here, or serve it in {built.image}" if built else "Build it again here.",
        )
    elif artefact.tensorrt_llm and llm:
        yield Finding("ok", "artefact.tensorrt_llm", f"built with TensorRT-LLM {artefact.tensorrt_llm}, as is here")
    wanted = artefact.tensorrt
    if not wanted and (release := matrix.release_of(matrix.post(artefact.tensorrt_llm))):
        wanted = release.tensorrt
    if wanted and rt and not matrix.same(rt, wanted):
        yield Finding(
            "fail",
            "artefact.tensorrt",
            f"built with TensorRT {wanted}, here is {rt}",
            "'The engine plan file is not compatible with this version of TensorRT'.",
            "Build it again here.",
        )


def _architecture(facts: Facts, artefact: Artefact) -> Iterator[Finding]:
    sms = {gpu.sm for gpu in visible(facts.driver) if gpu.sm is not None}
    for sm in sorted(sms):
        if artefact.sm is not None and artefact.sm != sm and artefact.kind != "checkpoint":
            yield Finding(
                "fail",
                "artefact.sm",
                f"built for SM {artefact.sm}, this GPU is SM {sm}",
                "'The engine plan file is generated on an incompatible device'.",
                f"trtbuild engine ... --target tensorrt --sm {sm}",
            )
        yield from _quantization(artefact, sm)


def _quantization(artefact: Artefact, sm: int) -> Iterator[Finding]:
    """What `trtbuild.quantization` says of the weights and of the KV cache on this architecture, once each way."""
    algos, kv = {artefact.quant_algo, *artefact.layer_algos}, artefact.kv_cache_algo
    newer = {algo: LEAST_SM.get(algo, 0) for algo in sorted(algos)}
    newer |= {f"an {kv} KV cache": KV_LEAST_SM.get(kv, 0)}
    lacking = {what: least for what, least in newer.items() if sm < least}
    if lacking:
        yield Finding(
            "fail",
            "artefact.quantization",
            f"{' and '.join(lacking)} on SM {sm}",
            f"It needs the tensor cores of SM {max(lacking.values())} or newer.",
            "trtbuild checkpoint ... --quant int4_awq or int8_sq",
        )
    if sm not in DATA_CENTER_BLACKWELL:
        return
    refused = [f"{algo} ({NOT_ON_BLACKWELL[algo]})" for algo in sorted(algos & NOT_ON_BLACKWELL.keys())]
    refused += [f"an {kv} KV cache"] if kv in KV_NOT_ON_BLACKWELL else []
    if refused:
        yield Finding(
            "fail",
            "artefact.quantization",
            f"{' and '.join(refused)} on SM {sm}",
            "trtllm-build refuses it on SM 100 to 119.",
            "trtbuild checkpoint ... --quant fp8 --kv-cache fp8",
        )


def _fits(facts: Facts, artefact: Artefact) -> Iterator[Finding]:
    """Weights of a rank are about its engine file; activations, buffers and the KV cache come on top (section 9.2)."""
    sizes = [gpu.memory_bytes for gpu in visible(facts.driver) if gpu.memory_bytes]
    largest = max(artefact.rank_bytes, default=0)
    if not sizes or not largest:
        return
    found = f"largest rank {gib(largest)}, smallest GPU {gib(min(sizes))}"
    if largest >= min(sizes):
        yield Finding(
            "fail",
            "artefact.memory",
            found,
            "The weights alone do not fit.",
            "Convert with a larger tp or pp, or quantize.",
        )
    elif largest > 0.85 * min(sizes):
        yield Finding(
            "warn",
            "artefact.memory",
            found,
            "Little is left for activations and the KV cache, which takes 90 % of what is free.",
            "trtbuild plan MODEL --tp ...",
        )
    else:
        yield Finding("ok", "artefact.memory", found)


def _builds(facts: Facts, artefact: Artefact, wish: Wish) -> Iterator[Finding]:
    """Host memory of a build: each rank that runs at once has its weights and TensorRT's copy (section 9.1)."""
    at_once = min(wish.gpus, artefact.world_size, max(1, len(facts.driver.gpus)))
    needed, usable = 2 * max(artefact.rank_bytes, default=0) * at_once, usable_bytes(facts.host)
    found = f"building {at_once} rank(s) at once takes about {gib(needed)} of host memory; {gib(usable)} usable"
    if needed > usable:
        yield Finding(
            "warn",
            "artefact.build",
            found,
            "The kernel kills the build without a traceback.",
            "Build with fewer ranks at once.",
        )
    else:
        yield Finding("ok", "artefact.build", found)
