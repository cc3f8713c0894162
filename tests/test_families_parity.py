"""Every dense decoder family on the cpu runtime against transformers, in every kind of layout, with both executors.

The reference is a full forward pass of transformers for every token, without a cache. All engines run in one MPI job,
as starting one takes longer than what is computed in it. Checkpoints are ours, and those of upstream's own converter.
"""

from __future__ import annotations

import json
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.family_models import CASES, make_model
from tests.family_ranks import job_of, run_jobs
from tests.tiny import GOLDEN
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions

NEW_TOKENS = 16


class Run(NamedTuple):
    """A case of CASES, or a folder of golden checkpoints, as one engine; `sharding_dim` of the embedding tables."""

    name: str
    tp: int = 1
    pp: int = 1
    executor: str = "native"
    sharding_dim: int | None = None

    @property
    def checkpoint(self) -> str:
        return "-".join([self.name, f"{self.tp}x{self.pp}", str(self.sharding_dim)]).replace(" ", "_")

    def __str__(self) -> str:
        dim = "" if self.sharding_dim is None else f"-dim{self.sharding_dim}"
        return f"{self.name}-{self.tp}x{self.pp}-{self.executor}{dim}".replace(" ", "_")


def our_runs() -> list[Run]:
    found = []
    for name, case in CASES.items():
        found += [Run(name, 1, 1), Run(name, 1, 1, "torch"), Run(name, 2, 1), Run(name, 4, 1)]
        found += [Run(name, 2, 2)] if case.pipeline else []
    # What a learned position table and a norm of the embedding need beside the layouts.
    return found + [Run(name, 2, 1, "native", dim) for name in ("gpt2", "bloom") for dim in (0, 1)]


def golden_runs() -> list[Run]:
    """Upstream's unquantized checkpoints of dense models that hold an lm_head (the 1.x classes ask for one)."""
    found = []
    for path in sorted(GOLDEN.glob("*/case.json")):
        case, config = json.loads(path.read_text()), json.loads((path.parent / "trtllm" / "config.json").read_text())
        dense = not (config.get("moe") or {}).get("num_experts")
        if dense and case["quant"] == "none" and not config.get("share_embedding_table"):
            found.append(Run(path.parent.name, case["tp"], case["pp"]))
    return found


RUNS = [*our_runs(), *golden_runs()]


def prompts() -> list[list[int]]:
    """Longer than every window, than long rope's switch, and such that generation crosses the switch; and short."""
    random = np.random.default_rng(5)
    return [random.integers(1, 131, length).tolist() for length in (45, 25, 3)]


def reference(name: str, folder: Path) -> dict[str, Any]:
    """Logits after each token of the first prompt, and greedy tokens; the model of a case is made in `folder`."""
    import torch

    torch.set_num_threads(1)
    model = make_model(CASES[name], folder / "models" / name) if name in CASES else golden_model(name)
    with torch.no_grad():
        logits = model(torch.tensor([prompts()[0]])).logits[0].numpy()
        sequences = prompts()
        for sequence in sequences:
            for _ in range(NEW_TOKENS):
                sequence.append(int(model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax()))
    return {"logits": logits, "tokens": [sequence[-NEW_TOKENS:] for sequence in sequences]}


def golden_model(name: str) -> Any:
    """The model of a golden checkpoint in float32, its weights rounded as that has them."""
    import torch
    from transformers import AutoModelForCausalLM

    case = json.loads((GOLDEN / name / "case.json").read_text())
    model = AutoModelForCausalLM.from_pretrained((GOLDEN / name / case["hf"]).resolve(), dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.to(getattr(torch, case["dtype"])).float())
    return model


def checkpoint_of(run: Run, folder: Path) -> Path:
    if run.name not in CASES:
        return GOLDEN / run.name / "trtllm"
    out = folder / run.checkpoint
    if not out.exists():
        shard = {} if run.sharding_dim is None else {"use_parallel_embedding": True}
        options = ConvertOptions(run.tp, run.pp, "float32", embedding_sharding_dim=run.sharding_dim or 0, **shard)
        make_checkpoint(str(folder / "models" / run.name), out, options)
    return out


class Results(NamedTuple):
    references: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder, names = tmp_path_factory.mktemp("families"), list(dict.fromkeys(run.name for run in RUNS))
    with get_context("spawn").Pool(2) as pool:
        references = dict(zip(names, pool.map(partial(reference, folder=folder), names, chunksize=1), strict=True))
    jobs = [job_of(checkpoint_of(run, folder), folder / f"{run}", prompts(), NEW_TOKENS, run.executor) for run in RUNS]
    run_jobs(jobs, folder)
    return Results(references, folder)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_families(results: Results, run: Run) -> None:
    expected, found = results.references[run.name], np.load(results.folder / f"{run}.npz")
    assert np.abs(found["logits"] - expected["logits"]).max() < 1e-4 * np.abs(expected["logits"]).max()
    assert found["tokens"].tolist() == expected["tokens"]
    if run.executor == "native":  # a request's bits are the same whatever it shares a step with
        assert np.array_equal(found["logits"], found["smaller_chunks"])
