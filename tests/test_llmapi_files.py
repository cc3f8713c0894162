"""`--target llmapi` as files: plan, shards, refusals, resuming, what is copied, and its command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.kept import OUTERMOST
from tests.llmapi_models import LENGTH, SAMPLES, add_letters, calibration_text, make
from tests.tiny import edit_config, make_llama, trtbuild
from trtbuild import pipeline
from trtbuild.calibrate.form import Job as LinearJob
from trtbuild.errors import PlanError
from trtbuild.layout import Job
from trtbuild.llmapi import layout
from trtbuild.llmapi.documents import hf_documents
from trtbuild.llmapi.form import HfForm
from trtbuild.manifest import read_manifest, sha256_file
from trtbuild.spec import CalibrationOptions, ConvertOptions, LayerMethod


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "ids.jsonl").write_text(calibration_text())
    return add_letters(make("llama", folder / "llama"))


def calibration(model: Path) -> CalibrationOptions:
    return CalibrationOptions(model.parent / "ids.jsonl", samples=SAMPLES, length=LENGTH)


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    """Files whole, hashed in the manifest, the tokenizer beside them; the plan said which tensors there would be."""
    text = ("--calib", model.parent / "ids.jsonl", "--calib-samples", SAMPLES, "--calib-length", LENGTH)
    ways = ("--target", "llmapi", "--quant", "fp8", "--kv-cache", "fp8", "--dtype", "bfloat16")
    planned = trtbuild("plan", model, *ways, "--json")
    done = trtbuild("checkpoint", model, "-o", tmp_path / "out", *ways, *text)
    assert done.returncode == planned.returncode == 0, done.stderr + planned.stderr
    assert "trtllm-serve" in done.stderr
    out = tmp_path / "out"
    tensors = load_file(out / "model.safetensors")
    (file,) = json.loads(planned.stdout)["ranks"]
    assert {t["name"]: t["shape"] for t in file["tensors"]} == {key: list(t.shape) for key, t in tensors.items()}
    assert sum(t["bytes"] for t in file["tensors"]) == sum(t.nbytes for t in tensors.values())
    assert {"tokenizer.json", "generation_config.json", "hf_quant_config.json"} <= {path.name for path in out.iterdir()}
    manifest = read_manifest(out)
    assert manifest["options"]["target"] == "llmapi"
    assert manifest["files"] == {path.name: sha256_file(path) for path in out.iterdir() if path.name not in OUTERMOST}
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert tensors["model.norm.weight"].dtype is torch.bfloat16
    shown = trtbuild("plan", model, *ways)
    assert "Hugging Face files" in shown.stdout
    assert "k_scale" in planned.stdout


def test_without_a_method_it_is_the_model(model: Path, tmp_path: Path) -> None:
    out = pipeline.make_checkpoint(str(model), tmp_path / "out", ConvertOptions(target="llmapi", dtype="bfloat16"))
    source = load_file(model / "model.safetensors")
    made = load_file(out / "model.safetensors")
    assert all(torch.equal(made[key], tensor.to(torch.bfloat16)) for key, tensor in source.items())
    assert set(made) == set(source)
    assert not (out / "hf_quant_config.json").exists()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", tie_word_embeddings=True)
    out = pipeline.make_checkpoint(str(folder), tmp_path / "out", ConvertOptions(target="llmapi"))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_shards(quant: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files hold what one holds, with the index that transformers reads."""
    options = ConvertOptions(target="llmapi", quant=quant)
    given = calibration(model) if quant == "fp8" else CalibrationOptions()
    whole = pipeline.make_checkpoint(str(model), tmp_path / "whole", options, calibration=given)
    monkeypatch.setattr(layout, "SHARD_BYTES", 100_000)
    made = pipeline.make_checkpoint(str(model), tmp_path / "parts", options, calibration=given)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in made.glob("*.safetensors"))
    assert names == sorted(set(index["weight_map"].values()))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    held = {name: load_file(made / name) for name in names}
    expected = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert set(index["weight_map"]) == set(expected)
    for key, name in index["weight_map"].items():
        assert torch.equal(held[name][key].float(), expected[key].float()), key
    assert all(sum(t.nbytes for t in tensors.values()) <= 100_000 for tensors in held.values())


def test_a_tensor_beyond_the_limit_has_its_own_file() -> None:
    jobs = tuple(Job(str(i), "U8", (size,), (), "") for i, size in enumerate((5, 30, 4, 6, 1)))
    assert [[job.name for job in file.jobs] for file in layout.in_shards(jobs, 10)] == [["0"], ["1"], ["2", "3"], ["4"]]


def test_an_interrupted_run_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the last layer: the next run quantizes only that, and the files are those of a run in one go."""
    options, given = ConvertOptions(target="llmapi", quant="int4_awq"), calibration(model)
    whole = pipeline.make_checkpoint(str(model), tmp_path / "whole", options, calibration=given)
    fields, seen = HfForm.fields, list[str]()

    def interrupted(self: HfForm, job: LinearJob) -> dict[str, torch.Tensor]:
        if job.base.endswith("1."):
            raise KeyboardInterrupt
        return fields(self, job)

    def counted(self: HfForm, job: LinearJob) -> dict[str, torch.Tensor]:
        seen.append(job.base)
        return fields(self, job)

    monkeypatch.setattr(HfForm, "fields", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.make_checkpoint(str(model), tmp_path / "out", options, calibration=given)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(HfForm, "fields", counted)
    made = pipeline.make_checkpoint(str(model), tmp_path / "out", options, calibration=given)
    assert set(seen) == {"transformer.layers.1."}
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_linears_that_stay_plain(model: Path, tmp_path: Path) -> None:
    """`--quant-layer PATTERN=none` becomes exclude_modules."""
    options = ConvertOptions(target="llmapi", quant="fp8", quant_layers=(LayerMethod("*.0.attention.*", "none"),))
    made = pipeline.make_checkpoint(str(model), tmp_path / "out", options, calibration=calibration(model))
    tensors, source = load_file(made / "model.safetensors"), load_file(model / "model.safetensors")
    excluded = json.loads((made / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
    assert excluded == [*(f"model.layers.0.self_attn.{part}_proj" for part in "koqv"), "lm_head"]
    for name in excluded:
        assert torch.equal(tensors[f"{name}.weight"], source[f"{name}.weight"])
        assert f"{name}.weight_scale" not in tensors
    assert tensors["model.layers.1.self_attn.q_proj.weight"].dtype is torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("llama", {"quant": "int8_sq"}, "no int8_sq: neither .* has W8A8_SQ_PER_CHANNEL; fp8 works with both"),
        ("llama", {"quant": "int8"}, "no int8: weight-only int8 is quantized by TensorRT-LLM's engine build"),
        ("llama", {"quant": "fp8", "kv_cache": "int8"}, "no int8 KV cache"),
        ("llama", {"kv_cache": "fp8"}, "demand a quant_algo"),
        ("llama", {"quant": "fp8", "tp_size": 2}, "the loader cuts it: leave --tp"),
        ("llama", {"quant": "fp8", "use_embedding_sharing": True}, "are of TensorRT-LLM checkpoints"),
        ("llama", {"quant": "fp8", "dtype": "float32"}, "fp8 needs dtype float16 or bfloat16, not float32"),
        ("llama", {"quant": "w4a8_awq", "group_size": 64}, "w4a8_awq has group size 128, not 64"),
        ("llama", {"quant": "fp8", "quant_layers": (LayerMethod("*.mlp.*", "int4_awq"),)}, "not fp8 and int4_awq"),
        ("mixtral", {"quant": "int4_awq"}, "no loader takes int4_awq experts"),
        ("phi3", {"quant": "int4_awq"}, "Phi3ForCausalLM is loaded by vLLM only, which has no int4_awq; fp8 works"),
        ("gpt2", {"quant": "fp8"}, "not confirmed for GPT2LMHeadModel; it is for LlamaForCausalLM"),
    ],
)
def test_what_no_loader_takes(kind: str, options: dict[str, Any], said: str, model: Path, tmp_path: Path) -> None:
    if kind == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / kind)
    given = model if kind == "llama" else tmp_path / kind if kind == "gpt2" else make(kind, tmp_path / kind)
    plan = pipeline.make_plan(str(given), ConvertOptions(target="llmapi", **options))
    with pytest.raises(PlanError, match=said):
        plan.require()
    assert not plan.parts[0].ranks


def test_dims_that_no_kernel_takes(tmp_path: Path) -> None:
    odd = make_llama(tmp_path / "m", intermediate_size=136, hidden_size=64)
    plan = pipeline.make_plan(str(odd), ConvertOptions(target="llmapi", quant="fp8"))
    assert any("multiples of 16; 136 (intermediate features)" in text for text in plan.problems)


def test_sources_that_are_made_already(model: Path, tmp_path: Path) -> None:
    export = pipeline.make_checkpoint(
        str(model), tmp_path / "fp8", ConvertOptions(target="llmapi", quant="fp8"), calibration=calibration(model)
    )
    with pytest.raises(PlanError, match="quantized already, so serve it as it is"):
        pipeline.make_checkpoint(str(export), tmp_path / "again", ConvertOptions(target="llmapi", quant="auto"))
    engine = pipeline.make_checkpoint(str(model), tmp_path / "trtllm", ConvertOptions())
    with pytest.raises(PlanError, match="this is a TensorRT-LLM checkpoint"):
        pipeline.make_checkpoint(str(engine), tmp_path / "again", ConvertOptions(target="llmapi"))


def test_there_is_no_engine_for_it(model: Path, tmp_path: Path) -> None:
    done = trtbuild("engine", model, "-o", tmp_path / "e", "--target", "llmapi", "--max-batch-size", 1)
    assert done.returncode == 3
    assert "read the checkpoint itself" in done.stderr


def test_both_spellings_of_the_dtype(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "m"))
    edit_config(folder, torch_dtype=None, dtype="float16")
    out = pipeline.make_checkpoint(str(folder), tmp_path / "out", ConvertOptions(target="llmapi"))
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}, {
            "rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}, {
            "rope_theta": 1e6, "rope_local_base_freq": 1e4}),
    ],
)  # fmt: skip
def test_rope_is_said_in_both_spellings(rope: dict[str, Any], older: dict[str, Any]) -> None:
    """TensorRT-LLM 1.2 and vLLM of its time read transformers 4's; it would otherwise be 10000 without a word."""
    made = hf_documents({"rope_parameters": rope}, "float16", None, None, [])["config.json"]
    assert made == {"rope_parameters": rope, **older, "torch_dtype": "float16"}
    kept = hf_documents({"rope_parameters": rope, "rope_theta": 3.0}, "float16", None, None, [])["config.json"]
    assert kept["rope_theta"] == 3.0
