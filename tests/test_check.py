"""The linter finds every planted fault by rule and name, is silent on sound checkpoints, and survives any garbage."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import FORMS, MADE, SHARED, Tensors, edit_config, edit_rank, make
from tests.encoders import CASES as ENCODERS
from tests.encoders import make_model as make_encoder
from tests.tiny import NO_GOLDEN, trtbuild
from trtbuild import pipeline
from trtbuild.cli.check import document
from trtbuild.families import FAMILIES, family_of_checkpoint
from trtbuild.lint import tables
from trtbuild.lint.check import check
from trtbuild.lint.finding import RULES, Report
from trtbuild.spec import ConvertOptions

L0, L1 = "transformer.layers.0.", "transformer.layers.1."
UPSTREAM = sorted(str(p.parent.relative_to(SHARED)) for p in SHARED.glob("golden*/*/trtllm"))
FP8, AWQ, SQ = (f"golden-modelopt/{name}-tp1-calc32" for name in ("fp8", "int4_awq", "int8_sq"))
INT8 = "golden/llama-h128-tp1-pp1-float16-int8"
MIXTRAL, GEMMA = (f"golden/{name}-tp2-pp1-float16" for name in ("mixtral", "gemma"))
GEMMA2 = "golden/gemma2-tp1-pp1-float16"


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, each made once; read only."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name.startswith("golden") and not (SHARED / name).is_dir():
            pytest.skip(f"no {name}")
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("base"))
        return made[name]

    return base


def known(name: str) -> bool:
    """Whether an upstream checkpoint is of a family that we have."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name}")
    architecture = json.loads((SHARED / name / "trtllm" / "config.json").read_text())["architecture"]
    return family_of_checkpoint(architecture) is not None


@pytest.mark.parametrize("name", [*MADE, "falcon", *FORMS, *(UPSTREAM or [NO_GOLDEN])])
def test_sound_checkpoints_are_silent(name: str, bases: Callable[[str], Path]) -> None:
    report = check(bases(name))
    loud = [finding for finding in report.findings if finding.severity != "info"]
    if name in UPSTREAM and not known(name):
        assert [finding.rule for finding in loud] == ["architecture-unchecked"]
    else:
        assert not loud, loud[:5]
    assert report.num_tensors > 10
    assert report.data_checked


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def quantization(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, quantization=changes)


def mapping(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, mapping=changes)


def tensor(name: str, edit: Callable[[torch.Tensor], torch.Tensor], rank: int = 0) -> Callable[[Path], None]:
    return lambda folder: edit_rank(folder, rank, lambda tensors: tensors.update({name: edit(tensors[name])}))


def put(name: str, value: float | None, rank: int = 0) -> Callable[[Path], None]:
    """Write a number into the first element; None fills all with zeros."""

    def edit(old: torch.Tensor) -> torch.Tensor:
        if value is None:
            return torch.zeros_like(old)
        wide = old.float()
        wide.view(-1)[0] = value
        return wide.to(old.dtype)

    return tensor(name, edit, rank)


def byte(name: str, value: int) -> Callable[[Path], None]:
    def edit(old: torch.Tensor) -> torch.Tensor:
        raw = old.view(torch.uint8).clone()
        raw.view(-1)[3] = value
        return raw.view(old.dtype)

    return tensor(name, edit)


def drop(name: str, rank: int = 0) -> Callable[[Path], None]:
    return lambda folder: edit_rank(folder, rank, lambda tensors: tensors.pop(name))


def add(name: str, value: torch.Tensor, rank: int = 0) -> Callable[[Path], None]:
    return lambda folder: edit_rank(folder, rank, lambda tensors: tensors.update({name: value}))


def rename(old: str, new: str, rank: int = 0) -> Callable[[Path], None]:
    return lambda folder: edit_rank(folder, rank, lambda tensors: tensors.update({new: tensors.pop(old)}))


def global_layers(folder: Path) -> None:
    """The second stage numbers its layers from 2."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers." in name]:
            parts = name.split(".")
            tensors[".".join([*parts[:2], f"{int(parts[2]) + 2:03}", *parts[3:]])] = tensors.pop(name)
        for name in [name for name in tensors if ".layers." in name]:
            tensors[name.replace("layers.00", "layers.")] = tensors.pop(name)

    edit_rank(folder, 2, edit)


def swap_ranks(folder: Path) -> None:
    """kv heads repeated as 0 1 0 1 instead of 0 0 1 1."""
    one, two = (folder / f"rank{rank}.safetensors" for rank in (1, 2))
    spare = folder / "spare"
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


def truncate(folder: Path) -> None:
    path = folder / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def mixed_layers(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        path = folder / "quant_cfg.json"
        document = json.loads(path.read_text())
        edit(document["quantized_layers"])
        path.write_text(json.dumps(document))

    return run


def transposed(t: torch.Tensor) -> torch.Tensor:
    return t.T


T22 = "tp2 pp2"
# what is wrong, in which checkpoint, how, rule, the tensor or field (or file) that is named, its rank
FAULTS: list[tuple[str, str, Callable[[Path], None], str, str, int | None]] = [
    # the folder and its files
    ("no config", T22, lambda f: (f / "config.json").unlink(), "config-unreadable", "config.json", None),
    ("config no JSON", T22, write("config.json", b"{'a': 1}"), "config-unreadable", "config.json", None),
    ("config is a list", T22, write("config.json", b"[1]"), "config-unreadable", "config.json", None),
    ("rank file gone", T22, lambda f: (f / "rank3.safetensors").unlink(), "rank-file-missing", "rank3.safetensors", 3),
    ("rank file too many", T22, write("rank4.safetensors", b""), "rank-file-extra", "rank4.safetensors", 4),
    ("rank file cut off", T22, truncate, "rank-file-unreadable", "rank1.safetensors", 1),
    ("rank file is text", T22, write("rank0.safetensors", b"hi"), "rank-file-unreadable", "rank0.safetensors", 0),
    ("changed later", T22, put("transformer.ln_f.weight", 2.0, 2), "manifest-digest", "rank2.safetensors", None),
    # config.json
    ("no architecture", T22, config(architecture=...), "config-missing", "architecture", None),
    ("no vocab_size", T22, config(vocab_size=...), "config-missing", "vocab_size", None),
    ("no hidden_act", T22, config(hidden_act=...), "config-missing", "hidden_act", None),
    ("class name", T22, config(architecture="LLaMAForCausalLM"), "architecture-unknown", "architecture", None),
    ("other model", T22, config(architecture="MadeUpForCausalLM"), "architecture-unknown", "architecture", None),
    ("unchecked model", T22, config(architecture="GPTJForCausalLM"), "architecture-unchecked", "architecture", None),
    ("heads a string", T22, config(num_attention_heads="8"), "config-type", "num_attention_heads", None),
    ("layers negative", T22, config(num_hidden_layers=-4), "config-type", "num_hidden_layers", None),
    ("layers absurd", T22, config(num_hidden_layers=10**9), "config-too-large", "num_hidden_layers", None),
    ("dtype unknown", T22, config(dtype="fp16"), "config-value", "dtype", None),
    ("activation unknown", T22, config(hidden_act="swish"), "config-value", "hidden_act", None),
    ("activation of others", T22, config(hidden_act="relu"), "config-family", "hidden_act", None),
    ("positions unknown", T22, config(position_embedding_type="rope"), "config-value", "position_embedding_type", None),
    ("positions of others", T22, config(position_embedding_type="alibi"), "config-value", "position_embedding_type",
     None),
    ("constant changed", T22, config(residual_mlp=True), "config-family", "residual_mlp", None),
    ("rope_scaling", T22, config(rope_scaling={"type": "linear"}), "config-forbidden", "rope_scaling", None),
    ("pruned", T22, config(is_pruned=True), "config-forbidden", "is_pruned", None),
    ("rope without type", T22, config(rotary_scaling={"factor": 2.0}), "rope-scaling", "rotary_scaling", None),
    ("rope half", T22, config(rotary_scaling={"type": "linear"}), "rope-scaling", "rotary_scaling.factor", None),
    ("moe half", T22, config(moe={"num_experts": 4, "top_k": 0}), "moe-config", "moe", None),
    ("experts in some layers", T22, config(mlp_only_layers=[0]), "config-forbidden", "mlp_only_layers", None),
    ("long rope half", T22, config(position_embedding_type="long_rope"), "config-missing",
     "longrope_scaling_short_factors", None),
    ("long rope short", T22, config(longrope_scaling_long_factors=[1.0]), "rope-scaling",
     "longrope_scaling_long_factors", None),
    ("gemma's scalar", GEMMA2, config(query_pre_attn_scalar=...), "config-missing", "query_pre_attn_scalar", None),
    ("embedding dim", T22, config(embedding_sharding_dim=2), "config-value", "embedding_sharding_dim", None),
    ("world size", T22, mapping(world_size=2), "mapping-world-size", "mapping.world_size", None),
    ("mapping key", T22, mapping(auto_parallel=False), "mapping-key", "mapping.auto_parallel", None),
    ("mapping rank", T22, mapping(rank=0), "mapping-key", "mapping.rank", None),
    ("mapping type", T22, mapping(tp_size="2"), "config-type", "mapping.tp_size", None),
    ("experts", T22, mapping(moe_tp_size=1, moe_ep_size=1), "mapping-moe", "mapping.moe_ep_size", None),
    ("context parallel", T22, mapping(cp_size=2, world_size=8), "mapping-cp", "mapping.cp_size", None),
    ("heads by tp", T22, config(num_attention_heads=9), "layout-heads", "num_attention_heads", None),
    ("kv heads", T22, config(num_key_value_heads=3), "layout-heads", "num_key_value_heads", None),
    ("axis by tp", T22, config(intermediate_size=129), "layout-axis", "mapping.tp_size", None),
    ("stages", T22, config(num_hidden_layers=1), "layout-pipeline", "mapping.pp_size", None),
    # names
    ("tensor gone", T22, drop(L0 + "mlp.fc.weight"), "tensor-missing", L0 + "mlp.fc.weight", 0),
    ("typo", T22, rename(L0 + "mlp.fc.weight", L0 + "mlp.fk.weight", 1), "tensor-missing", L0 + "mlp.fc.weight", 1),
    ("typo's other end", T22, rename(L0 + "mlp.fc.weight", L0 + "mlp.fk.weight"), "tensor-extra",
     L0 + "mlp.fk.weight", 0),
    ("lm_head gone", T22, drop("lm_head.weight", 3), "tensor-missing", "lm_head.weight", 3),
    ("tied lm_head gone", "tied", drop("lm_head.weight", 1), "lm-head-missing", "lm_head.weight", 1),
    ("table on last stage", T22, add("transformer.vocab_embedding.weight", torch.ones(512, 64), 2), "tensor-extra",
     "transformer.vocab_embedding.weight", 2),
    ("global layers", T22, global_layers, "layer-numbering", "transformer.layers", 2),
    ("one layer more", T22, config(num_hidden_layers=5), "layer-count", "transformer.layers", 0),
    ("a gap", T22, lambda f: edit_rank(f, 0, lambda t: [t.pop(n) for n in [*t] if n.startswith(L0)]), "layer-numbering",
     "transformer.layers", 0),
    ("bias switched off", "biases", config(attn_bias=False), "tensor-unused", L0 + "attention.qkv.bias", 0),
    ("bias switched on", T22, config(mlp_bias=True), "tensor-missing", L0 + "mlp.proj.bias", 0),
    # shapes
    ("transposed", T22, tensor(L0 + "mlp.fc.weight", lambda t: t[:32].T), "tensor-shape", L0 + "mlp.fc.weight", 0),
    ("not cut", T22, tensor(L1 + "mlp.gate.weight", lambda t: torch.cat([t, t])), "tensor-shape",
     L1 + "mlp.gate.weight", 0),
    ("vocabulary padded in config", "odd vocabulary", config(vocab_size=576), "tensor-shape", "lm_head.weight", 1),
    ("head size lost", T22, config(head_size=16), "tensor-shape", L0 + "attention.qkv.weight", 0),
    ("hidden size", T22, config(hidden_size=32), "tensor-shape", "transformer.ln_f.weight", 2),
    ("norm short", T22, tensor("transformer.ln_f.weight", lambda t: t[:63], 3), "tensor-shape",
     "transformer.ln_f.weight", 3),
    ("table by rows", T22, config(use_parallel_embedding=True), "tensor-shape", "transformer.vocab_embedding.weight",
     0),
    ("other layout", T22, mapping(tp_size=4, pp_size=1, moe_tp_size=4), "tensor-shape", L0 + "mlp.fc.weight", 0),
    # dtypes
    ("one tensor float32", T22, tensor(L0 + "mlp.fc.weight", torch.Tensor.float), "tensor-dtype",
     L0 + "mlp.fc.weight", 0),
    ("all of another dtype", T22, config(dtype="bfloat16"), "config-dtype", "dtype", 1),
    ("router", MIXTRAL, tensor(L0 + "mlp.router.weight", torch.Tensor.half), "tensor-dtype", L0 + "mlp.router.weight",
     0),
    # numbers
    ("NaN", T22, put(L1 + "mlp.proj.weight", float("nan"), 1), "tensor-nonfinite", L1 + "mlp.proj.weight", 1),
    ("infinity", "odd vocabulary", put("lm_head.weight", float("inf")), "tensor-nonfinite", "lm_head.weight", 0),
    ("NaN float32", "2 kv heads on 4", put("transformer.ln_f.weight", float("nan"), 3), "tensor-nonfinite",
     "transformer.ln_f.weight", 3),
    ("zeros", T22, put(L0 + "attention.dense.weight", None), "tensor-zero", L0 + "attention.dense.weight", 0),
    ("norm of one rank", T22, put(L0 + "input_layernorm.weight", 3.0, 1), "copies-differ",
     L0 + "input_layernorm.weight", 1),
    ("row bias of one rank", "biases", put(L0 + "mlp.proj.bias", 3.0, 1), "copies-differ", L0 + "mlp.proj.bias", 1),
    ("kv order", "2 kv heads on 4", swap_ranks, "copies-differ", L0 + "attention.qkv.weight", 1),
    ("padding", "odd vocabulary", tensor("lm_head.weight", lambda t: t.index_fill(0, torch.tensor([254]), 1.0), 1),
     "padding-not-zero", "lm_head.weight", 1),
    ("tied", "tied", put("lm_head.weight", 3.0, 1), "tied-lm-head", "lm_head.weight", 1),
    ("tied by columns", "tied, table by columns", put("lm_head.weight", 3.0, 1), "tied-lm-head", "lm_head.weight", 1),
    ("norm without + 1", GEMMA, tensor(L1 + "input_layernorm.weight", lambda t: t - 1), "norm-offset",
     L1 + "input_layernorm.weight", 0),
    ("bias of every rank", "falcon", put(L0 + "attention.dense.bias", 1.0, 1), "bias-not-zero",
     L0 + "attention.dense.bias", 1),
    # quantization: config
    ("algo lower case", "int8", quantization(quant_algo="w8a16"), "quantization-algo", "quantization.quant_algo", None),
    ("rowwise", FP8, quantization(quant_algo="FP8_ROWWISE"), "quantization-algo", "quantization.quant_algo", None),
    ("kv algo", FP8, quantization(kv_cache_quant_algo="fp8"), "quantization-algo", "quantization.kv_cache_quant_algo",
     None),
    ("unchecked algo", FP8, quantization(quant_algo="NVFP4"), "quantization-unchecked", "quantization.quant_algo",
     None),
    ("modelopt key", AWQ, quantization(quantized_layers={}), "quantization-key", "quantization.quantized_layers", None),
    ("group a string", AWQ, quantization(group_size="128"), "config-type", "quantization.group_size", None),
    ("group 256", AWQ, quantization(group_size=256), "quantization-field", "quantization.group_size", None),
    ("group 64 for W4A8", "W4A8", quantization(group_size=64), "quantization-field", "quantization.group_size", None),
    ("zero point", AWQ, quantization(has_zero_point=True), "quantization-field", "quantization.has_zero_point", None),
    ("no zero point", "GPTQ", quantization(has_zero_point=False), "quantization-field", "quantization.has_zero_point",
     None),
    ("excludes nothing", AWQ, quantization(exclude_modules=[]), "exclude-modules", "quantization.exclude_modules",
     None),
    ("weight-only list", INT8, quantization(exclude_modules=["lm_head"]), "exclude-modules",
     "quantization.exclude_modules", None),
    ("lm_head not excluded", FP8, quantization(exclude_modules=["*router"]), "tensor-missing",
     "lm_head.weights_scaling_factor", 0),
    ("dims", "golden/llama-tp1-pp1-float16",
     lambda f: (quantization(quant_algo="W8A16")(f), config(intermediate_size=96)(f)),
     "quantization-dims", L0 + "mlp.fc.weight", None),
    ("int8 of float32", "int8", config(dtype="float32"), "quantization-dtype", "dtype", None),
    ("experts rowwise", MIXTRAL, quantization(quant_algo="FP8_PER_CHANNEL_PER_TOKEN"), "quantization-algo",
     "quantization.quant_algo", None),
    ("mixed without file", "mixed", lambda f: (f / "quant_cfg.json").unlink(), "quant-cfg", "quant_cfg.json", None),
    ("mixed broken", "mixed", write("quant_cfg.json", b"{"), "quant-cfg", "quant_cfg.json", None),
    ("mixed of nothing", "mixed",
     mixed_layers(lambda t: t.update({"transformer.layers.7.mlp.fc": {"quant_algo": "FP8"}})),
     "quant-cfg", "quant_cfg.json: transformer.layers.7.mlp.fc", None),
    ("mixed algo", "mixed", mixed_layers(lambda t: t[L0 + "attention.qkv"].update(quant_algo="fp9")),
     "quantization-algo",
     f"quant_cfg.json: {L0}attention.qkv.quant_algo", None),
    ("mixed says plain", "mixed", mixed_layers(lambda t: t.pop(L1 + "mlp.fc")), "tensor-dtype", L1 + "mlp.fc.weight",
     0),
    # quantization: tensors
    ("plain by config", AWQ, quantization(quant_algo=None), "tensor-unused", L0 + "mlp.fc.weights_scaling_factor", 0),
    ("no smoothing by config", AWQ, quantization(pre_quant_scale=False), "tensor-unused",
     L0 + "mlp.fc.prequant_scaling_factor", 0),
    ("leftover of lm_head", FP8, add("lm_head.weights_scaling_factor", torch.ones(1)), "tensor-unused",
     "lm_head.weights_scaling_factor", 0),
    ("scale gone", FP8, drop(L1 + "mlp.fc.weights_scaling_factor"), "tensor-missing",
     L1 + "mlp.fc.weights_scaling_factor", 0),
    ("not calibrated", FP8, drop(L0 + "mlp.proj.activation_scaling_factor"), "tensor-missing",
     L0 + "mlp.proj.activation_scaling_factor", 0),
    ("plain weight", FP8, tensor(L0 + "mlp.fc.weight", torch.Tensor.half), "tensor-dtype", L0 + "mlp.fc.weight", 0),
    ("fp8 NaN", FP8, byte(L0 + "mlp.gate.weight", 0x7F), "fp8-nan", L0 + "mlp.gate.weight", 0),
    ("fp8 negative NaN", "FP8 rowwise", byte(L1 + "attention.qkv.weight", 0xFF), "fp8-nan",
     L1 + "attention.qkv.weight", 0),
    ("fp8 as int8, NaN", FP8, lambda f: (byte(L0 + "mlp.fc.weight", 0xFF)(f), tensor(
        L0 + "mlp.fc.weight", lambda t: t.view(torch.int8))(f)), "fp8-nan", L0 + "mlp.fc.weight", 0),
    ("scale zero", FP8, put(L0 + "attention.qkv.weights_scaling_factor", 0.0), "scale-not-positive",
     L0 + "attention.qkv.weights_scaling_factor", 0),
    ("scale negative", SQ, put(L0 + "mlp.fc.weights_scaling_factor", -1.0), "scale-not-positive",
     L0 + "mlp.fc.weights_scaling_factor", 0),
    ("scale infinite", AWQ, put(L0 + "mlp.fc.weights_scaling_factor", float("inf")), "tensor-nonfinite",
     L0 + "mlp.fc.weights_scaling_factor", 0),
    ("gate scale", FP8, put(L0 + "mlp.gate.weights_scaling_factor", 1.0), "fp8-gate-scale",
     L0 + "mlp.fc.weights_scaling_factor", 0),
    ("scale shape", SQ, tensor(L0 + "mlp.fc.weights_scaling_factor", lambda t: t[:1]), "tensor-shape",
     L0 + "mlp.fc.weights_scaling_factor", 0),
    ("uint8", AWQ, tensor(L0 + "mlp.fc.weight", lambda t: t.view(torch.uint8)), "weight-uint8", L0 + "mlp.fc.weight",
     0),
    ("packed along in", AWQ, tensor(L0 + "mlp.fc.weight", lambda t: t.view(512, 128)), "tensor-shape",
     L0 + "mlp.fc.weight", 0),
    ("groups", AWQ, quantization(group_size=64), "tensor-shape", L0 + "mlp.fc.weights_scaling_factor", 0),
    ("prequant gone", AWQ, drop(L1 + "attention.qkv.prequant_scaling_factor"), "tensor-missing",
     L1 + "attention.qkv.prequant_scaling_factor", 0),
    ("prequant float32", AWQ, tensor(L0 + "mlp.fc.prequant_scaling_factor", torch.Tensor.float), "tensor-dtype",
     L0 + "mlp.fc.prequant_scaling_factor", 0),
    ("prequant negative", AWQ, put(L0 + "mlp.proj.prequant_scaling_factor", -1.0), "scale-not-positive",
     L0 + "mlp.proj.prequant_scaling_factor", 0),
    ("W4A8 second scale", "W4A8", drop(L0 + "mlp.fc.weights_scaling_factor_2"), "tensor-missing",
     L0 + "mlp.fc.weights_scaling_factor_2", 0),
    ("zeros gone", "GPTQ", drop(L0 + "mlp.fc.zero"), "tensor-missing", L0 + "mlp.fc.zero", 0),
    ("GPTQ int8", "GPTQ", tensor(L0 + "mlp.fc.weight", lambda t: t.view(torch.int8)), "tensor-shape",
     L0 + "mlp.fc.weight", 0),
    ("channel scale gone", INT8, drop(L0 + "mlp.fc.per_channel_scale"), "tensor-missing",
     L0 + "mlp.fc.per_channel_scale", 0),
    ("weight-only transposed", INT8, tensor(L0 + "mlp.fc.weight", transposed), "tensor-shape", L0 + "mlp.fc.weight", 0),
    ("weight-only int4 as int8", "W4A16", quantization(quant_algo="W8A16"), "tensor-shape", L0 + "mlp.fc.weight", 0),
    ("ModelOpt int8", INT8, rename(L0 + "mlp.fc.per_channel_scale", L0 + "mlp.fc.weights_scaling_factor"),
     "weight-only-modelopt", L0 + "mlp.fc.per_channel_scale", 0),
    ("smoother gone", "SQ plugin", drop(L0 + "mlp.proj.smoother"), "tensor-missing", L0 + "mlp.proj.smoother", 0),
    ("plugin norm", "SQ plugin", drop(L1 + "post_layernorm.scale_to_int"), "tensor-missing",
     L1 + "post_layernorm.scale_to_int", 0),
    ("kv scale gone", "FP8 with kv", drop(L1 + "attention.kv_cache_scaling_factor"), "tensor-missing",
     L1 + "attention.kv_cache_scaling_factor", 0),
    ("only k scale", "FP8 with kv",
     rename(L1 + "attention.kv_cache_scaling_factor", L1 + "attention.k_cache_scaling_factor"),
     "tensor-missing", L1 + "attention.v_cache_scaling_factor", 0),
    ("kv scale zero", "FP8 with kv", put(L0 + "attention.kv_cache_scaling_factor", 0.0), "scale-not-positive",
     L0 + "attention.kv_cache_scaling_factor", 0),
]  # fmt: skip


@pytest.mark.parametrize(("base", "plant", "rule", "where", "rank"), [pytest.param(*f[1:], id=f[0]) for f in FAULTS])
def test_a_planted_fault_is_found(
    base: str,
    plant: Callable[[Path], Any],
    rule: str,
    where: str,
    rank: int | None,
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = bases(base)
    if base.startswith("golden") and not known(base):
        pytest.skip("a family that is not here")
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    plant(folder)
    report = check(folder)
    assert (rule, where, rank) in {(f.rule, f.where, f.rank) for f in report.findings}, report.findings[:5]
    assert all(f.expected and f.found for f in report.findings)


def test_faults_cover_the_rules() -> None:
    planted = {fault[3] for fault in FAULTS}
    elsewhere = {"not-a-checkpoint", "ranks-differ", "tensor-renamed", "prequant-experts"}
    assert set(RULES) == planted | elsewhere
    assert len({fault[0] for fault in FAULTS}) == len(FAULTS)


def test_other_kinds_of_folders_are_named(llama_folder: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "config.json").write_text('{"pretrained_config": {}, "build_config": {}}')
    (tmp_path / "repo" / "ensemble").mkdir(parents=True)
    (tmp_path / "repo" / "ensemble" / "config.pbtxt").write_text("")
    kinds = {"empty": "unknown", "engine": "engine", "repo": "repository", "nowhere": "missing", "file": "missing"}
    (tmp_path / "file").write_text("")
    for name, kind in kinds.items():
        report = check(tmp_path / name)
        assert (report.kind, [f.rule for f in report.findings]) == (kind, ["not-a-checkpoint"]), name
    report = check(llama_folder)
    assert report.kind == "hugging-face"
    assert "trtbuild checkpoint" in report.findings[0].hint


def test_ranks_of_an_unknown_architecture_are_compared(bases: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases(T22), tmp_path / "checkpoint"))
    edit_config(folder, architecture="GPTJForCausalLM")
    edit_rank(folder, 1, lambda tensors: tensors.pop(L0 + "mlp.gate.weight"))
    edit_rank(folder, 3, lambda tensors: tensors.update({"lm_head.weight": torch.ones(255, 64).half()}))
    found = {(f.rule, f.where, f.rank) for f in check(folder).findings}
    assert ("architecture-unchecked", "architecture", None) in found
    assert ("ranks-differ", L0 + "mlp.gate.weight", 1) in found
    assert ("tensor-shape", "lm_head.weight", 3) in found


def test_a_tied_lm_head_may_be_absent_where_the_build_can_share(bases: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases("golden/llama-tied-tp1-pp1-float16-share"), tmp_path / "checkpoint"))
    report = check(folder)
    assert [(f.rule, f.severity) for f in report.findings] == [("lm-head-missing", "info")]
    edit_config(folder, share_embedding_table=False)
    assert [(f.rule, f.severity) for f in check(folder).findings] == [("tensor-missing", "error")]


def test_experts_share_one_prequant_scale(bases: Callable[[str], Path], tmp_path: Path) -> None:
    if not known(MIXTRAL):
        pytest.skip("a family that is not here")
    folder = Path(shutil.copytree(bases(MIXTRAL), tmp_path / "checkpoint"))
    flags = {"quant_algo": "W4A16_AWQ", "group_size": 64, "pre_quant_scale": True}
    edit_config(folder, quantization={**flags, "exclude_modules": ["*lm_head", "*router", "*attention*", "*mlp.proj"]})

    def edit(tensors: Tensors, scale: torch.Tensor) -> None:
        for layer in range(4):
            at = f"transformer.layers.{layer}.mlp.fc."
            tensors |= {f"{at}weight": torch.ones(4, 32, 64, dtype=torch.int8), f"{at}prequant_scaling_factor": scale}
            tensors |= {f"{at}weights_scaling_factor": torch.ones(4, 64, 1)}

    for rank in range(2):
        edit_rank(folder, rank, lambda tensors: edit(tensors, torch.ones(4, 64).half()))
    assert {f.rule for f in check(folder).findings} == {"quantization-dims"}
    edit_rank(folder, 1, lambda tensors: edit(tensors, torch.arange(1, 257).reshape(4, 64).half()))
    assert ("prequant-experts", L0 + "mlp.fc.prequant_scaling_factor", 1) in {
        (f.rule, f.where, f.rank) for f in check(folder).findings
    }


def test_both_halves_of_an_encoder_decoder_model(tmp_path: Path) -> None:
    make_encoder(ENCODERS["t5"], tmp_path / "source")
    folder = pipeline.make_checkpoint(str(tmp_path / "source"), tmp_path / "out", ConvertOptions(2, 2, "float16"))
    report = check(folder)
    assert (report.kind, report.findings) == ("encoder-decoder", ())
    name = "transformer.layers.0.cross_attention.qkv.weight"
    edit_rank(folder / "decoder", 1, lambda tensors: tensors.pop(name))
    edit_rank(folder / "encoder", 3, lambda tensors: tensors["transformer.ln_f.weight"].fill_(float("nan")))
    found = {(f.rule, f.folder, f.where, f.rank) for f in check(folder).findings}
    assert ("manifest-digest", "", "decoder/rank1.safetensors", None) in found
    assert ("tensor-missing", "decoder", name, 1) in found
    assert ("tensor-nonfinite", "encoder", "transformer.ln_f.weight", 3) in found


def test_headers_alone(bases: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases(T22), tmp_path / "checkpoint"))
    put("transformer.ln_f.weight", float("nan"), 2)(folder)
    report = check(folder, read_data=False)
    assert not report.findings
    assert not report.data_checked
    assert not check(folder, target="cpu", read_data=False).findings


def test_what_only_kernels_refuse_is_a_warning_for_the_cpu(llama_folder: Path, tmp_path: Path) -> None:
    options = ConvertOptions(2, 1, "float16", "int8")
    folder = pipeline.make_checkpoint(str(llama_folder), tmp_path / "checkpoint", options)
    assert {(f.rule, f.severity) for f in check(folder).findings} == {("quantization-dims", "warning")}
    assert {(f.rule, f.severity) for f in check(folder, target="tensorrt").findings} == {("quantization-dims", "error")}


def test_command_line(bases: Callable[[str], Path], llama_folder: Path, tmp_path: Path) -> None:
    clean = trtbuild("check", bases(T22))
    assert clean.returncode == 0
    assert clean.stdout == ""
    assert "0 errors, 0 warnings" in clean.stderr
    folder = Path(shutil.copytree(bases(T22), tmp_path / "checkpoint"))
    (folder / "trtbuild.json").unlink()
    edit_rank(folder, 0, lambda tensors: tensors.update({"\x1b[31m[bold]x": torch.ones(1)}))
    assert trtbuild("check", folder).returncode == 0  # an extra tensor is a warning
    strict = trtbuild("check", folder, "--strict", "--no-data")
    assert strict.returncode == 3
    assert "tensor-extra" in strict.stdout
    assert "\x1b[31m[" not in strict.stdout
    (folder / "rank3.safetensors").unlink()
    done = trtbuild("check", folder, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert (document["ok"], document["errors"], document["tp"], document["pp"]) == (False, 1, 2, 2)
    assert {"rule", "severity", "where", "rank", "expected", "found", "hint"} <= set(document["findings"][0])
    assert document["findings"][0]["rule"] == "rank-file-missing"
    assert trtbuild("check", llama_folder).returncode == 3
    assert trtbuild("check", tmp_path / "nowhere").returncode == 3
    assert trtbuild("check", folder, "--target", "gpu").returncode == 2


ALGOS = {*tables.CHECKED_ALGOS, *tables.UNCHECKED_ALGOS, *tables.KV_ALGOS}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.sampled_from(sorted(ALGOS | {name for family in FAMILIES for name in family.architectures.values()}))
    | st.sampled_from([10**9, 10**400, 0.5, float("nan"), float("inf"), "", "float16", "8", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
FIELDS += [
    "head_size",
    "intermediate_size",
    "vocab_size",
    "hidden_act",
    "rotary_scaling",
    "moe",
    "mapping",
    "quantization",
]
FIELDS += [
    "attn_bias",
    "mlp_bias",
    "use_parallel_embedding",
    "embedding_sharding_dim",
    "max_position_embeddings",
    "zzz",
]
INNER = ["tp_size", "pp_size", "cp_size", "world_size", "moe_tp_size", "moe_ep_size", "quant_algo", "group_size"]
INNER += ["kv_cache_quant_algo", "exclude_modules", "has_zero_point", "pre_quant_scale", "num_experts", "top_k", "zzz"]
PATHS = st.tuples(st.sampled_from(FIELDS)) | st.tuples(
    st.sampled_from(["mapping", "quantization", "moe"]), st.sampled_from(INNER)
)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([T22, "biases", "falcon", "mixed", "GPTQ", "SQ plugin", *UPSTREAM]),
    changes=st.lists(st.tuples(PATHS, JSON), min_size=1, max_size=4),
    data=st.booleans(),
    layers=st.none() | st.dictionaries(st.sampled_from([L0 + "mlp.fc", L1 + "attention.qkv"]), JSON),
)
def test_any_config_gives_a_report(
    bases: Callable[[str], Path], name: str, changes: list[tuple[tuple[str, ...], Any]], data: bool, layers: Any
) -> None:
    base = bases(name)
    fields = json.loads((base / "config.json").read_text())
    for path, value in changes:
        if len(path) == 1:
            fields[path[0]] = value
        elif isinstance(fields.get(path[0]), dict):
            fields[path[0]][path[1]] = value
        else:
            fields[path[0]] = {path[1]: value}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in base.glob("rank*"):
            (folder / file.name).symlink_to(file)
        (folder / "config.json").write_text(json.dumps(fields))
        (folder / "quant_cfg.json").write_text(json.dumps({"quantized_layers": layers}))
        survives(folder, data)


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), cut=st.integers(0, 4000))
def test_any_file_gives_a_report(bases: Callable[[str], Path], edits: list[tuple[int, int]], cut: int) -> None:
    base = bases(T22)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in base.iterdir():
            content = bytearray(file.read_bytes())
            for place, value in edits:
                content[place % len(content)] = value
            (folder / file.name).write_bytes(content[: -cut or None] if cut % 2 else content)
        survives(folder, True)


def test_deep_nesting_and_links_to_nowhere_give_a_report(bases: Callable[[str], Path], tmp_path: Path) -> None:
    deep = b"[" * 100_000
    (tmp_path / "rank0.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    (tmp_path / "rank1.safetensors").symlink_to(tmp_path / "nowhere")
    odd = b'{"\\ud800[bold]\\u001b[31m":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "rank2.safetensors").write_bytes(len(odd).to_bytes(8, "little") + odd + bytes(4))
    (tmp_path / "rank3.safetensors").mkdir()
    (tmp_path / "config.json").write_bytes(deep)
    (tmp_path / "trtbuild.json").write_bytes(deep)
    survives(tmp_path, True)
    shutil.copyfile(bases(T22) / "config.json", tmp_path / "config.json")
    survives(tmp_path, True)
    found = {(f.rule, f.rank) for f in check(tmp_path).findings}
    assert {("rank-file-unreadable", 0), ("rank-file-unreadable", 1), ("rank-file-unreadable", 3)} <= found
    done = trtbuild("check", tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "\\ud800[bold]\\x1b[31m" in done.stdout.replace("\n", "")


def survives(folder: Path, data: bool) -> Report:
    """Check, and render the report as the command does."""
    report = check(folder, read_data=data)
    assert {finding.rule for finding in report.findings} <= set(RULES)
    json.loads(json.dumps(document(folder, report)))
    return report
