"""Cutting: each window lands where it should, and putting the windows back gives the whole; casts equal torch's."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.plans import config, headers, plan_of
from trtbuild.checkpoint import blocks as blocks_module
from trtbuild.checkpoint.cast import STORAGE, cast, direct, holds, narrowed, widened
from trtbuild.checkpoint.convert import convert
from trtbuild.checkpoint.source import read_header
from trtbuild.layout import Job, Piece, RankJobs
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def converted(sources: dict[str, torch.Tensor], ranks: list[RankJobs], **options: Any) -> list[dict[str, torch.Tensor]]:
    """The rank files' tensors, through real files."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_file(sources, folder / "model.safetensors")
        index = {info.name: info for info in read_header(folder / "model.safetensors")}
        names = convert(ranks, index, folder, **options)
        return [{**load_file(folder / name)} for name in names]


def one_rank(*jobs: Job) -> list[RankJobs]:
    return [RankJobs(0, 0, 0, range(1), jobs)]


def numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Every element of the model has its own number, so that a swap anywhere shows."""
    made, number = {}, 0
    for name, shape in shapes.items():
        made[name] = torch.arange(number, number + prod(shape), dtype=torch.float32).reshape(shape)
        number += prod(shape)
    assert number < 1 << 24  # exact in float32
    return made


@settings(deadline=None, max_examples=40)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 3),
    kv=st.sampled_from([1, 2, 4, 8]),
    vocab=st.integers(64, 97),
    embedding=st.sampled_from([None, 0, 1]),
    workers=st.integers(1, 3),
    block=st.sampled_from([1, 700, 1 << 20]),
)
def test_uncut_of_cut_is_identity(
    tp: int, pp: int, kv: int, vocab: int, embedding: int | None, workers: int, block: int
) -> None:
    changes = {"num_hidden_layers": 3, "num_key_value_heads": kv, "vocab_size": vocab}
    options = ConvertOptions(
        tp, pp, "float32", use_parallel_embedding=embedding is not None, embedding_sharding_dim=embedding or 0
    )
    plan = plan_of(options, **changes)
    assert not plan.problems
    sources = numbered({name: info.shape for name, info in headers(config(**changes)).items()})
    back = {name: torch.full_like(tensor, -1) for name, tensor in sources.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK_BYTES", block)
        files = converted(sources, list(plan.ranks), workers=workers)
    for rank, file in zip(plan.ranks, files, strict=True):
        assert sorted(file) == sorted(job.name for job in rank.jobs)
        for job in rank.jobs:
            tensor = file[job.name]
            assert tuple(tensor.shape) == job.shape
            row = 0
            for piece in job.pieces:
                for start, stop in piece.rows:
                    window = back[piece.source][start:stop]
                    window = window if piece.cols is None else window[:, slice(*piece.cols)]
                    window.copy_(tensor[row : row + stop - start])
                    row += stop - start
            assert not tensor[row:].any()
    assert all(torch.equal(back[name], sources[name]) for name in sources)


def test_parts_are_cut_before_they_are_stacked() -> None:
    q, k = torch.arange(8.0).reshape(4, 2), 100 + torch.arange(4.0).reshape(2, 2)
    job = Job("qk", "F32", (4, 2), (Piece("q", ((2, 4),)), Piece("k", ((1, 2),))), "qk")
    [file] = converted({"q": q, "k": k}, one_rank(job))
    assert file["qk"].tolist() == [[4, 5], [6, 7], [102, 103], [0, 0]]


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_every_kind_of_piece(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", block)
    shapes = {"conv": (6, 10), "a": (4, 6), "b": (4, 6), "bias": (5,), "norm": (7,)}
    sources = {name: tensor.to(torch.bfloat16) for name, tensor in numbered(shapes).items()}
    jobs = (
        Job("conv", "BF16", (4, 6), (Piece("conv", ((7, 10), (1, 2)), transposed=True),), "conv"),
        Job("conv.cols", "F32", (3, 2), (Piece("conv", ((2, 5),), (1, 3), transposed=True),), "conv.cols"),
        Job("experts", "F16", (2, 3, 2), tuple(Piece(n, ((1, 3), (0, 1)), (2, 4)) for n in "ab"), "experts"),
        Job("bias", "BF16", (5,), (Piece("", ((0, 5),)),), "bias"),
        Job("norm", "F16", (8,), (Piece("norm", ((0, 7),)),), "norm", add=1.0),
        Job("router", "F32", (4, 6), (Piece("a", ((0, 4),)),), "router"),
        Job("zeros", "F32", (4, 3), (Piece("", ((0, 4),)),), "zeros"),
    )
    [file] = converted(sources, one_rank(*jobs), workers=2)
    conv, a, b = (sources[name] for name in ("conv", "a", "b"))
    padded = torch.cat([conv.T[7:10], conv.T[1:2]])
    assert torch.equal(file["conv"], padded)
    assert torch.equal(file["conv.cols"], conv.T[2:5, 1:3].float())
    stacked = torch.stack([torch.cat([t[1:3, 2:4], t[0:1, 2:4]]) for t in (a, b)])
    assert torch.equal(file["experts"], stacked.to(torch.float16))
    assert torch.equal(file["norm"], torch.cat([(sources["norm"].float() + 1).half(), torch.zeros(1).half()]))
    assert torch.equal(file["router"], a.float())
    assert not file["bias"].any()
    assert file["zeros"].shape == (4, 3)


def test_a_plan_that_contradicts_its_shape_is_a_defect() -> None:
    job = Job("a", "F32", (2, 2), (Piece("a", ((0, 4),)),), "a")
    with pytest.raises(RuntimeError, match="4 rows are planned for shape"):
        converted({"a": torch.zeros(4, 2)}, one_rank(job))


def bits_of(code: str) -> torch.Tensor:
    """Every value of a dtype of 8 or 16 bits; values around each limit, and random bits, of the wider ones."""
    if code.startswith("F8"):
        return torch.arange(256, dtype=torch.int16).to(torch.uint8).view(TORCH[code])
    if code in ("F16", "BF16"):
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(TORCH[code])
    torch.manual_seed(0)
    wide = torch.randint(-(1 << 31), (1 << 31) - 1, (200_000,)).to(torch.int32).view(torch.float32)
    weights = torch.randn(200_000) * 0.02
    edges = torch.tensor([65504.0, 65519.9, 65520.0, 3.3895e38, 3.3962e38, 2.0**-14, 2.0**-24, 2.0**-25, 0.0, -0.0])
    ties = (torch.arange(1, 4000).float() + 0.5) * 2.0**-11 + 1
    values = torch.cat([wide, weights, weights * 1e-4, edges, -edges, ties, -ties, torch.tensor([1e-45])])
    return values if code == "F32" else torch.cat([values.double(), torch.tensor([1e300, 1e-300]).double()])


@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("source", list(TORCH))
def test_casts_equal_torch(source: str, target: str) -> None:
    values = bits_of(source)
    expected = (values.float() if source.startswith("F8") else values).to(TORCH[target])
    good = torch.isfinite(expected.float())
    raw = values.view(torch.uint8).numpy().view(STORAGE[source])
    for number in np.flatnonzero(~good.numpy())[:300]:
        one = raw[number : number + 1]
        if direct(source, target):
            assert not holds(one, source, target), values[number]
        else:
            assert not holds(widened(one, source), "F32", target), values[number]
    kept = values[good]
    raw = kept.view(torch.uint8).numpy().view(STORAGE[source])
    out = np.empty(raw.shape, STORAGE[target])
    if direct(source, target):
        assert holds(raw, source, target)
        cast(raw, source, target, out)
    else:
        wide = widened(raw, source)
        assert holds(wide, "F32", target)
        narrowed(wide, target, out)
    ours = torch.from_numpy(out.view(np.uint8)).view(TORCH[target])
    assert torch.equal(ours.view(torch.uint8), expected[good].view(torch.uint8))


def test_rows_for_several_ranks_are_read_once() -> None:
    options = ConvertOptions(4, 2, "float32")
    plan = plan_of(options)
    index = headers(config())
    seen: dict[str, int] = {}
    for block in blocks_module.blocks(plan.ranks, index):
        seen[block.source] = seen.get(block.source, 0) + block.rows[1] - block.rows[0]
    assert json.dumps(seen, sort_keys=True) == json.dumps({n: i.shape[0] for n, i in index.items()}, sort_keys=True)
