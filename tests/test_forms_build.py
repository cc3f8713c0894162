"""Building engines of quantized checkpoints: upstream's finished weights, mixed precision, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.quantized_models import GROUP, KINDS, Kind, Models, Tensors, reference
from tests.test_moe import build_here
from trtbuild import pipeline
from trtbuild.engine.cpu import read_checkpoint_config
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import CheckpointError, EngineError
from trtbuild.mapping import Mapping
from trtbuild.quantize.packing import preprocess_weights_for_mixed_gemm, undo_mixed_gemm
from trtbuild.quantize.values import symmetric
from trtbuild.runtime.executor import EXECUTORS
from trtbuild.runtime.forms import FORMS, form_of
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.program import build_program
from trtbuild.spec import ConvertOptions

TOKENS = [5, 17, 80, 3, 99, 41, 7, 120, 64, 2, 11, 90]
L0, L1 = "transformer.layers.0.", "transformer.layers.1."
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("sm", [80, 89, 90, 100])
@pytest.mark.parametrize(("bits", "act_bits"), [(8, 16), (4, 16), (4, 8)])
def test_undoing_a_layout(bits: int, act_bits: int, sm: int) -> None:
    """Of the function that golden vectors of upstream prove (test_int8.py)."""
    half = 1 << (bits - 1)
    q = torch.randint(-half, half, (256, 192), dtype=torch.int8)
    packed = q if bits == 8 else (q[:, 0::2] & 15) | (q[:, 1::2] << 4)
    laid = preprocess_weights_for_mixed_gemm(packed, bits, act_bits, sm)
    assert torch.equal(undo_mixed_gemm(laid, bits, act_bits, sm), q)
    with pytest.raises(CheckpointError, match="must be a multiple of"):
        undo_mixed_gemm(laid[:40], bits, act_bits, sm)


@pytest.mark.parametrize(("bits", "algo"), [(8, "W8A16"), (4, "W4A16")])
def test_weight_only_equals_upstream(golden: Path, tmp_path: Path, bits: int, algo: str) -> None:
    """Upstream's converter quantized this model: its numbers are ours, and its finished checkpoint gives our engine."""
    upstream = golden / f"llama-h128-tp1-pp1-float16-int{bits}" / "trtllm"
    ours = tmp_path / "ours"
    pipeline.make_checkpoint(str(golden / "_hf" / "llama-h128"), ours, ConvertOptions(dtype="float16"))
    theirs, plain = (load_file(folder / "rank0.safetensors") for folder in (upstream, ours))
    quantized = [name.removesuffix("per_channel_scale") for name in theirs if name.endswith("per_channel_scale")]
    assert len(quantized) == 2 * 5
    for base in quantized:
        q, scale = symmetric(plain[f"{base}weight"], bits)
        assert torch.equal(undo_mixed_gemm(theirs[f"{base}weight"], bits, 16, 80).T, q)
        assert torch.equal(scale.half(), theirs[f"{base}per_channel_scale"])

    edit(ours, config={"quantization": {"quant_algo": algo}})
    shutil.copytree(upstream, tmp_path / "theirs", copy_function=shutil.copyfile)
    with pytest.raises(EngineError, match="layout of one GPU generation") as caught:
        build_here(tmp_path / "theirs", tmp_path / "refused")
    assert 'Add "trtbuild_sm" to its config.json' in caught.value.hint
    edit(tmp_path / "theirs", config={"trtbuild_sm": 80})
    engines = [load_file(build_here(folder, tmp_path / f"{folder.name}.engine") / "rank0.engine")
               for folder in (ours, tmp_path / "theirs")]  # fmt: skip
    assert engines[0].keys() == engines[1].keys()
    assert all(torch.equal(tensor, engines[1][name]) for name, tensor in engines[0].items())


MIXED = {
    "attention.qkv": ("W4A16_AWQ", "FP8"),
    "attention.dense": ("W8A8_SQ_PER_CHANNEL", None),
    "mlp.fc": ("FP8", "W4A16_AWQ"),
    "mlp.gate": ("FP8", "W4A16_AWQ"),
    "mlp.proj": (None, "FP8_PER_CHANNEL_PER_TOKEN"),
}
"""Algorithms of a module in layers 0 and 1. fc and gate are one product in TensorRT-LLM, and so alike."""


def mixed_checkpoint(models: Models, folder: Path) -> tuple[dict[str, Kind], Tensors]:
    """A Llama whose modules are quantized as MIXED says: (kinds by module, their logical tensors)."""
    shutil.copytree(models.plain("llama"), folder, copy_function=shutil.copyfile)
    (folder / "trtbuild.json").unlink()
    tensors, kinds, fields, table = load_file(folder / "rank0.safetensors"), {}, {}, {}
    for name, algos in MIXED.items():
        for layer, algo in enumerate(algos):
            if algo is None:
                continue
            module, kind = f"transformer.layers.{layer}.{name}", KINDS[algo]
            kinds[module] = kind
            made = models.checkpoint("llama", kind)
            del tensors[f"{module}.weight"]
            for source, target in (
                (load_file(made / "rank0.safetensors"), tensors),
                (models.fields("llama", kind), fields),
            ):
                target |= {key: value for key, value in source.items() if key.startswith(f"{module}.")}
            table[module] = {k: v for k, v in read_checkpoint_config(made)["quantization"].items() if v is not None}
    save_file(tensors, folder / "rank0.safetensors")
    edit(folder, config={"quantization": {"quant_algo": "MIXED_PRECISION"}})
    (folder / "quant_cfg.json").write_text(json.dumps({"quant_algo": "MIXED_PRECISION", "quantized_layers": table}))
    return kinds, fields


def test_mixed_precision(models: Models, tmp_path: Path) -> None:
    """Through the whole engine build, whose config.json carries the table; both executors equal transformers."""
    kinds, fields = mixed_checkpoint(models, tmp_path / "mixed")
    engine = pipeline.make_engine(
        str(tmp_path / "mixed"), tmp_path / "engine", ConvertOptions(), BuildOptions(4, 96, 32)
    )
    held = json.loads((engine / "config.json").read_text())["pretrained_config"]
    assert set(held["quantized_layers"]) == set(kinds)
    model = reference(models.source("llama"), kinds, fields)
    # An input that lies at the edge of its grid may be rounded the other way, and what follows it differs: so tokens
    # are also scored alone, and most of them meet no edge.
    alone = [[token] for token in TOKENS[:12]]
    with torch.no_grad():
        expected, *singles = (model(torch.tensor([ids])).logits[0].numpy() for ids in (TOKENS, *alone))
    size = np.abs(expected).max()
    for executor in EXECUTORS:
        generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=96, executor=executor))
        errors = [np.abs(generator.score(ids) - wanted).max() for ids, wanted in zip(alone, singles, strict=True)]
        assert np.median(errors) < 1e-5 * size, executor
        assert np.median(np.abs(generator.score(TOKENS) - expected)) < 1e-2 * size, executor
    (tmp_path / "mixed" / "quant_cfg.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*quant_cfg\.json"):
        read_checkpoint_config(tmp_path / "mixed")


def test_a_quantized_head(models: Models, tmp_path: Path) -> None:
    """lm_head is a linear as any other where exclude_modules does not name it."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(models.checkpoint("llama", KINDS["FP8"]), folder, copy_function=shutil.copyfile)
    edit(folder, config={"quantization": {"exclude_modules": ["*vocab_embedding"]}})
    head: Tensors = {}

    def quantize(tensors: Tensors) -> None:
        weight = tensors["lm_head.weight"].float()
        head["weights_scaling_factor"] = (weight.abs().max() / 448).reshape(1)
        head["weight"] = (weight / head["weights_scaling_factor"]).to(torch.float8_e4m3fn)
        head["activation_scaling_factor"] = torch.tensor([0.01])
        tensors |= {f"lm_head.{name}": value for name, value in head.items()}

    edit(folder, quantize)
    model = reference(models.source("llama"), KINDS["FP8"], models.fields("llama", KINDS["FP8"]))
    weight, prepare = KINDS["FP8"].meaning(head, 1)
    model.lm_head.weight = torch.nn.Parameter(weight)
    model.lm_head.register_forward_pre_hook(lambda _module, args: (prepare(args[0]),))
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    engine = build_here(folder, tmp_path / "engine")
    assert load_file(engine / "rank0.engine")["lm_head.weight"].dtype is torch.float8_e4m3fn
    for executor in EXECUTORS:
        found = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=96, executor=executor)).score(TOKENS)
        assert np.abs(found - expected)[:3].max(-1).min() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("algo", "most"), [("W8A16", 1.1), ("W4A16", 0.6), ("W4A16_AWQ", 0.6), ("FP8", 1.1)])
def test_weights_stay_packed(models: Models, tmp_path: Path, algo: str, most: float) -> None:
    """An engine has about the bits of its form for a weight of a linear, scales included."""
    made = load_file(build_here(models.checkpoint("llama", KINDS[algo]), tmp_path / "engine") / "rank0.engine")
    plain = load_file(models.plain("llama") / "rank0.safetensors")
    weights = sum(t.numel() for name, t in plain.items() if ".layers." in name and t.dim() == 2)
    held = sum(t.nbytes for name, t in made.items() if ".layers." in name and "layernorm" not in name)
    assert held < most * weights


# ---- what is refused ----


def edit(folder: Path, change: Callable[[Tensors], Any] | None = None, config: dict[str, Any] | None = None) -> None:
    """Change the only rank's tensors and fields of config.json; a dict changes fields of a dict there."""
    if change:
        tensors = load_file(folder / "rank0.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "rank0.safetensors")
    if config:
        held = json.loads((folder / "config.json").read_text())
        for key, value in config.items():
            held[key] = {**held[key], **value} if isinstance(value, dict) and isinstance(held.get(key), dict) else value
        (folder / "config.json").write_text(json.dumps(held))


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """The tensor with another first element."""
    flat = tensor.float().reshape(-1)
    flat[0] = value
    return flat.reshape(tensor.shape).to(tensor.dtype)


SCALE = "weights_scaling_factor"
DAMAGE: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "scale gone": ("W4A16_AWQ", lambda t: t.pop(f"{L1}mlp.fc.{SCALE}"), f"lacks {L1}mlp.fc.{SCALE}"),
    "scale cut off": ("W4A16_AWQ", put(f"{L0}mlp.proj.{SCALE}", lambda s: s[:-1]), r"shape \(255, 2\), expected \(256"),
    "NaN scale": ("W4A16_AWQ", put(f"{L0}mlp.fc.{SCALE}", lambda s: spoilt(s, float("nan"))), "holds NaN or infinity"),
    "negative scale": ("W4A8_AWQ", put(f"{L0}mlp.fc.{SCALE}", lambda s: -s), "512 of 512 scales that are zero or neg"),
    "no second scale": ("W4A8_AWQ", lambda t: t.pop(f"{L0}mlp.fc.{SCALE}_2"), f"lacks {L0}mlp.fc.{SCALE}_2"),
    "zero activation scale": (
        "FP8",
        put(f"{L0}mlp.fc.activation_scaling_factor", lambda s: s * 0),
        "1 of 1 scales that are zero or negative, the least 0",
    ),
    "NaN in fp8": ("FP8", put(f"{L1}mlp.fc.weight", lambda w: spoilt(w, float("nan"))), "mlp.fc.weight holds NaN"),
    "plain in place of fp8": ("FP8", put(f"{L0}mlp.fc.weight", torch.Tensor.half), r"is torch\.float16, expected"),
    "fp8 in place of int8": (
        "W8A8_SQ_PER_CHANNEL",
        put(f"{L0}mlp.fc.weight", lambda w: w.view(torch.float8_e4m3fn)),
        r"is torch\.float8_e4m3fn, expected torch\.int8",
    ),
    "prequant of the outputs": (
        "W8A8_SQ_PER_CHANNEL",
        put(f"{L0}mlp.fc.prequant_scaling_factor", lambda p: p[:128]),
        r"shape \(128,\), expected \(256,\)",
    ),
    "zero cut off": ("W4A16_GPTQ", put(f"{L0}mlp.fc.zero", lambda z: z[:1]), r"shape \(1, 256\), expected \(2, 256\)"),
    "half of the weight": ("W4A16_GPTQ", put(f"{L0}mlp.fc.weight", lambda w: w[:128]), "has bytes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused(models: Models, tmp_path: Path, name: str) -> None:
    algo, change, said = DAMAGE[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(models.checkpoint("llama", KINDS[algo]), folder, copy_function=shutil.copyfile)
    edit(folder, change)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=said):
        build_rank(folder, tmp_path / "out", read_checkpoint_config(folder), Mapping())
    assert not any((tmp_path / "out").iterdir())


PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_algo": PLUGIN}, f"quant_algo '{PLUGIN}', which only TensorRT's plugins compute .supported: W8A16,"),
    ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}, "quant_algo 'NVFP4' .*kv_cache_quant_algo 'NVFP4'"),
    ({"quant_algo": "W4A16_GPTQ"}, "has_zero_point false with W4A16_GPTQ"),
    ({"quant_algo": "FP8", "has_zero_point": True}, "has_zero_point true with FP8"),
    ({"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "clamp_val": [-1, 1]}, r"clamp_val \[-1, 1\]"),
    ({"quant_algo": "W4A16_AWQ", "group_size": 96}, "256 inputs of .* are no whole number of groups of 96"),
    ({"quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION without quantized_layers"),
]


@pytest.mark.parametrize(("quantization", "said"), REFUSED)
def test_what_cannot_be_executed_is_named(models: Models, quantization: dict[str, Any], said: str) -> None:
    config = json.loads((models.plain("llama") / "config.json").read_text())
    with pytest.raises(EngineError, match=said):
        build_program({**config, "quantization": quantization}, Mapping())


@pytest.mark.parametrize("algo", [algo for algo, form in FORMS.items() if not form.experts])
def test_forms_that_experts_cannot_have(models: Models, algo: str) -> None:
    config = json.loads((models.plain("mixtral") / "config.json").read_text())
    quantization = {"quant_algo": algo, "has_zero_point": "GPTQ" in algo}
    with pytest.raises(EngineError, match=f"experts in the form {algo}"):
        build_program({**config, "quantization": quantization}, Mapping())


def test_gptq_of_an_unknown_gpu_is_refused_before_ranks_start(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(models.checkpoint("llama", KINDS["W4A16_GPTQ"]), folder, copy_function=shutil.copyfile)
    edit(folder, config={"trtbuild_sm": None})
    with pytest.raises(EngineError, match="layout of one GPU generation"):
        pipeline.make_engine(str(folder), tmp_path / "out", ConvertOptions(), BuildOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{L0}mlp.fc.prequant"), f"{L0}mlp.fc.prequant has shape None, expected .256,."),
        (put(f"{L1}mlp.proj.weight", lambda w: w.view(torch.int8)), f"{L1}mlp.proj.weight is int8, expected uint8"),
        (put(f"{L1}mlp.proj.per_channel_scale", lambda s: s[:, 0]), r"has shape \(256,\), expected \(256, 2\)"),
    ],
    ids=["gone", "dtype", "shape"],
)
def test_a_damaged_engine_is_refused(
    models: Models, tmp_path: Path, change: Callable[[Tensors], Any], said: str
) -> None:
    engine = build_here(models.checkpoint("llama", KINDS["W4A16_AWQ"]), tmp_path / "engine")
    tensors = load_file(engine / "rank0.engine")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, engine / "rank0.engine")
    with pytest.raises(EngineError, match=said):
        Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=96))


def test_which_modules_have_a_form() -> None:
    """Checkpoint format 1.4 (exclude_modules) and 4.7 (what FP8 rowwise leaves plain)."""

    def plain(**quantization: Any) -> set[str]:
        names = ["lm_head", *(f"transformer.layers.{i}.{m}" for i in range(3) for m in MIXED)]
        config = {"num_hidden_layers": 3, "quantization": quantization}
        return {name for name in names if form_of(config, name) is None}

    everything = len(MIXED) * 3 + 1
    assert plain(quant_algo="FP8") == {"lm_head"}
    assert plain(quant_algo="FP8", exclude_modules=["*.1.mlp.*"]) == {f"{L1}mlp.{m}" for m in ("fc", "gate", "proj")}
    assert plain(quant_algo="W8A16", exclude_modules=["nothing"]) == {"lm_head"}  # its build finds no such tensor
    recipe = plain(quant_algo="FP8_PER_CHANNEL_PER_TOKEN", use_meta_recipe=True)
    assert len(recipe) == everything - 3
    assert f"{L1}mlp.fc" not in recipe
    assert len(plain(quant_algo=None)) == len(plain(quant_algo="NO_QUANT")) == everything


def test_groups_that_the_kernels_do_not_take_run_on_torch(models: Models, tmp_path: Path) -> None:
    """GPTQ in groups of 16, from a checkpoint that says so."""
    assert GROUP % 16 == 0
    folder = tmp_path / "checkpoint"
    shutil.copytree(models.checkpoint("llama", KINDS["W4A16_GPTQ"]), folder, copy_function=shutil.copyfile)
    repeat = GROUP // 16
    edit(
        folder,
        lambda tensors: tensors.update(
            {name: t.repeat_interleave(repeat, 0) for name, t in tensors.items() if name.endswith(("factor", "zero"))}
        ),
        {"quantization": {"group_size": 16}},
    )
    engine = build_here(folder, tmp_path / "engine")
    same = build_here(models.checkpoint("llama", KINDS["W4A16_GPTQ"]), tmp_path / "same")
    options = RuntimeOptions(max_tokens_in_paged_kv_cache=96)
    found, expected = (Generator(folder, options).score(TOKENS) for folder in (engine, same))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
