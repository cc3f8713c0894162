"""Tokens beside text that is given out later, or cut: they always make up the text, and are the server's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trtbuild.openai.tokens import TokenLine
from trtbuild.text.stops import StopFilter

CHUNKS = st.lists(st.text("ab\u00fc", max_size=3), max_size=12)


@given(CHUNKS, st.lists(st.text("ab\u00fc", min_size=1, max_size=4), max_size=2))
def test_tokens_make_up_the_text(chunks: list[str], stops: list[str]) -> None:
    filtered, line = StopFilter(stops), TokenLine()
    text, tokens = "", []
    for number, chunk in enumerate(chunks):
        given_out = filtered.push(chunk)
        ended = filtered.stopped or number == len(chunks) - 1
        if ended and not filtered.stopped:
            given_out += filtered.flush()
        line.push(chunk, [-float(number)])
        text += given_out
        tokens += line.take(given_out, ended=ended)
        assert text.startswith("".join(token.text for token in tokens))
        if ended:
            break
    assert "".join(token.text for token in tokens) == text
    assert [text[token.offset : token.offset + len(token.text)] for token in tokens] == [t.text for t in tokens]
    assert [token.score for token in tokens] == [-float(number) for number in range(len(tokens))]
    assert [token.text for token in tokens[:-1]] == chunks[: max(0, len(tokens) - 1)]
    if not filtered.stopped:
        assert [token.text for token in tokens] == chunks


def test_chunks_of_several_tokens_and_of_none() -> None:
    line = TokenLine()
    line.push("ab", [-1.0, -2.0])
    line.push("c", [])
    assert [(t.text, t.score, t.offset) for t in line.take("abc", ended=True)] == [("ab", -1.0, 0), ("c", -2.0, 2)]
    assert line.take("", ended=True) == ()
    line = TokenLine()
    line.push("", [-1.0])
    line.push("\u00fc", [-2.0])
    assert [(t.text, t.bytes) for t in line.take("\u00fc", ended=True)] == [("", None), ("\u00fc", [0xC3, 0xBC])]
