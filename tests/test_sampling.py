"""The sampler against transformers' own logits processors, and its random draws against their probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trtbuild.errors import RequestError
from trtbuild.runtime.request import Request, SamplingParams
from trtbuild.runtime.sampling import Sampler

VOCAB = 1000
PROMPT = (3, 5, 5, 7)


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


def sampler(**params: object) -> Sampler:
    return Sampler(Request("a", PROMPT, 10, end_id=11, sampling=SamplingParams(**params)), VOCAB)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "processors"),
    [
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"top_k": 40, "top_p": 0.7}, [TopKLogitsWarper(40), TopPLogitsWarper(0.7)]),
        ({"top_k": 20, "temperature": 0.5}, [TemperatureLogitsWarper(0.5), TopKLogitsWarper(20)]),
        (
            {"top_k": 50, "repetition_penalty": 1.7, "temperature": 1.3},
            [TemperatureLogitsWarper(1.3), RepetitionPenaltyLogitsProcessor(1.7), TopKLogitsWarper(50)],
        ),
    ],
)
def test_draws_follow_transformers(params: dict[str, float], processors: list[object]) -> None:
    row = logits()
    scores = torch.from_numpy(row.copy())[None]
    for processor in processors:
        scores = processor(torch.tensor([PROMPT]), scores)  # type: ignore[operator]
    expected = scores.softmax(-1)[0].double().numpy()
    draws = 4000
    counts = np.zeros(VOCAB)
    for seed in range(draws):
        token, _ = sampler(seed=seed, **params).sample(row, list(PROMPT))
        counts[token] += 1
    assert set(counts.nonzero()[0]) <= set(expected.nonzero()[0])
    sure = expected > 0.005
    error = np.abs(counts / draws - expected)[sure]
    assert (error < 5 * np.sqrt(expected[sure] / draws)).all()


def test_default_is_greedy() -> None:
    row = logits(1)
    assert sampler().sample(row, list(PROMPT))[0] == row.argmax()
    assert sampler(top_k=1, top_p=0.9, temperature=7.0).sample(row, list(PROMPT))[0] == row.argmax()


def test_presence_and_frequency_count_prompt_and_output() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[5], row[7], row[9] = 3.0, 2.6, 2.25
    # token 5 was seen twice, token 7 once
    assert sampler(frequency_penalty=0.3).sample(row, list(PROMPT))[0] == 5
    assert sampler(frequency_penalty=0.45).sample(row, list(PROMPT))[0] == 9
    assert sampler(presence_penalty=0.9).sample(row, list(PROMPT))[0] == 9
    state = sampler(presence_penalty=0.1, frequency_penalty=0.3)
    assert [state.sample(row, list(PROMPT))[0] for _ in range(3)] == [5, 9, 7]


def test_log_probs_are_the_models_own() -> None:
    row = logits(2)
    token, value = sampler(top_k=10, temperature=3.0, return_log_probs=True).sample(row, list(PROMPT))
    assert value == pytest.approx(torch.from_numpy(row).log_softmax(-1)[token].item(), abs=1e-5)


def test_same_seed_same_tokens_other_seed_others() -> None:
    def tokens(seed: int) -> list[int]:
        state = sampler(top_p=0.99, seed=seed)
        return [state.sample(logits(i), list(PROMPT))[0] for i in range(20)]

    assert tokens(4) == tokens(4)
    assert tokens(4) != tokens(5)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}])
def test_not_finite_logits_are_an_error(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        sampler(**params).sample(np.full(VOCAB, np.nan, np.float32), list(PROMPT))


def test_a_temperature_that_overflows_is_an_error() -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="finite"):
        sampler(temperature=1e-40, top_p=0.9).sample(logits(), list(PROMPT))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"min_tokens": -1},
        {"seed": -1},
    ],
)
def test_values_out_of_range(params: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(params))):
        SamplingParams(**params)  # type: ignore[arg-type]
