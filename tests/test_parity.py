"""The cpu engine against transformers: logits, and greedy tokens one by one, for every kind of layout under mpirun.

A token sequence is greedy exactly when each token is the argmax of what transformers says after all tokens before it,
so one forward pass of transformers over prompt and output checks a whole generation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import Engines, greedy, random_prompts, run_all, tokens_of
from trtbuild.runtime.group import RankGroup

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIX_HEADS = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 192}
# (what is special, changes of the config, tp, pp, options)
TINY: list[tuple[str, dict[str, Any], int, int, dict[str, Any]]] = [
    ("plain", {}, 1, 1, {}),
    ("three ranks", SIX_HEADS, 3, 1, {}),
    ("two stages", {}, 1, 2, {}),
    ("six ranks", SIX_HEADS, 3, 2, {}),
    ("uneven stages", {"num_hidden_layers": 5}, 1, 3, {}),
    ("repeated kv heads", {"num_key_value_heads": 2}, 4, 1, {}),
    ("biases", {"attention_bias": True, "mlp_bias": True}, 2, 1, {}),
    ("tied, odd vocabulary", {"tie_word_embeddings": True, "vocab_size": 509}, 2, 2, {}),
    ("head size not hidden/heads", {"head_dim": 24}, 2, 1, {}),
    ("llama3 rope", {"rope_parameters": LLAMA3_ROPE}, 1, 1, {}),
    ("vocabulary shared", {}, 2, 1, {"use_parallel_embedding": True}),
    ("hidden shared", {}, 2, 1, {"use_parallel_embedding": True, "embedding_sharding_dim": 1}),
]
DEMO_PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "The three laws of motion",
    "She opened the old wooden door and", "In 1969, humans first", "A recipe for bread:", "import numpy as np\n",
    "The quick brown fox", "Dear Sir or Madam,", "1, 1, 2, 3, 5, 8,", "Why is the sky blue?", "The mitochondria is",
    "Roses are red,", "To be, or not to be,", "My favourite 🎉 is", "東京は", "The following table lists",
    "SELECT name FROM",
]  # fmt: skip


def reference_logits(model_dir: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """transformers' logits after every token of every sequence, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([sequence])).logits[0].numpy() for sequence in sequences]


def assert_parity(model_dir: Path, engine: Path, prompts: list[tuple[int, ...]], new_tokens: int) -> None:
    with RankGroup(engine, max_tokens_in_paged_kv_cache=8192) as group:
        requests = [greedy(str(i), prompt, new_tokens) for i, prompt in enumerate(prompts)]
        outputs = run_all(group, requests)
        scored = group.score(prompts[-1] + tuple(tokens_of(outputs[requests[-1].request_id])))
        assert group.stats()["kv_blocks_used"] == 0
    sequences = [[*request.prompt_ids, *tokens_of(outputs[request.request_id])] for request in requests]
    expected = reference_logits(model_dir, sequences)
    for request, sequence, logits in zip(requests, sequences, expected, strict=True):
        start = len(request.prompt_ids)
        assert len(sequence) == start + new_tokens
        assert sequence[start:] == logits[start - 1 : -1].argmax(-1).tolist(), request.prompt_ids
    assert np.abs(scored - expected[-1]).max() < 1e-4 * np.abs(expected[-1]).max()


@pytest.mark.parametrize(
    ("changes", "tp", "pp", "options"), [case[1:] for case in TINY], ids=[case[0] for case in TINY]
)
def test_tiny_models(engines: Engines, changes: dict[str, Any], tp: int, pp: int, options: dict[str, Any]) -> None:
    model = engines.tiny(**changes)
    engine = engines.engine(model, tp, pp, **options)
    assert_parity(model, engine, random_prompts(8, 500, longest=150), 24)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 1), (1, 2), (3, 2), (1, 5)])
def test_demo_model(engines: Engines, demo_model: Path, tp: int, pp: int) -> None:
    """20 prompts x 64 tokens, all 20 in flight at once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    prompts = [tuple(tokenizer(prompt).input_ids) for prompt in DEMO_PROMPTS]
    assert len(prompts) == 20
    assert_parity(demo_model, engines.engine(demo_model, tp, pp), prompts, 64)


def test_generate_of_transformers(engines: Engines, demo_model: Path) -> None:
    """The same through transformers' own `generate`, for three prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = random_prompts(3, 49152, seed=1)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    with RankGroup(engines.engine(demo_model), max_tokens_in_paged_kv_cache=8192) as group:
        outputs = run_all(group, [greedy(str(i), prompt, 32) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=-1
        )
        assert tokens_of(outputs[str(i)]) == expected[0, len(prompt) :].tolist()
