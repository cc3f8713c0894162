"""EDGE: the text on which both models run -> token ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trtbuild.errors import VerifyError
from trtbuild.verify.report import Text

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "english.txt"
_LEAST = 2  # a token and the one that follows it


def read_samples(model: Path, text: Path | None, tokens: int, length: int, vocab_size: int) -> tuple[Any, Text]:
    """(int32 tensor [samples, T], what it is) of the first `tokens` tokens of a text, in sequences of `length`.

    `text` is UTF-8, or a .json file with a list of token ids; None takes the bundled English. `model` is the folder
    whose tokenizer is used. A text shorter than one sequence makes a shorter sequence.

    Raises:
        VerifyError: no text, not UTF-8, too short, or ids outside the vocabulary. EngineError: there is no tokenizer.
    """
    import torch

    path = text or BUNDLED
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerifyError([f"the text {path} cannot be read: {error.strerror or error}"]) from error
    ids = _given(path, data) if path.suffix == ".json" else _encoded(model, path, data)
    if len(ids) < _LEAST:
        raise VerifyError([f"the text {path} is too short: {len(ids)} tokens"])
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        problem = f"the text {path} has {len(wrong)} token ids outside the vocabulary of {vocab_size}, as {wrong[0]}"
        raise VerifyError([problem], hint="Is this the tokenizer of that model?")
    length = min(length, len(ids))
    samples = max(1, min(tokens, len(ids)) // length)
    made = torch.tensor(ids[: samples * length], dtype=torch.int32).view(samples, length)
    return made, Text(path.name, hashlib.sha256(data).hexdigest(), samples, length)


def _given(path: Path, data: bytes) -> list[int]:
    try:
        ids = json.loads(data)
    except ValueError as error:
        raise VerifyError([f"{path} is not valid JSON: {error}"]) from error
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise VerifyError([f"{path} is no list of token ids"])
    return ids


def _encoded(model: Path, path: Path, data: bytes) -> list[int]:
    from trtbuild.text.tokenizer import load_tokenizer

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VerifyError([f"the text {path} is not UTF-8: {error}"], hint="Convert it to UTF-8.") from error
    if not text.strip():
        raise VerifyError([f"the text {path} is empty"])
    return load_tokenizer(model).encode(text)
