"""Scales that cannot be: every ready-made format refuses them, and so do `check` and the cpu build of what was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.quantized_sources import FORMATS, Tensors, make_source
from tests.tiny import edit_weights
from trtbuild import pipeline
from trtbuild.engine.cpu import read_checkpoint_config
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.errors import CheckpointError, PlanError
from trtbuild.lint.check import check
from trtbuild.mapping import Mapping
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
AT, MADE = "model.layers.0.mlp.down_proj.", "transformer.layers.0.mlp.proj."
WRONG = {"zero": 0.0, "negative": -0.01, "NaN": float("nan"), "infinite": float("inf")}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BLOCK_BY_BLOCK = ("ct fp8", "ct fp8 channel", "autofp8")
"""Formats that are multiplied out elsewhere: without the inputs' scales, and a block of zeros may have the scale 0."""
LAID = ("int4_gptq", "int8_gptq")
"""Methods whose weights lie in a kernel's layout."""


def asked(name: str) -> str:
    return FORMATS[name].method if name == "gptq sym awq" else "auto"


def with_element(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


def put(at: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[at] = tensor

    return edit


def convert(source: Path, out: Path, quant: str) -> Path:
    return pipeline.make_checkpoint(str(source), out, ConvertOptions(dtype="float16", quant=quant))


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_refuses_scales_that_cannot_be(name: str, tmp_path: Path) -> None:
    """One element of one scale of one linear, kept quantized or multiplied out; nothing is left behind."""
    source, _ = make_source(tmp_path, FORMATS[name], num_hidden_layers=1)
    whole = load_file(source / "model.safetensors")
    scales = [key for key in whole if key.startswith(AT) and whole[key].dtype in FLOATS]
    assert scales
    for key in scales:
        for wrong, value in WRONG.items():
            edit_weights(source, put(key, with_element(whole[key], value)))
            for quant in (asked(name), "none"):
                if quant == "none" and name in BLOCK_BY_BLOCK and (wrong == "zero" or "input" in key):
                    continue
                print(f"{key} is {wrong}, --quant {quant}")
                with pytest.raises(CheckpointError, match=AT[:-1]) as caught:
                    convert(source, tmp_path / "out", quant)
                assert "zero points" not in str(caught.value)
                assert not (tmp_path / "out").exists()
        if whole[key].numel() > 1:
            edit_weights(source, put(key, whole[key][:-1].contiguous()))
            with pytest.raises(PlanError, match=f"{key} is .* it must be"):
                convert(source, tmp_path / "out", asked(name))
        edit_weights(source, put(key, whole[key]))


@pytest.mark.parametrize("name", list(FORMATS))
def test_check_and_build_refuse_scales_spoiled_later(name: str, tmp_path: Path) -> None:
    source, _ = make_source(tmp_path, FORMATS[name], num_hidden_layers=1)
    made = convert(source, tmp_path / "made", asked(name))
    (made / "trtbuild.json").unlink()  # it has the hashes
    config = read_checkpoint_config(made)
    path, out = made / "rank0.safetensors", tmp_path / "engine"
    out.mkdir()
    whole = load_file(path)
    build_rank(made, out, config, Mapping())
    shutil.rmtree(out)
    scales = [key for key in whole if key.startswith(MADE) and whole[key].dtype in FLOATS and not key.endswith("zero")]
    for key in scales:
        if key.endswith("weight"):
            continue  # bytes
        for wrong, value in WRONG.items():
            save_file({**whole, key: with_element(whole[key], value)}, path)
            found = [one for one in check(made).findings if one.where == key]
            sure = wrong != "zero" or FORMATS[name].method not in LAID or whole[f"{MADE}zero"].view(-1)[-1] != 0
            assert {one.severity for one in found} == {"error" if sure else "warning"}, (key, wrong)
            out.mkdir()
            with pytest.raises(CheckpointError, match=key):
                build_rank(made, out, config, Mapping())
            shutil.rmtree(out)


@pytest.mark.parametrize("name", ["gptq", "gptq sym awq", "awq", "ct int4", "ct int4 asym", "ct int8 groups"])
def test_a_dead_group_may_have_the_scale_zero(name: str, tmp_path: Path) -> None:
    """Where all of a group are the zero point, they are zeros at any scale; the form has 1 there."""
    source, plain = make_source(tmp_path, FORMATS[name], num_hidden_layers=1)
    tensors = load_file(source / "model.safetensors")
    stem = AT[:-1]
    scale = tensors[f"{stem}.weight_scale" if f"{stem}.weight_scale" in tensors else f"{stem}.scales"]
    kill_first_group(tensors, stem)
    scale.view(-1)[0] = 0  # of output 0, inputs 0 to 63
    save_file(tensors, source / "model.safetensors")
    edit_weights(plain, lambda t: t[f"{stem}.weight"][0, :64].zero_())
    made, wanted = convert(source, tmp_path / "made", asked(name)), convert(plain, tmp_path / "wanted", "none")
    assert not [str(found) for found in check(made).findings]
    assert float(load_file(made / "rank0.safetensors")[f"{MADE}weights_scaling_factor"].view(-1)[0]) == 1
    ours, theirs = (
        load_file(folder / "rank0.safetensors")[f"{MADE}weight"].float()
        for folder in (convert(source, tmp_path / "out", "none"), wanted)
    )
    assert not ours[0, :64].any()
    assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-6)


def kill_first_group(tensors: Tensors, stem: str) -> None:
    """Every u of output 0, inputs 0 to 63, becomes 8 or 128, and so does the zero point, by each format's packing."""
    if f"{stem}.weight_packed" in tensors:
        packed = tensors[f"{stem}.weight_packed"]
        bits = 32 * packed.shape[1] // 512
        packed[0, : 64 * bits // 32] = -0x77777778 if bits == 4 else -0x7F7F7F80  # 0x88888888, 0x80808080
        if f"{stem}.weight_zero_point" in tensors:
            zero = tensors[f"{stem}.weight_zero_point"]
            zero[0, 0] = zero[0, 0] & ~15 | 8
        return
    words, zeros = tensors[f"{stem}.qweight"], tensors[f"{stem}.qzeros"]
    if len(words) == 512:  # AWQ, packed along the outputs: output 0 is in the lowest nibble
        words[:64, 0] = words[:64, 0] & ~15 | 8
        zeros[0, 0] = zeros[0, 0] & ~15 | 8
    else:
        words[:8, 0] = -0x77777778
        zeros[0, 0] = zeros[0, 0] & ~15 | 7  # v1 holds one less
