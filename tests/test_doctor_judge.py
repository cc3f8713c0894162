"""What the doctor makes of machines of many kinds; the rules are those of the reference, not of the code."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest

from tests.machines import (
    A100_BOX,
    CONVERT,
    FORWARD_COMPATIBLE,
    GIB,
    H100_IMAGE,
    LAPTOP,
    OLD_DRIVER,
    SLURM,
    SMALL_CONTAINER,
    gpus,
    hello,
    host,
)
from tests.tiny import ROOT
from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Artefact, Container, Disk, Driver, Facts, Mpi, Triton, dump, load
from trtbuild.doctor.finding import Finding, Report, Wish
from trtbuild.doctor.judge import judge, wish_for

# Triton's compatibility page, as published: tag, TensorRT-LLM, TensorRT, CUDA, driver.
PUBLISHED = """
25.01 0.17.0 10.8.0.43 12.8.0.038 570.86.10
25.02 0.17.0.post1 10.8.0.43 12.8.0.038 570.86.10
25.03 0.18.0 10.9.0.34 12.8.1.012 570.124.06
25.04 0.18.2 10.9.0.34 12.8.1.012 570.124.06
25.05 0.19.0 10.9.0.34 12.8.1.012 570.124.06
25.06 0.20.0 10.10.0.31 12.9.0.036 575.51.03
25.07 0.20.0 10.10.0.31 12.9.0.036 575.51.03
25.08 0.21.0 10.11.0.33 12.9.0.043 575.51.03
25.09 1.0.0 10.11.0.33 12.9.1.010 575.57.08
25.10 1.0.0 10.11.0.33 12.9.1.010 575.57.08
25.11 1.0.3.2510 10.13.3.9 13.0.2.006 580.95.05
25.12 1.1.0 10.13.3.9 13.0.2.006 580.95.05
26.01 1.1.0 10.13.3.9 13.0.2.006 580.95.05
26.02 1.1.0 10.13.3.9 13.0.2.006 580.95.05
26.03 1.2.0 10.14.1.48 13.1.0.036 590.44.01
26.04 1.2.1 10.14.1.48 13.1.0.036 590.44.01
26.05 1.2.1 10.14.1.48 13.1.0.036 590.44.01
26.06 1.2.1 10.14.1.48 13.1.0.036 590.44.01
26.07 1.2.1 10.14.1.48 13.1.0.036 590.44.01
"""


def said(report: Report, *levels: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in report.findings if finding.level in levels}


def on(facts: Facts, target: str = "tensorrt", count: int = 1) -> Report:
    return judge(facts, Wish(target, count))


def test_the_matrix_is_the_published_one() -> None:
    rows = [tuple(line.split()) for line in PUBLISHED.split("\n") if line]
    ours = [(r.tag, r.tensorrt_llm, r.tensorrt, r.cuda, r.driver) for r in matrix.RELEASES.values()]
    assert ours == rows
    assert matrix.OURS.tensorrt_llm == "1.2.1"
    assert matrix.OURS.image == "nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3"


@pytest.mark.parametrize(
    ("version", "wanted", "is_older"),
    [
        ("590.44.01", "590.44.01", False),
        ("590.48.01", "590.44.01", False),
        ("580.95.05", "590.44.01", True),
        ("575.57", "575.57.08", False),
        ("525.60.13", "525", False),
        ("", "525", False),  # unknown is not old
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, is_older: bool) -> None:
    assert matrix.older(version, wanted) is is_older


def test_the_right_image_has_nothing_to_mend() -> None:
    report = on(H100_IMAGE, count=8)
    assert report.ready
    assert not said(report, "fail", "warn")
    assert {"gpu.count", "gpu.driver", "container.tag", "tensorrt.llm", "mpi.hello", "triton.backends"} <= set(
        said(report, "ok")
    )


def test_a_bare_gpu_machine_is_told_what_to_install() -> None:
    report = on(A100_BOX, count=8)
    bad = said(report, "fail")
    assert {"tensorrt.llm", "tensorrt.tensorrt", "mpi.mpi4py"} == set(bad)
    assert "26.04-trtllm-python-py3" in bad["tensorrt.llm"].remedy
    warned = said(report, "warn")
    # 580 runs CUDA 13.x by minor version compatibility; the image's own driver is 590.44.01.
    assert "590.44.01" in warned["gpu.driver"].found
    assert "memlock=-1" in warned["host.memlock"].remedy
    assert {"host.stack", "triton.server"} <= set(warned)
    assert on(A100_BOX, "llmapi").ready


def test_an_old_driver_fails_unless_the_compatibility_package_works() -> None:
    bad = said(on(OLD_DRIVER, count=2), "fail")
    assert set(bad) == {"gpu.driver", "gpu.cuda"}
    assert "550.54.15" in bad["gpu.driver"].found
    assert "580" in bad["gpu.driver"].why  # the oldest driver of CUDA 13.x
    assert "803" in bad["gpu.cuda"].found
    report = on(FORWARD_COMPATIBLE, count=2)
    assert report.ready
    assert "compatibility package" in said(report, "warn")["gpu.driver"].found


@pytest.mark.parametrize(
    ("driver", "tag"), [("570.124.06", "25.05"), ("575.57.08", "25.10"), ("580.95.05", "26.02"), ("590.44.01", "26.07")]
)
def test_an_old_driver_is_told_the_newest_image_that_fits(driver: str, tag: str) -> None:
    facts = replace(OLD_DRIVER, driver=replace(OLD_DRIVER.driver, version=driver, cuda_init=0))
    report = on(facts, count=2)
    remedies = [finding.remedy for finding in report.findings if finding.check == "gpu.driver" and finding.remedy]
    assert all(f":{tag}-trtllm" in remedy for remedy in remedies)
    assert bool(remedies) == (driver != "590.44.01")


def test_a_laptop_rehearses_but_builds_nothing() -> None:
    assert on(LAPTOP, "cpu", 2).ready
    assert not said(on(LAPTOP, "cpu", 2), "warn")
    bad = said(on(LAPTOP), "fail")
    assert {"gpu.count", "tensorrt.llm", "tensorrt.tensorrt"} == set(bad)
    assert all(finding.remedy for finding in bad.values())


def test_a_laptop_without_the_tools() -> None:
    facts = replace(
        LAPTOP, software=replace(LAPTOP.software, packages={}, compiler=""), mpi=Mpi(), triton=Triton(problem="none")
    )
    assert set(said(on(facts, "cpu", 2), "fail")) == {"software.packages", "mpi.mpirun", "mpi.mpi4py", "triton.server"}
    assert "mpi.mpirun" in said(on(facts, "cpu", 1), "warn")  # one rank runs without
    assert "software.compiler" in said(on(facts, "cpu"), "warn")


def test_slurm_without_pmix() -> None:
    report = on(SLURM, count=4)
    bad = said(report, "fail")
    assert set(bad) == {"mpi.hello"}
    assert "mpirun -n 1" in bad["mpi.hello"].remedy
    assert "pmi2" in said(report, "warn")["mpi.slurm"].found
    more = on(replace(SLURM, mpi=replace(SLURM.mpi, slurm=replace(SLURM.mpi.slurm, gpus="2"))), count=4)
    assert "--gpus-per-node=4" in said(more, "fail")["mpi.slurm"].remedy
    good = replace(SLURM, mpi=replace(hello(4), slurm=replace(SLURM.mpi.slurm, mpi_types=("none", "pmix_v5"))))
    assert on(good, count=4).ready
    assert "mpi.slurm" in said(on(good, count=4), "ok")


def test_a_container_with_default_limits() -> None:
    report = on(SMALL_CONTAINER, count=2)
    assert set(said(report, "fail")) == {"host.shm", "host.fsize"}
    assert "--shm-size=2g" in said(report, "fail")["host.shm"].remedy
    warned = said(report, "warn")
    assert {"host.memory", "host.cpu", "host.memlock", "host.stack", "host.disk"} == set(warned)
    assert "7 GiB usable" in warned["host.memory"].found  # 8 less what is used, not the machine's 990
    assert "--memory" in warned["host.memory"].remedy
    one = said(on(SMALL_CONTAINER, count=1), "fail")
    assert "host.shm" not in one  # NCCL has nobody to talk to


@pytest.mark.parametrize(
    ("kind", "level", "word"),
    [
        ("t4", "fail", "Ampere"),
        ("a100", "ok", "no FP8"),
        ("l40s", "ok", ""),
        ("h100", "ok", ""),
        ("b200", "ok", "no INT8, INT4"),
        ("gb10", "warn", "support matrix"),
    ],
)
def test_architectures(kind: str, level: str, word: str) -> None:
    facts = replace(H100_IMAGE, driver=replace(H100_IMAGE.driver, gpus=gpus(kind, 1)))
    finding = next(f for f in on(facts).findings if f.check == "gpu.sm")
    assert finding.level == level
    assert word in finding.why


def test_gpus_that_are_there_but_cannot_be_used() -> None:
    def driver(**changes: object) -> Report:
        return on(replace(H100_IMAGE, driver=replace(H100_IMAGE.driver, **changes)), count=2)  # type: ignore[arg-type]

    hidden = said(driver(visible="0"), "fail")["gpu.count"]
    assert hidden.remedy == "unset CUDA_VISIBLE_DEVICES"
    assert "leaves 1" in hidden.found
    assert driver(visible="3,5").ready
    assert not driver(visible="3,9,5").ready  # CUDA stops at the first that does not exist
    assert "gpu.count" in said(driver(visible=""), "fail")
    mixed = said(driver(gpus=(*gpus("h100", 1), *gpus("a100", 1, index=1))), "fail")["gpu.sm"]
    assert "SM 80, SM 90" in mixed.found
    assert "gpu.mode" in said(driver(gpus=gpus("h100", 2, compute_mode="Prohibited")), "fail")
    assert "gpu.mig" in said(driver(gpus=gpus("h100", 2, mig="Enabled")), "warn")
    assert "gpu.memory" in said(driver(gpus=gpus("h100", 2, used_bytes=40 * GIB)), "warn")


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch NVML library version: 570.124", "reboot"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "modprobe"),
        ("", "--gpus all"),
    ],
)
def test_why_there_is_no_gpu(problem: str, word: str) -> None:
    facts = replace(H100_IMAGE, driver=Driver("/usr/bin/nvidia-smi", problem=problem))
    assert word in said(on(facts), "fail")["gpu.count"].remedy


def test_other_images() -> None:
    def image(tag: str, llm: str = "1.2.1", rt: str = "10.14.1.48") -> Report:
        packages = {**CONVERT, "mpi4py": "4.1.0", **({"tensorrt-llm": llm} if llm else {}), "tensorrt": rt}
        container = replace(H100_IMAGE.container, tag=tag, tensorrt="", cuda="", driver="")
        software = replace(H100_IMAGE.software, packages=packages)
        backends = ("python", "tensorrtllm") if llm else ("python", "onnxruntime")
        triton = replace(H100_IMAGE.triton, backends=backends)
        return on(replace(H100_IMAGE, container=container, software=software, triton=triton))

    assert image("26.07").ready
    older = image("26.01", "1.1.0", "10.13.3.9")
    assert older.ready
    assert {"container.tag", "tensorrt.llm"} <= set(said(older, "warn"))
    assert "26.04-trtllm" in said(image("26.04", llm=""), "fail")["container.flavour"].remedy
    assert {"container.tag", "tensorrt.llm"} <= set(said(image("26.10", "1.4.0", "10.15.0.1"), "fail"))
    changed = said(image("26.04", "1.2.1", "10.13.3.9"), "fail")  # pip install tensorrt on top
    assert {"container.changed", "tensorrt.tensorrt"} == set(changed)
    assert "10.14.1.48" in changed["container.changed"].found
    assert "container.changed" in said(image("26.04", "1.1.0"), "fail")


def test_mpi_of_another_kind() -> None:
    def mpi(value: Mpi) -> dict[str, Finding]:
        return said(on(replace(H100_IMAGE, mpi=value), count=2), "fail", "warn")

    alone = mpi(replace(hello(2), kind="MPICH", version="4.0", hello_sizes=(1, 1)))
    assert set(alone) == {"mpi.mpirun", "mpi.hello"}
    assert "thinks that it is alone" in alone["mpi.hello"].why
    assert set(mpi(replace(hello(2), library="Open MPI 4.1.6"))) == {"mpi.library"}
    slots = on(replace(H100_IMAGE, mpi=replace(hello(4), slots_problem="There are not enough slots")), count=4)
    assert slots.ready
    assert "--oversubscribe" in said(slots, "info")["mpi.slots"].remedy


ENGINE = Artefact(
    path="/engines/llama",
    kind="engine",
    target="tensorrt",
    world_size=2,
    tensorrt_llm="1.2.1",
    sm=90,
    quant_algo="FP8",
    kv_cache_algo="FP8",
    rank_bytes=(35 * GIB, 35 * GIB),
)


@pytest.mark.parametrize(
    ("change", "kind", "check", "word"),
    [
        ({}, "h100", "", ""),
        ({"tensorrt_llm": "1.1.0"}, "h100", "artefact.tensorrt_llm", "25.12-trtllm-python-py3"),
        ({"tensorrt_llm": "1.1.0"}, "h100", "artefact.tensorrt", "Build it again"),
        ({"tensorrt": "10.13.3.9"}, "h100", "artefact.tensorrt", "Build it again"),
        ({"sm": 80}, "h100", "artefact.sm", "--sm 90"),
        ({"sm": None}, "a100", "artefact.quantization", "int4_awq"),
        ({"sm": 100, "quant_algo": "W4A16_AWQ"}, "b200", "artefact.quantization", "fp8"),
        ({"sm": 100, "quant_algo": "", "kv_cache_algo": "INT8"}, "b200", "artefact.quantization", "fp8"),
        ({"quant_algo": "NVFP4"}, "h100", "artefact.quantization", "int4_awq"),
        ({"rank_bytes": (90 * GIB, 90 * GIB)}, "h100", "artefact.memory", "larger tp"),
        ({"world_size": 4}, "h100", "artefact.ranks", "--gpus 4"),
        ({"problems": ("/engines/llama lacks rank1.engine",)}, "h100", "artefact.files", "Build it again"),
        ({"target": "cpu"}, "h100", "artefact.target", "--target cpu"),
    ],
)
def test_can_this_machine_run_it(change: dict[str, object], kind: str, check: str, word: str) -> None:
    driver = replace(H100_IMAGE.driver, gpus=gpus(kind, 2))
    facts = replace(H100_IMAGE, driver=driver, artefact=replace(ENGINE, **change))  # type: ignore[arg-type]
    bad = {c: f for c, f in said(judge(facts, Wish("tensorrt", 2)), "fail").items() if c.startswith("artefact")}
    assert (check in bad) if check else not bad
    assert not check or word in bad[check].remedy


def test_the_remedy_for_another_release_names_an_image_that_has_it() -> None:
    assert matrix.release_of("1.1.0") is matrix.RELEASES["25.12"]
    assert matrix.release_of("0.17.0.post1") is matrix.RELEASES["25.02"]
    assert matrix.release_of("3.0") is None


def test_building_a_checkpoint_needs_host_memory() -> None:
    checkpoint = replace(ENGINE, kind="checkpoint", tensorrt_llm="", sm=None, rank_bytes=(35 * GIB,) * 8, world_size=8)
    wide = replace(H100_IMAGE, artefact=checkpoint)
    assert "artefact.build" in said(on(wide, count=8), "ok")  # 560 of 990 GiB
    narrow = replace(wide, host=host(available_bytes=400 * GIB))
    assert "artefact.build" in said(on(narrow, count=8), "warn")
    assert "artefact.build" in said(on(narrow, count=2), "ok")


def test_the_artefact_says_what_is_wanted() -> None:
    assert wish_for(replace(H100_IMAGE, artefact=ENGINE), "", None) == Wish("tensorrt", 2)
    assert wish_for(replace(H100_IMAGE, artefact=ENGINE), "cpu", 1) == Wish("cpu", 1)
    assert wish_for(H100_IMAGE, "", None) == Wish("cpu", 1)


MACHINES = [A100_BOX, OLD_DRIVER, LAPTOP, SLURM, SMALL_CONTAINER, H100_IMAGE, Facts(), replace(LAPTOP, artefact=ENGINE)]


@pytest.mark.parametrize("facts", MACHINES)
def test_facts_survive_json(facts: Facts) -> None:
    assert load(json.loads(json.dumps(dump(facts)))) == facts


@pytest.mark.parametrize("target", ["cpu", "tensorrt", "llmapi"])
@pytest.mark.parametrize("facts", MACHINES)
def test_every_failure_says_what_or_why(facts: Facts, target: str) -> None:
    for finding in judge(facts, Wish(target, 2)).findings:
        assert finding.found
        assert "None" not in finding.found + finding.why + finding.remedy
        assert finding.level not in ("fail", "warn") or finding.remedy, finding


def test_every_fault_in_the_code_has_a_remedy() -> None:
    """As no list of machines has all of them: a Finding that may fail or warn is given a remedy, and no empty one."""
    lacking, count = [], 0
    for path in sorted((ROOT / "trtbuild" / "doctor" / "topics").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Finding":
                continue
            level, *rest = (ast.unparse(argument) for argument in node.args)
            if "'fail'" not in level and "'warn'" not in level and level not in ("level", "many"):
                continue
            count += 1
            # Of a level that may be ok, the remedy may be empty; that it is so only then is for the machines above.
            good = len(rest) == 4 and (level not in ("'fail'", "'warn'") or "''" not in rest[3])
            lacking += [] if good or "'ok'" in level else [f"{path.name}:{node.lineno} {rest[0]}"]
    assert count > 40
    assert not lacking


def test_memory_and_disks_say_what_to_do() -> None:
    """Outside a cgroup there is no limit to raise; the work folder has no variable."""
    small = host(available_bytes=1 * GIB, disks=(Disk("work", "/data", GIB, 9 * GIB), Disk("work", "/ro", 0, 0, False)))
    assert small.cgroup_bytes is None
    for target, word in (("cpu", "more memory"), ("tensorrt", "--processes 1"), ("llmapi", "more memory")):
        warned = [f for f in on(replace(H100_IMAGE, host=small), target).findings if f.level == "warn"]
        remedies = {f.check: f.remedy for f in warned}
        assert word in remedies["host.memory"]
        assert "-o DIR" in remedies["host.disk"]


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "not an object"),
        ({"driver": {"gpus": [3]}}, "gpus is not an object"),
        ({"host": {"cpus": "two"}}, "host.cpus"),
        ({"host": {"disks": {}}}, "not a list"),
    ],
)
def test_a_damaged_record_is_refused_by_place(document: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        load(document)


def test_a_record_of_another_version_is_read_as_far_as_known() -> None:
    assert load({"future": 1, "driver": {"version": "590.44.01", "new": []}}) == Facts(
        driver=Driver(version="590.44.01")
    )
    assert load({}).container == Container()
