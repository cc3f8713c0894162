"""The text of `tensorrt_llm_bls` and of `llmapi` without a server: exact for real tokenizers, cut at stop words."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import triton_contract as contract
from tests.test_detokenize import NAMES, TEXTS, mixture, real_tokenizer
from trtbuild.errors import RequestError
from trtbuild.triton.bls_tensors import (
    FROM_PREPROCESSING,
    FROM_REQUEST,
    PASSED_ON,
    TO_PREPROCESSING,
    check_request,
    engine_tensors,
    stop_words,
)
from trtbuild.triton.bls_text import RowText
from trtbuild.triton.llmapi_tensors import Deltas, answer_tensors, parse_llm_request

LIMITED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", NAMES)
@LIMITED
@given(seed=st.integers(0, 2**32), length=st.integers(1, 120), accumulate=st.booleans(), told=st.booleans())
def test_joined_pieces_are_the_full_decode(
    name: str,
    seed: int,
    length: int,
    accumulate: bool,
    told: bool,
) -> None:
    """Whether the engine marks the last tokens as such (`told`) or the stream just ends."""
    tokenizer, rng = real_tokenizer(name), random.Random(seed)
    ids = mixture(name, rng, length)
    row, pieces, at = RowText(tokenizer, accumulate=accumulate), [], 0
    while at < len(ids):
        step = rng.choice([1, 1, 2, 9])
        pieces.append(row.push(ids[at : at + step], final=told and at + step >= len(ids)))
        at += step
    if not told:
        pieces.append(row.push([], final=True))
    assert (pieces[-1] if accumulate else "".join(pieces)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
@LIMITED
@given(seed=st.integers(0, 2**32), accumulate=st.booleans(), step=st.integers(1, 5), prompt=st.integers(0, 12))
def test_text_ends_with_the_first_stop_word(
    name: str,
    seed: int,
    accumulate: bool,
    step: int,
    prompt: int,
) -> None:
    """The stop word stays, as the engine leaves its tokens; one in an echoed prompt does not count."""
    tokenizer, rng = real_tokenizer(name), random.Random(seed)
    text = " ".join(rng.sample(TEXTS, 3))
    stops = [text[at : at + rng.randint(1, 6)] for at in (rng.randrange(len(text) - 1) for _ in range(3))]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, echoed = tokenizer.decode(ids), tokenizer.decode(ids[:prompt])
    if not whole.startswith(echoed):
        return  # the prompt ends inside of a character
    row = RowText(tokenizer, stops, accumulate=accumulate)
    row.skip_search(prompt)
    pieces = [row.push(ids[at : at + step], final=at + step >= len(ids)) for at in range(0, len(ids), step)]
    ends = [at + len(stop) for stop in stops if (at := whole.find(stop, len(echoed))) >= 0]
    assert (pieces[-1] if accumulate else "".join(pieces)) == whole[: min(ends, default=len(whole))]
    assert row.stopped == bool(ends)


def test_every_tensor_of_the_contract_has_its_way() -> None:
    """The same ways as the ensemble's, whose maps are upstream's, and images for those who bring a model for them."""
    pre, llm = contract.MAPS["preprocessing"], contract.MAPS["tensorrt_llm"]
    images = {"IMAGE_BYTES", "IMAGE_URL", "IMAGE_SIZES", "VIDEO_BYTES"}
    assert {k: v for k, v in TO_PREPROCESSING.items() if k not in images} == contract.mapped(pre[0])
    made = dict(contract.mapped(pre[1]).items())
    ways = dict(contract.mapped(llm[0]).items())
    assert {inner: made[outer] for inner, outer in FROM_PREPROCESSING.items()} | FROM_REQUEST == ways
    assert set(PASSED_ON) == set(contract.OUTPUTS["tensorrt_llm_bls"]) - {"text_output"}
    used = {*TO_PREPROCESSING.values(), *FROM_REQUEST.values(), "image_input", "num_draft_tokens", "use_draft_logits"}
    assert used == set(contract.INPUTS["tensorrt_llm_bls"])


def test_scalars_get_their_dimension_back_and_drafts_are_refused() -> None:
    request = {"top_k": np.array([[5]]), "return_log_probs": np.array([True, False]), "lora_task_id": np.array([7])}
    sent = engine_tensors(request, {"INPUT_ID": np.zeros((2, 3))})
    assert {name: values.shape for name, values in sent.items()} == {
        "input_ids": (2, 3),
        "runtime_top_k": (1, 1),
        "return_log_probs": (2, 1),
        "lora_task_id": (1, 1),
    }
    words = {"stop_words": np.array([[b"a", b""], ["ü".encode(), b"c"]], dtype=object)}
    assert stop_words(words, 1) == ["ü", "c"]
    for name in ("num_draft_tokens", "image_input"):
        with pytest.raises(RequestError, match=name):
            check_request({name: np.array([[1]])})
    check_request({"num_draft_tokens": np.array([[0]])})


def llm_tensors(**changes: Any) -> dict[str, Any]:
    return {"text_input": np.array([b"Hi"], dtype=object), **{k: np.array(v) for k, v in changes.items()}}


def test_a_request_of_the_llm_class() -> None:
    stops = np.array([b"\n", b""], dtype=object)
    changes = {"sampling_param_top_k": [5], "sampling_param_temperature": np.array([0.5], dtype=np.float32)}
    request = parse_llm_request(
        {**llm_tensors(streaming=[True], **changes), "sampling_param_stop": stops}, decoupled=True
    )
    assert (request.prompt, request.streaming, request.echo) == ("Hi", True, True)
    assert request.sampling == {"top_k": 5, "temperature": 0.5, "stop": ["\n"]}
    quiet = parse_llm_request(llm_tensors(sampling_param_exclude_input_from_output=[True]), decoupled=False)
    assert not quiet.echo
    assert parse_llm_request({"stop": np.array([True])}, decoupled=True).stop
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"text_input": np.array([[b"Hi"]], dtype=object)}, "1D tensor"),
        ({"text_input": np.array([b""], dtype=object)}, "one prompt"),
        ({"text_input": np.array([b"\xff"], dtype=object)}, "not UTF-8"),
        (llm_tensors(sampling_param_seed=[1, 2]), "scalar"),
        (llm_tensors(streaming=[True]), "decoupled mode"),
    ]
    for tensors, words in wrong:
        with pytest.raises(RequestError, match=words):
            parse_llm_request(tensors, decoupled=False)


@pytest.mark.parametrize(
    ("stops", "texts", "pieces"),
    [
        ([], ["He", "Hell", "Hell\ufffd", "Hellö", "Hellö"], ["He", "ll", "", "ö", ""]),
        ([], ["ha", "ha", "haha", "haha!"], ["ha", "", "ha", "!"]),
        (["bcx", "z"], ["a", "ab", "abc", "abcd"], ["a", "", "", "bcd"]),
        (["bcd"], ["a", "ab", "abc", "a"], ["a", "", "", ""]),  # cut off by the class when it is whole
        (["bc"], ["a", "ab", "abcde", "a"], ["a", "", "", ""]),
        (["nothing"], ["abcn", "ab"], ["abc", ""]),
    ],
)
def test_text_so_far_becomes_what_is_new(stops: list[str], texts: list[str], pieces: list[str]) -> None:
    deltas = Deltas(stops)
    assert [deltas.next(text, final=at == len(texts) - 1) for at, text in enumerate(texts)] == pieces


def test_outputs_have_the_kinds_of_the_contract() -> None:
    from datetime import timedelta
    from types import SimpleNamespace as Bag

    names = ("num_reused_blocks", "num_missed_blocks", "num_new_allocated_blocks", "num_total_allocated_blocks")
    times = {n: timedelta(seconds=1.5) for n in ("arrival_time", "first_scheduled_time", "first_token_time")}
    metrics = Bag(
        kv_cache_metrics=Bag(**dict.fromkeys(names, 3), kv_cache_hit_rate=0.5),
        timing_metrics=Bag(**times, last_token_time=timedelta(seconds=2)),
        speculative_decoding=Bag(acceptance_rate=0.0, total_accepted_draft_tokens=0, total_draft_tokens=0),
    )
    done = Bag(finish_reason="stop", stop_reason=13, cumulative_logprob=-0.5, request_perf_metrics=metrics)
    wanted = {key: [True] for key in ("return_finish_reason", "return_stop_reason", "return_cumulative_logprob")}
    request = parse_llm_request(llm_tensors(**wanted, sampling_param_return_perf_metrics=[True]), decoupled=True)
    found = answer_tensors("x", done, request)
    kinds = {"int32": "INT32", "int64": "INT64", "float32": "FP32", "object": "STRING"}
    said = {name: kinds[str(values.dtype)] for name, values in found.items()}
    assert said == {name: tensor[0] for name, tensor in contract.OUTPUTS["llmapi"].items()}
    assert (found["arrival_time_ns"].item(), found["stop_reason"].item()) == (1_500_000_000, b"13")
