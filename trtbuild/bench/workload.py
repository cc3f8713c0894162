"""What to ask, and when: prompts, lengths and times of arrival from one seed. PURE.

Every endpoint and level of a run gets the same requests in the same order, so that only the server differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtbuild.errors import BenchError

CONCURRENCY, REQUEST_RATE = "concurrency", "request_rate"
WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business",
    "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city", "community", "name", "president", "team", "minute", "idea", "body", "information",
    "back", "parent", "face", "others", "level", "office", "door", "health", "person", "art", "war", "history",
    "party", "result", "change", "morning", "reason", "research", "girl", "guy", "moment", "air", "teacher", "force",
    "education",
)  # fmt: skip
"""Common nouns: with the space before it each is one token for the byte-pair vocabularies that we know."""


@dataclass(frozen=True)
class Length:
    """Tokens: a mean and, where it is not always the same, a standard deviation (normal, at least 1)."""

    mean: int
    stddev: float = 0.0


@dataclass(frozen=True)
class Level:
    """One point of load. concurrency: so many requests are always open. request_rate: so many begin each second."""

    mode: str
    value: float

    @property
    def label(self) -> str:
        return f"{self.mode.replace('_', ' ')} {self.value:g}"


@dataclass(frozen=True)
class Item:
    """One request: its text, how many tokens to make, and the seed of its sampling."""

    number: int
    prompt: str
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Written:
    """A prompt out of a file; `max_tokens` where the file says it."""

    prompt: str
    max_tokens: int | None = None


def lengths(length: Length, count: int, seed: int) -> list[int]:
    """`count` lengths in tokens."""
    import numpy as np

    if not length.stddev:
        return [length.mean] * count
    drawn = np.random.default_rng([seed, 1]).normal(length.mean, length.stddev, count)
    return [max(1, round(float(value))) for value in drawn]


def arrivals(level: Level, count: int, seed: int) -> list[float]:
    """Seconds after the start at which each request is due: a Poisson process, its first request at its first gap."""
    import numpy as np

    gaps = np.random.default_rng([seed, 2]).exponential(1.0 / level.value, count)
    return [float(time) for time in np.cumsum(gaps)]


def prompt_of(tokens: int, number: int, seed: int, count_tokens: Callable[[str], int]) -> str:
    """A text of exactly `tokens` tokens, of random words; another one for each `number`, from its first word on.

    `count_tokens`: tokens of a text, as the server counts them.

    Raises:
        BenchError: no text of that length was found.
    """
    import numpy as np

    picked = np.random.default_rng([seed, 3, number]).integers(0, len(WORDS), tokens + 1)
    words = [WORDS[int(index)] for index in picked[:-1]]
    for _attempt in range(32):
        text = " ".join(words)
        over = count_tokens(text) - tokens
        if over == 0:
            return text
        if over > 0:
            words = words[: max(1, len(words) - over)]
            if len(words) == 1 and count_tokens(words[0]) > tokens:
                break
        else:
            words += [WORDS[int(picked[-1] + i) % len(WORDS)] for i in range(-over)]
    least = count_tokens(WORDS[0])
    hint = "Name another --input-len, or its tokenizer with --tokenizer."
    raise BenchError([f"no prompt of {tokens} tokens could be made (one word has {least})"], hint=hint)


def items(
    count: int,
    seed: int,
    output: Length,
    *,
    written: Sequence[Written] = (),
    made: Callable[[int], str] | None = None,
    first: int = 0,
) -> list[Item]:
    """`count` requests: prompts of a file in turn, or those that `made` makes for each number.

    `first`: the number of the first; the requests of a level and those of its warm-up have other numbers.
    """
    tokens = lengths(output, count, seed + first)
    found = []
    for index in range(count):
        number = first + index
        if written:
            one = written[index % len(written)]
            found.append(Item(number, one.prompt, one.max_tokens or tokens[index], seed + number))
        elif made is not None:
            found.append(Item(number, made(number), tokens[index], seed + number))
    return found
