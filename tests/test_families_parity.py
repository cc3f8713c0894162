"""Every dense decoder family on the cpu runtime against transformers, in every kind of layout, with both executors.

The reference is a full forward pass of transformers for every token, without a cache. All engines run in one MPI job,
as starting one takes longer than what is computed in it.
"""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.family_models import CASES, make_model
from tests.family_ranks import run_jobs
from trtbuild.pipeline import make_checkpoint
from trtbuild.spec import ConvertOptions

NEW_TOKENS = 16


class Layout(NamedTuple):
    tp: int
    pp: int
    executor: str = "native"

    def __str__(self) -> str:
        return f"{self.tp}x{self.pp} {self.executor}"


LAYOUTS = (
    Layout(1, 1),
    Layout(1, 1, "torch"),
    Layout(2, 1),
    Layout(2, 1, "torch"),
    Layout(1, 2),
    Layout(2, 2),
    Layout(4, 1),
)
# (case, layout, options): what a learned position table and a sharded vocabulary need beside the layouts
SHARDED: list[tuple[str, Layout, dict[str, Any]]] = [
    (name, Layout(2, 1), {"use_parallel_embedding": True, "embedding_sharding_dim": dim})
    for name in ("gpt2", "bloom")
    for dim in (0, 1)
]
RUNS = [
    *((name, layout, {}) for name, case in CASES.items() for layout in LAYOUTS if layout.pp == 1 or case.pipeline),
    *SHARDED,
]


def run_id(run: tuple[str, Layout, dict[str, Any]]) -> str:
    return "-".join([run[0], str(run[1]), *map(str, run[2].values())]).replace(" ", "_")


def prompts() -> list[list[int]]:
    """Longer than every window, than long rope's switch, and such that generation crosses the switch; and short."""
    random = np.random.default_rng(5)
    return [random.integers(1, 131, length).tolist() for length in (45, 25, 3)]


def reference(name: str, folder: Path) -> dict[str, Any]:
    """Make the model of a case in `folder`; its logits after each token of the first prompt, and greedy tokens."""
    import torch

    torch.set_num_threads(1)
    model = make_model(CASES[name], folder / "models" / name)
    with torch.no_grad():
        logits = model(torch.tensor([prompts()[0]])).logits[0].numpy()
        sequences = prompts()
        for sequence in sequences:
            for _ in range(NEW_TOKENS):
                sequence.append(int(model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax()))
    return {"logits": logits, "tokens": [sequence[-NEW_TOKENS:] for sequence in sequences]}


def convert(folder: Path, run: tuple[str, Layout, dict[str, Any]]) -> str:
    name, layout, options = run
    out = folder / run_id((name, Layout(layout.tp, layout.pp), options))
    if not out.exists():
        chosen = ConvertOptions(tp_size=layout.tp, pp_size=layout.pp, dtype="float32", **options)
        make_checkpoint(str(folder / "models" / name), out, chosen)
    return str(out)


class Results(NamedTuple):
    references: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("families")
    with get_context("spawn").Pool(2) as pool:
        references = dict(zip(CASES, pool.map(partial(reference, folder=folder), CASES), strict=True))
    jobs = [
        {
            "checkpoint": convert(folder, run),
            "engine": str(folder / f"{run_id(run)}.engine"),
            "out": str(folder / f"{run_id(run)}.npz"),
            "executor": run[1].executor,
            "prompts": prompts(),
            "new_tokens": NEW_TOKENS,
        }
        for run in RUNS
    ]
    run_jobs(jobs, folder)
    return Results(references, folder)


@pytest.mark.parametrize("run", RUNS, ids=run_id)
def test_families(results: Results, run: tuple[str, Layout, dict[str, Any]]) -> None:
    expected = results.references[run[0]]
    found = np.load(results.folder / f"{run_id(run)}.npz")
    assert np.abs(expected["logits"]).max() > 0.5
    assert np.abs(found["logits"] - expected["logits"]).max() < 1e-4 * np.abs(expected["logits"]).max()
    assert found["tokens"].tolist() == expected["tokens"]
    if run[1].executor == "native":
        assert np.array_equal(found["logits"], found["smaller_chunks"])
