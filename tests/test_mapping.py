"""Laws of the rank arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trtbuild.mapping import Mapping

SIZES = st.integers(1, 9)


@given(layers=st.integers(1, 200), pp=st.integers(1, 40), tp=SIZES)
def test_stages_partition_the_layers(layers: int, pp: int, tp: int) -> None:
    stages = [Mapping(tp, pp, stage * tp).layers(layers) for stage in range(pp)]
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    lengths = [len(stage) for stage in stages]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(tp=SIZES, pp=SIZES)
def test_ranks_are_a_grid(tp: int, pp: int) -> None:
    grid = [(Mapping(tp, pp, rank).pp_rank, Mapping(tp, pp, rank).tp_rank) for rank in range(tp * pp)]
    assert grid == [(stage, rank) for stage in range(pp) for rank in range(tp)]
    assert sum(Mapping(tp, pp, rank).is_first_stage for rank in range(tp * pp)) == tp
    assert sum(Mapping(tp, pp, rank).is_last_stage for rank in range(tp * pp)) == tp


@given(kv=SIZES, tp=SIZES)
def test_kv_heads_are_shared_or_repeated(kv: int, tp: int) -> None:
    if kv % tp == 0:
        assert Mapping(tp).kv_heads(kv) * tp == kv
    elif tp % kv == 0:
        assert Mapping(tp).kv_heads(kv) == 1
