"""Text of a request -> what `preprocessing` answers. No Triton in here; numpy arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.text.tokenizer import Tokenizer
from trtbuild.text.words import pack_words, pad_word_lists

_MULTIMODAL = ("IMAGE_BYTES", "IMAGE_URL", "IMAGE_SIZES", "VIDEO_BYTES")
_TRUE, _FALSE = ("true", "1", "t", "y", "yes"), ("false", "0", "f", "n", "no")


def parse_switch(text: str | None, default: bool) -> bool:
    """Upstream's words for yes and no.

    Raises:
        ValueError: any other word.
    """
    if not text:
        return default
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(f"{text!r} is neither of {', '.join((*_TRUE, *_FALSE))}")
    return text.lower() in _TRUE


class Prompts:
    """Tokenizes requests. `max_input_len` 0: the engine checks the length itself."""

    def __init__(self, tokenizer: Tokenizer, *, add_special_tokens: bool = True, max_input_len: int = 0) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._max_input_len = max_input_len

    def process(self, tensors: Mapping[str, Any], add_special_tokens: bool | None = None) -> dict[str, Any]:
        """Output tensors of one request, by name. A request parameter may override add_special_tokens.

        Raises:
            RequestError: a prompt that is empty, too long or not UTF-8, or tensors that do not belong together.
        """
        import numpy as np

        special = self._add_special_tokens if add_special_tokens is None else add_special_tokens
        for name in (n for n in _MULTIMODAL if n in tensors):
            raise RequestError(f"{name}: this repository serves a text-only model")
        prompts = [self._prompt(row, special) for row in _texts("text_input", tensors["QUERY"])]
        batch = len(prompts)
        begins = self._decoder_prompts(tensors.get("DECODER_QUERY"), batch, special)
        end_ids = _column(
            "end_id", tensors.get("END_ID"), batch, self._tokenizer.end_ids[0] if self._tokenizer.end_ids else -1
        )
        pad_ids = _column("pad_id", tensors.get("PAD_ID"), batch, self._tokenizer.pad_id)
        # A decoder begins with the padding token where the request has no text for it.
        begins = [ids or list(pad) for ids, pad in zip(begins, pad_ids, strict=True)]
        # A model with several end ids: the engine knows one, the others become stop words of one token.
        extra = [] if "END_ID" in tensors else [[token] for token in self._tokenizer.end_ids[1:]]
        out: dict[str, Any] = {
            "INPUT_ID": np.array(_padded(prompts, pad_ids), dtype=np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], dtype=np.int32),
            "DECODER_INPUT_ID": np.array(_padded(begins, pad_ids), dtype=np.int32),
            "REQUEST_DECODER_INPUT_LEN": np.array([[len(ids)] for ids in begins], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": tensors["REQUEST_OUTPUT_LEN"].astype(np.int32),
            "STOP_WORDS_IDS": self._words("stop_words", tensors.get("STOP_WORDS_DICT"), batch, extra),
            "BAD_WORDS_IDS": self._words("bad_words", tensors.get("BAD_WORDS_DICT"), batch, []),
            "OUT_END_ID": np.array(end_ids, dtype=np.int32),
            "OUT_PAD_ID": np.array(pad_ids, dtype=np.int32),
        }
        if "EMBEDDING_BIAS_WORDS" in tensors:
            out["EMBEDDING_BIAS"] = self._bias(tensors, batch)
        if "PROMPT_TABLE_EXTRA_ID" in tensors:
            extra_ids = tensors["PROMPT_TABLE_EXTRA_ID"].reshape(batch, 1)
            out["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.repeat(extra_ids, out["INPUT_ID"].shape[1], axis=1).astype(np.uint64)
        return out

    def _prompt(self, row: Sequence[str], special: bool) -> list[int]:
        if len(row) != 1:
            raise RequestError(f"text_input must be one prompt a row, not {len(row)}")
        ids = self._tokenizer.encode(row[0], add_special_tokens=special) if row[0] else []
        if not ids:
            raise RequestError("the prompt is empty: there is no token to start from")
        if 0 < self._max_input_len < len(ids):
            raise RequestError(
                f"the prompt has {len(ids)} tokens, more than the engine's max_input_len {self._max_input_len}"
            )
        return ids

    def _decoder_prompts(self, values: Any, batch: int, special: bool) -> list[list[int]]:
        """What the decoder of an encoder-decoder model begins with; no ids where a row has no text."""
        rows = _texts("decoder_text_input", values) if values is not None else [[] for _ in range(batch)]
        if len(rows) != batch:
            raise RequestError(f"decoder_text_input has {len(rows)} rows, text_input has {batch}")
        return [self._tokenizer.encode("".join(row), add_special_tokens=special) if any(row) else [] for row in rows]

    def _words(self, name: str, values: Any, batch: int, extra: list[list[int]]) -> Any:
        import numpy as np

        rows = _texts(name, values) if values is not None else [[] for _ in range(batch)]
        if len(rows) != batch:
            raise RequestError(f"{name} has {len(rows)} rows, text_input has {batch}")
        packed = []
        for row in rows:
            words = [self._tokenizer.encode(word, add_special_tokens=False) for word in row if word]
            packed.append(pack_words([*words, *extra]))
        return np.array(pad_word_lists(packed), dtype=np.int32).reshape(batch, 2, -1)

    def _bias(self, tensors: Mapping[str, Any], batch: int) -> Any:
        import numpy as np

        words = _texts("embedding_bias_words", tensors["EMBEDDING_BIAS_WORDS"])
        weights = tensors.get("EMBEDDING_BIAS_WEIGHTS")
        if weights is None or weights.shape != tensors["EMBEDDING_BIAS_WORDS"].shape:
            raise RequestError("embedding_bias_words and embedding_bias_weights must have the same shape")
        bias = np.zeros((batch, self._tokenizer.vocab_size), dtype=np.float32)
        for index, row in enumerate(words):
            for word, weight in zip(row, weights[index].tolist(), strict=True):
                for token in self._tokenizer.encode(word, add_special_tokens=False) if word else ():
                    bias[index, token] += weight
        return bias


def _padded(rows: Sequence[list[int]], pad_ids: Sequence[list[int]]) -> list[list[int]]:
    """Rows of the same length."""
    width = max(len(row) for row in rows)
    return [row + pad * (width - len(row)) for row, pad in zip(rows, pad_ids, strict=True)]


def _texts(name: str, values: Any) -> list[list[str]]:
    """Rows of a STRING tensor."""
    rows = []
    for row in values.reshape(len(values), -1).tolist():
        try:
            rows.append([cell.decode("utf-8") if isinstance(cell, bytes) else str(cell) for cell in row])
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
    return rows


def _column(name: str, values: Any, batch: int, default: int) -> list[list[int]]:
    if values is None:
        return [[default]] * batch
    if values.size != batch:
        raise RequestError(f"{name} has {values.size} values for {batch} prompts")
    return [[int(value)] for value in values.reshape(-1)]
