"""A Hugging Face tokenizer folder, reduced to what the Triton models need.

The ids are transformers' own (`AutoTokenizer`, never with remote code); the decoding goes straight to the Rust
tokenizer, without the "clean up" of spaces that would make text depend on what comes after it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
)


class Tokenizer:
    """Encode, decode, and the special ids of one tokenizer folder."""

    def __init__(self, hf: Any, generation_config: dict[str, Any]) -> None:
        self._hf = hf
        self._fast = getattr(hf, "backend_tokenizer", None)
        self._special = frozenset(int(i) for i in _special_ids(hf, self._fast))
        self.vocab_size = len(hf)
        self._bytes = self._byte_ids()
        self.end_ids = _end_ids(hf, generation_config)
        pad = generation_config.get("pad_token_id", hf.pad_token_id)
        self.pad_id = int(pad) if isinstance(pad, int) else (self.end_ids[0] if self.end_ids else 0)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, the same as transformers gives."""
        return [int(i) for i in self._hf.encode(text, add_special_tokens=add_special_tokens, verbose=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        if self._fast is not None:
            return str(self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return str(
            self._hf.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )

    def is_byte(self, token_id: int) -> bool:
        return token_id in self._bytes

    def is_silent(self, token_id: int, skip_special_tokens: bool) -> bool:
        if skip_special_tokens and token_id in self._special:
            return True
        if self._fast is not None:
            return token_id < 0 or self._fast.id_to_token(token_id) is None
        return not 0 <= token_id < self.vocab_size

    def _byte_ids(self) -> frozenset[int]:
        """Ids of `<0x00>` .. `<0xFF>`, when the decoder joins them to characters."""
        if self._fast is not None:
            decoder = self._fast.decoder
            if decoder is None or b"ByteFallback" not in decoder.__getstate__():
                return frozenset()
        names = [f"<0x{value:02X}>" for value in range(256)]
        ids = self._hf.convert_tokens_to_ids(names)
        back = self._hf.convert_ids_to_tokens([i for i in ids if i is not None])
        return frozenset(
            int(i)
            for i, name in zip((i for i in ids if i is not None), back, strict=True)
            if _BYTE_TOKEN.fullmatch(name)
        )


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Read a tokenizer folder.

    Raises:
        EngineError: there is no tokenizer that can be read without running code from the folder.
    """
    from transformers import AutoTokenizer

    folder = Path(directory)
    check_tokenizer(folder)
    try:
        hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        raise EngineError(f"cannot read the tokenizer in {folder}: {type(error).__name__}: {error}") from error
    return Tokenizer(hf, read_json(folder / "generation_config.json"))


def load_tokenizer_alone(directory: str | Path) -> Tokenizer:
    """`load_tokenizer` for a process that does nothing else: transformers then goes without torch.

    Tokenizing needs none of it, and importing it takes twice as long as all the rest, and 300 MB, in every process.

    Raises:
        EngineError: as `load_tokenizer`.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # Python's own mark of "not to be found"
    return load_tokenizer(directory)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder that holds no tokenizer.

    Raises:
        EngineError: neither tokenizer.json, tokenizer.model nor vocab.json is there.
    """
    if not folder.is_dir():
        raise EngineError(f"tokenizer folder {folder} does not exist", hint="Pass the Hugging Face model folder.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise EngineError(
            f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json)",
            hint="Pass the Hugging Face model folder, not the engine's or checkpoint's.",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file, or an empty one when the file is absent.

    Raises:
        EngineError: the file is there and is not a JSON object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}") from error
    if not isinstance(loaded, dict):
        raise EngineError(f"{path} is not a JSON object")
    return loaded


def _special_ids(hf: Any, fast: Any) -> list[int]:
    """Ids that `skip_special_tokens` leaves out; what the Rust tokenizer holds counts, not transformers' attributes."""
    if fast is None:
        return [int(i) for i in hf.all_special_ids]
    return [i for i, token in fast.get_added_tokens_decoder().items() if token.special]


def _end_ids(hf: Any, generation_config: dict[str, Any]) -> tuple[int, ...]:
    """generation_config's ids first: they are what the model was trained to stop at."""
    ends = generation_config.get("eos_token_id", hf.eos_token_id)
    found = ends if isinstance(ends, list) else [ends]
    return tuple(dict.fromkeys(int(i) for i in found if isinstance(i, int)))
