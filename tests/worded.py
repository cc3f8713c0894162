"""A tokenizer of plain words, "t0 t1 ...": the text of given token ids, and the ids of a text, can be written down."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def add_tokenizer(folder: Path, vocab_size: int = 512) -> Path:
    """Give a model folder a tokenizer whose word "tN" is token N."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    made.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="t0").save_pretrained(folder)
    return folder


def with_tokenizer(source: Path, folder: Path, vocab_size: int = 512) -> Path:
    """A copy of a model folder with that tokenizer."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return add_tokenizer(folder, vocab_size)


def text_of(ids: Iterable[int]) -> str:
    return " ".join(f"t{i}" for i in ids)
