"""Every dense decoder family on the cpu runtime against transformers, in every kind of layout, with both executors.

The reference is a full forward pass of transformers for every token, without a cache. All engines run in one MPI job.
Models are made here, or are those that upstream's own converter was given; then the engine is built from its files.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.engines import build_here
from tests.family_models import CASES, make_model
from tests.layout_ranks import Job, Result, run_layouts
from tests.test_golden import GOLDEN
from trtbuild import pipeline
from trtbuild.engine.options import BuildOptions
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.spec import ConvertOptions

NEW_TOKENS = 16
WORLD = 4
LIMITS = BuildOptions(max_batch_size=4, max_seq_len=96, max_num_tokens=16)  # prompts are cut into chunks


class Run(NamedTuple):
    """A case of CASES, or a folder of golden checkpoints, as one engine."""

    name: str
    tp: int = 1
    pp: int = 1
    executor: str = "native"
    sharding_dim: int | None = None

    @property
    def engine(self) -> str:
        """The same for both executors."""
        return "-".join([self.name.replace(" ", "_"), f"{self.tp}x{self.pp}", str(self.sharding_dim)])

    def __str__(self) -> str:
        return f"{self.engine}-{self.executor}"


def runs() -> list[Run]:
    found = []
    for name, case in CASES.items():
        found += [Run(name, tp, 1, executor) for tp in (1, 2) for executor in ("native", "torch")]
        found += [Run(name, 4, 1)]
        found += [Run(name, 1, 2), Run(name, 2, 2)] if case.pipeline else []
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


RUNS, GOLDEN_RUNS = runs(), golden_runs()


def prompts() -> list[list[int]]:
    """Longer than every window and than long rope's switch; such that generation crosses the switch; and short."""
    random = np.random.default_rng(5)
    return [random.integers(1, 131, length).tolist() for length in (45, 25, 3)]


class Reference(NamedTuple):
    sequences: list[list[int]]
    logits: np.ndarray
    """After every token of the longest sequence."""


def make_reference(name: str, folder: Path) -> Reference:
    """What transformers says of a case, whose model is made in `folder`, or of a golden model; float32."""
    import torch

    torch.set_num_threads(1)
    model = make_model(CASES[name], folder / "models" / name) if name in CASES else golden_model(name)
    sequences = prompts()
    with torch.no_grad():
        for sequence in sequences:
            for _ in range(NEW_TOKENS):
                sequence.append(int(model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax()))
        return Reference(sequences, model(torch.tensor([max(sequences, key=len)])).logits[0].numpy())


def golden_model(name: str) -> Any:
    """The model of a golden checkpoint, its weights rounded as that has them."""
    import torch
    from transformers import AutoModelForCausalLM

    case = json.loads((GOLDEN / name / "case.json").read_text())
    model = AutoModelForCausalLM.from_pretrained((GOLDEN / name / case["hf"]).resolve(), dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.to(getattr(torch, case["dtype"])).float())
    return model


def make_engine(run: Run, folder: Path) -> Path:
    out = folder / run.engine
    if out.exists():
        return out
    if run.name not in CASES:
        return build_here(GOLDEN / run.name / "trtllm", out, LIMITS)
    shard = {} if run.sharding_dim is None else {"use_parallel_embedding": True}
    options = ConvertOptions(run.tp, run.pp, "float32", embedding_sharding_dim=run.sharding_dim or 0, **shard)
    checkpoint = pipeline.make_checkpoint(str(folder / "models" / run.name), folder / "checkpoint", options)
    build_here(checkpoint, out, LIMITS)
    shutil.rmtree(checkpoint)
    return out


class Found(NamedTuple):
    references: dict[str, Reference]
    results: dict[str, Result]
    folder: Path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    from trtbuild.runtime.native.library import load_library

    load_library()  # compiled once, not by every rank
    folder, everything = tmp_path_factory.mktemp("families"), [*RUNS, *GOLDEN_RUNS]
    names = list(dict.fromkeys(run.name for run in everything))
    with get_context("spawn").Pool(2) as pool:
        made = pool.map(partial(make_reference, folder=folder), names, chunksize=1)
    given = tuple(tuple(prompt) for prompt in prompts())
    jobs = {str(run): Job(str(make_engine(run, folder)), run.executor, given, NEW_TOKENS) for run in everything}
    (folder / "jobs").mkdir()
    return Found(dict(zip(names, made, strict=True)), run_layouts(jobs, folder / "jobs", WORLD), folder)


@pytest.mark.parametrize("run", [*RUNS, *GOLDEN_RUNS], ids=str)
def test_families(found: Found, run: Run) -> None:
    expected, result = found.references[run.name], found.results[str(run)]
    top = np.abs(expected.logits).max()
    assert np.abs(result.logits - expected.logits).max() < 1e-4 * top
    assert result.sequences == expected.sequences


@pytest.mark.parametrize("name", CASES)
def test_chunks_of_a_prompt_do_not_change_a_bit(found: Found, one_thread: None, name: str) -> None:
    generator = Generator(found.folder / Run(name).engine, RuntimeOptions(max_tokens_in_paged_kv_cache=128))
    chunked = generator.score(prompts()[0])
    generator.scheduler.max_num_tokens = 5
    assert np.array_equal(chunked, generator.score(prompts()[0]))
