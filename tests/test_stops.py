"""Stop strings never leak, however the text is cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from trtbuild.text.stops import StopFilter

LETTERS = st.text("ab<|>", max_size=30)


@given(
    text=LETTERS,
    stops=st.lists(st.text("ab<|>", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_the_text_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stopper = StopFilter(stops)
    given_out = ""
    for start, end in itertools.pairwise(places):
        given_out += stopper.push(text[start:end])
        assert text.startswith(given_out)
        assert not any(stop in given_out for stop in stops)
    given_out += stopper.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert given_out == text
        assert not stopper.stopped
    else:
        # of two stops the one that is complete first ends the answer; it lies at or after the first beginning
        assert stopper.stopped
        assert not any(stop in given_out for stop in stops)


def test_nothing_is_held_back_without_need() -> None:
    stopper = StopFilter(["<|end|>"])
    assert stopper.push("a <") == "a "
    assert stopper.push("b") == "<b"
    assert stopper.push("c<|end") == "c"
    assert stopper.push("|>d") == ""
    assert stopper.flush() == ""
