"""Ready-made models of which only some linears are quantized, or not all in one way: ModelOpt's MIXED_PRECISION."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.quantized_sources import _OPT_AWQ, FORMATS, Format, Tensors, make_source, modelopt_awq
from tests.tiny import edit_weights, load_rank, make_llama
from trtbuild import pipeline
from trtbuild.engine.cpu import read_checkpoint_config
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.lint.check import check
from trtbuild.mapping import Mapping
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
W4A8 = Format(modelopt_awq(128, second=True), {**_OPT_AWQ, "quant_algo": "W4A8_AWQ", "group_size": 128}, "w4a8_awq",
              file=True, fused_p=True)  # fmt: skip
_ABLE = ("ct fp8", "modelopt fp8", "modelopt awq", "ct int4", "modelopt sq", "ct w8a8")
ABLE = {**{name: FORMATS[name] for name in _ABLE}, "modelopt w4a8": W4A8}
HEAD = "transformer.layers."


def convert(source: Path, out: Path, quant: str = "auto", tp: int = 1) -> Path:
    return pipeline.make_checkpoint(str(source), out, ConvertOptions(tp, 1, "float16", quant))


def build(checkpoint: Path, out: Path) -> None:
    out.mkdir()
    build_rank(checkpoint, out, read_checkpoint_config(checkpoint), Mapping())


def problems(source: Path) -> str:
    return "\n".join(pipeline.make_plan(str(source), ConvertOptions(dtype="float16", quant="auto")).problems)


def made_plain(source: Path, plain: Path, *linears: str) -> None:
    """Give linears of a quantized model the weights that they stand for."""
    meant = load_file(plain / "model.safetensors")

    def edit(tensors: Tensors) -> None:
        for linear in linears:
            for name in [name for name in tensors if name.startswith(f"{linear}.")]:
                del tensors[name]
            tensors[f"{linear}.weight"] = meant[f"{linear}.weight"].to(torch.float16)

    edit_weights(source, edit)


def table(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "quant_cfg.json").read_text())
    config = json.loads((folder / "config.json").read_text())["quantization"]
    assert document["quant_algo"] == config["quant_algo"] == "MIXED_PRECISION"
    return dict(document["quantized_layers"])


@pytest.mark.parametrize("name", list(ABLE))
def test_linears_that_are_not_quantized_stay_plain(name: str, tmp_path: Path) -> None:
    """All others are those of the wholly quantized model; quant_cfg.json says which is what."""
    form = ABLE[name]
    source, plain = make_source(tmp_path, form)
    for tp in (1, 2):
        convert(source, tmp_path / f"whole{tp}", tp=tp)
        convert(plain, tmp_path / f"plain{tp}", "none", tp)
    made_plain(source, plain, "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj")
    floats = [f"{HEAD}1.mlp.proj", f"{HEAD}0.attention.dense"]
    for tp in (1, 2):
        made = convert(source, tmp_path / f"made{tp}", tp=tp)
        assert not [str(found) for found in check(made).findings if found.severity == "error"]
        algo = json.loads((tmp_path / f"whole{tp}" / "config.json").read_text())["quantization"]["quant_algo"]
        found = {module: entry["quant_algo"] for module, entry in table(made).items()}
        assert found == {module: None if module in floats else algo for module in found}
        assert len(found) == 2 * 5
        for rank in range(tp):
            held, whole, other = (load_rank(tmp_path / f"{folder}{tp}" / f"rank{rank}.safetensors")
                                  for folder in ("made", "whole", "plain"))  # fmt: skip
            wanted = {key: tensor for key, tensor in whole.items() if key.rpartition(".")[0] not in floats}
            wanted |= {f"{module}.weight": other[f"{module}.weight"] for module in floats}
            assert held.keys() == wanted.keys()
            for key, tensor in wanted.items():
                assert torch.equal(held[key].view(torch.uint8), tensor.view(torch.uint8)), (tp, rank, key)
    build(tmp_path / "made1", tmp_path / "engine")


MIXTURE = {
    "0.self_attn": FORMATS["modelopt fp8"],
    "0.mlp": FORMATS["modelopt awq"],
    "1.self_attn": FORMATS["modelopt sq"],
    "1.mlp": W4A8,
}
ALGOS = {"fp8": "FP8", "int4_awq": "W4A16_AWQ", "int8_sq": "W8A8_SQ_PER_CHANNEL", "w4a8_awq": "W4A8_AWQ"}


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """(a model as ModelOpt exports MIXED_PRECISION, the wholly quantized one of each of its methods)."""
    sources: dict[str, Path] = {}
    source = make_llama(tmp_path / "mixed", hidden_size=256, intermediate_size=512, num_attention_heads=8,
                        num_key_value_heads=2, num_hidden_layers=2, vocab_size=131)  # fmt: skip
    tensors = {key: t for key, t in load_file(source / "model.safetensors").items() if "_proj" not in key}
    layers: dict[str, dict[str, Any]] = {}
    for part, form in MIXTURE.items():
        whole, _ = make_source(tmp_path / form.method, form)
        sources[form.method] = whole
        own = {key: t for key, t in load_file(whole / "model.safetensors").items() if f"layers.{part}." in key}
        tensors |= own
        entry = {"quant_algo": ALGOS[form.method]}
        if "awq" in form.method:
            entry |= {key: form.quantization[key] for key in ("group_size", "has_zero_point", "pre_quant_scale")}
        layers |= dict.fromkeys((key.rpartition(".")[0] for key in own), entry)
    save_file(tensors, source / "model.safetensors")
    document = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": document}))
    return source, sources


@pytest.mark.parametrize("tp", [1, 2])
def test_mixed_precision_of_modelopt(tp: int, mixture: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Each linear is that of the model which has its method everywhere."""
    source, sources = mixture
    made = convert(source, tmp_path / "made", tp=tp)
    assert not [str(found) for found in check(made).findings if found.severity == "error"]
    wholes = {method: convert(whole, tmp_path / f"{method}-whole", tp=tp) for method, whole in sources.items()}
    entries = table(made)
    seen = 0
    for part, form in MIXTURE.items():
        at = HEAD + part.replace("self_attn", "attention") + "."
        for rank in range(tp):
            held, whole = (load_rank(f / f"rank{rank}.safetensors") for f in (made, wholes[form.method]))
            ours, theirs = ({k: t for k, t in tensors.items() if k.startswith(at)} for tensors in (held, whole))
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                assert torch.equal(ours[key].view(torch.uint8), tensor.view(torch.uint8)), key
                seen += 1
        own = {module: entry for module, entry in entries.items() if module.startswith(at)}
        assert {entry["quant_algo"] for entry in own.values()} == {ALGOS[form.method]}
        assert "awq" not in form.method or {e["group_size"] for e in own.values()} == {form.quantization["group_size"]}
    assert seen > 30 * tp
    if tp == 1:
        build(made, tmp_path / "engine")
        multiplied = convert(source, tmp_path / "out", "none")
        assert json.loads((multiplied / "config.json").read_text())["quantization"]["quant_algo"] is None


def test_what_a_mixture_cannot_be(mixture: tuple[Path, dict[str, Path]]) -> None:
    source, _ = mixture
    path = source / "hf_quant_config.json"
    document = json.loads(path.read_text())
    layers = document["quantization"]["quantized_layers"]

    def said(**changes: Any) -> str:
        inner = {**document["quantization"], "quantized_layers": {**layers, **changes}}
        path.write_text(json.dumps({"quantization": inner}))
        return problems(source)

    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    assert f"{up}: quant_algo is 'NVFP4'; supported: FP8" in said(**{up: {"quant_algo": "NVFP4"}})
    assert f"{down}.weight is U8 [128, 512], and ModelOpt's FP8 is said of it" in said(**{down: {"quant_algo": "FP8"}})
    assert "model.layers.7.x has no weight" in said(**{"model.layers.7.x": {"quant_algo": "FP8"}})
    path.write_text(json.dumps({"quantization": {"quant_algo": "MIXED_PRECISION"}}))
    assert "quantized_layers has no entry for each quantized layer" in problems(source)


def test_what_is_one_matrix_is_quantized_alike(tmp_path: Path) -> None:
    source, plain = make_source(tmp_path, FORMATS["modelopt fp8"])
    made_plain(source, plain, "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj")
    text = problems(source)
    assert "q_proj.weight (fp8) and model.layers.0.self_attn.k_proj.weight (none) are one matrix" in text
    assert "mlp.fc is fp8 and mlp.gate none in layer 1: they are one matrix" in text


@pytest.mark.parametrize("name", ["gptq", "ct w8a8 token", "ct fp8 channel"])
def test_methods_that_are_for_all_linears(name: str, tmp_path: Path) -> None:
    source, plain = make_source(tmp_path, FORMATS[name])
    made_plain(source, plain, "model.layers.1.mlp.down_proj")
    assert "leaves these linears unquantized, and W" in problems(source).replace("and FP8", "and W")


def test_a_cache_is_quantized_whose_linears_are_not(tmp_path: Path) -> None:
    form = FORMATS["modelopt fp8"]
    form = replace(form, quantization={**form.quantization, "kv_cache_quant_algo": "FP8"})
    source, plain = make_source(tmp_path, form)
    at = "model.layers.0.self_attn."
    made_plain(source, plain, *(f"{at}{part}_proj" for part in "qkv"))

    def scales(tensors: Tensors) -> None:
        for layer in (0, 1):
            names = (f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale" for part in "kv")
            tensors |= dict(zip(names, (torch.tensor([1.5]), torch.tensor([2.0 + layer])), strict=True))

    edit_weights(source, scales)
    made = convert(source, tmp_path / "made")
    assert not [str(found) for found in check(made).findings if found.severity == "error"]
    held = load_rank(made / "rank0.safetensors")
    assert held[f"{HEAD}0.attention.qkv.weight"].dtype == torch.float16
    found = [
        float(held[f"{HEAD}{n}.attention.{which}_cache_scaling_factor"]) for n in (0, 1) for which in ("kv", "k", "v")
    ]
    assert found == [2.0, 1.5, 2.0, 3.0, 1.5, 3.0]
