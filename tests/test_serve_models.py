"""One real tritonserver with several models: two engines, a third that is not decoupled, tensorrt_llm_bls of each."""

from __future__ import annotations

import itertools
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve_fixture import LONGEST, VOCAB, Running, demo_tokenizer, running
from tests.test_serve_streams import alone
from tests.tiny import make_llama
from trtbuild.client import Generation, generate_stream

PROMPTS = [f"Number {i}: " + "the quick brown fox " * (i % 3) + "👍 你好"[: i % 4] for i in range(8)]
COUNT = 24


def engine(folder: Path, seed: int) -> Path:
    """A random Llama with the demo model's vocabulary as a cpu engine of one rank; `seed` tells the weights."""
    from trtbuild.engine.options import BuildOptions
    from trtbuild.pipeline import make_engine
    from trtbuild.spec import ConvertOptions

    model = make_llama(folder / "model", seed=seed, vocab_size=VOCAB, max_position_embeddings=LONGEST)
    return make_engine(str(model), folder / "engine", ConvertOptions(dtype="float32"), BuildOptions(max_batch_size=32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One chain of engine 1, with a second tensorrt_llm_bls that streams the text so far; `plain` is not decoupled.

    `plain_tensorrt_llm` has versions 1 (engine 2) and 2 (engine 1), both served; preprocessing has two instances.
    """
    from trtbuild.repo.add import add_models, add_version
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    folder = tmp_path_factory.mktemp("models")
    repository = folder / "repo"
    engines = [engine(folder / str(seed), seed) for seed in (1, 2)]
    tokens = {"max_tokens_in_paged_kv_cache": 16 * LONGEST}
    first = RepositoryOptions(preprocessing_instances=2, **tokens)
    write_repository(engines[0], repository, demo_tokenizer(), first)
    plain = RepositoryOptions(name="plain", decoupled=False, **tokens)
    add_models(engines[1], repository, demo_tokenizer(), plain)
    add_version(engines[0], repository, 2, RepositoryOptions(name="plain", version_policy="all"))
    accumulating(repository)
    with running(repository, folder / "logs") as started:
        yield started


def accumulating(repository: Path) -> None:
    """The same tensorrt_llm_bls under another name, with accumulate_tokens."""
    folder = shutil.copytree(repository / "tensorrt_llm_bls", repository / "so_far")
    path = folder / "config.pbtxt"
    text = path.read_text().replace('name: "tensorrt_llm_bls"', 'name: "so_far"')
    changed = re.sub(r'(key: "accumulate_tokens"\s*value { string_value: )"false"', r'\1"true"', text)
    assert changed != text
    path.write_text(changed)


@pytest.fixture(scope="module")
def expected(server: Running) -> dict[int, list[str]]:
    """Full decodes of what each engine generates without Triton."""
    folder = server.repository.parent
    return {seed: alone(folder / str(seed) / "repo", PROMPTS, COUNT) for seed in (1, 2)}


def streams(server: Running, model: str, prompts: list[str], **changes: Any) -> list[list[str]]:
    """Text outputs of each prompt's stream, all at the same time."""
    found: dict[int, list[str]] = {}

    def run(index: int) -> None:
        generation = Generation(prompts[index], max_tokens=COUNT, **changes)
        found[index] = [chunk.text for chunk in generate_stream(server.url, generation, model=model)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [found[index] for index in range(len(prompts))]


def test_eight_streams_of_each_model_at_once(server: Running, expected: dict[int, list[str]]) -> None:
    found: dict[str, list[list[str]]] = {}
    models = ("ensemble", "tensorrt_llm_bls", "so_far")
    threads = [threading.Thread(target=lambda m=m: found.update({m: streams(server, m, PROMPTS)})) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert ["".join(texts) for texts in found[model]] == expected[1], model
        assert all(len(texts) > 4 for texts in found[model]), "it is a stream"
    assert [texts[-1] for texts in found["so_far"]] == expected[1]
    for texts in found["so_far"]:
        assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts))
