"""The cpu engine against transformers: logits, and greedy tokens one by one, for every kind of layout under mpirun.

A token sequence is greedy exactly when each token is the argmax of what transformers says after all tokens before it,
so one forward pass of transformers over prompt and output checks a whole generation.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.engines import Engines, greedy, random_prompts, run_all, tokens_of
from tests.family_ranks import job_of, run_jobs
from trtbuild.pipeline import make_checkpoint
from trtbuild.runtime.group import RankGroup
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")
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
TINY_PROMPTS = random_prompts(8, 500, longest=150)
DEMO_PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "The three laws of motion",
    "She opened the old wooden door and", "In 1969, humans first", "A recipe for bread:", "import numpy as np\n",
    "The quick brown fox", "Dear Sir or Madam,", "1, 1, 2, 3, 5, 8,", "Why is the sky blue?", "The mitochondria is",
    "Roses are red,", "To be, or not to be,", "My favourite 🎉 is", "東京は", "The following table lists",
    "SELECT name FROM",
]  # fmt: skip


class Reference(NamedTuple):
    """What transformers says in float32: the argmax after every token of every sequence, the last one's logits."""

    argmax: list[list[int]]
    logits: np.ndarray


@cache  # every layout of a model asks for the same tokens, as long as they are right
def reference(model_dir: Path, sequences: tuple[tuple[int, ...], ...]) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
    return Reference([rows.argmax(-1).tolist() for rows in logits], logits[-1].numpy())


def assert_parity(
    model_dir: Path, prompts: list[tuple[int, ...]], tokens: list[list[int]], new_tokens: int, scored: np.ndarray
) -> None:
    """`tokens` are greedy after `prompts`; `scored` are the logits after every token of the last prompt and tokens."""
    assert [len(row) for row in tokens] == [new_tokens] * len(prompts)
    expected = reference(model_dir, tuple((*prompt, *row) for prompt, row in zip(prompts, tokens, strict=True)))
    for prompt, row, argmax in zip(prompts, tokens, expected.argmax, strict=True):
        assert row == argmax[len(prompt) - 1 : -1], prompt
    assert np.abs(scored - expected.logits).max() < 1e-4 * np.abs(expected.logits).max()


@pytest.fixture(scope="module")
def tiny_results(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case of TINY computes, as `NAME.npz`; one MPI job, as starting one takes longer than a case."""
    folder, jobs = tmp_path_factory.mktemp("tiny"), []
    for name, changes, tp, pp, options in TINY:
        file = name.replace("/", " per ")
        checkpoint = folder / f"{file}.checkpoint"
        make_checkpoint(str(engines.tiny(**changes)), checkpoint, ConvertOptions(tp, pp, "float32", **options))
        job = job_of(checkpoint, folder / file, TINY_PROMPTS, 24, "native")
        jobs.append({**job, "limits": {}, "cache_tokens": 8192})
    run_jobs(jobs, folder, ranks=6)
    return folder


@pytest.mark.parametrize(("name", "changes"), [case[:2] for case in TINY], ids=[case[0] for case in TINY])
def test_tiny_models(engines: Engines, tiny_results: Path, name: str, changes: dict[str, Any]) -> None:
    found = np.load(tiny_results / f"{name.replace('/', ' per ')}.npz")
    assert_parity(engines.tiny(**changes), TINY_PROMPTS, found["tokens"].tolist(), 24, found["scored"])
    assert found["kv_blocks_used"] == 0


@pytest.fixture(scope="module")
def demo_prompts(demo_model: Path) -> list[tuple[int, ...]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    prompts = [tuple(tokenizer(prompt).input_ids) for prompt in DEMO_PROMPTS]
    assert len(prompts) == 20
    return prompts


@pytest.fixture(scope="module")
def demo_tokens(engines: Engines, demo_model: Path, demo_prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """64 tokens of one rank after each of the 20 prompts, equal to transformers'."""
    tokens, scored = generated(engines.engine(demo_model), demo_prompts, 64)
    assert_parity(demo_model, demo_prompts, tokens, 64, scored)
    return tokens


def generated(engine: Path, prompts: list[tuple[int, ...]], count: int) -> tuple[list[list[int]], np.ndarray]:
    """Greedy tokens, all prompts in flight at once, and the logits after every token of the last prompt and tokens."""
    with RankGroup(engine, max_tokens_in_paged_kv_cache=8192) as group:
        requests = [greedy(str(i), prompt, count) for i, prompt in enumerate(prompts)]
        outputs = run_all(group, requests)
        tokens = [tokens_of(outputs[request.request_id]) for request in requests]
        scored = group.score([*prompts[-1], *tokens[-1]])
        assert group.stats()["kv_blocks_used"] == 0
    return tokens, scored


@pytest.mark.parametrize(("tp", "pp", "count"), [(3, 1, 24), (3, 2, 24)])
def test_demo_model(
    engines: Engines,
    demo_model: Path,
    demo_prompts: list[tuple[int, ...]],
    demo_tokens: list[list[int]],
    tp: int,
    pp: int,
    count: int,
) -> None:
    """20 prompts; more ranks than cores take long for a token, so these go only so far."""
    tokens, scored = generated(engines.engine(demo_model, tp, pp), demo_prompts, count)
    assert tokens == [row[:count] for row in demo_tokens]
    sequences = tuple((*prompt, *row) for prompt, row in zip(demo_prompts, demo_tokens, strict=True))
    logits = reference(demo_model, sequences).logits[: len(scored)]
    assert np.abs(scored - logits).max() < 1e-4 * np.abs(logits).max()


def test_generate_of_transformers(engines: Engines, demo_model: Path) -> None:
    """The same through transformers' own `generate`, for one prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = random_prompts(1, 49152, seed=1)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    with RankGroup(engines.engine(demo_model), max_tokens_in_paged_kv_cache=8192) as group:
        outputs = run_all(group, [greedy(str(i), prompt, 16) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=-1
        )
        assert tokens_of(outputs[str(i)]) == expected[0, len(prompt) :].tolist()
