"""The calibration set: token ids of sequences of equal length, cut from a text that the user names or the bundled one.

A text is taken apart into documents (rows of .jsonl, stretches of paragraphs of .txt). The seed orders them; they are
tokenized in that order until there are enough tokens, and the stream is cut into samples. Every sample is full: AWQ's
statistics weigh tokens equally, and padding would take part in them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbuild.calibrate.documents import Document, plain, read_documents
from trtbuild.errors import CalibrationError
from trtbuild.spec import CALIBRATION_LENGTH, CalibrationOptions, calibration_samples

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "calibration.txt"
_FEWEST = 8  # samples that a default may shrink to where the text is short


@dataclass(frozen=True)
class Samples:
    """`ids`: rows of token ids, all of the same length; `described` goes to the manifest."""

    ids: tuple[tuple[int, ...], ...]
    described: dict[str, Any]

    @property
    def length(self) -> int:
        return len(self.ids[0])


def read_samples(
    tokenizer_folder: Path, options: CalibrationOptions, *, gram: bool, max_length: int, vocab_size: int
) -> Samples:
    """The calibration set of a model.

    `gram`: whether the method needs second moments; `max_length`: positions that the model has, 0 = any number.

    Raises:
        CalibrationError: a text that is absent, empty, too short, not UTF-8 or of unknown form; sizes that cannot be.
        EngineError: the model has no tokenizer, or no chat template where one is asked for.
    """
    from trtbuild.text.tokenizer import load_tokenizer

    length, wanted = sizes(options, gram, max_length)
    source = options.text or BUNDLED
    documents = read_documents(source)
    template = _template(tokenizer_folder) if options.chat else None
    tokenizer = load_tokenizer(tokenizer_folder)

    def encode(document: Document) -> list[int]:
        text = plain(document) if template is None else template(document)
        return tokenizer.encode(text, add_special_tokens=False)

    # What the tokenizer puts before every text; a chat template writes it itself.
    first = [] if options.chat else _prefix(tokenizer.encode)
    if length <= len(first):
        raise CalibrationError(f"samples of {length} tokens hold no text: the tokenizer begins each with {len(first)}")
    rows, found = cut(map(encode, ordered(documents, options.seed)), first, length, wanted)
    fewest = wanted if options.samples else min(wanted, _FEWEST)
    if len(rows) < fewest:
        raise _too_short(source, found, fewest * (length - len(first)), fewest, length, len(rows))
    outside = max(map(max, rows))
    if outside >= vocab_size:
        raise CalibrationError(
            f"the tokenizer gives token id {outside}, but the model's vocabulary has {vocab_size} tokens",
            hint="The tokenizer in the model folder is another model's; fetch the model again.",
        )
    described = {
        "text": "bundled" if options.text is None else options.text.resolve().name,
        "token_ids_sha256": hashlib.sha256(array("i", [i for row in rows for i in row]).tobytes()).hexdigest(),
        "samples": len(rows),
        "length": length,
        "seed": options.seed,
        "chat": options.chat,
    }
    return Samples(tuple(map(tuple, rows)), described)


def sizes(options: CalibrationOptions, gram: bool, max_length: int) -> tuple[int, int]:
    """(tokens of a sample, samples wanted at most).

    Raises:
        CalibrationError: sizes that cannot be.
    """
    length = options.length or min(CALIBRATION_LENGTH, max_length or CALIBRATION_LENGTH)
    if max_length and length > max_length:
        message = f"calibration samples of {length} tokens are longer than the model's {max_length} positions"
        raise CalibrationError(message, hint=f"Use --calib-length {max_length} or less.")
    return length, options.samples or calibration_samples(gram)


def ordered(documents: Sequence[Document], seed: int) -> Iterator[Document]:
    """The documents in an order that depends on the seed alone, on every machine and Python."""
    numbers = range(len(documents))
    for number in sorted(numbers, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest()):
        yield documents[number]


def cut(
    documents: Iterable[Sequence[int]], first: Sequence[int], length: int, wanted: int
) -> tuple[list[list[int]], int]:
    """(at most `wanted` rows of `length` token ids, each `first` and then the next ones of the stream, tokens seen)."""
    rows: list[list[int]] = []
    row, seen = list(first), 0
    for document in documents:
        seen += len(document)
        at = 0
        while at < len(document):
            taken = document[at : at + length - len(row)]
            row, at = row + list(taken), at + len(taken)
            if len(row) == length:
                rows.append(row)
                row = list(first)
                if len(rows) == wanted:
                    return rows, seen
    return rows, seen


def _template(folder: Path) -> Callable[[Document], str]:
    from trtbuild.text.chat import load_chat_template

    template = load_chat_template(folder)

    def render(document: Document) -> str:
        return template.render(
            [{"role": "user", "content": document}] if isinstance(document, str) else document, answer=False
        )

    return render


def _prefix(encode: Callable[..., list[int]]) -> list[int]:
    """Special tokens with which the tokenizer begins every text."""
    bare, whole = encode("a", add_special_tokens=False), encode("a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start]


def _too_short(source: Path, found: int, needed: int, samples: int, length: int, full: int) -> CalibrationError:
    name = "the bundled calibration text" if source == BUNDLED else f"the calibration text {source}"
    message = f"{name} is too short: it has {found} tokens, and {samples} samples of {length} need {needed}"
    hint = f"Give a longer text, --calib-samples {full}, or a smaller --calib-length." if full else (
        "Give a longer text, or a smaller --calib-length."
    )  # fmt: skip
    return CalibrationError(message, hint=hint)
