"""The methods against NVIDIA ModelOpt's own export; what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.calibrated import calibrate, watched
from trtbuild.errors import CheckpointError
from trtbuild.quantize.method import InputStats, LinearGroup, QuantOptions
from trtbuild.quantize.methods import METHODS, QUANTIZE
from trtbuild.quantize.values import kv_cache_scale
from trtbuild.spec import SEARCHES

# Weights that may differ, of all: they lie on a rounding edge, where one bit of a factor decides.
EDGES = {"int4_awq": 20, "int8_sq": 20, "fp8": 0}


@pytest.fixture(scope="module")
def golden_modelopt(golden: Path) -> Path:
    return golden.parent / "golden-modelopt"


@pytest.fixture(scope="module")
def calibrated(golden_modelopt: Path) -> Any:
    return calibrate(golden_modelopt / "hf", torch.from_numpy(np.load(golden_modelopt / "calib_ids.npy")))


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """ModelOpt's bytes [out / 2, in] -> [out, in], written out by hand."""
    values = torch.empty(2 * packed.shape[0], packed.shape[1], dtype=torch.int8)
    values[0::2] = (packed << 4) >> 4
    values[1::2] = packed >> 4
    return values


@pytest.mark.parametrize("name", list(EDGES))
def test_equals_modelopt(name: str, golden_modelopt: Path, calibrated: Any) -> None:
    theirs = load_file(golden_modelopt / f"{name}-tp1-calc32" / "trtllm" / "rank0.safetensors")
    left = {tensor for tensor in theirs if tensor.endswith("_scaling_factor")}
    different = total = 0
    for layer, groups in calibrated.items():
        for group, stats in groups:
            for module, fields in QUANTIZE[name](group, stats, QuantOptions(search="modelopt")).items():
                assert set(fields) == {field.suffix for field in METHODS[name].fields}
                for suffix, ours in fields.items():
                    tensor = f"transformer.layers.{layer}.{module}.{suffix}"
                    left.discard(tensor)
                    wanted = theirs[tensor]
                    if suffix == "weight":
                        wanted = unpacked(wanted) if name == "int4_awq" else wanted
                        assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape), tensor
                        away = (ours.float() - wanted.float()).abs()
                        different, total = different + int((away > 0).sum()), total + away.numel()
                        assert name == "fp8" or away.max() <= 1, tensor
                        continue
                    assert ours.shape == wanted.shape, tensor
                    close = (
                        {"rtol": 1e-3, "atol": 0.0} if suffix.startswith("prequant") else {"rtol": 1e-5, "atol": 0.0}
                    )
                    torch.testing.assert_close(ours, wanted.float(), **close, msg=lambda m, t=tensor: f"{t}: {m}")
    assert not left
    print(f"{name}: {different} of {total} weights on a rounding edge")
    assert different <= EDGES[name], f"{different} of {total}"


@pytest.fixture(scope="module")
def calibrated_fine(golden_modelopt: Path) -> Any:
    ids = torch.from_numpy(np.load(golden_modelopt / "calib_ids.npy"))
    return watched(golden_modelopt / "hf", ids, fine=True)


def computed(fields: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Outputs of a linear as its format defines them, by hand, of inputs [tokens, in]."""
    scale, weight = fields["weights_scaling_factor"], fields["weight"].float()
    if scale.dim() == 2:
        weight = weight * scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    else:
        weight = weight * scale.reshape(-1, 1)
    x = x * fields.get("prequant_scaling_factor", torch.ones(1))
    if "activation_scaling_factor" in fields:
        step = fields["activation_scaling_factor"]
        if fields["weight"].dtype == torch.int8 and "weights_scaling_factor_2" not in fields:
            x = (x / step).round().clamp(-128, 127) * step
        else:
            x = (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step
    return x @ weight.T


@pytest.mark.parametrize(("name", "most"), [("int4_awq", 0.8), ("w4a8_awq", 0.8), ("fp8", 0.9)])
def test_compensation_leaves_less_error_than_modelopt(name: str, most: float, calibrated_fine: Any) -> None:
    """On the calibration inputs: for no linear more, and for all of them together clearly less."""
    ours = theirs = 0.0
    for groups in calibrated_fine.values():
        for group, stats, inputs in groups:
            made, plain = (
                QUANTIZE[name](group, stats, QuantOptions(search=search)) for search in ("compensate", "modelopt")
            )
            for module, parts in group.modules.items():
                exact = inputs @ torch.cat(parts).T
                found, wanted = (float((computed(f[module], inputs) - exact).norm()) for f in (made, plain))
                assert found <= wanted, (name, module, found, wanted)
                ours, theirs = ours + found**2, theirs + wanted**2
    print(f"{name}: error {ours / theirs:.3f} of ModelOpt's")
    assert ours < most * theirs


def small() -> tuple[LinearGroup, InputStats]:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*shape, generator=generator) for shape in ((32, 128), (64, 128)))
    x[:, 5] = 0  # a dead channel
    weight[3] = 0  # a dead output
    stats = InputStats(64, x.abs().amax(dim=0), x.abs().mean(dim=0), x.T @ x / 64)
    return LinearGroup({"mlp.proj": (weight,)}), stats


@pytest.mark.parametrize("name", list(QUANTIZE))
def test_dead_channels_keep_every_field_finite(name: str) -> None:
    group, stats = small()
    fields = QUANTIZE[name](group, stats, QuantOptions())["mlp.proj"]
    for suffix, field in fields.items():
        assert bool(torch.isfinite(field.float()).all()), suffix
        assert suffix == "weight" or bool((field > 0).all()), suffix
    assert not fields["weight"][3].float().any()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", list(QUANTIZE))
def test_stored_fields_give_the_weight_back(name: str, search: str) -> None:
    """q * scale * prequant is the weight up to the step of the format, or a third more where errors make up."""
    group, stats = small()
    fields = QUANTIZE[name](group, stats, QuantOptions(search=search))["mlp.proj"]
    scale = fields.get("weights_scaling_factor", fields.get("per_channel_scale"))
    assert scale is not None
    wide = scale.repeat_interleave(128 // scale.shape[-1], dim=-1) if scale.dim() == 2 else scale.reshape(-1, 1)
    weight = fields["weight"].float() * wide * fields.get("prequant_scaling_factor", torch.ones(128))
    weight = weight / fields.get("smoother", torch.ones(128))
    error = float((weight - group.modules["mlp.proj"][0]).norm() / group.modules["mlp.proj"][0].norm())
    most = {"int4_awq": 0.16, "w4a8_awq": 0.16, "int8_sq": 0.02}.get(name, 0.04)
    assert error < most * (1.33 if search == "compensate" else 1), error


@pytest.mark.parametrize("name", list(QUANTIZE))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(name: str, value: float) -> None:
    group, stats = small()
    group.modules["mlp.proj"][0][1, 2] = value
    with pytest.raises(CheckpointError, match=r"mlp.proj: 1 of 4096 weights are NaN or infinite"):
        QUANTIZE[name](group, stats, QuantOptions())


@pytest.mark.parametrize("name", [name for name in QUANTIZE if METHODS[name].needs_calibration])
def test_statistics_that_cannot_be(name: str) -> None:
    group, stats = small()
    with pytest.raises(CheckpointError, match=r"needs calibration, but mlp\.proj has none"):
        QUANTIZE[name](group, None, QuantOptions())
    bad = InputStats(64, stats.amax[:9], -stats.abs_mean, stats.gram)
    with pytest.raises(CheckpointError, match=r"(?s)amax has shape \[9\].*128 inputs.*abs_mean has \d+ negative"):
        QUANTIZE[name](group, bad, QuantOptions())


def test_scales_of_the_kv_cache() -> None:
    assert float(kv_cache_scale("INT8", 3.0, 12.7)) == pytest.approx(0.1)
    assert float(kv_cache_scale("FP8", 3.0, 12.7)) == 1.0
    assert float(kv_cache_scale("FP8", 896.0, 12.7)) == 2.0
    with pytest.raises(CheckpointError, match="k nan, v 1"):
        kv_cache_scale("FP8", float("nan"), 1.0)


def test_experts_share_one_prequant(calibrated: Any) -> None:
    """Two experts as [E, out, in]: the mean of both searches; every field has the experts in front."""
    group, stats = calibrated[0][2]
    fc, gate = (group.modules[name][0] for name in ("mlp.fc", "mlp.gate"))
    for name in ("int4_awq", "w4a8_awq", "int8_sq", "fp8"):
        experts = LinearGroup({"mlp.fc": (torch.stack((fc, gate)), torch.stack((gate, fc)))})
        fields = QUANTIZE[name](experts, stats, QuantOptions())["mlp.fc"]
        alone = QUANTIZE[name](LinearGroup({"mlp.fc": (fc, gate)}), stats, QuantOptions())["mlp.fc"]
        for field in METHODS[name].fields:
            ours = fields[field.suffix]
            assert ours.shape == ((1,) if field.shared else (2, *alone[field.suffix].shape)), (name, field.suffix)
            wanted = alone[field.suffix]
            assert torch.allclose(ours.float() if field.shared else ours[0].float(), wanted.float(), rtol=1e-5, atol=1)
