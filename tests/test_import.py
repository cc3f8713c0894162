"""Ready-made quantized models: what comes out of the rank files is what the format says went in, in every layout.

The makers of `quantized_sources` were held once against the libraries themselves (GPTQModel 7.7, AutoAWQ 0.2.9,
compressed-tensors 0.20, ModelOpt 0.47): their readers make the same weights of these tensors.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.by_hand import make as by_hand
from tests.quantized_sources import FLOAT, FORMATS, Tensors, groups, make_source
from tests.tiny import edit_config, edit_weights, load_rank, trtbuild
from trtbuild import pipeline
from trtbuild.cli.plan import document as plan_document
from trtbuild.errors import CheckpointError, PlanError
from trtbuild.lint.check import check
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = [(2, 2), (4, 1)]
# What float16 can say of q * scale + zero: products and sums are rounded once each.
ROUNDING = {"int4_gptq": 2e-3, "int8_gptq": 3e-3}
ROWS = {8: (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15),
        4: (0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27, 4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22,
            23, 30, 31)}  # fmt: skip


def from_kernel(weight: torch.Tensor, bits: int, sm: int) -> torch.Tensor:
    """The stored weight of a GPTQ linear [in, out * bits / 16] -> q [out, in]: the closed form of where an element is.

    Written from the index formula (checkpoint format 5.4), not from the steps that the converter takes.
    """
    rows = len(ROWS[bits])
    inverse = torch.tensor(ROWS[bits]).argsort()
    data = weight.view(torch.uint8).reshape(-1).int()
    inputs, out = weight.shape[0], weight.numel() * 16 // bits // weight.shape[0]
    k, n = torch.meshgrid(torch.arange(inputs), torch.arange(out), indexing="ij")
    r = k // rows * rows + inverse[k % rows]
    il, tile = 16 // bits, 64
    e = n * inputs + r
    if sm < 90:
        e = ((n // il) * (inputs // tile) + r // tile) * (il * tile) + n % il * tile + r % tile
    if bits == 8:
        found = data[(e & ~3) | torch.tensor([0, 2, 1, 3])[e & 3]] ^ 128
        return torch.where(found > 127, found - 256, found).T
    s = e & 7
    place = (e & ~7) | (s // 2 + 4 * (s % 2))
    found = (data[place // 2] >> (4 * (place % 2)) & 15) ^ 8
    return torch.where(found > 7, found - 16, found).T


def weights_of(held: Tensors, config: dict[str, Any]) -> Tensors:
    """The float32 weights that the fields of a rank stand for, by the rules of TensorRT-LLM's own modules."""
    algo, found = config["quantization"]["quant_algo"], {k: v for k, v in held.items() if "scale_to_int" not in k}
    for name in [
        name
        for name in held
        if name.endswith(("qkv.weight", "dense.weight", "fc.weight", "gate.weight", "proj.weight"))
    ]:
        at = name.removesuffix("weight")
        weight, fields = held[name], {k.removeprefix(at): found.pop(k).float() for k in held if k.startswith(at)
                                      and not k.endswith((".bias",)) and k != name}  # fmt: skip
        if algo.endswith("GPTQ"):
            q = from_kernel(weight, int(algo[1]), config["trtbuild_sm"]).float()
            group = config["quantization"]["group_size"]
            scale, zero = (fields[f].T.repeat_interleave(group, 1) for f in ("weights_scaling_factor", "zero"))
            found[name] = q * scale + zero
            continue
        if "AWQ" in algo:
            u = torch.stack((weight.view(torch.uint8) & 15, weight.view(torch.uint8) >> 4), 1).flatten(0, 1).int()
            q = torch.where(u > 7, u - 16, u).float()
            scale = fields["weights_scaling_factor"].repeat_interleave(config["quantization"]["group_size"], 1)
        else:
            q = weight.float()
            scale = fields.get("per_channel_scale", fields.get("weights_scaling_factor"))
            scale = scale.reshape(-1)
            scale = scale.unsqueeze(-1) if len(scale) == len(q) else scale
            assert bool((fields.get("smoother", torch.ones(())) == 1).all())
        found[name] = q * scale * fields.get("prequant_scaling_factor", torch.ones(()))
    return found


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_layout_holds_the_same_weights(name: str, tmp_path: Path) -> None:
    """Rank by rank, against the conversion of the plain model that the quantized one stands for."""
    form = FORMATS[name]
    tied = name in ("gptq", "modelopt fp8")
    source, plain = make_source(tmp_path, form, attention_bias=True, tie_word_embeddings=tied)
    for number, (tp, pp) in enumerate(LAYOUTS):
        sm = 90 if number else None  # SM 80, which has no fp8, would be refused
        asked = form.method if name == "gptq sym awq" else "auto"
        made = pipeline.make_checkpoint(
            str(source), tmp_path / f"made{number}", ConvertOptions(tp, pp, "float16", asked, sm=sm)
        )
        wanted = pipeline.make_checkpoint(str(plain), tmp_path / f"plain{number}", ConvertOptions(tp, pp, "float32"))
        assert not [str(found) for found in check(made).findings if found.severity == "error"]
        config = json.loads((made / "config.json").read_text())
        assert json.loads((made / "trtbuild.json").read_text())["options"]["quant"] == form.method
        assert ("trtbuild_sm" in config) is form.method.endswith("gptq")
        for rank in range(tp * pp):
            ours = weights_of(load_rank(made / f"rank{rank}.safetensors"), config)
            theirs = load_rank(wanted / f"rank{rank}.safetensors")
            assert set(ours) == set(theirs)
            for key, tensor in theirs.items():
                if key.endswith("dense.bias") and form.method.endswith("gptq") and rank % tp:
                    assert not ours[key].any()
                    continue
                near = ROUNDING.get(form.method, 1e-3 if "bias" in key or "norm" in key else 1e-6)
                if form.method == "fp8" and key.endswith((".qkv.weight", ".fc.weight", ".gate.weight")):
                    near = 2**-4  # one more rounding to e4m3, of three bits
                scale = tensor.abs().amax()
                plainly = ".layers." not in key or "norm" in key or "bias" in key
                error = (ours[key].float() - tensor).abs().amax() / scale
                assert error <= (5e-4 if plainly else near), (name, tp, pp, rank, key, float(error))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "gptq sym awq"])
def test_quant_none_multiplies_out(name: str, tmp_path: Path) -> None:
    """Every format, a quantized lm_head too; float16 weights are what float32 products round to."""
    form = FORMATS[name]
    source, plain = make_source(tmp_path, form, head=not form.fused_p, num_hidden_layers=1, vocab_size=136)
    options = ConvertOptions(1, 1, "float16", "none")
    made, wanted = (pipeline.make_checkpoint(str(m), tmp_path / f"{m.name}-out", options) for m in (source, plain))
    assert json.loads((made / "config.json").read_text()) == json.loads((wanted / "config.json").read_text())
    ours, theirs = (load_rank(folder / "rank0.safetensors") for folder in (made, wanted))
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key].float(), tensor.float(), rtol=2e-3, atol=1e-6), key


def test_act_order_is_refused_and_multiplied_out(tmp_path: Path) -> None:
    form = FORMATS["gptq"]
    source, plain = make_source(tmp_path, form, num_hidden_layers=1)
    at = "model.layers.0.mlp.up_proj"
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2))
    edit_config(source, quantization_config={**form.quantization, "desc_act": True})

    def shuffle(tensors: Tensors) -> None:
        tensors[f"{at}.g_idx"] = tensors[f"{at}.g_idx"][order]

    def meant(tensors: Tensors) -> None:
        held: Tensors = {}
        edit_weights(source, lambda t: held.update(t))
        words, scale = held[f"{at}.qweight"], held[f"{at}.scales"].float()
        u = torch.stack([words >> shift & 15 for shift in range(0, 32, 4)], 1).flatten(0, 1).T
        zeros = held[f"{at}.qzeros"].long() + 0x11111111
        z = torch.stack([zeros >> shift & 15 for shift in range(0, 32, 4)], 2).flatten(1)
        group = held[f"{at}.g_idx"].long()
        tensors[f"{at}.weight"] = ((u - z.T[:, group]) * scale.T[:, group]).contiguous()

    edit_weights(source, shuffle)
    edit_weights(plain, meant)
    with pytest.raises(CheckpointError, match=r"the groups of model.layers.0.mlp.up_proj do not hold neighbouring"):
        pipeline.make_checkpoint(str(source), tmp_path / "out", ConvertOptions(dtype="float16", quant="auto"))
    assert not (tmp_path / "out").exists()
    options = ConvertOptions(dtype="float16")
    made, wanted = (pipeline.make_checkpoint(str(m), tmp_path / f"{m.name}-out", options) for m in (source, plain))
    ours, theirs = (load_rank(folder / "rank0.safetensors") for folder in (made, wanted))
    assert all(torch.allclose(ours[key].float(), theirs[key].float(), rtol=2e-3, atol=1e-6) for key in theirs)


@pytest.mark.parametrize("moe_ep", [1, 2])
def test_fp8_experts(moe_ep: int, tmp_path: Path) -> None:
    """Experts keep a scale each; the two matrices of a fused fc get the larger of theirs."""
    sizes = {"intermediate_size": 128, "num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 4}
    form = FORMATS["modelopt fp8"]
    source, plain = make_source(tmp_path, form, model=lambda f, **c: by_hand("Mixtral", f, **c), **sizes)
    options = ConvertOptions(2, 1, "float16", "auto", moe_tp_size=2 // moe_ep, moe_ep_size=moe_ep)
    made = pipeline.make_checkpoint(str(source), tmp_path / "out", options)
    wanted = pipeline.make_checkpoint(str(plain), tmp_path / "want", replace(options, dtype="float32", quant="none"))
    assert not [found for found in check(made).findings if found.severity == "error"]
    for rank in range(2):
        ours, theirs = (load_rank(folder / f"rank{rank}.safetensors") for folder in (made, wanted))
        for module, near in (("fc", 2**-4), ("proj", 1e-6)):
            at = f"transformer.layers.0.mlp.{module}."
            weight = ours[at + "weight"].float() * ours[at + "weights_scaling_factor"].unsqueeze(-1)
            want = theirs[at + "weight"]
            assert weight.shape == want.shape
            assert (weight - want).abs().amax() <= near * want.abs().amax()
            assert ours[at + "activation_scaling_factor"].shape == (1,)


def kv_scales(tensors: Tensors, names: tuple[str, str]) -> None:
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn."
        tensors |= {at + names[0]: torch.tensor([0.25 + layer]), at + names[1]: torch.tensor([0.5])}


@pytest.mark.parametrize("kind", ["modelopt", "compressed-tensors"])
def test_kv_cache_scales(kind: str, tmp_path: Path) -> None:
    """TensorRT-LLM has one scale for k and v of a layer: the larger."""
    if kind == "modelopt":
        form = FORMATS["modelopt fp8"]
        form = replace(form, quantization={**form.quantization, "kv_cache_quant_algo": "FP8"})
        names = ("k_proj.k_scale", "v_proj.v_scale")
    else:
        form = FORMATS["ct fp8"]
        scheme = {**FLOAT, "strategy": "tensor"}
        form = replace(form, quantization={**form.quantization, "kv_cache_scheme": scheme})
        names = ("k_scale", "v_scale")
    source, _ = make_source(tmp_path, form)
    with pytest.raises(PlanError, match=r"missing scales of the FP8 KV cache: model.layers.0.self_attn.k_scale, model"):
        pipeline.make_checkpoint(str(source), tmp_path / "out", ConvertOptions(dtype="float16", quant="auto"))
    edit_weights(source, lambda tensors: kv_scales(tensors, names))
    made = pipeline.make_checkpoint(str(source), tmp_path / "out", ConvertOptions(1, 2, "float16", "auto"))
    assert json.loads((made / "config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"
    assert not [found for found in check(made).findings if found.severity == "error"]
    found = [load_rank(made / f"rank{rank}.safetensors")["transformer.layers.0.attention.kv_cache_scaling_factor"]
             for rank in range(2)]  # fmt: skip
    assert [tensor.tolist() for tensor in found] == [[0.5], [1.25]]


def plan_problems(source: Path, quant: str = "auto", dtype: str = "float16", **more: Any) -> str:
    options = ConvertOptions(dtype=dtype, quant=quant, **more)
    return "\n".join(pipeline.make_plan(str(source), options).problems)


GPTQ = FORMATS["gptq"].quantization
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
WHOLE = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**GPTQ, "bits": 3}, "bits is 3; 4 and 8 can be read"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic gives some modules other bits"),
    ({**GPTQ, "group_size": 32}, "kernels for groups of 64 and 128 only; --quant none multiplies the weights out"),
    ({**FORMATS["awq"].quantization, "version": "gemv"}, "version is 'gemv'; only gemm can be read"),
    (groups(WHOLE, None, "int-quantized"), "build quantizes int8 weights per channel itself, with scales of its own"),
    (groups({**WHOLE, "num_bits": 2}, None, "pack-quantized"), "weights of 2 bits, type 'int'"),
    (groups(WHOLE, None, "int-quantized", transform_config={"a": 1}), "transform_config: its weights are rotated"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo is 'NVFP4'; supported: FP8"),
]


@pytest.mark.parametrize(("quantization", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_what_cannot_be_represented_is_refused(quantization: dict[str, Any], said: str, llama_copy: Path) -> None:
    edit_config(llama_copy, quantization_config=quantization)
    assert said in plan_problems(llama_copy)


def test_all_problems_of_a_quantized_model_come_together(tmp_path: Path) -> None:
    source, _ = make_source(tmp_path, FORMATS["gptq"])

    def spoil(tensors: Tensors) -> None:
        del tensors["model.layers.0.mlp.up_proj.qzeros"]
        tensors["model.layers.0.mlp.down_proj.scales"] = tensors["model.layers.0.mlp.down_proj.scales"][1:].contiguous()
        for name in [name for name in tensors if name.startswith("model.layers.1.self_attn.o_proj.")]:
            del tensors[name]
        tensors["model.layers.1.self_attn.o_proj.weight"] = torch.zeros(256, 256)
        tensors["model.layers.1.mlp.extra"] = torch.zeros(1)

    edit_weights(source, spoil)
    text = plan_problems(source, tp_size=8)
    for said in (
        "model.layers.0.mlp.up_proj has no qzeros",
        "model.layers.0.mlp.down_proj.scales is F16 [7, 256]; it must be F32 or F16 or BF16 [8, 256]",
        "leaves these linears unquantized, and W4A16_GPTQ is for all of them: model.layers.1.self_attn.o_proj.weight",
        "unexpected tensors, which llama has no place for: model.layers.1.mlp.extra",
        "group size 64 does not divide the 32 inputs of attention.dense on a rank",
    ):
        assert said in text


def test_another_method_than_the_model_has(tmp_path: Path, llama_copy: Path) -> None:
    source, _ = make_source(tmp_path, FORMATS["gptq"])
    text = plan_problems(source, "int8")
    assert "the model is quantized already (GPTQ, 4 bits, groups of 64; it becomes int4_gptq as it is)" in text
    assert "--quant none to multiply it out" in text
    assert "int4_gptq is only read from models that are quantized" in plan_problems(llama_copy, "int4_gptq")


def test_the_command_line(tmp_path: Path) -> None:
    """auto is the default; the layout's SM is in config.json, and plan says what it means."""
    source, _ = make_source(tmp_path, FORMATS["gptq"])
    document = plan_document(
        str(source), pipeline.make_plan(str(source), ConvertOptions(dtype="float16", quant="auto", sm=90))
    )
    assert document["quant"] == "int4_gptq"
    assert any("kernels of SM 90" in text for text in document["warnings"])
    done = trtbuild("checkpoint", source, "-o", tmp_path / "out", "--sm", 90, "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "kernels of SM 90" in done.stderr
    held = load_rank(tmp_path / "out" / "rank0.safetensors")
    shapes = {t["name"]: t["shape"] for t in document["ranks"][0]["tensors"]}
    assert shapes == {name: list(tensor.shape) for name, tensor in held.items()}
    assert document["checkpoint_bytes"] >= (tmp_path / "out" / "rank0.safetensors").stat().st_size
    with pytest.raises(CheckpointError, match="in a form that cannot be re-sharded"):
        pipeline.make_checkpoint(str(tmp_path / "out"), tmp_path / "again", ConvertOptions(2, quant="auto"))


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [("weight_scale", 0.0, "it must be a positive number"), ("input_scale", float("nan"), "holds 1 NaN or infinite")],
)
def test_scales_that_cannot_be(suffix: str, value: float, said: str, tmp_path: Path) -> None:
    source, _ = make_source(tmp_path, FORMATS["modelopt fp8"])

    def spoil(tensors: Tensors) -> None:
        tensors[f"model.layers.1.mlp.down_proj.{suffix}"] = torch.tensor([value])

    edit_weights(source, spoil)
    with pytest.raises(CheckpointError, match=rf"(?s)model.layers.1.mlp.down_proj.*{said}"):
        pipeline.make_checkpoint(str(source), tmp_path / "out", ConvertOptions(dtype="float16", quant="auto"))
    assert not (tmp_path / "out").exists()
