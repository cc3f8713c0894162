"""`trtbuild verify`: what differs from the model, or from plain rounding, and is no fault; and the faults beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import family_models
from tests.quantized_sources import FORMATS, make_source
from tests.test_verify import Models, build, models, one_thread_engines  # noqa: F401 - fixtures
from tests.tiny import edit_weights
from trtbuild import pipeline
from trtbuild.checkpoint.config import load_config, read_specs
from trtbuild.checkpoint.source import read_index
from trtbuild.engine.cpu import read_checkpoint_config
from trtbuild.plan import make_plan
from trtbuild.progress import silent
from trtbuild.quantize.methods import METHODS
from trtbuild.runtime.int4 import pack_int4
from trtbuild.spec import CalibrationOptions, ConvertOptions
from trtbuild.verify.report import Report
from trtbuild.verify.task import VerifyOptions
from trtbuild.verify.weights import weight_snrs

pytestmark = pytest.mark.usefixtures("one_thread", "one_thread_engines")
Tensors = dict[str, torch.Tensor]
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")


def fold(norm: str, readers: tuple[str, ...]) -> Callable[[Tensors], None]:
    """Move random scales out of a norm of layer 1 of a Llama, into the linears that read it."""

    def edit(tensors: Tensors) -> None:
        factor = torch.rand(128, generator=torch.Generator().manual_seed(3)) * 3 + 0.5
        tensors[f"model.layers.1.{norm}.weight"] /= factor
        for reader in readers:
            tensors[f"model.layers.1.{reader}.weight"] *= factor

    return edit


def converted(models: Models, quant: str, edit: Callable[[Tensors], None], folder: Path) -> Report:  # noqa: F811
    """The report on an engine of an edited model, beside the model that it was."""
    source = shutil.copytree(models.source, folder / "edited")
    edit_weights(source, edit)
    text = CalibrationOptions(models.folder / "calibration.txt", samples=4, length=64)
    given = text if METHODS[quant].needs_calibration else CalibrationOptions()
    options = ConvertOptions(dtype="float16", quant=quant)
    made = pipeline.make_checkpoint(str(source), folder / "made", options, calibration=given)
    return models.verify(build(made, folder / "engine"))


def bad(report: Report) -> set[tuple[int | None, str]]:
    return {(weight.layer, weight.module) for weight in report.weights if weight.loss_db > 1}


@pytest.mark.parametrize("quant", ["none", "int8", "int4_awq", "fp8"])
def test_scales_that_lie_in_the_weights_behind_a_norm(quant: str, models: Models, tmp_path: Path) -> None:  # noqa: F811
    """SmoothQuant and AWQ divide a norm by what they multiply the weights behind it with."""

    def both(tensors: Tensors) -> None:
        fold("input_layernorm", QKV)(tensors)
        fold("post_attention_layernorm", MLP)(tensors)

    report = converted(models, quant, both, tmp_path)
    assert report.ok, report.verdicts
    assert not bad(report)
    assert any(note.startswith("scales of 2 norms") for note in report.notes)
    found = {(weight.layer, weight.module) for weight in report.weights}
    assert {(0, "input_layernorm"), (1, "attention.qkv"), (1, "mlp.gate")} <= found
    assert not {(1, "input_layernorm"), (1, "post_layernorm")} & found


def test_a_layer_norm_with_a_bias(tmp_path: Path) -> None:
    source, edited = tmp_path / "source", tmp_path / "edited"
    family_models.make_model(family_models.CASES["gpt2"], source)
    shutil.copytree(source, edited)

    def edit(tensors: Tensors) -> None:
        factor = torch.rand(64, generator=torch.Generator().manual_seed(3)) * 3 + 0.5
        base = next(key for key in tensors if key.endswith("h.1.ln_1.weight")).removesuffix("ln_1.weight")
        tensors[f"{base}ln_1.weight"] /= factor
        tensors[f"{base}ln_1.bias"] /= factor
        tensors[f"{base}attn.c_attn.weight"] *= factor[:, None]

    edit_weights(edited, edit)
    (tmp_path / "ids.json").write_text(json.dumps(list(range(2, 43))))
    options = VerifyOptions(text=tmp_path / "ids.json")
    made = pipeline.make_checkpoint(str(edited), tmp_path / "made", ConvertOptions(dtype="float16"))
    report = pipeline.verify_artifact(build(made, tmp_path / "engine"), str(source), options)
    assert report.ok, report.verdicts
    assert not bad(report)
    edit_weights(edited, lambda tensors: tensors[next(key for key in tensors if "h.1.ln_1.bias" in key)].mul_(1.1))
    made = pipeline.make_checkpoint(str(edited), tmp_path / "made2", ConvertOptions(dtype="float16"))
    report = pipeline.verify_artifact(build(made, tmp_path / "engine2"), str(source), options)
    assert bad(report) == {(1, "input_layernorm.bias")}


def only_the_norm(tensors: Tensors) -> None:
    tensors["model.layers.1.input_layernorm.weight"] /= 2


def no_channel(tensors: Tensors) -> None:
    fold("input_layernorm", QKV)(tensors)
    tensors["model.layers.1.input_layernorm.weight"][5] = 0


def one_reader_is_wrong(tensors: Tensors) -> None:
    fold("post_attention_layernorm", MLP)(tensors)
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.02


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (only_the_norm, {"input_layernorm"}),
        (no_channel, {"input_layernorm", "attention.qkv"}),
        (fold("post_attention_layernorm", MLP[:1]), {"post_layernorm", "mlp.fc"}),
        (fold("input_layernorm", QKV[:2]), {"input_layernorm", "attention.qkv"}),
        (one_reader_is_wrong, {"post_layernorm", "mlp.fc", "mlp.gate"}),
    ],
    ids=["norm alone", "a channel lost", "gate forgotten", "v forgotten", "up scaled"],
)
def test_a_norm_that_its_readers_do_not_make_good(
    edit: Callable[[Tensors], None],
    where: set[str],
    models: Models,  # noqa: F811
    tmp_path: Path,
) -> None:
    report = converted(models, "none", edit, tmp_path)
    assert bad(report) == {(1, module) for module in where}
    assert not report.ok


def damaged(models: Models, quant: str, edit: Callable[[Tensors], None], folder: Path) -> Report:  # noqa: F811
    """The report on an engine whose tensors were changed."""
    engine = build(models.checkpoint(quant), folder / "engine")
    tensors = load_file(engine / "rank0.engine")
    edit(tensors)
    save_file(tensors, engine / "rank0.engine")
    return models.verify(engine)


def test_a_slight_fault_behind_a_norm_that_is_the_models(models: Models, tmp_path: Path) -> None:  # noqa: F811
    """One percent of a scale costs less than a product with a norm would be forgiven."""
    base = "transformer.layers.1.attention.qkv."
    report = damaged(models, "int8", lambda tensors: tensors[f"{base}per_channel_scale"].mul_(1.01), tmp_path)
    assert bad(report) == {(1, "attention.qkv")}


@pytest.mark.parametrize(("factor", "again", "fault"), [(0.8, True, False), (0.8, False, True), (1.2, False, True)])
def test_searched_scales_of_groups(factor: float, again: bool, fault: bool, models: Models, tmp_path: Path) -> None:  # noqa: F811
    """int4 groups whose greatest weights are clipped are as a search may have them, if the weights were rounded so."""
    base = "transformer.layers.1.attention.dense."
    model = load_file(models.source / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"]

    def edit(tensors: Tensors) -> None:
        scale = tensors[f"{base}per_channel_scale"] * factor
        tensors[f"{base}per_channel_scale"] = scale
        if again:
            groups = (model / tensors[f"{base}prequant"]).unflatten(-1, (scale.shape[-1], -1))
            rounded = (groups / scale.unsqueeze(-1)).round().clamp(-8, 7).flatten(-2)
            tensors[f"{base}weight"] = pack_int4(rounded.to(torch.int8))

    report = damaged(models, "int4_awq", edit, tmp_path)
    assert bad(report) == ({(1, "attention.dense")} if fault else set())


@pytest.mark.parametrize(("factor", "again", "fault"), [(4.0, True, False), (1.1, False, True), (0.25, True, True)])
def test_shared_scales_of_fp8(factor: float, again: bool, fault: bool, models: Models, tmp_path: Path) -> None:  # noqa: F811
    """Weights far below the greatest that a common scale has room for lose nothing; those beyond it do."""
    base = "transformer.layers.1.attention.dense."

    def edit(tensors: Tensors) -> None:
        if again:
            wide = (tensors[f"{base}weight"].float() / factor).clamp(-448, 448)
            tensors[f"{base}weight"] = wide.to(torch.float8_e4m3fn)
        tensors[f"{base}per_channel_scale"] *= factor

    report = damaged(models, "fp8", edit, tmp_path)
    assert bad(report) == ({(1, "attention.dense")} if fault else set())


def test_scales_of_rows_that_lie_on_several_ranks(models: Models, tmp_path: Path) -> None:  # noqa: F811
    """SmoothQuant's scale of an output holds the greatest weight of all ranks, whichever of them has that."""
    checkpoint = models.checkpoint("int8_sq", tp=4)
    engine, config = build(checkpoint, tmp_path / "engine"), read_checkpoint_config(checkpoint)
    family, spec = read_specs(load_config(models.source))[0]
    index = read_index(models.source)
    plan = make_plan(family, spec, ConvertOptions(4, 1, "float32"), index)
    found, _ = weight_snrs(engine, config, plan.ranks, index, silent)
    rows = [weight for weight in found if weight.module in ("attention.dense", "mlp.proj")]
    assert len(rows) == 4 * 2 * 3
    assert max(weight.loss_db for weight in found) < 0.5
    tensors = load_file(engine / "rank1.engine")
    tensors["transformer.layers.1.mlp.proj.per_channel_scale"] *= 1.02
    save_file(tensors, engine / "rank1.engine")
    found, _ = weight_snrs(engine, config, plan.ranks, index, silent)
    assert {(w.rank, w.layer, w.module) for w in found if w.loss_db > 1} == {(1, 1, "mlp.proj")}


@pytest.mark.parametrize("name", ["gptq", "autofp8"])
def test_a_model_that_is_quantized_already(name: str, tmp_path: Path) -> None:
    """The numbers that it stands for are the reference: kept, or rounded to the scale that fused weights share."""
    source, plain = make_source(tmp_path, FORMATS[name])
    (tmp_path / "ids.json").write_text(json.dumps(list(range(3, 67))))
    made = pipeline.make_checkpoint(str(source), tmp_path / "c", ConvertOptions(1, 1, "float16", "auto"))
    engine, options = build(made, tmp_path / "e"), VerifyOptions(text=tmp_path / "ids.json")
    reports = [pipeline.verify_artifact(engine, str(model), options) for model in (source, plain)]
    assert reports[0].ok
    assert max(weight.loss_db for weight in reports[0].weights) < 0.5
    ours, theirs = ([layer.output_db for layer in report.layers] for report in reports)
    assert ours == pytest.approx(theirs, abs=0.1)
