"""Inflight batching over a paged KV cache: which tokens of which sequences make the next step. No arrays, no clock.

Policy GUARANTEED_NO_EVICT, TensorRT-LLM's default: a request is admitted when the pool has blocks for its prompt and
all tokens that it may generate, first come first served, so that nothing in flight is ever thrown out. Each step
first takes one token of every sequence that generates, then fills the rest of `max_num_tokens` with prompt chunks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trtbuild.errors import RequestError
from trtbuild.runtime.request import Request


@dataclass
class Sequence:
    """A request in flight: `tokens` are prompt and generated ones, `computed` of them are in the cache."""

    request: Request
    limit: int  # length at which it must stop
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence from position `start`; `last` if its next token is to be sampled."""

    sequence: Sequence
    start: int
    count: int

    @property
    def last(self) -> bool:
        return self.start + self.count == len(self.sequence.tokens)


def check_request(request: Request, vocab_size: int, max_seq_len: int) -> None:
    """Refuse what an engine of these limits cannot serve.

    Raises:
        RequestError: an empty or over-long prompt, ids outside the vocabulary, or no token asked for.
    """
    length = len(request.prompt_ids)
    if not length:
        raise RequestError("the prompt is empty: at least one token is needed")
    if length >= max_seq_len:
        raise RequestError(f"prompt length {length} leaves no room in the maximum sequence length {max_seq_len}")
    if request.max_new_tokens < 1:
        raise RequestError(f"max_tokens {request.max_new_tokens} must be at least 1")
    if request.end_id >= vocab_size:
        raise RequestError(f"end_id {request.end_id} is outside the vocabulary of {vocab_size}")
    if wrong := [token for token in request.prompt_ids if not 0 <= token < vocab_size]:
        raise RequestError(f"token id {wrong[0]} is outside the vocabulary of {vocab_size}")
    for word in (*request.sampling.stop_words, *request.sampling.bad_words):
        if not word or not all(0 <= token < vocab_size for token in word):
            raise RequestError(f"stop or bad word {list(word)} is empty or outside the vocabulary of {vocab_size}")


class BlockPool:
    """Free blocks of the KV cache, by number."""

    def __init__(self, num_blocks: int) -> None:
        self.total = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the last one given back is the first to be taken: it is warm

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(blocks)


class Scheduler:
    """Waiting and active sequences, and the blocks that active ones hold."""

    def __init__(
        self, *, max_batch_size: int, max_seq_len: int, max_num_tokens: int, num_blocks: int, block_tokens: int
    ) -> None:
        self.max_seq_len = min(max_seq_len, num_blocks * block_tokens)
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.block_tokens = block_tokens
        self.pool = BlockPool(num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.active: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}

    def add(self, request: Request, vocab_size: int) -> Sequence:
        """Queue a request; a huge `max_new_tokens` is cut to what the context still holds.

        Raises:
            RequestError: what `check_request` refuses, or an id in use.
        """
        check_request(request, vocab_size, self.max_seq_len)
        if request.request_id in self._by_id:
            raise RequestError(f"request id {request.request_id!r} is in use")
        limit = min(len(request.prompt_ids) + request.max_new_tokens, self.max_seq_len)
        sequence = Sequence(request, limit, list(request.prompt_ids))
        self._by_id[request.request_id] = sequence
        self.waiting.append(sequence)
        return sequence

    def find(self, request_id: str) -> Sequence | None:
        return self._by_id.get(request_id)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; empty when there is nothing to do."""
        self._admit()
        budget = self.max_num_tokens
        chunks = []
        generating = [s for s in self.active if len(s.tokens) - s.computed == 1]
        prefilling = [s for s in self.active if len(s.tokens) - s.computed > 1]
        for sequence in generating + prefilling:
            count = min(len(sequence.tokens) - sequence.computed, budget)
            if count:
                chunks.append(Chunk(sequence, sequence.computed, count))
                budget -= count
        return chunks

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        del self._by_id[sequence.request.request_id]
        if not sequence.blocks:
            self.waiting.remove(sequence)
            return
        self.active.remove(sequence)
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []

    def _admit(self) -> None:
        while self.waiting and len(self.active) < self.max_batch_size:
            needed = -(-self.waiting[0].limit // self.block_tokens)
            if needed > self.pool.free:
                return
            sequence = self.waiting.popleft()
            sequence.blocks = self.pool.take(needed)
            self.active.append(sequence)
