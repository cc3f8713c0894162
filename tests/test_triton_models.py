"""What runs inside of tritonserver, without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtbuild.errors import RequestError
from trtbuild.triton.pieces import Pieces
from trtbuild.triton.prompts import Prompts, parse_switch
from trtbuild.triton.request import Limits, parse_tensors

LIMITS = Limits(max_input_len=10, max_seq_len=12)


class Letters:
    """A tokenizer of one letter a token; 0 and 1 end a text."""

    vocab_size = 256
    end_ids = (0, 1)
    pad_id = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [2] * add_special_tokens + list(text.encode())

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")

    def is_byte(self, _token: int) -> bool:
        return False

    def is_silent(self, _token: int, _skip: bool) -> bool:
        return False


def tensors(**changes: Any) -> dict[str, Any]:
    base = {"input_ids": [[1, 2, 3]], "input_lengths": [3], "request_output_len": [4], **changes}
    return {name: np.array(value) for name, value in base.items()}


def parse(**changes: Any) -> Any:
    return parse_tensors(tensors(**changes), LIMITS, exclude_input_default=False)


def test_a_request() -> None:
    parsed = parse(
        end_id=[7],
        runtime_top_k=[5],
        temperature=[0.5],
        seed=[9],
        streaming=[True],
        stop_words_list=[[[1, 2], [2, -1]]],
    )
    row = parsed.rows[0]
    assert (row.prompt_ids, row.max_new_tokens, row.end_id) == ((1, 2, 3), 4, 7)
    assert (row.sampling.top_k, row.sampling.temperature, row.sampling.seed) == (5, 0.5, 9)
    assert row.sampling.stop_words == ((1, 2),)
    assert parsed.streaming
    assert not parsed.exclude_input


def test_rows_of_a_batch_are_cut_to_their_length() -> None:
    parsed = parse(input_ids=[[1, 2, 3], [4, 5, 0]], input_lengths=[3, 2], request_output_len=[4, 100])
    assert [row.prompt_ids for row in parsed.rows] == [(1, 2, 3), (4, 5)]
    assert [row.max_new_tokens for row in parsed.rows] == [4, 10]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request_output_len": [0]}, "request_output_len"),
        ({"input_ids": [list(range(11))], "input_lengths": [11]}, "max_input_len 10"),
        ({"input_ids": np.zeros((1, 0), dtype=np.int32), "input_lengths": [0]}, "empty"),
        ({"beam_width": [3]}, "beam search"),
        ({"decoder_input_ids": [[1, 2]], "decoder_input_lengths": [2]}, "encoder models"),
        ({"draft_input_ids": [[1]]}, "speculative"),
        ({"return_context_logits": [True]}, "logits"),
        ({"temperature": [0.5, 0.6]}, "temperature has 2 rows"),
        ({"temperature": [0.0]}, "temperature"),
        ({"bad_words_list": [[[1, 2], [5, -1]]]}, "bad_words_list"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse(**changes)


def test_empty_optional_tensors_count_as_absent() -> None:
    assert parse(embedding_bias=np.zeros((1, 0)), stop_words_list=np.zeros((1, 2, 0))).rows


def test_prompts_pad_and_name_every_end() -> None:
    prompts = Prompts(Letters())  # type: ignore[arg-type]
    query = np.array([[b"ab"], [b"c"]], dtype=object)
    out = prompts.process({"QUERY": query, "REQUEST_OUTPUT_LEN": np.array([[5], [6]])})
    assert out["INPUT_ID"].tolist() == [[2, 97, 98], [2, 99, 0]]
    assert out["REQUEST_INPUT_LEN"].tolist() == [[3], [2]]
    assert out["OUT_END_ID"].tolist() == [[0], [0]]
    assert out["STOP_WORDS_IDS"].tolist() == [[[1], [1]], [[1], [1]]], "the second end id is a stop word"
    assert out["BAD_WORDS_IDS"].shape == (2, 2, 0)
    plain = prompts.process({"QUERY": query, "REQUEST_OUTPUT_LEN": np.array([[5], [6]])}, False)
    assert plain["INPUT_ID"].tolist() == [[97, 98], [99, 0]]


@pytest.mark.parametrize(("text", "words"), [(b"", "empty"), (b"\xff", "not UTF-8"), (b"a" * 20, "more than")])
def test_prompts_that_are_refused(text: bytes, words: str) -> None:
    prompts = Prompts(Letters(), max_input_len=8)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=words):
        prompts.process({"QUERY": np.array([[text]], dtype=object), "REQUEST_OUTPUT_LEN": np.array([[5]])})


def test_a_decoder_begins_with_its_text() -> None:
    """Of encoder-decoder models; with the padding token where there is none. Images have no model here."""
    query, length = np.array([[b"ab"], [b"c"], [b"d"]], dtype=object), np.array([[5]] * 3)
    begin = np.array([[b"xyz"], [b""], [b"v"]], dtype=object)
    inputs = {"QUERY": query, "REQUEST_OUTPUT_LEN": length, "PAD_ID": np.array([[7], [8], [9]])}
    out = Prompts(Letters()).process({**inputs, "DECODER_QUERY": begin}, False)  # type: ignore[arg-type]
    assert out["DECODER_INPUT_ID"].tolist() == [[120, 121, 122], [8, 8, 8], [118, 9, 9]]
    assert out["REQUEST_DECODER_INPUT_LEN"].tolist() == [[3], [1], [1]]
    assert out["INPUT_ID"].tolist() == [[97, 98], [99, 8], [100, 9]]
    for wrong, words in (({"DECODER_QUERY": begin[:2]}, "has 2 rows"), ({"IMAGE_SIZES": length}, "text-only model")):
        with pytest.raises(RequestError, match=words):
            Prompts(Letters()).process({**inputs, **wrong}, False)  # type: ignore[arg-type]


def test_pieces_hold_streams_apart_and_forget() -> None:
    pieces = Pieces(Letters(), most=3)
    accent = list("é".encode())
    assert pieces.next("a", accent[:1], final=False) == ""
    assert pieces.next("b", list(b"x"), final=False) == "x"
    assert pieces.next("a", accent[1:], final=True) == "é"
    assert len(pieces) == 1
    for name in range(10):
        pieces.next(name, [65], final=False)
    assert len(pieces) == 3
    assert pieces.next("cut", accent[:1], final=True) == "\ufffd"


def test_switches() -> None:
    assert parse_switch("No", True) is False
    assert parse_switch(None, True) is True
    with pytest.raises(ValueError, match="maybe"):
        parse_switch("maybe", True)
