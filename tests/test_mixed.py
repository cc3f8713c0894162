"""Mixed precision: which module has which method, on disk, read back, cut and cut again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from tests.by_hand import make as make_by_hand
from tests.family_ranks import job_of, run_job
from tests.plans import config as llama_config
from tests.plans import headers, plan_of
from tests.quantized import spec_of
from tests.quantized_models import GROUP, KINDS, Models, reference
from tests.tiny import load_rank, make_llama, trtbuild
from tests.worded import add_tokenizer, text_of
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.checkpoint.config import read_specs
from trtbuild.checkpoint.logical import LogicalWriter
from trtbuild.checkpoint.pack import pack_checkpoint
from trtbuild.cli.options import layer_methods
from trtbuild.errors import PlanError
from trtbuild.lint.check import check
from trtbuild.lint.finding import Finding
from trtbuild.manifest import read_manifest
from trtbuild.plan import plan_model
from trtbuild.quantization import module_quantization, unlike_stages, whole_model
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import CalibrationOptions, ConvertOptions, LayerMethod

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
PLANNED = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
L = "transformer.layers."
PATTERNS = (
    "*.mlp.proj=fp8",
    "transformer.layers.1.attention.*=int8_sq",
    "transformer.layers.0.mlp.[fg]*=int4_awq:128",
    "*.layers.3.*=none",
    "*.layers.3.mlp.proj=fp8",
)
"""Over int4_awq in groups of 64; the last pattern takes one linear out of the one before."""
ALIKE = ("*.mlp.*=none", "*.layers.[13].attention.dense=none")
"""Over fp8, the same for layers 0, 1 and 2, 3: two stages see one table."""


def wanted(module: str) -> tuple[str, int]:
    """What PATTERNS say, written out by hand: (method, group size)."""
    layer, name = module.removeprefix(L).split(".", 1)
    if name == "mlp.proj":
        return "fp8", 128
    if layer == "3":
        return "none", 128
    if layer == "1" and name.startswith("attention"):
        return "int8_sq", 128
    return "int4_awq", 128 if layer == "0" and name.startswith("mlp") else 64


def asked(*patterns: str, **options: Any) -> ConvertOptions:
    return ConvertOptions(**{"dtype": "float16", "quant": "int4_awq", **options}, quant_layers=layer_methods(patterns))


def module_of(name: str) -> str:
    return name.rpartition(".")[0]


def is_linear(name: str) -> bool:
    return ".layers." in name and "layernorm" not in name and "kv_cache" not in name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers and its calibration text (words.txt beside it)."""
    folder = add_tokenizer(make_llama(tmp_path_factory.mktemp("mixed") / "m", **WIDE))
    ids = torch.randint(3, 512, (200,), generator=torch.Generator().manual_seed(5)).tolist()
    (folder.parent / "words.txt").write_text(text_of(ids))
    return folder


@pytest.fixture(scope="module")
def made(model: Path) -> Callable[..., Path]:
    """Checkpoints of the model by what is asked, each made once."""
    given = CalibrationOptions(model.parent / "words.txt", samples=3, length=48)
    found: dict[ConvertOptions, Path] = {}

    def make(*patterns: str, **options: Any) -> Path:
        key = asked(*patterns, **options)
        if key not in found:
            needed = METHODS[key.quant].needs_calibration or key.kv_cache != "none"
            out = model.parent / f"made{len(found)}"
            pipeline.make_checkpoint(str(model), out, key, calibration=given if needed else CalibrationOptions())
            found[key] = out
        return found[key]

    return make


@pytest.fixture(scope="module")
def mixture(model: Path) -> Path:
    """The checkpoint of PATTERNS with an fp8 cache, for one rank, by the command line."""
    given = [part for pattern in PATTERNS for part in ("--quant-layer", pattern)]
    out = model.parent / "mixture"
    done = trtbuild("checkpoint", model, "-o", out, "--dtype", "float16", "--quant", "int4_awq", "--group-size", 64,
                    *given, "--kv-cache", "fp8", "--calib", model.parent / "words.txt", "--calib-samples", 3,
                    "--calib-length", 48)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def problems(folder: Path, target: str = "") -> list[Finding]:
    return [found for found in check(folder, target=target).findings if found.severity != "info"]


def same(one: Path, other: Path, *leave_out: str) -> bool:
    names = {path.name for path in one.iterdir()} - {*DOCUMENTS, *leave_out}
    assert names == {path.name for path in other.iterdir()} - {*DOCUMENTS, *leave_out}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def algo_of(config: dict[str, Any], module: str) -> str | None:
    algo: str | None = module_quantization(config, module)["quant_algo"]
    return algo


def test_the_algorithm_of_a_module_of_one_for_all() -> None:
    config = {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64, "exclude_modules": None}}
    assert algo_of(config, "transformer.layers.3.mlp.fc") == "W4A16_AWQ"
    assert module_quantization(config, "transformer.layers.3.mlp.fc")["group_size"] == 64
    assert algo_of(config, "lm_head") is None
    assert algo_of(config, "transformer.layers.3.mlp.router") is None
    config["quantization"]["exclude_modules"] = ["transformer.layers.0.*"]
    assert algo_of(config, "transformer.layers.0.mlp.fc") is None
    assert algo_of(config, "lm_head") == "W4A16_AWQ"  # a list replaces the built-in one
    assert algo_of({}, "lm_head") is None
    assert algo_of({"quantization": {"quant_algo": "NO_QUANT"}}, "transformer.layers.0.mlp.fc") is None


def test_the_algorithm_of_a_module_of_a_mixed_checkpoint() -> None:
    table = {"transformer.layers.1.mlp.fc": {"quant_algo": "W4A16_AWQ", "group_size": 64, "pre_quant_scale": True}}
    config = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8"},
        "quantized_layers": table,
    }
    assert algo_of(config, "transformer.layers.1.mlp.fc") == "W4A16_AWQ"
    assert algo_of(config, "transformer.layers.0.mlp.fc") is None
    found = module_quantization(config, "transformer.layers.1.mlp.fc")
    assert (found["group_size"], found["kv_cache_quant_algo"], found["has_zero_point"]) == (64, "FP8", False)


# ---- what is written ----


def test_a_mixture_takes_each_linear_from_the_checkpoint_of_its_method(
    mixture: Path, made: Callable[..., Path]
) -> None:
    """Statistics are those of the unquantized model, so a linear does not know what the others are."""
    uniform: dict[tuple[str, int], Any] = {}
    names = set()
    for name, tensor in load_rank(mixture / "rank0.safetensors").items():
        if name.endswith("cache_scaling_factor"):
            continue
        key = wanted(module_of(name)) if is_linear(name) else ("none", 128)
        if key not in uniform:
            uniform[key] = load_rank(made(quant=key[0], group_size=key[1]) / "rank0.safetensors")
        other = uniform[key][name]
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), name
        names.add(name)
    assert len(uniform) == 5
    for key, tensors in uniform.items():
        assert {name for name in tensors if is_linear(name) and wanted(module_of(name)) == key} <= names


def test_the_table_of_a_mixture(mixture: Path) -> None:
    """quant_cfg.json has the keys that ModelOpt writes, and every linear of the model."""
    document = json.loads((mixture / "quant_cfg.json").read_text())
    quantization = json.loads((mixture / "config.json").read_text())["quantization"]
    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == ("MIXED_PRECISION", "FP8")
    assert (document["quant_algo"], document["kv_cache_quant_algo"]) == ("MIXED_PRECISION", "FP8")
    table = document["quantized_layers"]
    linears = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    assert set(table) == {f"{L}{layer}.{name}" for layer in range(4) for name in linears}
    awq = {"quant_algo": "W4A16_AWQ", "group_size": 128, "pre_quant_scale": True, "has_zero_point": False}
    assert table[f"{L}0.mlp.fc"] == awq
    assert table[f"{L}2.mlp.fc"] == {**awq, "group_size": 64}
    assert table[f"{L}1.attention.qkv"] == {"quant_algo": "W8A8_SQ_PER_CHANNEL"}
    assert table[f"{L}3.mlp.proj"] == {"quant_algo": "FP8"}
    assert table[f"{L}3.mlp.gate"] == {"quant_algo": None}
    config = {"quantization": quantization, "quantized_layers": document["quantized_layers"]}
    for module in table:
        assert algo_of(config, module) == METHODS[wanted(module)[0]].quant_algo
    assert not problems(mixture, "tensorrt")
    options = read_manifest(mixture)["options"]["quant_layers"]
    assert options[2] == {"pattern": "transformer.layers.0.mlp.[fg]*", "method": "int4_awq", "group_size": 128}


def test_patterns_that_leave_one_method_are_no_mixture(made: Callable[..., Path]) -> None:
    assert same(made("*=fp8_rowwise", quant="none"), made(quant="fp8_rowwise"))


def test_quantized_and_then_cut(mixture: Path, made: Callable[..., Path], tmp_path: Path) -> None:
    """Made for a layout = made for one rank and re-sharded, bit for bit; so from any layout to any other."""
    direct = made(*PATTERNS, group_size=64, kv_cache="fp8", tp_size=2, pp_size=2)
    last = mixture
    for tp, pp in ((2, 2), (1, 2), (2, 1), (1, 1)):
        cut = pipeline.make_checkpoint(str(last), tmp_path / f"{tp}x{pp}", ConvertOptions(tp, pp))
        assert same(cut, {(2, 2): direct, (1, 1): mixture}.get((tp, pp), cut))
        found = [finding for finding in problems(cut, "cpu") if finding.rule != "quantization-dims"]
        assert [finding.rule for finding in found] == ["quant-cfg"] * (pp > 1)
        assert all(finding.severity == "warning" for finding in found)
        for rank in range(tp * pp):
            held = load_rank(cut / f"rank{rank}.safetensors")
            assert any(".layers.0." in name for name in held)
            assert all(int(name.split(".")[2]) < 4 // pp for name in held if ".layers." in name)
        last = cut


# ---- pipeline stages: TensorRT-LLM counts layers from 0 on each ----


def test_a_table_by_the_numbers_of_a_stage(made: Callable[..., Path], tmp_path: Path) -> None:
    """ModelOpt writes the quantized linears of the last rank: that table means the same checkpoint."""
    cut = made(*ALIKE, quant="fp8", pp_size=2)
    assert not problems(cut, "tensorrt")
    theirs = Path(shutil.copytree(cut, tmp_path / "theirs"))
    (theirs / "trtbuild.json").unlink()
    path = theirs / "quant_cfg.json"
    document = json.loads(path.read_text())
    document["quantized_layers"] = {
        module.replace(f"{L}2.", f"{L}0.").replace(f"{L}3.", f"{L}1."): own
        for module, own in document["quantized_layers"].items()
        if module.startswith((f"{L}2.", f"{L}3.")) and own["quant_algo"]
    }
    path.write_text(json.dumps(document))
    assert not problems(theirs, "tensorrt")
    ours = pipeline.make_checkpoint(str(cut), tmp_path / "ours", ConvertOptions())
    again = pipeline.make_checkpoint(str(theirs), tmp_path / "again", ConvertOptions())
    assert same(ours, again, "quant_cfg.json")
    one, other = (json.loads((at / "quant_cfg.json").read_text())["quantized_layers"] for at in (ours, again))
    assert one == other


def test_tables_and_stages_as_numbers() -> None:
    """5 layers on 2 stages are 0, 1, 2 and 3, 4."""
    local = {f"{L}0.x": "a", f"{L}2.x": "b", "lm_head": "c"}
    assert whole_model(local, 2, 5) == {f"{L}0.x": "a", f"{L}2.x": "b", f"{L}3.x": "a", "lm_head": "c"}
    far = {f"{L}0.x": "a", f"{L}3.x": "b"}
    assert whole_model(far, 2, 5) == far
    assert whole_model(local, 1, 5) == local
    alike = {f"{L}{i}.x": "aba"[i % 3] for i in range(5)}
    assert unlike_stages(alike, 2, 5) == {}
    assert unlike_stages({**alike, f"{L}4.x": "c"}, 2, 5) == {f"{L}4.x": f"{L}1.x"}


def test_stages_that_are_not_alike() -> None:
    said = "with pp 2 it would take transformer.layers.2.attention.qkv (int4_awq:128) for fp8"
    options = asked("transformer.layers.0.*=fp8", pp_size=2)
    assert any(said in text for text in plan_of(options, **PLANNED).warnings)
    assert not plan_of(options, **PLANNED).problems
    options = asked("transformer.layers.0.*=fp8", pp_size=2, target="tensorrt")
    assert any(said in text for text in plan_of(options, **PLANNED).problems)
    assert not plan_of(asked("*.mlp.*=fp8", pp_size=2, target="tensorrt"), **PLANNED).problems


def test_resharding_to_stages_that_are_not_alike(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"it would read transformer\.layers\.\d\.\S+ as"):
        pipeline.make_checkpoint(str(mixture), tmp_path / "out", ConvertOptions(1, 2, target="tensorrt"))
    with pytest.raises(PlanError, match="--quant-layer needs the source model"):
        pipeline.make_checkpoint(str(mixture), tmp_path / "out", asked("*=fp8", quant="none"))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["*.mlp.fx=fp8"], "pattern '*.mlp.fx' matches none of the 20 linears; transformer.layers.0 has attention.qkv, "
         "attention.dense, mlp.fc, mlp.gate, mlp.proj"),
        (["lm_head=fp8"], "pattern 'lm_head' matches none of the 20 linears"),
        (["*.mlp.fc=fp8"], "mlp.fc is fp8 and mlp.gate int4_awq:128 in layers 0, 1, 2, 3: they are one matrix in"),
        (["*.0.mlp.gate=int4_awq:64"], "mlp.fc is int4_awq:128 and mlp.gate int4_awq:64 in layer 0"),
        (["*.mlp.proj=int8"], "int8 (W8A16) cannot be mixed with other methods: TensorRT-LLM mixes W4A16_AWQ, "
         "W4A8_AWQ, FP8 and W8A8_SQ_PER_CHANNEL only"),
        (["*.mlp.proj=fp8_rowwise"], "(this one replaces whole attentions, MLPs and norms, never a single linear)"),
        (["*.mlp.proj=w4a8_awq:64"], "*.mlp.proj=w4a8_awq:64: w4a8_awq has group size 128"),
        (["*.mlp.proj=fp8:64"], "*.mlp.proj=fp8:64: fp8 has no groups"),
    ],
)  # fmt: skip
def test_refused(patterns: list[str], said: str) -> None:
    family, spec = read_specs(llama_config(**PLANNED))[0]
    plan = plan_model([(family, spec)], asked(*patterns), headers(llama_config(**PLANNED)))
    assert len(plan.problems) == 1, plan.problems
    assert said in plan.problems[0]


def test_groups_count_only_where_they_are() -> None:
    """192 inputs have no groups of 128; the linears with 384 have."""
    small = {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6}
    assert not plan_of(asked("*.mlp.proj=int4_awq", quant="none"), **small).problems
    found = plan_of(asked("*.mlp.[fg]*=int4_awq", quant="none"), **small).problems
    assert found == (
        "group size 128 does not divide the 192 inputs of mlp.fc on a rank",
        "group size 128 does not divide the 192 inputs of mlp.gate on a rank",
        "int4_awq with group size 64 works",
    )
    assert not plan_of(asked("*.mlp.[fg]*=int4_awq:64", quant="none"), **small).problems


def test_experts_have_one_method(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    source = make_by_hand("Mixtral", tmp_path / "source", **sizes)
    found = pipeline.make_plan(str(source), asked("*.layers.1.mlp.*=fp8")).problems
    assert found == (
        "experts have fp8 and int4_awq:128: TensorRT-LLM's mixture of experts has one method in all layers",
    )
    assert not pipeline.make_plan(str(source), asked("*.mlp.*=fp8")).problems


# ---- the linter finds what is wrong ----

L2 = f"{L}2."


def edit_table(edit: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda document: edit(document["quantized_layers"])


def entry(module: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return edit_table(lambda table: table[f"{L}{module}"].update(changes))


FAULTS: list[tuple[Callable[[dict[str, Any]], Any], str, str]] = [
    (entry("2.attention.qkv", quant_algo="FP8"), "tensor-shape", f"{L2}attention.qkv.weight"),
    (edit_table(lambda t: t.pop(f"{L2}mlp.proj")), "tensor-unused", f"{L2}mlp.proj.weights_scaling_factor"),
    (entry("3.mlp.fc", quant_algo="FP8"), "tensor-missing", f"{L}3.mlp.fc.weights_scaling_factor"),
    (entry("0.mlp.fc", group_size=64), "tensor-shape", f"{L}0.mlp.fc.weights_scaling_factor"),
    (entry("0.mlp.gate", group_size=64), "quant-cfg", f"quant_cfg.json: {L}0.mlp.gate"),
    (edit_table(lambda t: t.update({f"{L}*.mlp": {"quant_algo": "FP8"}})), "quant-cfg", f"quant_cfg.json: {L}*.mlp"),
    (entry("2.mlp.fc", quant_algo="FP8_PER_CHANNEL_PER_TOKEN"), "quant-cfg", f"quant_cfg.json: {L2}mlp.fc.quant_algo"),
    (entry("2.mlp.fc", groupsize=64), "quantization-key", f"quant_cfg.json: {L2}mlp.fc.groupsize"),
    (lambda d: d.update(quant_algo="FP8"), "quant-cfg", "quant_cfg.json: quant_algo"),
    (lambda d: d.update(kv_cache_quant_algo=None), "quant-cfg", "quant_cfg.json: kv_cache_quant_algo"),
    (lambda d: d.pop("quantized_layers"), "quant-cfg", "quant_cfg.json: quantized_layers"),
]


@pytest.mark.parametrize(("edit", "rule", "where"), FAULTS)
def test_the_linter_finds(
    edit: Callable[[dict[str, Any]], Any], rule: str, where: str, mixture: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(mixture, tmp_path / "checkpoint"))
    (folder / "trtbuild.json").unlink()
    path = folder / "quant_cfg.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    found = [(finding.rule, finding.where) for finding in problems(folder)]
    assert (rule, where) in found, found


# ---- the engine and the command line ----


def test_the_engine_of_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are those of transformers with the weights of AWQ where the table says so, plain ones elsewhere."""
    monkeypatch.setenv("TRTBUILD_THREADS", "1")
    models, kind = Models(tmp_path), KINDS["W4A16_AWQ"]
    fields, whole = models.fields("llama", kind), models.fields("llama", KINDS["W8A16"])

    def plain(module: str) -> bool:
        return module.endswith("mlp.proj") or module.startswith(f"{L}0.attention")

    taken = {name: t for name, t in fields.items() if not plain(module_of(name))}
    taken |= {name: t for name, t in whole.items() if plain(module_of(name))}
    folder = tmp_path / "mixed"
    folder.mkdir()
    writer = LogicalWriter(tmp_path / "mixed-logical", "mixed")
    writer.write("all", taken)
    writer.close()
    family, spec = spec_of(models.source("llama"))
    options = asked("*.mlp.proj=none", f"{L}0.attention.*=none", group_size=GROUP)
    pack_checkpoint(tmp_path / "mixed-logical", family, spec, options, folder)
    prompt = np.random.default_rng(5).integers(1, 131, 21).tolist()
    run_job(job_of(folder, tmp_path / "out", [prompt], 1), None)
    with torch.no_grad():
        kinds = {module: kind for module in map(module_of, fields) if is_linear(f"{module}.") and not plain(module)}
        model = reference(models.source("llama"), kinds, fields)
        expected = model(torch.tensor([prompt])).logits[0].numpy()
    error = np.abs(np.load(tmp_path / "out.npz")["logits"] - expected)
    assert error.max() < 1e-4 * np.abs(expected).max()


def test_the_command_line(model: Path) -> None:
    done = trtbuild("plan", model, "--json", "--quant", "fp8", "--quant-layer", "*.mlp.*=none")
    assert json.loads(done.stdout)["quant_layers"] == [{"pattern": "*.mlp.*", "method": "none", "group_size": None}]
    done = trtbuild("plan", model, "--quant-layer", "fp8")
    assert done.returncode == 2
    assert "is not PATTERN=NAME" in done.stderr
    for wrong in ("=fp8", "*=fp8:x", "*=fp9", "*="):
        with pytest.raises(typer.BadParameter):
            layer_methods([wrong])
    assert layer_methods(["a=b=int4_awq:64"]) == (LayerMethod("a=b", "int4_awq", 64),)
