"""Byte for byte against checkpoints of TensorRT-LLM's own convert_checkpoint.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import GOLDEN, NO_GOLDEN, load_rank
from trtbuild import pipeline
from trtbuild.families import architectures
from trtbuild.quantize.packing import preprocess_weights_for_mixed_gemm
from trtbuild.quantize.values import symmetric
from trtbuild.spec import ConvertOptions


def cases() -> list[str]:
    """Upstream's unquantized cases of every architecture that we have."""
    found = []
    for path in sorted(GOLDEN.glob("*/case.json")):
        case = json.loads(path.read_text())
        source = json.loads((path.parent / case["hf"] / "config.json").read_text())
        if case["quant"] == "none" and source["architectures"][0] in architectures():
            found.append(path.parent.name)
    return found


CASES = cases()
# Rotary tables that upstream writes for some families and recomputes on load.
BUFFERS = {"embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq"}
# Fields that are free, each with its reason; every other field of upstream's config.json must be equal in ours.
FREE = {
    "tie_word_embeddings": "informational in 1.x",
    "moe": "compared by the fields of the 1.x class; 0.14 wrote others, and zeros for dense models",
    "partial_rotary_factor": "an unread default of 0.14's PhiConfig; the class reads rotary_pct",
}
FREE_QUANTIZATION = {"smoothquant_val": "informational, and null in Gemma's converter"}
# Tensors that the class of 1.x looks for under another name than 0.14's (checkpoint format 2.4).
RENAMED = {".shared_expert.": ".mlp.shared_expert.", ".shared_expert_gate.": ".mlp.shared_expert_gate."}


def convert(golden: Path, case: str, out: Path) -> tuple[dict[str, Any], Path]:
    """Run our conversion with a golden case's options; returns (the case, upstream's folder)."""
    settings = json.loads((golden / case / "case.json").read_text())
    options = ConvertOptions(
        settings["tp"],
        settings["pp"],
        settings["dtype"],
        use_parallel_embedding=settings["use_parallel_embedding"],
        embedding_sharding_dim=settings["embedding_sharding_dim"],
        use_embedding_sharing=settings["use_embedding_sharing"],
        moe_tp_size=settings["moe_tp"],
        moe_ep_size=settings["moe_ep"],
    )
    pipeline.make_checkpoint(str((golden / case / settings["hf"]).resolve()), out, options)
    return settings, golden / case / "trtllm"


@pytest.mark.parametrize("case", CASES or [NO_GOLDEN])
def test_tensors_equal_upstream(golden: Path, case: str, tmp_path: Path) -> None:
    settings, upstream = convert(golden, case, tmp_path / "out")
    for rank in range(settings["tp"] * settings["pp"]):
        theirs = renamed(load_rank(upstream / f"rank{rank}.safetensors"))
        ours = load_rank(tmp_path / "out" / f"rank{rank}.safetensors")
        extra = set(ours) - set(theirs)
        # An explicit lm_head where the tables are shared: format document 2.0, "always write lm_head.weight".
        shared = json.loads((upstream / "config.json").read_text())["share_embedding_table"]
        assert extra <= ({"lm_head.weight"} if shared else set())
        assert set(theirs) - set(ours) <= BUFFERS
        for name in set(theirs) & set(ours):
            assert ours[name].dtype == theirs[name].dtype, name
            assert ours[name].shape == theirs[name].shape, name
            same = torch.equal(ours[name].flatten().view(torch.uint8), theirs[name].flatten().view(torch.uint8))
            assert same, name
        if extra:
            assert torch.equal(ours["lm_head.weight"], ours["transformer.vocab_embedding.weight"])


@pytest.mark.parametrize("case", CASES or [NO_GOLDEN])
def test_config_equals_upstream(golden: Path, case: str, tmp_path: Path) -> None:
    _, upstream = convert(golden, case, tmp_path / "out")
    theirs = json.loads((upstream / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in FREE:
        theirs.pop(name, None)
    for name in FREE_QUANTIZATION:
        theirs["quantization"].pop(name, None)
    for name in ("mapping", "quantization"):
        assert {key: ours[name][key] for key in theirs[name]} == theirs.pop(name)
    assert {key: ours[key] for key in theirs} == theirs


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Upstream's tensors by the names of the 1.x classes."""
    for old, new in RENAMED.items():
        tensors = {name if new in name else name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def test_int8_equals_upstream(golden: Path, tmp_path: Path) -> None:
    """Upstream's pre-quantized form: our plain checkpoint, our formula and our SM80 layout give its bytes."""
    _, upstream = convert(golden, "llama-h128-tp1-pp1-float16-int8", tmp_path / "out")
    theirs = load_rank(upstream / "rank0.safetensors")
    ours = load_rank(tmp_path / "out" / "rank0.safetensors")
    quantized = [name for name in theirs if name.endswith(".per_channel_scale")]
    assert len(quantized) == 2 * 5
    for scale_name in quantized:
        name = scale_name.replace("per_channel_scale", "weight")
        q, scale = symmetric(ours.pop(name), 8)
        laid = preprocess_weights_for_mixed_gemm(q.T.contiguous(), 8, 16, 80)
        assert torch.equal(laid, theirs[name]), name
        assert torch.equal(scale.to(torch.float16), theirs[scale_name]), name
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
