"""A quantized lm_head: planned, calibrated, cut with padding, re-sharded, executed packed, checked and verified."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.family_models import Case, make_model
from tests.family_ranks import job_of, run_job, run_jobs
from tests.plans import plan_of
from tests.quantized_models import KINDS, Tensors, reference
from tests.test_methods import unpacked
from tests.tiny import load_rank
from tests.worded import add_tokenizer, text_of
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.engine.cpu import read_checkpoint_config, require_same_options
from trtbuild.errors import PlanError
from trtbuild.lint.check import check
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import CalibrationOptions, ConvertOptions, LayerMethod
from trtbuild.verify.report import Verdict
from trtbuild.verify.task import VerifyOptions

VOCAB = 134  # 4 ranks have 34 rows each, the last two of them padding
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
MIXED = "int4_awq, lm_head fp8"
WAYS: dict[str, dict[str, Any]] = {
    **{name: {"quant": name} for name in ("int4_awq", "w4a8_awq", "int8_sq", "fp8")},
    MIXED: {"quant": "int4_awq", "quant_layers": (LayerMethod("lm_head", "fp8"),)},
}
SAMPLES, LENGTH = 4, 32
PROMPT = np.random.default_rng(5).integers(1, VOCAB, 21).tolist()


def calibration(folder: Path) -> CalibrationOptions:
    return CalibrationOptions(folder / "words.txt", samples=SAMPLES, length=LENGTH)


def make_source(folder: Path, **changes: Any) -> Path:
    """A Llama with a tokenizer; calibration ids are words.txt beside it."""
    source = folder / "source"
    make_model(Case("llama", {**SIZES, **changes}), source)
    add_tokenizer(source, VOCAB)
    ids = torch.randint(1, VOCAB, (SAMPLES * LENGTH,), generator=torch.Generator().manual_seed(7)).tolist()
    (folder / "words.txt").write_text(text_of(ids))
    return source


class Made(NamedTuple):
    """Checkpoints NAME-TPx1 of the ways in WAYS, and what their engines compute in NAME-TPx1-EXECUTOR.npz."""

    source: Path
    folder: Path

    def checkpoint(self, name: str, tp: int) -> Path:
        return self.folder / f"{name}-{tp}x1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("heads")
    found = Made(make_source(folder), folder)
    for name, asked in WAYS.items():
        for tp in (1, 4):
            options = ConvertOptions(tp, 1, "float16", quantize_lm_head=True, **asked)
            pipeline.make_checkpoint(
                str(found.source), found.checkpoint(name, tp), options, calibration=calibration(folder)
            )
    run_jobs(
        [job_of(found.checkpoint(name, 4), folder / f"{name}-4x1-native", [PROMPT], 2, "native") for name in WAYS],
        folder,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        for name in WAYS:
            for executor in ("torch", "native"):
                stem = folder / f"{name}-1x1-{executor}"
                run_job(job_of(found.checkpoint(name, 1), stem, [PROMPT], 2, executor), None)
    return found


@cache
def fields_of(folder: Path) -> Tensors:
    """The logical tensors of a checkpoint of one rank: two int4 to a byte in the file."""
    held = load_rank(folder / "rank0.safetensors")
    for key, tensor in held.items():
        scale = held.get(key.replace(".weight", ".weights_scaling_factor"))
        if tensor.dtype is torch.int8 and scale is not None and len(scale) == 2 * len(tensor):
            held[key] = unpacked(tensor)
    return held


@cache
def expected_logits(made: Made, name: str, *, rounded: bool = True) -> np.ndarray:
    """What transformers computes with the dequantized weights of all linears, lm_head too."""
    fields = fields_of(made.checkpoint(name, 1))
    kinds = {kind.method: kind for kind in KINDS.values()}
    inner = kinds[WAYS[name]["quant"]]
    modules = {key.removesuffix(".weight"): inner for key in fields if ".layers." in key and key.endswith(".weight")}
    model = reference(
        made.source, {**modules, "lm_head": kinds["fp8"] if name == MIXED else inner}, fields, rounded=rounded
    )
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


@pytest.mark.parametrize("run", ["1x1-torch", "1x1-native", "4x1-native"])
@pytest.mark.parametrize("name", WAYS)
def test_the_engine_computes_what_the_fields_say(name: str, run: str, made: Made) -> None:
    expected, found = expected_logits(made, name), np.load(made.folder / f"{name}-{run}.npz")["logits"]
    error, size = np.abs(found - expected), np.abs(expected).max()
    assert found.shape == (len(PROMPT), VOCAB)
    if name == "int4_awq":
        assert error.max() < 1e-4 * size
        return
    # As in test_forms.py: an input between two numbers of a grid may go to either, and all later tokens hear of it.
    unrounded = expected_logits(made, name, rounded=False)
    assert error[:4].max(-1).min() < 1e-4 * size
    assert np.median(error) < 0.2 * np.median(np.abs(unrounded - expected))


@pytest.mark.parametrize("name", WAYS)
def test_an_engine_holds_it_packed(name: str, made: Made) -> None:
    for tp, rows in ((1, VOCAB), (4, -(-VOCAB // 4))):
        for rank in range(tp):
            held = load_rank(made.folder / f"{name}-{tp}x1-native.engine" / f"rank{rank}.engine")["lm_head.weight"]
            assert held.dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn)
            assert held.shape == (rows, 256 if held.dtype is torch.uint8 else 512)


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_is_sound_and_the_same_when_cut_later(name: str, made: Made, tmp_path: Path) -> None:
    whole, cut = made.checkpoint(name, 1), made.checkpoint(name, 4)
    for folder in (whole, cut):
        assert not [found for found in check(folder).findings if found.severity != "info"]
    method = "fp8" if name == MIXED else name
    held = load_rank(whole / "rank0.safetensors")
    assert {f"lm_head.{field.suffix}" for field in METHODS[method].fields} == {key for key in held if "lm_head" in key}
    quantization = json.loads((whole / "config.json").read_text())["quantization"]
    if name == MIXED:
        table = json.loads((whole / "quant_cfg.json").read_text())["quantized_layers"]
        assert (quantization["quant_algo"], table["lm_head"]) == ("MIXED_PRECISION", {"quant_algo": "FP8"})
    else:
        rest = ("router", "vocab_embedding", "position_embedding", "block_embedding", "shared_expert_gate")
        assert quantization["exclude_modules"] == [f"*{name}" for name in rest]
    for old, new, asked in ((whole, cut, 4), (cut, whole, 1)):
        again = pipeline.make_checkpoint(str(old), tmp_path / f"{asked}", ConvertOptions(asked, 1))
        for path in new.iterdir():
            if path.name not in DOCUMENTS:
                assert (again / path.name).read_bytes() == path.read_bytes(), (asked, path.name)


def test_padding_is_zeros_with_positive_scales(made: Made) -> None:
    """Rows beyond the vocabulary are worth nothing; a scale of 0 there would be a fault to any reader."""
    for name in WAYS:
        held = load_rank(made.checkpoint(name, 4) / "rank3.safetensors")
        weight = held["lm_head.weight"]
        assert not weight.view(torch.uint8)[-2 * len(weight) // 34 :].any()
        assert (held["lm_head.weights_scaling_factor"] > 0).all()


def test_the_scale_of_its_inputs_is_what_the_last_norm_gives(made: Made) -> None:
    """fp8: the greatest magnitude that enters lm_head in transformers over the same samples, by 448."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(made.source, dtype=torch.float32).eval()
    seen: list[float] = []
    hf.lm_head.register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    ids = [int(word[1:]) for word in (made.folder / "words.txt").read_text().split()]
    with torch.no_grad():
        hf(torch.tensor(ids).reshape(SAMPLES, LENGTH))
    held = fields_of(made.checkpoint("fp8", 1))
    assert float(held["lm_head.activation_scaling_factor"]) == pytest.approx(max(seen) / 448, rel=1e-4)


def test_a_tied_model_keeps_its_table(tmp_path: Path) -> None:
    source = make_source(tmp_path, tie_word_embeddings=True, num_hidden_layers=1)
    options = ConvertOptions(dtype="float16", quant="int8_sq", quantize_lm_head=True)
    made = pipeline.make_checkpoint(str(source), tmp_path / "out", options, calibration=calibration(tmp_path))
    assert not [found for found in check(made).findings if found.severity != "info"]
    held, table = (
        load_rank(made / "rank0.safetensors"),
        load_rank(source / "model.safetensors")["model.embed_tokens.weight"],
    )
    assert torch.equal(held["transformer.vocab_embedding.weight"], table.half())
    smoothed = held["lm_head.weight"].float() * held["lm_head.weights_scaling_factor"][:, None]
    weight = smoothed * held["lm_head.prequant_scaling_factor"].float()
    assert (weight - table).norm() < 0.02 * table.norm()


def test_verify(made: Made, tmp_path: Path) -> None:
    """A sound one passes, and a wrong scale of one rank's lm_head is found there."""
    (tmp_path / "ids.json").write_text(json.dumps(PROMPT))
    engine = shutil.copytree(made.folder / "fp8-4x1-native.engine", tmp_path / "engine")

    def weights() -> Verdict:
        report = pipeline.verify_artifact(engine, str(made.source), VerifyOptions(text=tmp_path / "ids.json"))
        assert {weight.rank for weight in report.weights if weight.module == "lm_head"} == {0, 1, 2, 3}
        return next(verdict for verdict in report.verdicts if verdict.gate == "max_weight_loss")

    assert weights().passed
    tensors = load_rank(engine / "rank2.engine")
    tensors["lm_head.per_channel_scale"] *= 1.25
    save_file(tensors, engine / "rank2.engine")
    found = weights()
    assert not found.passed
    assert found.where.startswith("lm_head, rank 2")


def test_what_is_refused(made: Made) -> None:
    def problems(**options: Any) -> tuple[str, ...]:
        asked = ConvertOptions(dtype="float16", quantize_lm_head=True, **options)
        return pipeline.make_plan(str(made.source), asked).problems

    for name in ("int8", "int4", "fp8_rowwise"):
        assert problems(quant=name) == (f"TensorRT-LLM has no {name} for lm_head; leave --quantize-lm-head out",)
    none = "lm_head has no method; say --quant-layer lm_head=METHOD, or leave --quantize-lm-head out"
    assert problems(quant="none") == (none,)
    assert problems(quant="none", quant_layers=(LayerMethod("*.mlp.*", "fp8"),)) == (none,)
    assert problems(quant="none", quant_layers=(LayerMethod("lm_head", "fp8"),)) == ()
    shared = {"use_parallel_embedding": True, "use_embedding_sharing": True}
    assert problems(quant="fp8", **shared) == (
        "--use-embedding-sharing makes lm_head the table, which stays plain; leave it or --quantize-lm-head out",
    )
    pattern = ConvertOptions(dtype="float16", quant="fp8", quant_layers=(LayerMethod("lm_head", "fp8"),))
    assert problems(quant="fp8", target="llmapi") == (
        "--target llmapi keeps lm_head plain: leave --quantize-lm-head out",
    )
    assert "pattern 'lm_head' matches none" in pipeline.make_plan(str(made.source), pattern).problems[0]
    odd = plan_of(ConvertOptions(2, 1, "float16", "int4_awq", quantize_lm_head=True), vocab_size=514)
    assert "2 outputs of lm_head share a byte, and this layout cuts between them" in odd.problems
    assert not plan_of(ConvertOptions(2, 1, "float16", "fp8", quantize_lm_head=True), vocab_size=513).problems
    with pytest.raises(PlanError, match=r"--quantize-lm-head needs the source model"):
        pipeline.make_checkpoint(
            str(made.checkpoint("fp8", 1)), made.folder / "never", ConvertOptions(quantize_lm_head=True)
        )
    again = ConvertOptions(quantize_lm_head=True)
    require_same_options(read_checkpoint_config(made.checkpoint(MIXED, 1)), again)
    plain = made.folder / "plain"
    pipeline.make_checkpoint(str(made.source), plain, ConvertOptions(dtype="float16"))
    with pytest.raises(PlanError, match="quantize-lm-head True was asked for"):
        require_same_options(read_checkpoint_config(plain), again)
