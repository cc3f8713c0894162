"""`trtbuild verify`: planted faults are found where they are, numbers are those of transformers, good ones pass."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import family_models, test_moe
from tests.checkpoints import edit_config, edit_rank
from tests.faults import FAULTS, unfused
from tests.tiny import edit_weights, make_llama, trtbuild
from tests.worded import add_tokenizer, text_of
from trtbuild import pipeline
from trtbuild.checkpoint.config import load_config, read_specs
from trtbuild.checkpoint.source import read_index
from trtbuild.engine.cpu import engine_mapping, read_checkpoint_config
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import VerifyError
from trtbuild.plan import make_plan
from trtbuild.progress import silent
from trtbuild.quantize.methods import METHODS
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.spec import CalibrationOptions, ConvertOptions
from trtbuild.verify.gates import GATES
from trtbuild.verify.measure import decibels, snr_db
from trtbuild.verify.report import Report, document
from trtbuild.verify.task import VerifyOptions
from trtbuild.verify.weights import weight_snrs

pytestmark = pytest.mark.usefixtures("one_thread", "one_thread_engines")
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 259,
    "initializer_range": 0.08,
}
SAMPLES, LENGTH = 2, 48
NO_FAVOURITES = {"min_top1": 0.25}
"""A random model has no clear best guess, which a little noise cannot change."""


def build(checkpoint: Path, out: Path) -> Path:
    """The engine of a checkpoint, all of its ranks built in this process."""
    config = read_checkpoint_config(checkpoint)
    out.mkdir()
    for rank in range(engine_mapping(config).world_size):
        build_rank(checkpoint, out, config, engine_mapping(config).at(rank))
    limits = BuildOptions(4, None, 16).build_config(config)
    described = {"target": "cpu", "executor": "native"}
    (out / "config.json").write_text(
        json.dumps({"pretrained_config": config, "build_config": limits, "trtbuild": described})
    )
    return out


class Models:
    """A Llama with channels far louder than others, as real ones have, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, add_tokenizer(make_llama(folder / "llama", **SIZES), SIZES["vocab_size"])

        def louder(tensors: dict[str, torch.Tensor]) -> None:
            for key, tensor in tensors.items():
                if "layernorm" in key:
                    tensor[::17] *= 8.0
                elif "k_proj" in key or "v_proj" in key:
                    tensor *= 0.6

        edit_weights(self.source, louder)
        self._reports: dict[str, Report] = {}
        ids = torch.randint(3, SIZES["vocab_size"], (400,), generator=torch.Generator().manual_seed(5)).tolist()
        (folder / "calibration.txt").write_text(text_of(ids[:256]))
        self.ids = ids[256 : 256 + SAMPLES * LENGTH]
        self.text = folder / "text.txt"
        self.text.write_text(text_of(self.ids))

    def checkpoint(self, quant: str, tp: int = 1, kv: str = "none") -> Path:
        out = self.folder / f"{quant}-{tp}-{kv}"
        if not out.exists():
            options = ConvertOptions(tp, 1, "float16", quant, kv_cache=kv)
            needed = METHODS[quant].needs_calibration or kv != "none"
            text = CalibrationOptions(self.folder / "calibration.txt", samples=4, length=64)
            given = text if needed else CalibrationOptions()
            pipeline.make_checkpoint(str(self.source), out, options, calibration=given)
        return out

    def damaged(self, quant: str, plant: Any, out: Path, tp: int = 1) -> Path:
        shutil.copytree(self.checkpoint(quant, tp), out)
        for rank in range(tp):
            edit_rank(out, rank, plant)
        (out / "trtbuild.json").unlink()
        return out

    def report(self, quant: str, kv: str = "none") -> Report:
        key = f"{quant}-{kv}"
        if key not in self._reports:
            engine = build(self.checkpoint(quant, kv=kv), self.folder / f"{key}.engine")
            self._reports[key] = self.verify(engine)
        return self._reports[key]

    def verify(self, engine: Path, **changes: Any) -> Report:
        given = {"text": self.text, "tokens": SAMPLES * LENGTH, "length": LENGTH, "gates": NO_FAVOURITES, **changes}
        options = VerifyOptions(**given)
        return pipeline.verify_artifact(engine, str(self.source), options)


@pytest.fixture(scope="module")
def one_thread_engines() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("verify"))


# ---- faults ----


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, models: Models, tmp_path: Path) -> None:
    fault = FAULTS[name]
    checkpoint = models.damaged(fault.quant, fault.plant, tmp_path / "damaged")
    report = models.verify(build(checkpoint, tmp_path / "engine"))
    assert not report.ok
    limits = {verdict.gate: verdict.limit for verdict in report.verdicts}
    bad = {(w.layer, w.name): w.cause for w in report.weights if w.loss_db > limits["max_weight_loss"]}
    assert set(bad) == {(fault.layer, module) for module in fault.where}
    for module, words in fault.where.items():
        assert words in bad[fault.layer, module]
    good = models.report(fault.quant)
    changed = [now.layer for now, before in zip(report.layers, good.layers, strict=True)
               if abs(now.output_db - before.output_db) > 0.5]  # fmt: skip
    assert changed == [fault.layer]
    assert report.layers[fault.layer].output_db < good.layers[fault.layer].output_db - 1
    failed = {verdict.gate: verdict.where for verdict in report.verdicts if not verdict.passed}
    gate = "max_weight_loss" if fault.where else "min_output_snr"
    assert failed[gate].startswith(f"layer {fault.layer}")


MADE_HERE = [name for name, method in METHODS.items() if not method.imported]


@pytest.mark.parametrize(
    ("quant", "kv"), [*((name, "none") for name in MADE_HERE), ("none", "int8"), ("int4_awq", "int8")]
)
def test_a_good_checkpoint_passes(quant: str, kv: str, models: Models) -> None:
    report = models.report(quant, kv)
    assert report.ok
    assert not report.suspects
    assert max(weight.loss_db for weight in report.weights) < 0.5
    assert report.quant_algo == (METHODS[quant].quant_algo or "")


# ---- numbers ----


def test_logits_are_judged_as_transformers_says(models: Models) -> None:
    """Perplexity, divergence and agreement from transformers' own logits of the model, and served logits of ours."""
    from transformers import AutoModelForCausalLM

    report = models.report("int4_awq")
    model = AutoModelForCausalLM.from_pretrained(models.source, dtype=torch.float32).eval()
    ids = torch.tensor(models.ids).view(SAMPLES, LENGTH)
    with torch.no_grad():
        wanted = model(ids).logits.double()
    generator = Generator(models.folder / "int4_awq-none.engine", RuntimeOptions(max_tokens_in_paged_kv_cache=512))
    found = torch.stack([torch.from_numpy(generator.score(row.tolist())) for row in ids]).double()

    def perplexity(logits: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).exp())

    kl = torch.nn.functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none")
    got, per_position = report.logits, kl.sum(-1)
    assert got.positions == ids.numel()
    assert got.perplexity_reference == pytest.approx(perplexity(wanted), rel=1e-5)
    assert got.perplexity == pytest.approx(perplexity(found), rel=1e-4)
    assert got.perplexity_ratio == pytest.approx(perplexity(found) / perplexity(wanted), rel=1e-4)
    assert got.kl_mean == pytest.approx(float(per_position.mean()), rel=1e-3)
    assert got.kl_max == pytest.approx(float(per_position.max()), rel=1e-3)
    assert got.top1 == pytest.approx(float((found.argmax(-1) == wanted.argmax(-1)).double().mean()))
    assert got.max_error == pytest.approx(float((found - wanted).abs().max()), rel=1e-3)


def test_layers_are_judged_as_hooks_say(models: Models) -> None:
    """The hidden states of transformers with the weights of a float16 checkpoint, each layer from those of float32."""
    from transformers import AutoModelForCausalLM

    report = models.report("none")
    model = AutoModelForCausalLM.from_pretrained(models.source, dtype=torch.float32).eval()
    rounded = AutoModelForCausalLM.from_pretrained(models.source, dtype=torch.float32).eval()
    rounded.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    ids = torch.tensor(models.ids).view(SAMPLES, LENGTH)
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    replies: list[torch.Tensor] = []

    def keep(_module: Any, args: Any, out: torch.Tensor) -> None:
        inputs.append(args[0].clone())
        outputs.append(out.clone())

    for layer in model.model.layers:
        layer.register_forward_hook(keep)
    for number, layer in enumerate(rounded.model.layers):
        layer.register_forward_pre_hook(lambda _, args, n=number: (inputs[n], *args[1:]))
        layer.register_forward_hook(lambda _, args, out: replies.append(out))
    with torch.no_grad():
        model(ids)
        rounded(ids)
    for layer, before, after, reply in zip(report.layers, inputs, outputs, replies, strict=True):
        noise = (reply - after).square().sum(-1) / (after - before).square().sum(-1)
        assert layer.output_db == pytest.approx(float(-10 * noise.double().mean().log10()), abs=0.3)


def test_decibels() -> None:
    one = torch.tensor([3.0, 4.0])
    assert snr_db(one, one * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert snr_db(one, one) == 200.0
    assert snr_db(torch.zeros(2), one) == -200.0
    assert decibels(1.0, float("nan")) == -200.0


def test_every_algorithm_has_gates() -> None:
    assert {method.quant_algo or "" for method in METHODS.values()} <= set(GATES)


FAMILIES = [*family_models.CASES, *test_moe.MODELS]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exact_in_float32_on_any_ranks(name: str, tmp_path: Path) -> None:
    """Layers cut out of the program give the hidden states of the reference, and every rank's weights are found."""
    if name in family_models.CASES:
        family_models.make_model(family_models.CASES[name], tmp_path / "m")
    else:
        test_moe.make_model(tmp_path / "m", name)
    (tmp_path / "ids.json").write_text(json.dumps(list(range(2, 43))))
    plain = pipeline.make_checkpoint(str(tmp_path / "m"), tmp_path / "c", ConvertOptions(dtype="float32"))
    options = VerifyOptions(text=tmp_path / "ids.json")
    report = pipeline.verify_artifact(build(plain, tmp_path / "e"), str(tmp_path / "m"), options)
    assert report.ok, report.verdicts
    assert not report.notes[1:], report.notes
    assert min(weight.snr_db for weight in report.weights) == 200.0
    assert min(layer.output_db for layer in report.layers) > 80
    assert report.logits.kl_max < 1e-6
    assert report.logits.top1 == 1
    family, spec = read_specs(load_config(tmp_path / "m"))[0]
    cut = ConvertOptions(2, 2 if family.pipeline else 1, "float32")
    sharded = pipeline.make_checkpoint(str(tmp_path / "m"), tmp_path / "cut", cut)
    plan = make_plan(family, spec, cut, read_index(tmp_path / "m"))
    plan.require()
    engine = build(sharded, tmp_path / "ranks")
    found, _ = weight_snrs(engine, read_checkpoint_config(sharded), plan.ranks, read_index(tmp_path / "m"), silent)
    assert {weight.snr_db for weight in found} == {200.0}
    assert {weight.rank for weight in found} == set(range(cut.world_size))
    assert {weight.layer for weight in found} == {None, *range(spec.num_layers)}


# ---- what cannot be compared, and the command line ----


def test_all_that_is_wrong_is_said_at_once(models: Models, tmp_path: Path) -> None:
    other = add_tokenizer(make_llama(tmp_path / "other", vocab_size=300, num_hidden_layers=2), 300)
    (tmp_path / "short.json").write_text("[5]")
    options = VerifyOptions(text=tmp_path / "short.json")
    with pytest.raises(VerifyError) as caught:
        pipeline.verify_artifact(models.checkpoint("none"), str(other), options)
    text = "\n".join(caught.value.problems)
    for words in ("vocab_size is 259", "num_hidden_layers is 3", "hidden_size is 128", "too short: 1 tokens"):
        assert words in text
    with pytest.raises(VerifyError, match="a Hugging Face model; an engine or"):
        pipeline.verify_artifact(models.source, str(models.source), options)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\xff\xfe\xfa", "not UTF-8"), (b"t3", "too short"), (None, "cannot be read")],
)
def test_texts_that_cannot_be_run(content: bytes | None, words: str, models: Models, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerifyError, match=words):
        pipeline.verify_artifact(models.checkpoint("none"), str(models.source), VerifyOptions(text=path))


def test_a_config_that_differs_is_noted(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models.checkpoint("none"), tmp_path / "c")
    edit_config(tmp_path / "c", rotary_base=500.0)
    report = models.verify(build(tmp_path / "c", tmp_path / "e"))
    assert report.notes == ("config.json has rotary_base 500.0, the model 10000.0",)
    assert not report.ok
    assert max(weight.loss_db for weight in report.weights) == 0.0


def test_scales_that_two_ranks_do_not_share(models: Models, tmp_path: Path) -> None:
    bad = models.damaged("fp8", partial(unfused, q=64, kv=32), tmp_path / "bad", tp=2)
    index, config = read_index(models.source), read_checkpoint_config(bad)
    family, spec = read_specs(load_config(models.source))[0]
    plan = make_plan(family, spec, ConvertOptions(2, 1, "float32"), index)
    found, _ = weight_snrs(build(bad, tmp_path / "engine"), config, plan.ranks, index, silent)
    wrong = {(weight.rank, weight.layer, weight.name) for weight in found if weight.loss_db > 1}
    assert {(rank, 1, f"attention.qkv ({part})") for rank in (0, 1) for part in "kv"} <= wrong
    assert {(layer, name.split()[0]) for _, layer, name in wrong} == {(1, "attention.qkv")}


def test_command_line_of_two_ranks(models: Models) -> None:
    """Real ranks under mpirun, and the same weights on one rank."""
    options = ["--against", models.source, "--text", models.text, "--tokens", SAMPLES * LENGTH, "--length", LENGTH]
    done = trtbuild("verify", models.checkpoint("fp8", tp=2), *options, "--min-top1", 0.25, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == 1
    assert report["ok"]
    assert report["tp"] == 2
    assert report["one_rank"]["difference"] < 0.25
    assert {weight["rank"] for weight in report["weights"]} == {0, 1}
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2]


def test_command_line_of_a_damaged_engine(models: Models, tmp_path: Path) -> None:
    """Its own exit code, the place on stderr and in the picture."""
    fault = FAULTS["swapped gate and up"]
    engine = build(models.damaged(fault.quant, fault.plant, tmp_path / "bad"), tmp_path / "engine")
    options = ["--against", models.source, "--text", models.text, "--tokens", SAMPLES * LENGTH, "--length", LENGTH]
    done = trtbuild("verify", engine, *options, "--plot", tmp_path / "bad.html")
    assert done.returncode == 8, done.stderr
    assert "weight below its form" in done.stderr
    assert "layer 1, mlp." in done.stderr
    assert "perplexity increase" in done.stdout
    cells = re.findall(r'<rect class="bad"[^>]*>\s*<title>(layer [^:]*)', (tmp_path / "bad.html").read_text())
    assert {"layer 1, mlp.fc, rank 0", "layer 1, mlp.gate, rank 0"} == {cell for cell in cells if "rank" in cell}


def test_the_report_is_json(models: Models) -> None:
    for report in (models.report("none"), models.report("int4_awq", "int8")):
        json.dumps(document(report), allow_nan=False)
