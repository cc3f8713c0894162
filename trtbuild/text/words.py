"""Stop and bad words as TensorRT-LLM's flat lists: row 0 all ids, row 1 where each word ends, padded with -1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trtbuild.errors import RequestError

Words = tuple[tuple[int, ...], ...]


def pack_words(words: Iterable[Sequence[int]]) -> list[list[int]]:
    """Words -> [ids, ends], both of the same length (0 when there are no words).

    >>> pack_words([[5, 6], [9]])
    [[5, 6, 9], [2, 3, -1]]
    """
    ids: list[int] = []
    ends: list[int] = []
    for word in words:
        if word:
            ids.extend(int(i) for i in word)
            ends.append(len(ids))
    width = max(len(ids), len(ends))
    return [ids + [0] * (width - len(ids)), ends + [-1] * (width - len(ends))]


def unpack_words(name: str, rows: Sequence[Sequence[int]]) -> Words:
    """The inverse of `pack_words`; padding (id 0, end -1) may follow.

    Raises:
        RequestError: the two rows do not describe words.
    """
    if len(rows) != 2:
        raise RequestError(f"{name} must have 2 rows (ids and ends), not {len(rows)}")
    ids, ends = rows
    words = []
    start = 0
    for end in ends:
        if end < 0:
            break
        if not start < end <= len(ids):
            raise RequestError(f"{name} ends must rise and stay within its {len(ids)} ids; got {list(ends)}")
        words.append(tuple(int(i) for i in ids[start:end]))
        start = int(end)
    if any(i < 0 for word in words for i in word):
        raise RequestError(f"{name} holds a negative token id")
    return tuple(words)


def pad_word_lists(packed: Sequence[list[list[int]]]) -> list[list[list[int]]]:
    """Make the lists of a batch equally long."""
    width = max((len(rows[0]) for rows in packed), default=0)
    return [[ids + [0] * (width - len(ids)), ends + [-1] * (width - len(ends))] for ids, ends in packed]
