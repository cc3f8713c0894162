"""EDGE: the tokenizer of a repository against the engine's vocabulary, its own end tokens, and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found
from trtbuild.text.chat import load_chat_template
from trtbuild.text.tokenizer import check_tokenizer, load_tokenizer

SAMPLES = (
    "The capital of France is",
    "  two spaces, a tab\tand\na line; naïve café, 東京は晴れ, \U0001f642!",
    "def f(x):\n    return x ** 2  # 3.14159",
)


def tokenizer_findings(where: str, folder: Path, vocab_size: int | None) -> Iterator[Finding]:
    """Faults of one tokenizer folder; `vocab_size` of the engine, None where it is not known."""
    try:
        check_tokenizer(folder)
        tokenizer = load_tokenizer(folder)
    except EngineError as error:
        yield found("tokenizer-missing", where, "a tokenizer folder", error.message, error.hint or "")
        return
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        yield found("tokenizer-vocab", where, f"ids below the engine's {vocab_size}", f"{tokenizer.vocab_size} tokens")
    if not tokenizer.end_ids:
        hint = "Preprocessing of TensorRT-LLM cannot load without; requests need an end_id."
        yield found("tokenizer-ends", where, "an end-of-sequence token", "none", hint)
    yield from _ids(where, folder, tokenizer)
    yield from _chat(where, folder, tokenizer)


def _ids(where: str, folder: Path, tokenizer: Any) -> Iterator[Finding]:
    """Rust's own reader of tokenizer.json has to agree with transformers, which reads more files."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer as Rust

    rust = Rust.from_file(str(path))
    for text in SAMPLES:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False), rust.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            expected = f"{theirs[:8]} for {text[:24]!r}, as tokenizer.json says"
            yield found("tokenizer-ids", where, expected, str(ours[:8]), "Its files are of different models.")
            return


def _chat(where: str, folder: Path, tokenizer: Any) -> Iterator[Finding]:
    try:
        prompt = load_chat_template(folder).render([{"role": "user", "content": "Hi"}])
    except EngineError as error:
        yield found("chat-template", where, "a chat template", error.message)
        return
    with_special, without = tokenizer.encode(prompt), tokenizer.encode(prompt, add_special_tokens=False)
    if without and len(with_special) > len(without) and with_special[:2] == [without[0]] * 2:
        hint = "Send add_special_tokens false with chat prompts, as `trtbuild chat` does, or set it in the repository."
        yield found("tokenizer-bos", where, "one BOS before a chat prompt", "two", hint)
