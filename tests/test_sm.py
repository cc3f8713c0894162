"""--sm: the GPU that a checkpoint is for. What it cannot run is refused by the plan, before a weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plans import plan_of
from tests.tiny import trtbuild
from trtbuild.spec import ConvertOptions, LayerMethod

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
        assert "int8, int4, int4_awq, int8_sq run on SM" in text
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


def test_the_layout_where_no_gpu_is_named() -> None:
    assert (ConvertOptions().sm, ConvertOptions().layout_sm, ConvertOptions(sm=90).layout_sm) == (None, 80, 90)


def test_the_command_line(llama_folder: Path, tmp_path: Path) -> None:
    done = trtbuild("checkpoint", llama_folder, "-o", tmp_path / "out", "--quant", "fp8", "--sm", 80)
    assert done.returncode == 3
    assert "SM 80 was named" in done.stderr
    assert not list(tmp_path.iterdir())
