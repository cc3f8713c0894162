"""EDGE: prompts out of a file, and prompts of a given length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtbuild.bench.workload import WORDS, Length, Written, lengths, prompt_of
from trtbuild.errors import BenchError

PROBE = " ".join(WORDS[:8])
_TEXT = ("text", "prompt", "text_input")
_LENGTH = ("max_tokens", "output_length", "output_len")


def read_prompts(path: Path) -> list[Written]:
    """Prompts of a .txt (one a line) or .jsonl file ({"text": ..., "max_tokens": ...}; genai-perf's names too).

    Raises:
        BenchError: it cannot be read, or every line that is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BenchError([f"cannot read {path}: {error}"]) from error
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        found = [Written(line) for _, line in kept]
    else:
        problems: list[str] = []
        found = [one for number, line in kept if (one := _of_json(f"{path}:{number}", line, problems)) is not None]
        if problems:
            raise BenchError(problems[:20])
    if not found:
        raise BenchError([f"{path} holds no prompt"])
    return found


def _of_json(where: str, line: str, problems: list[str]) -> Written | None:
    try:
        document: Any = json.loads(line)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
    entry = document if isinstance(document, dict) else {}
    text = next((entry[name] for name in _TEXT if isinstance(entry.get(name), str)), None)
    length = next((entry[name] for name in _LENGTH if name in entry), None)
    if text is None:
        problems.append(f"{where}: no text by the name of {', '.join(_TEXT)}")
    elif length is not None and not (type(length) is int and length > 0):
        problems.append(f"{where}: {length!r} is no number of tokens")
    else:
        return Written(text, length)
    return None


class Prompter:
    """Prompts of random words for request numbers; `least` is what the server adds to the words of a prompt.

    Without a tokenizer a word counts as a token, which holds for the usual vocabularies; what the server counted is
    what is reported either way.
    """

    def __init__(self, length: Length, seed: int, tokenizer: Path | None, least: int) -> None:
        self._length, self._seed = length, seed
        self._count = _counter(tokenizer, least)

    def make(self, first: int, count: int) -> Callable[[int], str]:
        """Prompts of the requests `first`, `first` + 1, ..., made now."""
        tokens = lengths(self._length, count, self._seed + first)
        made = [prompt_of(tokens[i], first + i, self._seed, self._count) for i in range(count)]
        return lambda number: made[number - first]


def _counter(tokenizer: Path | None, least: int) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: least + len(text.split())
    from trtbuild.text.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded.encode(text))
