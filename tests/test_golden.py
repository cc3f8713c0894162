"""Byte for byte against checkpoints of TensorRT-LLM's own convert_checkpoint.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_rank
from trtbuild import pipeline
from trtbuild.quantize.methods.int8 import quantize
from trtbuild.quantize.packing import preprocess_weights_for_mixed_gemm
from trtbuild.spec import ConvertOptions

CASES = ("llama-tp1-pp1-float16", "llama-tp1-pp1-bfloat16", "llama-tp2-pp1-float16", "llama-tp2-pp2-float16")
CASES += ("llama-tied-tp1-pp1-float16-share",)
# Rotary tables that upstream writes for some families and recomputes on load.
BUFFERS = {"embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq"}
# Fields in which the 1.x loader differs from the 0.14 writer, or which it does not read:
# `moe` is {} for a dense model; `share_embedding_table` is ignored; `tie_word_embeddings` is informational in 1.x;
# moe_tp_size and moe_ep_size of the mapping are deduced.
FREE = {"moe", "share_embedding_table", "tie_word_embeddings"}
FREE_MAPPING = {"moe_tp_size", "moe_ep_size"}


def convert(golden: Path, case: str, out: Path) -> tuple[dict[str, Any], Path]:
    """Run our conversion with a golden case's options; returns (the case, upstream's folder)."""
    settings = json.loads((golden / case / "case.json").read_text())
    options = ConvertOptions(
        settings["tp"],
        settings["pp"],
        settings["dtype"],
        use_parallel_embedding=settings["use_parallel_embedding"],
        embedding_sharding_dim=settings["embedding_sharding_dim"],
    )
    pipeline.make_checkpoint(str((golden / case / settings["hf"]).resolve()), out, options)
    return settings, golden / case / "trtllm"


@pytest.mark.parametrize("case", CASES)
def test_tensors_equal_upstream(golden: Path, case: str, tmp_path: Path) -> None:
    settings, upstream = convert(golden, case, tmp_path / "out")
    for rank in range(settings["tp"] * settings["pp"]):
        theirs = load_rank(upstream / f"rank{rank}.safetensors")
        ours = load_rank(tmp_path / "out" / f"rank{rank}.safetensors")
        extra = set(ours) - set(theirs)
        # An explicit lm_head where the tables are shared: format document 2.0, "always write lm_head.weight".
        assert extra <= ({"lm_head.weight"} if settings["use_embedding_sharing"] else set())
        assert set(theirs) - set(ours) <= BUFFERS
        for name in set(theirs) & set(ours):
            assert ours[name].dtype == theirs[name].dtype, name
            assert ours[name].shape == theirs[name].shape, name
            same = torch.equal(ours[name].flatten().view(torch.uint8), theirs[name].flatten().view(torch.uint8))
            assert same, name
        if extra:
            assert torch.equal(ours["lm_head.weight"], ours["transformer.vocab_embedding.weight"])


@pytest.mark.parametrize("case", CASES)
def test_config_equals_upstream(golden: Path, case: str, tmp_path: Path) -> None:
    _, upstream = convert(golden, case, tmp_path / "out")
    theirs = json.loads((upstream / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in FREE:
        theirs.pop(name, None), ours.pop(name, None)
    for name in FREE_MAPPING:
        theirs["mapping"].pop(name, None)
    assert ours == theirs


def test_int8_equals_upstream(golden: Path, tmp_path: Path) -> None:
    """Upstream's pre-quantized form: our plain checkpoint, our formula and our SM80 layout give its bytes."""
    _, upstream = convert(golden, "llama-h128-tp1-pp1-float16-int8", tmp_path / "out")
    theirs = load_rank(upstream / "rank0.safetensors")
    ours = load_rank(tmp_path / "out" / "rank0.safetensors")
    quantized = [name for name in theirs if name.endswith(".per_channel_scale")]
    assert len(quantized) == 2 * 5
    for scale_name in quantized:
        name = scale_name.replace("per_channel_scale", "weight")
        q, scale = quantize(ours.pop(name))
        laid = preprocess_weights_for_mixed_gemm(q.T.contiguous(), 8, 16, 80)
        assert torch.equal(laid, theirs[name]), name
        assert torch.equal(scale.to(torch.float16), theirs[scale_name]), name
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
