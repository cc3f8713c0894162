"""Our estimates beside published figures (tests/data/published_memory.json): `python -m tests.published [--json]`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trtbuild.checkpoint.config import read_specs
from trtbuild.plan import ModelPlan, Plan, plan_model
from trtbuild.sizing.described import described_index
from trtbuild.sizing.geometry import Geometry
from trtbuild.sizing.host import build_memory, build_seconds
from trtbuild.sizing.memory import (
    CONTEXT_BYTES,
    RankMemory,
    activation_bytes,
    decoder_bytes,
    kv_token_bytes_of_layer,
    rank_memories,
    runtime_bytes,
)
from trtbuild.sizing.target import Limits
from trtbuild.spec import ConvertOptions

DATA = Path(__file__).parent / "data" / "published_memory.json"


@dataclass(frozen=True)
class Compared:
    run: str
    what: str
    published: int
    ours: int
    bound: float
    source: str
    version: str

    @property
    def error(self) -> float:
        """(ours - published) / published."""
        return self.ours / self.published - 1


@cache
def document() -> dict[str, Any]:
    return dict(json.loads(DATA.read_text()))


@cache
def plan_of(model: str, **options: Any) -> ModelPlan:
    specs = read_specs(document()["models"][model])
    plan = plan_model(specs, ConvertOptions(target="tensorrt", **options), described_index(specs))
    plan.require()
    return plan


def compared() -> list[Compared]:
    """Every figure of every run."""
    return [
        Compared(run["id"], fig["what"], fig["value"], _ours(run, fig), fig["bound"], run["source"], run["version"])
        for run in document()["runs"]
        for fig in run["figures"]
    ]


def _ours(run: dict[str, Any], fig: dict[str, Any]) -> int:
    fraction = {"kv_fraction": fig["kv_fraction"]} if "kv_fraction" in fig else {}
    limits = Limits(**run["limits"], **fraction)
    if "geometry" in run:
        return _of_geometry(Geometry(**run["geometry"]), limits, run["options"], fig["what"])
    whole = plan_of(run["model"], **run["options"])
    plan: Plan = whole.parts[0]
    rank = rank_memories(plan, limits)[0]
    if fig["what"] == "kv_tokens":
        return rank.kv_tokens(fig["memory"], limits)
    return _of_rank(rank, whole, fig["what"])


def _of_rank(rank: RankMemory, plan: ModelPlan, what: str) -> int:
    values = {
        "weights": rank.weights,
        "activations": rank.activations,
        "runtime": rank.runtime,
        "decoder": rank.decoder,
        "fixed": rank.fixed,
        "kv_token": rank.kv_token_bytes,
        "checkpoint": plan.checkpoint_bytes,
        "build_host": build_memory(rank.weights),
        "build_seconds": round(build_seconds(rank.weights)),
    }
    return values[what]


def _of_geometry(geometry: Geometry, limits: Limits, options: dict[str, Any], what: str) -> int:
    """For a model that no family of ours covers."""
    element = 1 if "kv_cache" in options else 2
    values = {
        "activations": activation_bytes(geometry, limits, 1),
        "runtime": runtime_bytes(geometry, limits),
        "decoder": decoder_bytes(geometry, limits),
        "fixed": CONTEXT_BYTES,
        "kv_token": geometry.num_layers * kv_token_bytes_of_layer(geometry, 1, element),
    }
    return values[what]


def main() -> None:
    rows = compared()
    if "--json" in sys.argv:
        print(json.dumps([{**vars(row), "error": round(row.error, 4)} for row in rows], indent=1))
        return
    for row in rows:
        print(
            f"{row.run:30} {row.what:14} {row.published:>15,} {row.ours:>15,} {row.error:+8.1%}  (<= {row.bound:.1%})"
        )


if __name__ == "__main__":
    main()
