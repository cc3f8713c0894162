"""W4A8_AWQ by hand: checkpoint format 4.4 and 6 written out in numpy, of a whole model's weights and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.calibrated import watched
from trtbuild.quantize.method import QuantOptions
from trtbuild.quantize.methods import QUANTIZE

GROUP = 128
Array = Any


@pytest.fixture(scope="module")
def seen(golden: Path) -> Any:
    folder = golden.parent / "golden-modelopt"
    return watched(folder / "hf", torch.from_numpy(np.load(folder / "calib_ids.npy")), fine=False)


def int4(weight: Array) -> tuple[Array, Array]:
    """q [out, in] and scales [out, in / g]: amax of a group over 7, halves to even."""
    blocks = weight.reshape(len(weight), -1, GROUP)
    scale = np.abs(blocks).max(axis=-1) / 7
    scale[scale == 0] = 1
    return np.clip(np.rint(blocks / scale[..., None]), -8, 7).reshape(weight.shape), scale


def wide(q: Array, scale: Array) -> Array:
    return q * np.repeat(scale, GROUP, axis=1)


def searched(weight: Array, x: Array, abs_mean: Array) -> Array:
    """p [in] of one linear (6.1): the alpha of 0, 0.1 .. 1 whose int4 weights change the outputs least."""
    blocks = np.abs(weight).reshape(len(weight), -1, GROUP)
    share = (blocks / (blocks.max(axis=-1, keepdims=True) + np.finfo(np.float32).tiny)).reshape(weight.shape).mean(0)
    exact, best = x @ weight.T, (np.inf, np.ones(0))
    for alpha in np.arange(11) / 10:
        s = np.clip(abs_mean**alpha / (share ** (1 - alpha) + np.finfo(np.float32).tiny), 1e-4, 1e4)
        s = s / np.sqrt(s.max() * s.min())
        loss = float(np.square((x / s) @ wide(*int4(weight * s)).T - exact).mean())
        best = min(best, (loss, 1 / s), key=lambda found: found[0])
    return best[1]


@pytest.mark.parametrize("search", ["modelopt", "fine"])
def test_fields_follow_from_the_factors(search: str, seen: Any) -> None:
    """weights of W / p, their second scale (amax of the int4 grid) / 448, and that of the inputs, amax(x p) / 448."""
    edges = total = 0
    for groups in seen.values():
        for group, stats, inputs in groups:
            for module, fields in QUANTIZE["w4a8_awq"](group, stats, QuantOptions(GROUP, search)).items():
                p = fields["prequant_scaling_factor"].numpy().astype(np.float64)
                q, scale = int4(torch.cat(group.modules[module]).numpy() / p)
                np.testing.assert_allclose(fields["weights_scaling_factor"], scale, rtol=1e-5)
                away = np.abs(fields["weight"].numpy() - q)
                assert away.max() <= 1
                edges, total = edges + int((away > 0).sum()), total + q.size
                second = np.abs(wide(q, scale)).max() / 448
                assert fields["weights_scaling_factor_2"].shape == (1,)
                assert float(fields["weights_scaling_factor_2"]) == pytest.approx(second, rel=1e-5)
                if search == "fine" or len(group.modules[module]) == 1:
                    act = np.abs(inputs.numpy() * p).max() / 448
                    assert float(fields["activation_scaling_factor"]) == pytest.approx(act, rel=1e-5)
                assert fields["activation_scaling_factor"].shape == (1,)
    assert edges <= 1e-4 * total, f"{edges} of {total} on a rounding edge"


def test_the_factors_are_those_of_the_search(seen: Any) -> None:
    """q, k and v have the mean of their own p, and the largest of the inputs' scales that these would give (6.2)."""
    for group, stats, inputs in (groups for layer in seen.values() for groups in layer):
        x, abs_mean = inputs.numpy().astype(np.float64), stats.abs_mean.numpy().astype(np.float64)
        made = QUANTIZE["w4a8_awq"](group, stats, QuantOptions(GROUP, "modelopt"))
        for module, parts in group.modules.items():
            owns = np.stack([searched(part.numpy().astype(np.float64), x, abs_mean) for part in parts])
            np.testing.assert_allclose(made[module]["prequant_scaling_factor"], owns.mean(axis=0), rtol=1e-3)
            act = max(np.abs(x * own).max() for own in owns) / 448
            assert float(made[module]["activation_scaling_factor"]) == pytest.approx(act, rel=1e-3), module
