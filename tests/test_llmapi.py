"""`--target llmapi` against NVIDIA ModelOpt's own exports, against transformers, and read back by our own importer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.llmapi_models import (
    DATA,
    EXPORTS,
    LENGTH,
    SAMPLES,
    add_letters,
    calibration_text,
    described,
    make,
    token_ids,
)
from tests.tiny import load_rank
from trtbuild import pipeline
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions

Tensors = dict[str, torch.Tensor]
Export = Callable[..., Path]
SCALES = ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")
EXPERT_INPUT = re.compile(r"(.*\.experts\.)\d+\.(.*)\.input_scale")


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models by model_type, each made once; read only."""
    folder = tmp_path_factory.mktemp("llmapi")
    (folder / "ids.jsonl").write_text(calibration_text())

    def get(kind: str) -> Path:
        return folder / kind if (folder / kind).is_dir() else add_letters(make(kind, folder / kind))

    return get


@pytest.fixture(scope="module")
def export(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A checkpoint of a model, made once for each set of options."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(kind: str, quant: str, kv: str = "none", *, search: str = "fine", target: str = "llmapi") -> Path:
        key = (kind, quant, kv, search, target)
        if key not in made:
            options = ConvertOptions(dtype="float16", quant=quant, kv_cache=kv, target=target)
            calibrate = CalibrationOptions(
                models(kind).parent / "ids.jsonl", samples=SAMPLES, length=LENGTH, search=search
            )
            out = tmp_path_factory.mktemp("made") / "out"
            used = CALIBRATION if quant in ("none", "fp8_rowwise") else calibrate
            made[key] = pipeline.make_checkpoint(str(models(kind)), out, options, calibration=used)
        return made[key]

    return get


@pytest.mark.parametrize(("kind", "quant", "kv"), EXPORTS)
def test_equals_the_export_of_modelopt(kind: str, quant: str, kv: str, export: Export) -> None:
    """Names, shapes, dtypes and hf_quant_config.json equal; fp8 weights bit by bit, scales to float rounding."""
    name = "-".join(filter(None, (kind, quant, kv and f"kv_{kv}")))
    theirs = json.loads((DATA / "exports.json").read_text())[name]
    made = export(kind, quant, kv or "none", search="modelopt")
    ours = load_file(made / "model.safetensors")
    assert set(ours) == set(theirs["tensors"])
    largest: dict[tuple[str, bool], list[float]] = {}
    for key, (dtype, shape, value) in theirs["tensors"].items():
        held = described(ours[key])
        # Their plain tensors are float32, which makes the comparison exact; ours are in the model's dtype.
        plain = dtype == "float32" and not key.endswith(SCALES)
        assert held[:2] == ["float16" if plain else dtype, shape], key
        if expert := EXPERT_INPUT.fullmatch(key):
            pair = largest.setdefault((expert[1], expert[2] in ("w2", "down_proj")), [0.0, 0.0])
            pair[:] = max(pair[0], held[2]), max(pair[1], value)
        elif not shape:
            assert held[2] == pytest.approx(value, rel=2e-4), key
        elif "awq" not in quant or ".layers." not in key:
            assert held[2] == value, key
    for (_, down), (scale, wanted) in largest.items():
        # A loader takes the largest of all experts. ModelOpt sends every token through every expert; here each token
        # goes where the router sends it, and experts never see an input beyond that.
        assert scale == pytest.approx(wanted, rel=2e-4) or (down and 0.3 * wanted < scale < wanted)
    if "awq" in quant:
        same_int4(ours, load_file(DATA / f"{name}.safetensors"))
    same_documents(made, theirs)


def same_int4(ours: Tensors, theirs: Tensors) -> None:
    different = 0
    for key, wanted in theirs.items():
        if wanted.dtype is torch.uint8:
            one, other = (torch.stack(((held << 4).view(torch.int8) >> 4, held.view(torch.int8) >> 4)) for held in (
                ours[key], wanted))  # fmt: skip
            assert (one - other).abs().max() <= 1, key
            different += int((one != other).sum())
        else:
            rtol = 1e-5 if key.endswith(SCALES) else 2e-3
            torch.testing.assert_close(ours[key].float(), wanted, rtol=rtol, atol=0.0, msg=lambda m, k=key: f"{k}: {m}")
    assert different <= 20  # on a rounding edge; none on the machine where this was written


def same_documents(made: Path, theirs: dict[str, Any]) -> None:
    """The newer form of config.json's quantization_config says what the older one says."""
    assert json.loads((made / "hf_quant_config.json").read_text()) == theirs["hf_quant_config"]
    ours, older = json.loads((made / "config.json").read_text())["quantization_config"], theirs["quantization_config"]
    assert ours["quant_method"] == older.pop("quant_library") == "modelopt"
    kv = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert ours.get("kv_cache_scheme") == (
        {"FP8": kv}[older.pop("kv_cache_scheme")] if "kv_cache_scheme" in older else None
    )
    for group in older.get("config_groups", {}).values():
        group["targets"] = ["Linear"]
    assert {key: ours[key] for key in older} == older


@pytest.mark.parametrize(
    ("kind", "quant", "kv"),
    [
        *((kind, "fp8", "fp8") for kind in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")),
        *((kind, "fp8", "none") for kind in ("mixtral", "qwen2_moe", "qwen3_moe")),
        ("llama", "fp8_rowwise", "none"),
        ("qwen2", "int4_awq", "none"),
        ("gemma3_text", "w4a8_awq", "none"),
    ],
)
def test_read_back_it_is_the_direct_quantization(
    kind: str, quant: str, kv: str, export: Export, tmp_path: Path
) -> None:
    """Our importer makes of it the TensorRT-LLM checkpoint that the model gives without the detour.

    Bit by bit, but for AWQ: fc and gate have one p here and two there, and p is in the norms.
    """
    back = pipeline.make_checkpoint(str(export(kind, quant, kv)), tmp_path / "back", ConvertOptions(quant="auto"))
    direct = export(kind, quant, kv, target="cpu")
    one, other = (json.loads((place / "config.json").read_text()) for place in (back, direct))
    assert one["quantization"] == other["quantization"]
    ours, wanted = load_rank(back / "rank0.safetensors"), load_rank(direct / "rank0.safetensors")
    assert set(ours) == set(wanted)
    for key, tensor in wanted.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        if "awq" not in quant:
            assert torch.equal(ours[key].view(torch.uint8), tensor.view(torch.uint8)), key
        elif "norm" in key or "prequant" in key:
            continue
        elif ".fc." not in key and ".gate." not in key:
            assert torch.equal(ours[key], tensor), key
    if "awq" in quant:
        base = "transformer.layers.1."
        for module, norm in (("attention.qkv", "input_layernorm"), ("attention.dense", ""), ("mlp.proj", "")):
            held, direct_p = (t[f"{base}{module}.prequant_scaling_factor"].float() for t in (ours, wanted))
            if norm:
                assert torch.equal(held, torch.ones_like(held))
                held = ours[f"{base}{norm}.weight"].float() / wanted[f"{base}{norm}.weight"].float()
            torch.testing.assert_close(held, direct_p, rtol=4e-3, atol=0.0)


@pytest.mark.parametrize(
    ("kind", "quant"),
    [
        *((kind, "fp8") for kind in ("llama", "qwen3", "gemma2", "phi3", "mixtral", "qwen2_moe", "qwen3_moe")),
        *((kind, "int4_awq") for kind in ("llama", "qwen3", "gemma3_text")),
        ("qwen2", "w4a8_awq"),
        ("mistral", "fp8_rowwise"),
    ],
)
def test_transformers_computes_the_same_with_its_numbers(
    kind: str, quant: str, models: Callable[[str], Path], export: Export, tmp_path: Path
) -> None:
    """The export multiplied out, by hand, gives the logits of the model whose linears have the same rounded weights."""
    made, source = load_file(export(kind, quant) / "model.safetensors"), load_file(models(kind) / "model.safetensors")
    one = 1.0 if kind.startswith("gemma") else 0.0
    as_loaded, rounded = dict[str, torch.Tensor](), {key: tensor.float() for key, tensor in source.items()}
    for key in source:
        stem = key.removesuffix(".weight")
        if f"{stem}.weight_scale" not in made:
            as_loaded[key] = made[key].float()
            continue
        weight = multiplied_out(made, stem)
        p = made.get(f"{stem}.pre_quant_scale")
        as_loaded[key] = weight if p is None else weight * p.float()
        norm = norm_before(kind, stem) if "awq" in quant and p is None else ""
        if norm:
            p = (made[norm].float() + one) / (source[norm].float() + one)
        rounded[key] = weight if p is None else weight * p.float()
        error = float((rounded[key] - source[key].float()).norm() / source[key].float().norm())
        assert error < (0.16 if "awq" in quant else 0.04), (key, error)
    found, wanted = (logits(models(kind), tensors, tmp_path / name) for name, tensors in (
        ("loaded", as_loaded), ("rounded", rounded)))  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))
    plain = logits(models(kind), {key: tensor.float() for key, tensor in source.items()}, tmp_path / "plain")
    assert torch.cosine_similarity(found, plain, dim=-1).mean() > 0.85  # of a random model, which magnifies noise


def multiplied_out(made: Tensors, stem: str) -> torch.Tensor:
    held, scale = made[f"{stem}.weight"], made[f"{stem}.weight_scale"].float()
    if held.dtype is not torch.uint8:
        return held.float() * (scale.unsqueeze(-1) if scale.dim() else scale)
    weight = torch.empty(2 * held.shape[0], held.shape[1])
    weight[0::2], weight[1::2] = (held << 4).view(torch.int8) >> 4, held.view(torch.int8) >> 4
    return weight * scale.repeat_interleave(128, dim=1)


def norm_before(kind: str, stem: str) -> str:
    layer, name = stem.rsplit(".", 2)[0], stem.rsplit(".", 1)[1]
    mlp = "pre_feedforward_layernorm" if kind.startswith("gemma3") else "post_attention_layernorm"
    norms = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm") | dict.fromkeys(
        ("gate_proj", "up_proj"), mlp
    )
    return f"{layer}.{norms[name]}.weight"


def logits(source: Path, tensors: Tensors, folder: Path) -> torch.Tensor:
    """Of transformers, in float32, for the calibration's tokens."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(token_ids())).logits


@pytest.mark.parametrize(("kind", "quant"), [("llama", "fp8"), ("llama", "int4_awq"), ("qwen2", "w4a8_awq")])
def test_what_loaders_ask_of_fused_linears(kind: str, quant: str, export: Export) -> None:
    """TensorRT-LLM's tensorrt_llm/_torch/modules/linear.py: one input_scale and weight_scale_2 in what it fuses; a
    pre_quant_scale in the model's dtype for every linear that it does not fuse, and none for the others."""
    made = load_file(export(kind, quant) / "model.safetensors")
    for layer in (f"model.layers.{i}." for i in range(2)):
        for fused in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            stems = [f"{layer}{fused[0]}.{part}_proj" for part in fused[1]]
            shared = {"fp8": ("weight_scale", "input_scale"), "w4a8_awq": ("weight_scale_2", "input_scale")}
            for suffix in shared.get(quant, ()):
                assert len({made[f"{stem}.{suffix}"].item() for stem in stems}) == 1, (stems, suffix)
            assert not any(f"{stem}.pre_quant_scale" in made for stem in stems)
        for stem in (f"{layer}self_attn.o_proj", f"{layer}mlp.down_proj"):
            p = made.get(f"{stem}.pre_quant_scale")
            assert (p is not None and p.dtype is torch.float16 and p.dim() == 1) is ("awq" in quant)
