"""The law of streamed text: joined pieces equal the decode of all ids, for every tokenizer and every cut."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines import demo_folder
from tests.npm_tokenizers import npm_tokenizer
from trtbuild.text.detokenize import IncrementalDecoder
from trtbuild.text.tokenizer import Tokenizer, load_tokenizer
from trtbuild.text.words import pack_words, unpack_words

TEXTS = [
    "Hello world, a  double space and\ttabs\n\nnew lines.",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇩🇪, 👍🏽, 𝒳",
    " leading and trailing ",
    "Ñandú ﷽ é e\u0301 ẞ \u200b\ufeff\ufffd end",
    "   \n  def f(x):\n        return x  # ok\n",
    "الكتابة من اليمين שלום ไทย हिन्दी",
]


@pytest.fixture(scope="session", params=["demo", "llama3", "llama2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param != "demo":
        return load_tokenizer(npm_tokenizer(request.param))
    return load_tokenizer(demo_folder())


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


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), length=st.integers(1, 200), skip=st.booleans(), text=st.text(max_size=30))
def test_joined_pieces_equal_the_full_decode(
    tokenizer: Tokenizer, seed: int, length: int, skip: bool, text: str
) -> None:
    rng = random.Random(seed)
    ids = mixture(tokenizer, rng, length) + tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert stream(tokenizer, ids, None, skip) == expected
    assert stream(tokenizer, ids, rng, skip) == expected


def mixture(tokenizer: Tokenizer, rng: random.Random, length: int) -> list[int]:
    """Random ids rich in what breaks decoders: single bytes, special tokens, spaces, unknown ids."""
    low = list(range(min(300, tokenizer.vocab_size)))
    spaces = tokenizer.encode("     \n \n\n", add_special_tokens=False)
    ids: list[int] = []
    while len(ids) < length:
        kind = rng.randrange(5)
        run = rng.randrange(1, 20)
        if kind == 0:
            ids += rng.choices(low, k=run)
        elif kind == 1:
            ids += rng.choices(spaces, k=run)
        elif kind == 2:
            ids += [rng.randrange(tokenizer.vocab_size + 50)]
        elif kind == 3:
            ids += tokenizer.encode(rng.choice(TEXTS), add_special_tokens=False)[:run]
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
def test_cost_does_not_grow_with_length(tokenizer: Tokenizer, kind: str) -> None:
    words = tokenizer.encode("The quick brown fox jumps. 你好 👍 ", add_special_tokens=False)
    invalid = [i for i in range(400) if tokenizer.decode([i]) == "\ufffd"][:1] or [5]
    pattern = {"text": words, "invalid": invalid, "spaces": tokenizer.encode(" ", add_special_tokens=False)}[kind]
    decoder = IncrementalDecoder(tokenizer)
    ids = (pattern * 20000)[:20000]
    times = []
    for start in range(0, 20000, 5000):
        begin = time.perf_counter()
        for token in ids[start : start + 5000]:
            decoder.push([token])
        times.append(time.perf_counter() - begin)
    assert min(times[1:]) < 4 * times[0] + 0.05
    assert times[-1] < 2.0, f"{times[-1] / 5000 * 1e6:.0f} us per token"


def test_words_round_trip() -> None:
    words = ((1, 2, 3), (4,), (5, 6))
    assert pack_words(words) == [[1, 2, 3, 4, 5, 6], [3, 4, 6, -1, -1, -1]]
    assert unpack_words("stop_words_list", pack_words(words)) == words
    assert pack_words([]) == [[], []]
