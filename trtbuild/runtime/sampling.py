"""From logits to the next token, the way TensorRT-LLM defines it.

Order: temperature, repetition, presence and frequency penalties, forbidden tokens, then top-k, top-p, min-p.
Each request draws from its own generator, so its tokens depend on its seed alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbuild.runtime.request import Request

_FIRST_CANDIDATES = 256  # top-p rarely needs more; widened until it has enough


class Sampler:
    """The state of one request: token counts, random generator."""

    def __init__(self, request: Request, vocab_size: int) -> None:
        self._params = request.sampling
        self._end_id = request.end_id
        self._prompt_length = len(request.prompt_ids)
        self._random = np.random.Generator(np.random.PCG64(self._params.seed))
        p = self._params
        self._penalizes = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        self._greedy = p.top_k == 1 or (p.top_k == 0 and p.top_p == 0 and p.min_p == 0)
        self._counts = np.zeros(vocab_size if self._penalizes else 0, np.int32)
        for token in request.prompt_ids if self._penalizes else ():
            self._counts[token] += 1

    def sample(self, logits: NDArray[Any], tokens: list[int]) -> tuple[int, float | None]:
        """The next token and, if asked for, its log probability under the plain softmax of `logits` [vocab].

        `tokens` are prompt and generated tokens so far. Raises ValueError when every token is forbidden or not finite.
        """
        row = self._processed(logits, tokens)
        if not np.isfinite(row.max()):
            raise ValueError("no token has a finite logit: the weights are damaged, or all tokens are forbidden")
        token = int(row.argmax()) if self._greedy else self._draw(row)
        if self._penalizes:
            self._counts[token] += 1
        return token, _log_prob(logits, token) if self._params.return_log_probs else None

    def _processed(self, logits: NDArray[Any], tokens: list[int]) -> NDArray[Any]:
        p = self._params
        row = logits
        if p.temperature != 1:
            row = row / np.float32(p.temperature)
        if self._penalizes:
            row = row.copy() if row is logits else row
            seen = self._counts.nonzero()[0]
            values = row[seen]
            values = np.where(
                values < 0, values * np.float32(p.repetition_penalty), values / np.float32(p.repetition_penalty)
            )
            row[seen] = values - np.float32(p.presence_penalty) - np.float32(p.frequency_penalty) * self._counts[seen]
        forbidden = self._forbidden(tokens)
        if forbidden:
            row = row.copy() if row is logits else row
            row[forbidden] = -np.inf
        return row

    def _forbidden(self, tokens: list[int]) -> list[int]:
        """The end token below min_tokens, and the last token of every bad word whose beginning was just generated."""
        forbidden = (
            [self._end_id] if len(tokens) - self._prompt_length < self._params.min_tokens and self._end_id >= 0 else []
        )
        for word in self._params.bad_words:
            if len(word) == 1 or tuple(tokens[-len(word) + 1 :]) == word[:-1]:
                forbidden.append(word[-1])
        return forbidden

    def _draw(self, row: NDArray[Any]) -> int:
        candidates, probs = self._candidates(row)
        p = self._params
        if p.top_p:
            # the token that crosses top_p still belongs to the set
            before = np.cumsum(probs) - probs
            probs = np.where(before < p.top_p, probs, 0)
        if p.min_p:
            probs = np.where(probs >= p.min_p * probs[0], probs, 0)
        edges = np.cumsum(probs)
        at = int(np.searchsorted(edges, self._random.random() * edges[-1], side="right"))
        return int(candidates[min(at, int(np.flatnonzero(probs)[-1]))])

    def _candidates(self, row: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Token ids and probabilities in falling order: the top k, or as many as top-p or min-p can need."""
        p, size = self._params, len(row)
        weights = np.exp((row - row.max()).astype(np.float64))
        count = min(p.top_k, size) if p.top_k else min(_FIRST_CANDIDATES, size)
        while True:
            ids = np.argpartition(-row, count - 1)[:count] if count < size else np.arange(size)
            ids = ids[np.lexsort((ids, -row[ids]))]
            probs = weights[ids] / (weights[ids].sum() if p.top_k else weights.sum())
            enough = (
                p.top_k
                or count == size
                or (0 < p.top_p < 1 and probs.sum() >= p.top_p)
                or probs[-1] < p.min_p * probs[0]
            )
            if enough:
                return ids, probs
            count = min(size, count * 8)


def _log_prob(logits: NDArray[Any], token: int) -> float:
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp((logits - top).astype(np.float64)).sum()))
