"""Texts of the tensorrt target's ensemble: the real tritonserver, and a stand-in that answers as the C++ backend does.

Neither stream nor end is named there; of several prompts or sequences a response says which one it belongs to.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from tests import triton_stand_in
from tests.serve_fixture import Running, demo_tokenizer, running
from tests.test_upstream_calls import tensors

PROMPTS = ["Hi 👍 你好", "naïve – café 🙂🙃", "plain"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cpp")
    repository, environment = (
        triton_stand_in.repository(folder / "model", 1),
        triton_stand_in.container(folder / "host", 1),
    )
    with running(repository, folder / "logs", env=environment) as made:
        yield made


@pytest.mark.parametrize(("prompts", "count"), [(PROMPTS, 1), (PROMPTS, 2), (PROMPTS[:1], 3), (PROMPTS[1:2], 1)])
def test_each_sequence_has_its_own_text(server: Running, prompts: list[str], count: int) -> None:
    """Sequence n is answered with the prompt's tokens from the nth on, and again from the first."""
    import tritonclient.grpc as grpcclient
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_tokenizer())
    length = 24
    values: dict[str, Any] = {
        "text_input": [[prompt] for prompt in prompts],
        "max_tokens": [[length]] * len(prompts),
        "stream": [[True]] * len(prompts),
        "num_return_sequences": [[count]] * len(prompts),
    }
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.url) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer("ensemble", tensors(grpcclient, values), request_id=f"{len(prompts)} {count}")
        client.stop_stream()
    texts: dict[tuple[int, ...], str] = {}
    for answer in answers.queue:
        place = [answer.as_numpy(name) for name in ("batch_index", "sequence_index")]
        key = tuple(0 if index is None else int(index[0][0]) for index in place)
        texts[key] = texts.get(key, "") + answer.as_numpy("text_output")[0].decode()
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    wanted = {
        (at, n): tokenizer.decode([row[(n + i) % len(row)] for i in range(length)], skip_special_tokens=True)
        for at, row in enumerate(rows)
        for n in range(count)
    }
    assert texts == {key: text.rstrip("�") for key, text in wanted.items()}
