"""Every quantized form of the cpu engine against transformers with the same numbers, in every kind of layout.

The reference is transformers in float32 whose linears hold the dequantized weights, and round their inputs where the
form does (`quantized_models.py`). All engines of two ranks run in one MPI job.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.family_ranks import job_of, run_job, run_jobs
from tests.quantized_models import GRIDS, KINDS, Models, RoundedCache, reference

NEW_TOKENS = 2


class Run(NamedTuple):
    model: str
    algo: str
    tp: int
    pp: int
    executor: str
    kv: str | None = None

    def __str__(self) -> str:
        return f"{self.model}-{self.algo}-{self.tp}x{self.pp}-{self.executor}" + (f"-kv{self.kv}" if self.kv else "")


MOE = [algo for algo in KINDS if "GPTQ" not in algo and "PER_TOKEN" not in algo]
TORCH, NATIVE, BOTH = ("torch",), ("native",), ("torch", "native")
RUNS = [
    Run(model, algo, tp, pp, executor, kv)
    for model, algos, kv, tp, pp, executors in (
        ("llama", KINDS, None, 1, 1, BOTH),
        ("llama", KINDS, None, 2, 1, NATIVE),
        ("llama", ["W4A16", "FP8"], None, 1, 2, NATIVE),  # stages do not know the form
        ("gpt2", KINDS, None, 1, 1, NATIVE),
        ("gpt2", KINDS, None, 2, 1, TORCH),
        ("gemma", ["W4A16", "W4A16_AWQ", "FP8", "W4A16_GPTQ"], None, 1, 1, NATIVE),
        ("qwen2", ["W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "W8A16_GPTQ"], None, 1, 1, NATIVE),
        ("mixtral", MOE, None, 1, 1, NATIVE),
        ("mixtral", MOE, None, 2, 1, NATIVE),
        ("llama", ["W4A16_AWQ"], "INT8", 1, 1, BOTH),
        ("llama", ["W4A16_AWQ"], "INT8", 2, 1, NATIVE),
        ("llama", ["W4A16_AWQ"], "FP8", 1, 2, BOTH),
        ("gpt2", ["FP8"], "FP8", 2, 1, TORCH),
    )
    for algo in algos
    for executor in executors
]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(1, 131, length).tolist() for length in (21, 3)]


class Results(NamedTuple):
    models: Models
    folder: Path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("forms")
    torch.set_num_threads(1)  # the models are tiny
    models = Models(folder)
    jobs = [
        job_of(
            models.checkpoint(run.model, KINDS[run.algo], run.tp, run.pp, run.kv),
            folder / f"{run}",
            prompts(),
            NEW_TOKENS,
            run.executor,
        )
        for run in RUNS
    ]
    alone = [job for job, run in zip(jobs, RUNS, strict=True) if run.tp * run.pp == 1]
    run_jobs([job for job in jobs if job not in alone], folder, ranks=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        for job in alone:
            run_job(job, None)
    return Results(models, folder)


@cache
def expected_logits(source: Path, run: Run, models: Models, *, rounded: bool = True) -> np.ndarray:
    kind = KINDS[run.algo]
    fields = models.fields(run.model, kind, run.kv)
    model = reference(source, kind, fields, run.tp, rounded=rounded)
    cache = RoundedCache(GRIDS[run.kv], fields) if run.kv and rounded else None
    with torch.no_grad():
        return model(torch.tensor([prompts()[0]]), past_key_values=cache).logits[0].numpy()


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_forms(results: Results, run: Run) -> None:
    source, same = results.models.source(run.model), run._replace(executor="", pp=1)
    expected, found = expected_logits(source, same, results.models), np.load(results.folder / f"{run}.npz")
    error, size = np.abs(found["logits"] - expected), np.abs(expected).max()
    same_top = (found["logits"].argmax(-1) == expected.argmax(-1)).mean()
    if not (KINDS[run.algo].rounds or run.kv):
        assert same_top == 1
        assert error.max() < 1e-4 * size
        return
    # An input that lies between two numbers of the grid may go to either, by the last bit of a sum. Few do, but
    # all later tokens hear of it: the tokens before it are equal, and the others much closer than without rounding.
    unrounded = expected_logits(source, same, results.models, rounded=False)
    assert error[:4].max(-1).min() < 1e-4 * size
    assert same_top > 0.85
    assert np.median(error) < 0.2 * np.median(np.abs(unrounded - expected))
