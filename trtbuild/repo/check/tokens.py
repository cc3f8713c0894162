"""EDGE: the tokenizer of a repository against the engine's vocabulary, its own end tokens, and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.finding import ERROR, WARNING, Finding
from trtbuild.repo.check.rules import found
from trtbuild.text.chat import has_chat_template, load_chat_template
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
    yield from _beyond(where, tokenizer, vocab_size)
    if not tokenizer.end_ids:
        hint = "Preprocessing of TensorRT-LLM cannot load without; requests need an end_id."
        yield found("tokenizer-ends", where, "an end-of-sequence token", "none", hint)
    yield from _ids(where, folder, tokenizer)
    yield from _chat(where, folder, tokenizer)


def _beyond(where: str, tokenizer: Any, vocab_size: int | None) -> Iterator[Finding]:
    """End and padding ids that no engine can give or take; generation_config.json may be of another model."""
    if vocab_size is None:
        return
    for name, ids in (("end", tokenizer.end_ids), ("pad", (tokenizer.pad_id,))):
        if beyond := [token for token in ids if token >= vocab_size]:
            hint = "See eos_token_id and pad_token_id in generation_config.json; it may be of another model."
            expected = f"{name} ids below the engine's {vocab_size}"
            yield found("tokenizer-vocab", where, expected, ", ".join(map(str, beyond)), hint)


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
    """No template at all is a model without chat; one that cannot be used is a fault of it."""
    try:
        if not has_chat_template(folder):
            yield found("chat-template", where, "a chat template", "none", "Chat wants an instruction-tuned model.")
            return
        template = load_chat_template(folder)
    except EngineError as error:
        hint = "No chat request can be answered: mend the template, or take it away."
        yield found("chat-template", where, "a chat template that can be read", error.message, hint, ERROR)
        return
    try:
        prompt = template.render([{"role": "user", "content": "Hi"}])
    except EngineError as error:
        hint = "Chat requests of that form will be refused; look at what the template wants."
        yield found("chat-template", where, "a prompt for one user's message", error.message, hint, WARNING)
        return
    with_special, without = tokenizer.encode(prompt), tokenizer.encode(prompt, add_special_tokens=False)
    if without and len(with_special) > len(without) and with_special[:2] == [without[0]] * 2:
        hint = "Send add_special_tokens false with chat prompts, as `trtbuild chat` does, or set it in the repository."
        yield found("tokenizer-bos", where, "one BOS before a chat prompt", "two", hint)
