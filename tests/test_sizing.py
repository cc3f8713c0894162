"""Estimates beside published figures, and beside arithmetic done by hand (engine-build 9.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.published import Compared, compared, document
from trtbuild.checkpoint.config import read_specs
from trtbuild.plan import ModelPlan, plan_model
from trtbuild.sizing.described import described_index
from trtbuild.sizing.estimate import estimate, judge, refusals
from trtbuild.sizing.geometry import Geometry, geometry_of
from trtbuild.sizing.gpus import find_gpu
from trtbuild.sizing.host import Stage, build_memory, stages
from trtbuild.sizing.legality import Legality
from trtbuild.sizing.memory import (
    RankMemory,
    activation_bytes,
    kv_token_bytes_of_layer,
    rank_memories,
    sequences,
)
from trtbuild.sizing.target import Limits, Target
from trtbuild.spec import ConvertOptions

KIB = 1 << 10
LLAMA_8B = document()["models"]["Llama-3-8B"]
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def planned(config: dict[str, Any], **options: Any) -> ModelPlan:
    specs = read_specs(config)
    plan = plan_model(specs, ConvertOptions(target="tensorrt", **options), described_index(specs))
    plan.require()
    return plan


@pytest.mark.parametrize("row", compared(), ids=lambda row: f"{row.run}-{row.what}")
def test_published_figures(row: Compared) -> None:
    assert abs(row.error) <= row.bound, (
        f"{row.what} of {row.run}: published {row.published:,}, ours {row.ours:,}, {row.error:+.1%} ({row.source})"
    )


def test_enough_published_configurations() -> None:
    """At least twelve configurations, each with its source and a quoted line; the bounds of what is exact are tight."""
    runs = document()["runs"]
    assert len(runs) >= 12
    assert all(run["source"] and fig["quote"] for run in runs for fig in run["figures"])
    exact = [row for row in compared() if row.what in {"weights", "kv_token"}]
    assert len(exact) >= 20
    assert sum(abs(row.error) < 0.002 for row in exact) >= len(exact) - 2  # two engines are given in whole GB only


@pytest.mark.parametrize(
    ("config", "options", "kib"),
    [
        (LLAMA_8B, {}, 128),
        (LLAMA_8B, {"tp_size": 2}, 64),
        (LLAMA_8B, {"kv_cache": "fp8"}, 64),
        (LLAMA_8B, {"kv_cache": "int8", "tp_size": 2}, 32),
        (LLAMA_8B, {"pp_size": 2}, 64),
        (LLAMA_70B, {"tp_size": 4}, 80),
        (LLAMA_70B, {"tp_size": 8}, 40),
        (LLAMA_70B, {"tp_size": 16}, 40),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_kv_bytes_of_a_token(config: dict[str, Any], options: dict[str, Any], kib: int) -> None:
    """The examples of engine-build 9.2: tp divides the kv heads and never leaves less than one, pp divides layers."""
    ranks = rank_memories(planned(config, **options).parts[0], Limits())
    assert {rank.kv_token_bytes for rank in ranks} == {kib * KIB}


def test_the_pool_by_hand() -> None:
    """tokens = fraction x free / bytes of a token, in blocks of 32; a sequence takes whole blocks."""
    limits = Limits(kv_fraction=0.9, tokens_per_block=32)
    rank = RankMemory(0, 0, 0, 16 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, 128 * KIB)
    assert rank.fixed == 20 << 30
    # 0.9 x 60 GiB = 54 GiB = 442368 tokens of 128 KiB
    assert rank.kv_tokens(80 << 30, limits) == 442368
    assert rank.kv_tokens((20 << 30) + 33 * 128 * KIB, replace(limits, kv_fraction=1.0)) == 32
    assert rank.kv_tokens(20 << 30, limits) == 0
    assert rank.kv_tokens(10 << 30, limits) == 0
    assert sequences(442368, 8192) == 54
    assert sequences(442368, 8193) == 53  # 257 blocks each
    assert sequences(31, 1) == 0


def test_the_rank_with_the_smallest_pool_decides() -> None:
    """Five layers on two stages: the first has three, so its tokens are dearer; its own table is heavy too."""
    ranks = (
        RankMemory(0, 0, 0, 30 << 30, 0, 0, 0, 0, 3 * 4 * KIB),
        RankMemory(1, 0, 1, 30 << 30, 0, 0, 0, 0, 2 * 4 * KIB),
    )
    target = Target(replace(find_gpu("A100"), memory_gib=40.0), 4096, 100)
    verdict = judge(ranks, target, Limits(100, 8192, 4096), Legality(), 1, 2)
    # 0.9 x 10 GiB / 12 KiB = 786432 tokens, / 8 KiB = 1179648
    assert verdict.kv_tokens == {0: 786432, 1: 1179648}
    assert (verdict.deciding, verdict.sequences) == (0, 192)
    assert not verdict.problems


def test_activations_by_hand() -> None:
    """T (2 h + 2 i) and B V, two bytes each; tp shares the MLP, not the hidden states; AWQ keeps h + 3 i."""
    shape = Geometry(1000, 4000, 1, 8, 8, 125, 32000)
    limits = Limits(max_batch_size=10, max_num_tokens=100)
    assert activation_bytes(shape, limits, 1) == 2 * (100 * (2000 + 8000) + 10 * 32000)
    assert activation_bytes(shape, limits, 4) == 2 * (100 * (2000 + 2000) + 10 * (32000 + 8000))
    assert activation_bytes(shape, limits, 1, fused=False) == 2 * (100 * (1000 + 12000) + 10 * 32000)
    experts = replace(shape, experts_per_token=2)
    assert activation_bytes(experts, limits, 1) == 2 * (100 * (2000 + 2 * (2000 + 8000)) + 10 * 32000)


def test_geometry_of_a_mixture() -> None:
    shape = geometry_of(planned(document()["models"]["Mixtral-8x7B"]).parts[0].spec)
    assert (shape.experts_per_token, shape.intermediate_size, shape.rope_elements) == (2, 14336, 32768 * 128)
    learned = geometry_of(planned(document()["models"]["gpt2"]).parts[0].spec)
    assert (learned.rope_elements, learned.intermediate_size) == (0, 3072)
    assert kv_token_bytes_of_layer(learned, 1, 2) == 2 * 12 * 64 * 2


def test_plain_int4_counts_as_quantized_by_the_build() -> None:
    """Llama-3-8B: 6979321856 weights of linears at half a byte, a scale for each of their 1376256 outputs."""
    plan = planned(LLAMA_8B, quant="int4").parts[0]
    (rank,) = rank_memories(plan, Limits())
    linears = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    outputs = 32 * (6144 + 4096 + 2 * 14336 + 4096)
    plain = 2 * (2 * 128256 * 4096 + (2 * 32 + 1) * 4096)
    assert rank.weights == linears // 2 + 2 * outputs + plain + 4 * 8192 * 128
    assert plan.checkpoint_bytes > 2 * linears  # the checkpoint itself stays plain


def test_problems_name_the_numbers_that_decide() -> None:
    plan = planned(LLAMA_8B, tp_size=2)
    target = Target(find_gpu("L4"), 8192, 300)
    found = estimate(plan, target, Limits(max_batch_size=64, max_num_tokens=32, max_seq_len=4096)).verdict
    text = "\n".join(found.problems)
    assert "max_seq_len 4096 is below the context of 8192 tokens" in text
    assert "max_batch_size 64 x pp 1 is below the 300 concurrent sequences" in text
    assert "max_num_tokens 32 is below max_batch_size 64" in text
    assert f"{found.sequences} of 300 sequences of 8192 tokens fit" in text
    assert "one sequence takes 0.50 GiB" in text
    assert any("no NVLink" in warning for warning in found.warnings)
    whole = estimate(planned(LLAMA_70B), Target(find_gpu("L4"), 8192, 1), Limits(1, 8192, 8192)).verdict
    assert "before any KV cache; L4 has 22.03 GiB" in whole.problems[0]


def test_only_decoders_have_an_estimate() -> None:
    t5 = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 8, "d_ff": 128,
        "num_layers": 2, "num_decoder_layers": 2, "num_heads": 8, "vocab_size": 128, "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }  # fmt: skip
    specs = read_specs(t5)
    plan = plan_model(specs, ConvertOptions(), described_index(specs))
    assert "decoder-only" in refusals(plan)[0]
    assert not refusals(planned(LLAMA_8B))


def by_name(
    config: dict[str, Any], engine_bytes: tuple[int, ...], per_node: int = 8, **options: Any
) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(planned(config, **options), engine_bytes, per_node)}


def test_host_stages_add_up() -> None:
    """Memory of building two ranks at once is that of two processes; disk is the engines'; every stage has a line."""
    plan = planned(LLAMA_8B, tp_size=2, quant="fp8")
    found = by_name(LLAMA_8B, (4_000_000_000, 4_000_000_000), tp_size=2, quant="fp8")
    assert list(found) == ["download", "checkpoint", "verify", "engine", "repo"]
    assert found["engine"].memory_bytes == 2 * build_memory(4_000_000_000) == 2 * (6_000_000_000 + 10_000_000_000)
    assert found["engine"].disk_bytes == 8_000_000_000
    assert "--processes 1" in found["engine"].note
    assert found["checkpoint"].disk_bytes == plan.checkpoint_bytes + plan.scratch_bytes
    assert found["download"].disk_bytes == plan.source_bytes
    assert found["verify"].disk_bytes > plan.checkpoint_bytes
    assert by_name(LLAMA_8B, (1,) * 16)["engine"].memory_bytes == 8 * build_memory(1)


def test_whatever_runs_the_model_over_the_text_takes_its_time() -> None:
    """1.1 billion parameters took 322 s on two cores with 16 x 256 tokens; the defaults are 32 or 128 x 512."""
    per_token = 322 / 1.1e9 / (16 * 256) * planned(LLAMA_8B).parameters

    def seconds(**options: Any) -> float:
        return by_name(LLAMA_8B, (1,), **options)["checkpoint"].seconds

    assert seconds() < 60
    assert seconds(quant="int8") < 60
    assert seconds(quant="int4_awq") == pytest.approx(per_token * 32 * 512, rel=0.1)
    assert seconds(quant="fp8") == pytest.approx(per_token * 128 * 512, rel=0.1)
    assert seconds(kv_cache="fp8") == pytest.approx(per_token * 128 * 512, rel=0.1)
    assert seconds(quant="fp8", kv_cache="fp8") == pytest.approx(seconds(quant="fp8"), rel=0.01)
    assert 60 < seconds(quant="fp8_rowwise") < 600  # fields, and no text
