"""Cutting: each window lands where it should, and putting the windows back gives the whole."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plans import config, headers, plan_of
from trtbuild.checkpoint.cut import cut
from trtbuild.layout import Job, Piece
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=50)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 3),
    kv=st.sampled_from([1, 2, 4, 8]),
    vocab=st.integers(64, 97),
    embedding=st.sampled_from([None, 0, 1]),
)
def test_uncut_of_cut_is_identity(tp: int, pp: int, kv: int, vocab: int, embedding: int | None) -> None:
    changes = {"num_hidden_layers": 3, "num_key_value_heads": kv, "vocab_size": vocab}
    options = ConvertOptions(
        tp, pp, use_parallel_embedding=embedding is not None, embedding_sharding_dim=embedding or 0
    )
    plan = plan_of(options, **changes)
    assert not plan.problems
    # Every element of the model has its own number, so that a swap anywhere shows.
    sources, back, number = {}, {}, 0
    for name, info in headers(config(**changes)).items():
        sources[name] = torch.arange(number, number + prod(info.shape), dtype=torch.int64).reshape(info.shape)
        back[name] = torch.full(info.shape, -1, dtype=torch.int64)
        number += prod(info.shape)
    for rank in plan.ranks:
        for job in rank.jobs:
            tensor = cut(sources, job)
            assert tensor.is_contiguous()
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
    q, k = torch.arange(8).reshape(4, 2), 100 + torch.arange(4).reshape(2, 2)
    job = Job("qk", "F32", (4, 2), (Piece("q", ((2, 4),)), Piece("k", ((1, 2),))), "qk")
    assert cut({"q": q, "k": k}, job).tolist() == [[4, 5], [6, 7], [102, 103], [0, 0]]


def test_a_plan_that_contradicts_its_shape_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        cut({"a": torch.zeros(4, 2)}, Job("a", "F32", (2, 2), (Piece("a", ((0, 4),)),), "a"))
