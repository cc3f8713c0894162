"""Quantized layouts: what is cut is whole again when put together, the linter is silent, ModelOpt's slices are ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.by_hand import make as make_by_hand
from tests.plans import plan_of
from tests.quantized import Tensors, make_logical, spec_of
from tests.test_methods import unpacked
from tests.tiny import load_rank, make_llama
from trtbuild import pipeline
from trtbuild.checkpoint.logical import LogicalWriter, read_logical
from trtbuild.checkpoint.pack import pack_checkpoint
from trtbuild.errors import CheckpointError
from trtbuild.lint.check import check
from trtbuild.quantize.methods import METHODS, QUANTIZE
from trtbuild.spec import ConvertOptions

WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 2}
Logical = Callable[[str, bool], tuple[Tensors, Path]]
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 kv heads, so that 4 ranks repeat them."""
    return make_llama(tmp_path_factory.mktemp("source"), num_key_value_heads=2, attention_bias=True, **WIDE)


@pytest.fixture(scope="module")
def logical_of(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Logical:
    """(logical tensors, folder of them) of `source` by (method, with kv scales), read only."""

    @cache
    def find(name: str, kv: bool) -> tuple[Tensors, Path]:
        return make_logical(source, tmp_path_factory.mktemp(name), name, 128, kv=kv)

    return find


def thirds(tensor: torch.Tensor, tp: int, rank: int) -> torch.Tensor:
    """One rank's q, k and v rows of a qkv field [8 + 2 + 2 heads of 64, ...], written out by hand."""
    q, k, v = tensor.split([512, 128, 128])
    kv = [part.chunk(min(tp, 2))[rank * min(tp, 2) // tp] for part in (k, v)]
    return torch.cat([q.chunk(tp)[rank], *kv])


def expected(name: str, tensor: torch.Tensor, tp: int, rank: int) -> torch.Tensor:
    """What a rank holds of a logical tensor of a Llama (oracle: column layers dim 0, row layers dim 1)."""
    module, suffix = name.split(".")[-2:]
    if "layers" not in name or "layernorm" in name or tensor.shape == (1,):
        return tensor.chunk(tp)[rank] if module == "lm_head" else tensor
    if module in ("dense", "proj"):
        cut = {"prequant_scaling_factor": 0, "smoother": 0, "weight": 1}.get(suffix, 1 if tensor.dim() == 2 else None)
        return tensor if cut is None else tensor.chunk(tp, cut)[rank]
    if suffix == "prequant_scaling_factor":
        return tensor
    return thirds(tensor, tp, rank) if module == "qkv" else tensor.chunk(tp)[rank]


def global_name(name: str, first: int) -> str:
    head, _, rest = name.partition("layers.")
    if not rest:
        return name
    number, _, tail = rest.partition(".")
    return f"{head}layers.{int(number) + first}.{tail}"


def same(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    return ours.dtype == wanted.dtype and ours.shape == wanted.shape and torch.equal(
        ours.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)
    )  # fmt: skip


@pytest.mark.parametrize(("name", "kv"), [*((name, "") for name in QUANTIZE), ("fp8", "INT8")])
def test_every_rank_holds_its_slices(name: str, kv: str, source: Path, tmp_path: Path, logical_of: Logical) -> None:
    whole, logical = logical_of(name, bool(kv))
    family, spec = spec_of(source)
    for tp, pp in LAYOUTS:
        out = tmp_path / f"{tp}x{pp}"
        out.mkdir()
        options = ConvertOptions(tp, pp, "float16", name, group_size=128, kv_cache=kv.lower() or "none")
        pack_checkpoint(logical, family, spec, options, out)
        findings = [found for found in check(out).findings if found.rule != "manifest-missing"]
        assert not [found for found in findings if found.severity != "info"], (tp, pp)
        seen: set[str] = set()
        for rank in range(tp * pp):
            held = load_rank(out / f"rank{rank}.safetensors")
            for key, tensor in held.items():
                origin = global_name(key, rank // tp * (2 // pp))
                seen.add(origin)
                packed = "awq" in name and key.endswith(".weight") and tensor.dtype == torch.int8
                ours = unpacked(tensor) if packed else tensor
                if any(field.lead and key.endswith(f".{field.suffix}") for field in METHODS[name].fields):
                    (ours,) = ours
                assert same(ours, expected(origin, whole[origin], tp, rank % tp)), (tp, pp, rank, key)
        assert seen == set(whole), (tp, pp)


@pytest.mark.parametrize(("name", "kv"), [*((name, "") for name in QUANTIZE), ("int4_awq", "FP8")])
def test_resharding_a_quantized_checkpoint(
    name: str, kv: str, source: Path, tmp_path: Path, logical_of: Logical
) -> None:
    """Every layout from every other one, as it was packed from the logical checkpoint."""
    _, logical = logical_of(name, bool(kv))
    family, spec = spec_of(source)
    made = []
    for tp, pp in LAYOUTS:
        made.append((ConvertOptions(tp, pp, "float16", name, kv_cache=kv.lower() or "none"), tmp_path / f"{tp}x{pp}"))
        made[-1][1].mkdir()
        pack_checkpoint(logical, family, spec, *made[-1])
    for number, ((_, old), (options, new)) in enumerate(pairwise([*made, made[0]])):
        asked = ConvertOptions(options.tp_size, options.pp_size)
        again = pipeline.make_checkpoint(str(old), tmp_path / f"again{number}", asked)
        for path in new.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes(), (old.name, path)


@pytest.mark.parametrize("name", [name for name in QUANTIZE if METHODS[name].experts])
def test_experts(name: str, tmp_path: Path) -> None:
    """Experts cut by moe_tp and shared by moe_ep hold the slices of the whole, in expert order."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    source = make_by_hand("Mixtral", tmp_path / "source", **sizes)
    whole, logical = make_logical(source, tmp_path, name, 128)
    family, spec = spec_of(source)
    fc, at = whole["transformer.layers.0.mlp.fc.weight"], "transformer.layers.0.mlp."
    experts, inter = spec.num_experts, fc.shape[1] // 2
    for moe_ep in (1, 2):
        out = tmp_path / f"ep{moe_ep}"
        out.mkdir()
        options = ConvertOptions(2, 1, "float16", name, moe_tp_size=2 // moe_ep, moe_ep_size=moe_ep)
        pack_checkpoint(logical, family, spec, options, out)
        assert not [found for found in check(out).findings if found.severity == "error"]
        for rank in range(2):
            held = load_rank(out / f"rank{rank}.safetensors")
            some = slice(rank * experts // 2, (rank + 1) * experts // 2) if moe_ep == 2 else slice(None)
            rows = torch.arange(2 * inter).reshape(2, 2 // moe_ep, -1)[:, rank if moe_ep == 1 else 0].reshape(-1)
            for field in METHODS[name].fields:
                ours, wanted = held[f"{at}fc.{field.suffix}"], whole[f"{at}fc.{field.suffix}"]
                if field.packed == 2:
                    ours = torch.stack([unpacked(expert) for expert in ours])
                wanted = wanted if field.shared else wanted[some]
                assert same(ours, wanted[:, rows] if field.rows else wanted), (moe_ep, rank, field.suffix)
                ours, wanted = held[f"{at}proj.{field.suffix}"], whole[f"{at}proj.{field.suffix}"]
                if field.packed == 2:
                    ours = torch.stack([unpacked(expert) for expert in ours])
                wanted = wanted if field.shared else wanted[some]
                wanted = wanted.chunk(2, -1)[rank] if field.cols and moe_ep == 1 else wanted
                assert same(ours, wanted), (moe_ep, rank, field.suffix)


@pytest.mark.parametrize("name", [name for name in QUANTIZE if METHODS[name].experts])
def test_resharding_experts(name: str, tmp_path: Path) -> None:
    """Whole experts cut by moe_tp or shared by moe_ep, from each to the next, as they are packed at once."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    source = make_by_hand("Mixtral", tmp_path / "source", **sizes)
    _, logical = make_logical(source, tmp_path, name, 128)
    family, spec = spec_of(source)
    made = []
    for tp, ep in ((1, 1), (2, 1), (2, 2)):
        options = ConvertOptions(tp, 1, "float16", name, moe_tp_size=tp // ep, moe_ep_size=ep)
        made.append((options, tmp_path / f"{tp}x{ep}"))
        made[-1][1].mkdir()
        pack_checkpoint(logical, family, spec, *made[-1])
    for number, ((_, old), (options, new)) in enumerate(pairwise([*made, made[0]])):
        asked = ConvertOptions(options.tp_size, 1, moe_tp_size=options.moe_tp_size, moe_ep_size=options.moe_ep_size)
        again = pipeline.make_checkpoint(str(old), tmp_path / f"again{number}", asked)
        for path in new.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes(), (old.name, path)


def test_modelopts_int4_awq_cut_for_two_ranks(golden: Path, tmp_path: Path) -> None:
    """Its own numbers through our logical checkpoint: one rank gives its file again, two ranks give slices of it."""
    folder = golden.parent / "golden-modelopt"
    theirs = load_file(folder / "int4_awq-tp1-calc32" / "trtllm" / "rank0.safetensors")
    logical = LogicalWriter(tmp_path / "logical", "theirs")
    packed = {name for name, tensor in theirs.items() if tensor.dtype == torch.int8}
    logical.write("all", {name: unpacked(t) if name in packed else t for name, t in theirs.items()})
    logical.close()
    family, spec = spec_of(folder / "hf")
    for tp in (1, 2):
        out = tmp_path / str(tp)
        out.mkdir()
        pack_checkpoint(tmp_path / "logical", family, spec, ConvertOptions(tp, 1, "float16", "int4_awq"), out)
        for rank in range(tp):
            held = load_rank(out / f"rank{rank}.safetensors")
            assert set(held) == set(theirs)
            for name, ours in held.items():
                wanted = _slice(name, theirs[name], tp, rank)
                assert same(ours, wanted), (tp, name)
        ours, config = (json.loads(path.read_text())["quantization"] for path in (
            out / "config.json", folder / "int4_awq-tp1-calc32" / "trtllm" / "config.json"))  # fmt: skip
        assert {**config, "exclude_modules": None} == ours


def _slice(name: str, tensor: torch.Tensor, tp: int, rank: int) -> torch.Tensor:
    """A rank's part of ModelOpt's one-rank tensor; packed rows are pairs of rows, q : k : v = 2 : 1 : 1."""
    if "lm_head" in name:
        return tensor.chunk(tp)[rank]
    if ".layers." not in name or "layernorm" in name:
        return tensor
    if name.split(".")[-2] in ("dense", "proj"):
        return tensor.chunk(tp, -1)[rank]
    if name.endswith("prequant_scaling_factor"):
        return tensor
    if "qkv" in name:
        rows = len(tensor) // 4
        return torch.cat([part.chunk(tp)[rank] for part in tensor.split([2 * rows, rows, rows])])
    return tensor.chunk(tp)[rank]


def test_the_plan_knows_groups_that_do_not_divide() -> None:
    small = {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6}
    problems = plan_of(ConvertOptions(1, 1, "float16", "int4_awq"), **small).problems
    assert problems == (
        "group size 128 does not divide the 192 inputs of attention.qkv on a rank",
        "group size 128 does not divide the 192 inputs of attention.dense on a rank",
        "group size 128 does not divide the 192 inputs of mlp.fc on a rank",
        "group size 128 does not divide the 192 inputs of mlp.gate on a rank",
        "int4_awq with group size 64 works",
    )
    assert not plan_of(ConvertOptions(1, 1, "float16", "int4_awq", group_size=64), **small).problems
    none = plan_of(ConvertOptions(2, 1, "float16", "int4_awq", group_size=64), **small).problems
    assert none[-1] == "no group size of int4_awq (64 or 128) works; try another tp"
    assert "has group size 64 or 128, not 32" in plan_of(
        ConvertOptions(1, 1, "float16", "int4_awq", group_size=32), **small).problems[0]  # fmt: skip


def test_a_layer_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    tensors: Tensors = {"a": torch.arange(4, dtype=torch.int8)}
    writer = LogicalWriter(tmp_path, "one")
    assert not writer.has("layer0")
    writer.write("layer0", tensors)
    assert LogicalWriter(tmp_path, "one").has("layer0")
    with pytest.raises(CheckpointError, match="no complete logical checkpoint"):
        read_logical(tmp_path)
    (tmp_path / "layer0.safetensors").write_bytes((tmp_path / "layer0.safetensors").read_bytes()[:-1] + b"x")
    assert not LogicalWriter(tmp_path, "one").has("layer0")
    LogicalWriter(tmp_path, "one").write("layer0", tensors)
    assert not LogicalWriter(tmp_path, "another").has("layer0")
    writer = LogicalWriter(tmp_path, "another")
    writer.write("layer0", tensors)
    writer.close()
    assert list(read_logical(tmp_path)) == ["a"]


def test_a_logical_checkpoint_of_another_model(source: Path, tmp_path: Path, logical_of: Logical) -> None:
    _, logical = logical_of("fp8", False)
    family, spec = spec_of(source)
    options = ConvertOptions(1, 1, "float16", "int8_sq")
    with pytest.raises(CheckpointError, match=r"(?s)qkv.weight is F8_E4M3 \[768, 512\], but I8 \[768, 512\] is needed"):
        pack_checkpoint(logical, family, spec, options, tmp_path)
