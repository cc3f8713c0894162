"""SmoothQuant with a scale for each output and each token, made of plain models (checkpoint format 4.9)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.calibrated import calibrate
from tests.family_models import CASES, make_model
from tests.test_moe import build_here
from tests.tiny import load_rank
from tests.worded import add_tokenizer, text_of
from trtbuild import pipeline
from trtbuild.lint.check import check
from trtbuild.quantize.method import QuantOptions
from trtbuild.quantize.methods import QUANTIZE
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.spec import CalibrationOptions, ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "int8_sq_token"
LINEARS = {
    "llama": {
        "self_attn.q_proj": ("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        "self_attn.o_proj": ("attention.dense", ("self_attn.o_proj",)),
        "mlp.gate_proj": ("mlp.fc", ("mlp.gate_proj", "mlp.up_proj")),
        "mlp.down_proj": ("mlp.proj", ("mlp.down_proj",)),
    },
    "gpt2": {
        "attn.c_attn": ("attention.qkv", ("attn.c_attn",)),
        "attn.c_proj": ("attention.dense", ("attn.c_proj",)),
        "mlp.c_fc": ("mlp.fc", ("mlp.c_fc",)),
        "mlp.c_proj": ("mlp.proj", ("mlp.c_proj",)),
    },
}
"""Linear whose input is watched -> the first module of its fuse group, and all that read the same input."""
NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gpt2": ("ln_1", "ln_2"),
}


def smoother(amax: Any, weights: Any) -> Any:
    """s = max(max |x|^a / max |w|^(1 - a), 1e-5), a = 0.5, over all outputs that read the input, in float64."""
    wide = np.abs(np.concatenate(weights).astype(np.float64)).max(axis=0)
    return np.maximum(np.sqrt(amax.astype(np.float64)) / np.sqrt(wide), 1e-5)


def quantized(weight: Any, s: Any) -> tuple[Any, Any]:
    """q = clamp(round(w s 127 / amax), -127, 127), a scale amax / 127 for each output."""
    smoothed = weight.astype(np.float64) * s
    amax = np.abs(smoothed).max(axis=1)
    return np.clip(np.rint(smoothed * 127 / amax[:, None]), -127, 127), amax / 127


def test_fields_are_those_of_the_formula(golden: Path) -> None:
    """Of a whole model's weights and calibrated ranges, with the formula written out in numpy."""
    folder = golden.parent / "golden-modelopt"
    found = calibrate(folder / "hf", torch.from_numpy(np.load(folder / "calib_ids.npy")))
    edges = total = 0
    for groups in found.values():
        for group, stats in groups:
            weights = {module: torch.cat(parts).numpy() for module, parts in group.modules.items()}
            s = smoother(stats.amax.numpy(), list(weights.values()))
            for module, fields in QUANTIZE[NAME](group, stats, QuantOptions()).items():
                q, scale = quantized(weights[module], s)
                np.testing.assert_allclose(fields["smoother"], s, rtol=1e-5)
                np.testing.assert_allclose(fields["per_channel_scale"], scale, rtol=1e-5)
                away = np.abs(fields["weight"].numpy() - q)
                assert away.max() <= 1
                edges, total = edges + int((away > 0).sum()), total + q.size
    assert edges <= 1e-4 * total, f"{edges} of {total} on a rounding edge"


@pytest.fixture(params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_model_is_smoothed_and_stays_the_same(family: str, tmp_path: Path) -> None:
    """Factors from ranges that hooks on transformers see: norms are divided, dense and proj store them."""
    case = CASES[family]
    make_model(case, tmp_path / "m")
    source = add_tokenizer(tmp_path / "m", 131)
    ids = torch.randint(3, 131, (256,), generator=torch.Generator().manual_seed(5))
    (tmp_path / "text.txt").write_text(text_of(ids.tolist()))
    given = CalibrationOptions(tmp_path / "text.txt", samples=4, length=64)
    options = ConvertOptions(1, 1, "float16", NAME)
    made = pipeline.make_checkpoint(str(source), tmp_path / "made", options, calibration=given)
    assert not [str(one) for one in check(made).findings if one.severity != "info"]
    quantization = json.loads((made / "config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    assert quantization["smoothquant_val"] == 0.5

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    layers = model.model.layers if family == "llama" else model.transformer.h
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def watch(key: tuple[int, str], x: torch.Tensor) -> None:
        most = x.reshape(-1, x.shape[-1]).abs().amax(dim=0)
        seen[key] = most.maximum(seen.get(key, most))

    handles = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args, key=(n, name): watch(key, args[0]))
        for n, layer in enumerate(layers)
        for name in LINEARS[family]
    ]
    with torch.no_grad():
        model(ids.view(4, 64))
    for handle in handles:
        handle.remove()
    held = load_rank(made / "rank0.safetensors")
    for (n, name), amax in seen.items():
        module, parts = LINEARS[family][name]
        weights = [layers[n].get_submodule(part).weight.detach() for part in parts]
        weights = [(weight.T if family == "gpt2" else weight).numpy() for weight in weights]
        s, at = smoother(amax.numpy(), weights), f"transformer.layers.{n}."
        if module in ("attention.dense", "mlp.proj"):
            np.testing.assert_allclose(held[f"{at}{module}.smoother"][0], s, rtol=2e-3)
        else:
            which = int(module == "mlp.fc")
            ours, theirs = f"{at}{('input', 'post')[which]}_layernorm.", layers[n].get_submodule(NORMS[family][which])
            assert held[f"{ours}scale_to_int"].tolist() == [1.0]
            for kind in ("weight", "bias") if family == "gpt2" else ("weight",):
                plain = getattr(theirs, kind).detach().numpy()
                np.testing.assert_allclose(held[ours + kind].float() * s, plain, rtol=4e-3, atol=1e-4)
        weight = np.concatenate(weights) if module == "attention.qkv" else weights[0]
        scale = held[f"{at}{module}.per_channel_scale"].numpy().reshape(-1, 1)
        assert (np.abs(held[f"{at}{module}.weight"].numpy() * scale - weight * s) <= 0.51 * scale).all()
    generator = Generator(build_here(made, tmp_path / "engine"), RuntimeOptions(max_tokens_in_paged_kv_cache=512))
    with torch.no_grad():
        wanted = model(ids[None, :64]).logits[0]
    found = torch.from_numpy(generator.score(ids[:64].tolist()))
    assert float((found - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("phi", "int8_sq_token divides the norm before each linear, and PhiForCausalLM has no post_layernorm"),
        ("gemma2", r"TensorRT-LLM's form of int8_sq_token \(W8A8.*\) has no pre_feedforward_layernorm, post_feedf"),
        ("qwen3", r"has no attention.q_layernorm"),
        ("gpt_neox", "has no post_attention_layernorm"),
    ],
)
def test_models_whose_norms_it_cannot_divide(name: str, said: str, tmp_path: Path) -> None:
    make_model(CASES[name], tmp_path / "m")
    problems = pipeline.make_plan(str(tmp_path / "m"), ConvertOptions(dtype="float16", quant=NAME)).problems
    assert any(re.search(said, problem) for problem in problems), problems


def test_a_head_cannot_have_it(tmp_path: Path) -> None:
    make_model(CASES["llama"], tmp_path / "m")
    options = ConvertOptions(dtype="float16", quant=NAME, quantize_lm_head=True)
    problems = pipeline.make_plan(str(tmp_path / "m"), options).problems
    assert "TensorRT-LLM has no int8_sq_token for lm_head; leave --quantize-lm-head out" in problems
