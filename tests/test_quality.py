"""What quantization costs: perplexity on the bundled text, which no method has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.engines import Engines
from tests.tiny import ROOT
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions

CONTEXT, WINDOWS = 512, 2


def perplexity(engine: Path, tokens: list[int]) -> float:
    """exp of the mean negative log likelihood over windows of CONTEXT tokens."""
    generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=2048))
    losses = []
    for start in range(0, WINDOWS * CONTEXT, CONTEXT):
        window = tokens[start : start + CONTEXT]
        logits = generator.score(window)[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-log_probs[np.arange(CONTEXT - 1), window[1:]])
    return float(np.exp(np.concatenate(losses).mean()))


def test_int8_perplexity(engines: Engines, demo_model: Path) -> None:
    from transformers import AutoTokenizer

    text = (ROOT / "trtbuild" / "data" / "english.txt").read_text()
    tokens = AutoTokenizer.from_pretrained(demo_model)(text).input_ids
    exact = perplexity(engines.engine(demo_model), tokens)
    int8 = perplexity(engines.engine(demo_model, quant="int8"), tokens)
    print(f"perplexity float32 {exact:.3f}, int8 {int8:.3f}, ratio {int8 / exact:.4f}")
    assert 5 < exact < 60
    assert int8 < 1.01 * exact
