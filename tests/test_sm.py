"""--sm: the GPU that a checkpoint is for. What it cannot run is refused by the plan, before a weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plans import plan_of
from tests.tiny import trtbuild
from trtbuild.sizing.gpus import GPUS
from trtbuild.spec import SMS, ConvertOptions, LayerMethod

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}


def problems(sm: int | None, quant: str, **options: object) -> tuple[str, ...]:
    made = ConvertOptions(dtype="float16", quant=quant, sm=sm, **options)  # type: ignore[arg-type]
    return plan_of(made, **WIDE).problems


@pytest.mark.parametrize("quant", ["fp8", "fp8_rowwise", "w4a8_awq"])
def test_fp8_needs_sm_89(quant: str) -> None:
    """NVIDIA: fp8 tensor cores are in compute capability 8.9 and newer (Ada, Hopper)."""
    for sm in (80, 86):
        (text,) = problems(sm, quant)
        assert f"{quant} needs fp8 tensor cores (SM 89 or newer), and SM {sm} was named" in text
        assert "int8, int4, int4_awq, int8_sq, int8_sq_token run on SM" in text
    for sm in (89, 90, None):
        assert not problems(sm, quant)


@pytest.mark.parametrize("quant", ["none", "int8", "int4", "int4_awq", "int8_sq"])
def test_the_rest_runs_on_any(quant: str) -> None:
    assert not problems(80, quant)


def test_all_problems_at_once_and_layers_of_their_own() -> None:
    mixed = problems(86, "int4_awq", quant_layers=(LayerMethod("*.mlp.proj", "fp8"),), kv_cache="fp8")
    assert [text.split(" needs ")[0] for text in mixed] == ["fp8", "a KV cache of fp8"]
    assert "a KV cache of int8 runs on SM 86" in mixed[1]
    assert not problems(86, "int4_awq", kv_cache="int8")


@pytest.mark.parametrize("quant", ["int8", "int4", "int4_awq", "w4a8_awq", "int8_sq", "fp8_rowwise"])
def test_what_trtllm_build_refuses_on_sm_100(quant: str) -> None:
    """engine-build 4.1; on SM 120 nothing of it is refused."""
    (text,) = problems(100, quant)
    assert f"refuses {quant} on SM 100 to 119, and SM 100 was named; fp8 and a KV cache of fp8 run there" in text
    assert not problems(120, quant)


def test_sm_100_runs_fp8_and_no_int8_cache() -> None:
    assert not problems(100, "fp8", kv_cache="fp8")
    (text,) = problems(100, "fp8", kv_cache="int8")
    assert "refuses a KV cache of int8" in text


def test_every_gpu_that_is_known_can_be_named() -> None:
    assert {gpu.sm for gpu in GPUS if not gpu.refused} == set(SMS)


def test_the_layout_of_a_gpu_or_of_none() -> None:
    """tensorrt_llm/quantization/functional.py of 1.x: 2-D weights above SM 90 are laid out as on 80."""
    assert (ConvertOptions().sm, ConvertOptions().layout_sm, ConvertOptions(sm=90).layout_sm) == (None, 80, 90)
    assert [ConvertOptions(sm=sm).layout_sm for sm in (100, 120)] == [80, 80]


def test_the_command_line(llama_folder: Path, tmp_path: Path) -> None:
    done = trtbuild("checkpoint", llama_folder, "-o", tmp_path / "out", "--quant", "fp8", "--sm", 80)
    assert done.returncode == 3
    assert "SM 80 was named" in done.stderr
    assert not list(tmp_path.iterdir())
