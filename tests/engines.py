"""Engines for tests: made once a session by the real pipeline, and the demo model that they may come from."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import ROOT, make_llama
from trtbuild.engine.options import BuildOptions
from trtbuild.pipeline import make_engine
from trtbuild.runtime.request import Output, Request
from trtbuild.spec import ConvertOptions


@lru_cache(maxsize=1)
def demo_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder; made on the first call of the first session."""
    script = [sys.executable, str(ROOT / "scripts" / "demo_model.py")]
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


class Engines:
    """Makes an engine for a model and options, or hands out the one that was made before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def tiny(self, **config: Any) -> Path:
        """A tiny Llama with `config` changes."""
        key = "llama-" + "-".join(f"{name}={value}" for name, value in sorted(config.items()))
        folder = self._folder / key.replace("/", "_").replace(" ", "")[:120]
        if key not in self._made:
            self._made[key] = make_llama(folder, **config)
        return self._made[key]

    def engine(self, model: Path, tp: int = 1, pp: int = 1, limits: BuildOptions | None = None, **options: Any) -> Path:
        """An engine of `model`; float32 unless `options` of ConvertOptions say otherwise."""
        chosen = ConvertOptions(tp_size=tp, pp_size=pp, **{"dtype": "float32", **options})
        key = f"{model}-{chosen}-{limits}"
        if key not in self._made:
            out = self._folder / f"engine{len(self._made)}"
            self._made[key] = make_engine(str(model), out, chosen, limits or BuildOptions())
        return self._made[key]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return demo_folder()


def tokens_of(outputs: list[Output]) -> list[int]:
    """All tokens of a request, in order."""
    return [token for output in outputs for token in output.token_ids]


def log_probs_of(outputs: list[Output]) -> list[float]:
    return [value for output in outputs for value in output.log_probs]


def random_prompts(count: int, vocab_size: int, *, seed: int = 0, longest: int = 40) -> list[tuple[int, ...]]:
    random = np.random.default_rng(seed)
    return [tuple(random.integers(3, vocab_size, random.integers(1, longest)).tolist()) for _ in range(count)]


def greedy(request_id: str, prompt: tuple[int, ...], count: int, **sampling: Any) -> Request:
    from trtbuild.runtime.request import SamplingParams

    return Request(request_id, prompt, count, sampling=SamplingParams(**sampling))


def run_all(group: Any, requests: list[Request]) -> dict[str, list[Output]]:
    """Submit all requests at once and collect every output, by request id."""
    import queue

    arrived: queue.Queue[Output] = queue.Queue()
    collected: dict[str, list[Output]] = {request.request_id: [] for request in requests}
    for request in requests:
        group.submit(request, arrived.put)
    open_ids = set(collected)
    while open_ids:
        output = arrived.get(timeout=300)
        collected[output.request_id].append(output)
        if output.finish_reason:
            open_ids.discard(output.request_id)
    return collected
