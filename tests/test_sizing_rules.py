"""Which precision runs on which GPU in which release: one test a rule, each names its fact."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.test_trt_options import config
from trtbuild.doctor.facts import Artefact, Driver, Facts
from trtbuild.doctor.facts import Gpu as DoctorGpu
from trtbuild.doctor.finding import Wish
from trtbuild.doctor.judge import judge as doctor
from trtbuild.engine.options import BuildOptions
from trtbuild.engine.tensorrt.build_config import request
from trtbuild.engine.tensorrt.effects import predict
from trtbuild.errors import PlanError
from trtbuild.lint.tables import CHECKED_ALGOS, KV_ALGOS, LAYER_ALGOS, UNCHECKED_ALGOS
from trtbuild.quantization import LEAST_SM, NOT_ON_BLACKWELL
from trtbuild.quantize.methods import METHODS
from trtbuild.sizing.estimate import judge
from trtbuild.sizing.gpus import GPUS, find_gpu
from trtbuild.sizing.legality import VERSIONS, Legality, legality
from trtbuild.sizing.memory import RankMemory
from trtbuild.sizing.target import Limits, Target

NAMES = (
    "A10", "A10G", "A30", "A40", "A100-SXM-40GB", "A100-PCIe-40GB", "A100-SXM-80GB", "A100-PCIe-80GB", "L4", "L40",
    "L40S", "RTX-3090", "RTX-4090", "RTX-5090", "RTX-A6000", "RTX-6000-Ada", "H100-PCIe", "H100-SXM", "H100-NVL",
    "H200", "GH200", "B200", "GB200", "RTX-PRO-6000", "T4", "V100",
)  # fmt: skip
SMS = {"A100": 80, "A30": 80, "A10": 86, "RTX 3090": 86, "L4": 89, "RTX 4090": 89, "H100": 90, "GH200": 90, "H200": 90,
       "B200": 100, "GB200": 100, "RTX 5090": 120, "RTX PRO 6000": 120, "T4": 75, "V100": 70}  # fmt: skip


def law(gpu: str, *algos: str, kv: str | None = None, version: str = "1.2.1") -> Legality:
    return legality(find_gpu(gpu), version, frozenset(algos), kv)


def test_every_gpu_is_there_with_its_compute_capability() -> None:
    """NVIDIA's own table of compute capabilities."""
    assert {find_gpu(name).name for name in NAMES} >= set(NAMES) - {"V100"}
    assert {name: find_gpu(name).sm for name in SMS} == SMS
    names = [alias.lower() for gpu in GPUS for alias in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert all(0.7 < gpu.memory_gib / _board(gpu.name) <= 1.0 for gpu in GPUS)


def _board(name: str) -> float:
    """Gigabytes by name of the board, by data sheet."""
    sizes = {"A10": 24, "A10G": 24, "A30": 24, "A40": 48, "L4": 24, "L40": 48, "L40S": 48, "T4": 16, "H20": 96,
             "RTX-A6000": 48, "RTX-6000-Ada": 48, "RTX-3090": 24, "RTX-4090": 24, "RTX-5090": 32, "H100-SXM": 80,
             "H100-PCIe": 80, "H100-NVL": 94, "H200": 141, "GH200": 96, "GH200-144GB": 144, "B200": 180, "GB200": 186,
             "RTX-PRO-6000": 96, "RTX-2080-Ti": 11}  # fmt: skip
    return sizes[name] if name in sizes else int(name.rpartition("-")[2].removesuffix("GB"))


@pytest.mark.parametrize(
    ("gpu", "tp", "said"),
    [("A100", 8, ""), ("H100", 8, ""), ("A100-PCIe-80GB", 2, ""), ("A100-PCIe-80GB", 4, "bridges join two"),
     ("H100-NVL", 4, "bridges join two"), ("A40", 8, "bridges join two"), ("L40S", 2, "has no NVLink")],
)  # fmt: skip
def test_bridges_join_pairs(gpu: str, tp: int, said: str) -> None:
    """NVIDIA's data sheets: the PCIe boards of A100 and H100, A40, A30, RTX A6000 and 3090 have a bridge for two."""
    ranks = (RankMemory(0, 0, 0, 1, 0, 0, 0, 0, 1024),)
    warnings = judge(ranks, Target(find_gpu(gpu), 64, 1), Limits(1, 8192, 64), Legality(), tp, 1).warnings
    assert (said in " ".join(warnings)) if said else not warnings


@pytest.mark.parametrize(
    "name", ["H100", "h100 sxm", "NVIDIA H100 80GB HBM3", "nvidia-h100-sxm", "H100-SXM5-80GB"], ids=str
)
def test_names_are_forgiving(name: str) -> None:
    assert find_gpu(name).name == "H100-SXM"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PlanError, match="unknown GPU 'L40T'; did you mean L40"):
        find_gpu("L40T")
    with pytest.raises(PlanError, match="known: A100-SXM-80GB, "):
        find_gpu("zzzzzzzz")


def test_volta_and_turing_are_refused() -> None:
    """engine-build 7: Ampere, Ada, Hopper, Blackwell; Volta removed in 0.16."""
    assert "0.16" in law("V100").problems[0]
    assert "Ampere" in law("T4").problems[0]
    assert not law("A100").problems


@pytest.mark.parametrize("algo", ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W4A8_AWQ"])
def test_fp8_needs_sm_89(algo: str) -> None:
    """engine-build 7: FP8 needs SM 89 or newer."""
    assert "SM 89" in law("A100", algo).problems[0]
    assert "SM 89" in law("RTX 3090", algo).problems[0]
    assert not law("L4", algo).problems
    assert not law("H100", algo).problems


def test_an_fp8_kv_cache_needs_sm_89_too() -> None:
    assert "KV cache FP8" in law("A100", kv="FP8").problems[0]
    assert not law("L40S", kv="FP8").problems


@pytest.mark.parametrize("algo", sorted(NOT_ON_BLACKWELL))
def test_integers_are_refused_on_sm_100_to_119(algo: str) -> None:
    """engine-build 4.1: RuntimeError on SM 100-119 for int weights, SmoothQuant, per-channel and per-token scales."""
    assert "SM 100 to 119" in law("B200", algo).problems[0]
    assert "SM 100 to 119" in law("GB200", algo).problems[0]
    assert not law("H100", algo).problems
    assert not law("RTX 5090", algo).problems
    assert "no public run" in law("RTX 5090", algo).warnings[0]


def test_an_int8_kv_cache_is_refused_there_too_and_fp8_is_not() -> None:
    assert "KV cache INT8" in law("B200", kv="INT8").problems[0]
    assert not law("B200", "FP8", kv="FP8").problems
    assert not law("B200").problems


def test_an_int8_kv_cache_ends_chunked_context() -> None:
    """engine-build 4.1: INT8 KV cache -> paged context FMHA off -> no reuse, no chunking."""
    found = law("A100", kv="INT8")
    assert not found.paged_context
    assert "no chunked context" in found.warnings[0]
    assert law("A100").paged_context


@pytest.mark.parametrize("algo", ["FP8", "W4A8_AWQ"])
def test_an_fp8_kv_cache_ends_it_without_fp8_weights(algo: str) -> None:
    """engine-build 4.1: FP8 KV with a quant_algo that is not FP8, W4A8_AWQ or NVFP4 turns paged context FMHA off."""
    assert law("H100", algo, kv="FP8").paged_context
    assert not law("H100", kv="FP8").paged_context
    assert not law("H100", "W4A16_AWQ", kv="FP8").paged_context


def test_releases() -> None:
    """engine-build 0 and 8: nothing after the 1.2 line has the engine backend."""
    assert "1.2.1 is the last release" in law("H100", version="1.3.0").problems[0]
    assert "not among the releases" in law("H100", version="0.12.0").problems[0]
    assert all(not law("H100", version=version).problems for version in VERSIONS)
    assert "0.19.0" in law("RTX 5090", version="0.18.2").warnings[0]
    assert not law("RTX 5090", version="0.19.0").warnings


def test_every_method_has_its_rules() -> None:
    """A method that is added must be put in a class, or TensorRT-LLM's refusal would come after the build began."""
    algos = {method.quant_algo for method in METHODS.values() if method.quant_algo}
    assert algos <= LEAST_SM.keys() | NOT_ON_BLACKWELL


def judged_by_the_engine(algo: str | None, kv: str | None, sm: int) -> bool:
    pretrained = config(algo, kv)
    return bool(predict(request(BuildOptions().resolved("tensorrt"), pretrained), pretrained, sm).refusals)


def judged_by_the_doctor(algo: str | None, kv: str | None, sm: int, *layers: str) -> bool:
    artefact = Artefact(
        "/x", "engine", "tensorrt", 1, sm=sm, quant_algo=algo or "", kv_cache_algo=kv or "", layer_algos=layers
    )
    facts = Facts(driver=Driver(gpus=(DoctorGpu(0, "a GPU", sm, 80 << 30),)), artefact=artefact)
    found = doctor(facts, Wish("tensorrt", 1)).findings
    return any(finding.level == "fail" and finding.check in ("artefact.quantization", "gpu.sm") for finding in found)


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 90, 100, 103, 110, 119, 120, 121])
def test_sizing_engine_and_doctor_agree(sm: int) -> None:
    """Every quant_algo and KV cache on every SM: what one of the three refuses, the other two do."""
    gpu = replace(find_gpu("H100"), sm=sm, refused="too old" if sm < 80 else "")
    cases = [(algo, kv) for algo in (None, *CHECKED_ALGOS, *UNCHECKED_ALGOS) for kv in (None, *KV_ALGOS)]
    for algo, kv in cases:
        refused = bool(legality(gpu, "1.2.1", frozenset(filter(None, [algo])), kv).problems)
        assert judged_by_the_engine(algo, kv, sm) == refused, (algo, kv)
        assert judged_by_the_doctor(algo, kv, sm) == refused, (algo, kv)
    for algo in LAYER_ALGOS[1:]:
        refused = bool(legality(gpu, "1.2.1", frozenset([algo]), None).problems)
        assert judged_by_the_doctor("MIXED_PRECISION", None, sm, algo) == refused, algo


def test_no_remedy_names_a_precision_that_trtbuild_has_not() -> None:
    assert not any(method.quant_algo == "NVFP4" for method in METHODS.values())
    pretrained = config("W4A8_AWQ", "INT8")
    said = " ".join(predict(request(BuildOptions().resolved("tensorrt"), pretrained), pretrained, 100).refusals)
    assert "fp8" in said
    assert "NVFP4" not in said
