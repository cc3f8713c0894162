"""Inflight batching: company changes nothing, cancellation frees everything, bad requests harm nobody."""

from __future__ import annotations

import json
import socket
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.engines import Engines, greedy, log_probs_of, random_prompts, tokens_of
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import RequestError
from trtbuild.runtime import rank
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.request import Request, SamplingParams

SMALL = BuildOptions(max_batch_size=8, max_num_tokens=16)  # prompts are cut into chunks of at most 16


@pytest.fixture(scope="module")
def generator(engines: Engines) -> Generator:
    return Generator(engines.engine(engines.tiny(), limits=SMALL), RuntimeOptions(max_tokens_in_paged_kv_cache=2048))


@pytest.mark.parametrize("quant", ["none", "int8"])
def test_alone_and_in_company_the_same_bits(engines: Engines, demo_model: Path, quant: str) -> None:
    """Steps are cut at max_num_tokens of each engine; int8 has a real model's sizes."""
    model = demo_model if quant == "int8" else engines.tiny(vocab_size=49152)
    engine = engines.engine(model, quant=quant, limits=BuildOptions(max_num_tokens=256))
    generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=16384, executor="native"))
    prompts = random_prompts(8, 49152, longest=120)
    sampling = {"return_log_probs": True, "temperature": 0.9, "top_k": 50, "top_p": 0.95}
    requests = [greedy(str(i), prompt, 4 + 2 * i, seed=i, **sampling) for i, prompt in enumerate(prompts)]
    together = generator.generate(requests)
    for request in requests:
        alone = generator.generate([request])[request.request_id]
        assert tokens_of(alone) == tokens_of(together[request.request_id])
        assert log_probs_of(alone) == log_probs_of(together[request.request_id])
    assert generator.stats()["kv_blocks_used"] == 0


def test_chunks_of_a_prompt_change_nothing(engines: Engines) -> None:
    prompt = random_prompts(1, 500, seed=3, longest=400)[0]
    generator = Generator(
        engines.engine(engines.tiny(), limits=BuildOptions(max_batch_size=4, max_num_tokens=512)),
        RuntimeOptions(max_tokens_in_paged_kv_cache=2048, executor="native"),
    )
    found = []
    for chunk in (8, 16, 33, 512):
        generator.scheduler.max_num_tokens = chunk
        outputs = generator.generate([greedy("a", prompt, 16, return_log_probs=True)])["a"]
        found.append((tokens_of(outputs), log_probs_of(outputs)))
    assert all(other == found[0] for other in found[1:])


def test_executors_agree(engines: Engines) -> None:
    """The native kernels and the torch definition of every operation, on the same engine."""
    tokens = list(random_prompts(1, 500, seed=5, longest=300)[0])
    for options in ({"quant": "int8"}, {"dtype": "float16"}, {"dtype": "bfloat16"}, {}):
        engine = engines.engine(engines.tiny(attention_bias=True), **options)
        native, torch = (Generator(engine, RuntimeOptions(executor=name)).score(tokens) for name in ("native", "torch"))
        assert np.abs(native - torch).max() < 2e-5 * np.abs(torch).max()


def test_cancel_frees_blocks_at_once(generator: Generator) -> None:
    for i, prompt in enumerate(random_prompts(12, 500, longest=60)):
        generator.add(greedy(str(i), prompt, 100))
    for _ in range(10):
        generator.step()
    assert generator.stats()["active_requests"] == 8
    assert generator.stats()["queued_requests"] == 4
    for i in range(12):
        output = generator.cancel(str(i))
        assert output is not None
        assert output.finish_reason == "cancelled"
    assert generator.cancel("0") is None
    assert generator.stats()["kv_blocks_used"] == 0
    assert generator.step() == []


def test_more_requests_than_the_cache_holds(engines: Engines) -> None:
    """Requests wait for blocks, first come first served, and every one ends as it would alone."""
    engine = engines.engine(engines.tiny(), limits=SMALL)
    generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=96))
    requests = [greedy(str(i), prompt, 40) for i, prompt in enumerate(random_prompts(9, 500, longest=30))]
    together = generator.generate(requests)
    for request in requests:
        assert tokens_of(together[request.request_id]) == tokens_of(generator.generate([request])[request.request_id])
    assert generator.stats()["kv_blocks_free"] == 3


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("a", (), 5), "prompt is empty"),
        (Request("a", (1,) * 512, 5), "maximum sequence length 512"),
        (Request("a", (1, 2), 0), "max_tokens 0"),
        (Request("a", (1, 2), -3), "max_tokens -3"),
        (Request("a", (1, 512), 5), "outside the vocabulary"),
        (Request("a", (-1,), 5), "outside the vocabulary"),
        (Request("a", (1,), 5, end_id=10**6), "end_id 1000000"),
        (Request("a", (1,), 5, sampling=SamplingParams(stop_words=((),))), "stop or bad word"),
        (Request("a", (1,), 5, sampling=SamplingParams(bad_words=((900,),))), "stop or bad word"),
    ],
)
def test_requests_that_cannot_be_served(generator: Generator, request_: Request, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        generator.add(request_)
    assert generator.open_requests == 0


def test_same_id_twice(generator: Generator) -> None:
    generator.add(greedy("twin", (1, 2), 4))
    with pytest.raises(RequestError, match="in use"):
        generator.add(greedy("twin", (3,), 4))
    generator.cancel("twin")


def test_huge_max_tokens_stops_at_the_context(generator: Generator) -> None:
    outputs = generator.generate([greedy("a", (1, 2, 3), 2**31 - 1)])["a"]
    assert len(tokens_of(outputs)) == 512 - 3
    assert outputs[-1].finish_reason == "length"


def test_end_id_stops_and_is_not_shown(generator: Generator) -> None:
    free = tokens_of(generator.generate([greedy("a", (5, 6, 7), 20)])["a"])
    end = free[7]
    first = free.index(end)
    outputs = generator.generate([Request("a", (5, 6, 7), 20, end_id=end)])["a"]
    assert tokens_of(outputs) == free[:first]
    assert outputs[-1].finish_reason == "end_id"


def test_min_tokens_keeps_the_end_away(generator: Generator) -> None:
    end = tokens_of(generator.generate([greedy("a", (5, 6, 7), 20)])["a"])[0]
    request = Request("a", (5, 6, 7), 20, end_id=end, sampling=SamplingParams(min_tokens=6))
    tokens = tokens_of(generator.generate([request])["a"])
    assert len(tokens) >= 6
    assert end not in tokens[:6]


def test_stop_words_end_with_the_word(generator: Generator) -> None:
    free = tokens_of(generator.generate([greedy("a", (9, 8, 7), 20)])["a"])
    word = tuple(free[4:6])
    outputs = generator.generate([greedy("a", (9, 8, 7), 20, stop_words=(word, (499, 498)))])["a"]
    stopped = tokens_of(outputs)
    assert tuple(stopped[-2:]) == word
    assert stopped == free[: len(stopped)]
    assert outputs[-1].finish_reason == "stop_words"


def test_bad_words_never_appear(generator: Generator) -> None:
    free = tokens_of(generator.generate([greedy("a", (9, 8, 7), 20)])["a"])
    single, pair = free[0], tuple(free[2:4])
    tokens = tokens_of(generator.generate([greedy("a", (9, 8, 7), 60, bad_words=((single,), pair))])["a"])
    assert single not in tokens
    assert pair not in set(pairwise(tokens))


def test_silu_over_its_whole_range(engines: Engines) -> None:
    """The exponential must neither overflow into the sign nor underflow into NaN."""
    import torch

    from trtbuild.runtime.executor import Batch
    from trtbuild.runtime.ops import Buffer, Kind

    generator = Generator(engines.engine(engines.tiny()), RuntimeOptions(executor="native"))
    model = generator.model
    op = next(op for op in model.program.ops if op.kind is Kind.ACT_MUL)
    x = torch.linspace(-300, 300, 16 * op.n).view(16, op.n)
    model.buffers[Buffer.FC_GATE][:16] = torch.cat([x, torch.ones_like(x)], dim=1)
    ints = torch.zeros(16, dtype=torch.int32)
    model.executor.run((op,), Batch(ints, ints, ints, torch.zeros(1, 1, dtype=torch.int32), ints[:0]))
    assert torch.allclose(model.buffers[Buffer.MLP][:16], torch.nn.functional.silu(x), rtol=1e-5, atol=1e-30)


def test_score_refuses_what_does_not_fit(generator: Generator) -> None:
    for tokens in ([], [1] * 600, [512]):
        with pytest.raises(RequestError):
            generator.score(tokens)
    assert generator.stats()["kv_blocks_used"] == 0


def test_first_tokens_are_delivered_before_the_next_step(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ranks occupy every core they pause once a request, and not when nothing is left to compute."""
    generator = Generator(engines.engine(engines.tiny()), RuntimeOptions(executor="native"))
    pauses: list[float] = []
    monkeypatch.setattr(rank.time, "sleep", pauses.append)
    near, far = socket.socketpair()
    leader = threading.Thread(target=rank.Leader(generator, far, crowded=True).run)
    leader.start()
    lines = map(json.loads, near.makefile("rb"))
    assert "ready" in next(lines)
    for count in (6, 1, 4):
        near.sendall(json.dumps({"submit": greedy(f"{count} tokens", (1, 2, 3), count).to_json()}).encode() + b"\n")
        while not next(lines)["output"]["finish_reason"]:
            pass
    near.shutdown(socket.SHUT_WR)
    leader.join(10)
    assert not leader.is_alive()
    assert len(pauses) == 2
    assert all(0 < pause < 0.003 for pause in pauses)
