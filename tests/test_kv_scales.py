"""Scales of the KV cache by ModelOpt's names: of both, of keys, of values; written, read, checked and re-sharded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import edit_rank, make
from tests.test_moe import build_here
from tests.tiny import load_rank
from tests.worded import text_of, with_tokenizer
from trtbuild import pipeline
from trtbuild.errors import CheckpointError
from trtbuild.lint.check import check
from trtbuild.spec import CalibrationOptions, ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [f"{which}_cache_scaling_factor" for which in ("kv", "k", "v")]
AT = "transformer.layers.{}.attention."


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_scales_are_those_of_what_transformers_computes(kv: str, golden: Path, tmp_path: Path) -> None:
    """amax / 127, or amax / 448 but never below 1, of the outputs of k and v over the calibration set."""
    exports = golden.parent / "golden-modelopt"
    source, ids = with_tokenizer(exports / "hf", tmp_path / "hf"), np.load(exports / "calib_ids.npy")
    (tmp_path / "ids.jsonl").write_text(json.dumps({"text": text_of(ids.reshape(-1).tolist())}))
    given = CalibrationOptions(tmp_path / "ids.jsonl", samples=len(ids), length=ids.shape[1], search="modelopt")
    options = ConvertOptions(2, 1, "float16", "none", kv_cache=kv)
    made = pipeline.make_checkpoint(str(source), tmp_path / "out", options, calibration=given)
    assert not [found for found in check(made).findings if found.severity != "info"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    most: dict[str, float] = {}
    for number, layer in enumerate(model.model.layers):
        for which in ("k", "v"):
            key = AT.format(number) + f"{which}_cache_scaling_factor"
            layer.self_attn.get_submodule(f"{which}_proj").register_forward_hook(
                lambda _, args, out, key=key: most.update({key: max(most.get(key, 0.0), float(out.abs().max()))})
            )
    with torch.no_grad():
        for row in torch.from_numpy(ids):
            model(row[None])
    wanted = {key: amax / 127 if kv == "int8" else max(amax / 448, 1.0) for key, amax in most.items()}
    for number in range(len(model.model.layers)):
        at = AT.format(number)
        wanted[at + NAMES[0]] = max(wanted[at + name] for name in NAMES[1:])
    for rank in (0, 1):
        held = load_rank(made / f"rank{rank}.safetensors")
        found = {key: tensor for key, tensor in held.items() if "cache_scaling" in key}
        assert all((tensor.dtype, tensor.shape) == (torch.float32, (1,)) for tensor in found.values())
        assert {key: float(tensor) for key, tensor in found.items()} == pytest.approx(wanted, rel=1e-5)


def with_scales(folder: Path, scales: dict[str, float]) -> Path:
    """A checkpoint with these scales by name, instead of its own."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "cache_scaling" in name]:
            del tensors[name]
        for layer in range(2):
            tensors |= {AT.format(layer) + name: torch.tensor([value + layer]) for name, value in scales.items()}

    made = make("FP8 with kv", folder)
    edit_rank(made, 0, edit)
    return made


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:], NAMES], ids=["both", "own", "all"])
def test_they_are_checked_and_resharded(names: list[str], tmp_path: Path) -> None:
    whole = with_scales(tmp_path, dict(zip(names, (1.5, 1.5, 1.25), strict=False)))
    assert not [found for found in check(whole).findings if "cache_scaling" in found.where]
    stages = pipeline.make_checkpoint(str(whole), tmp_path / "stages", ConvertOptions(2, 2))
    assert not [found for found in check(stages).findings if "cache_scaling" in found.where]
    held = load_rank(whole / "rank0.safetensors")
    for rank in range(4):
        found = {k: t for k, t in load_rank(stages / f"rank{rank}.safetensors").items() if "cache_scaling" in k}
        assert set(found) == {AT.format(0) + name for name in names}
        for key, tensor in found.items():
            assert torch.equal(tensor, held[key.replace("layers.0", f"layers.{rank // 2}")])
    again = pipeline.make_checkpoint(str(stages), tmp_path / "again", ConvertOptions(1, 1))
    back = load_rank(again / "rank0.safetensors")
    assert {key for key in back if "cache_scaling" in key} == {key for key in held if "cache_scaling" in key}
    assert all(torch.equal(back[key], held[key]) for key in held if "cache_scaling" in key)


@pytest.mark.parametrize("gone", NAMES[1:])
def test_one_of_two_alone_is_an_error(gone: str, tmp_path: Path) -> None:
    """TensorRT-LLM ends in an assertion where one has no other, though the scale of both is there."""
    made = with_scales(tmp_path, {name: 1.5 for name in NAMES if name != gone})
    found = {(one.rule, one.where) for one in check(made).findings if "cache_scaling" in one.where}
    assert found == {("tensor-missing", AT.format(layer) + gone) for layer in (0, 1)}
    with pytest.raises(CheckpointError, match=gone):
        build_here(made, tmp_path / "engine")


def test_an_engine_takes_the_larger(tmp_path: Path) -> None:
    """As TensorRT-LLM does, whatever the scale of both says; that one counts where it is alone."""
    for scales, wanted in (({NAMES[0]: 3.0}, 3.0), (dict(zip(NAMES, (3.0, 1.5, 1.25), strict=True)), 1.5)):
        made = with_scales(tmp_path, scales)
        engine = build_here(made, tmp_path / "engine")
        assert float(load_file(engine / "rank0.engine")[AT.format(0) + NAMES[0]]) == wanted
        shutil.rmtree(engine)
        shutil.rmtree(made)
