"""Rank 0 of an engine: takes requests, runs steps over all ranks, gives tokens back. One thread; no I/O but MPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trtbuild.errors import RequestError
from trtbuild.runtime.comm import Comm
from trtbuild.runtime.executor import Batch
from trtbuild.runtime.info import TOKENS_PER_BLOCK, EngineInfo, RuntimeOptions, default_kv_blocks, read_engine
from trtbuild.runtime.model import RankModel
from trtbuild.runtime.request import FinishReason, Output, Request
from trtbuild.runtime.sampling import Sampler
from trtbuild.runtime.scheduler import Chunk, Scheduler, Sequence

if TYPE_CHECKING:
    from mpi4py.MPI import Comm as MpiComm

STOP = np.zeros(0, np.int32)  # the message that ends the other ranks


class Generator:
    """Inflight batching over one engine: `add`, `cancel`, then `step` until nothing is open."""

    def __init__(self, engine_dir: Path, options: RuntimeOptions | None = None, world: MpiComm | None = None) -> None:
        options = options or RuntimeOptions()
        info = read_engine(engine_dir)
        if world is None and info.mapping().world_size > 1:
            raise RequestError(f"engine {engine_dir} has {info.mapping().world_size} ranks: start it as a RankGroup")
        self.model, limit = load_rank(info, 0, options, world)
        self.scheduler = Scheduler(
            max_batch_size=limit.max_batch_size,
            max_seq_len=info.build["max_seq_len"],
            max_num_tokens=info.build["max_num_tokens"],
            num_blocks=limit.kv_blocks,
            block_tokens=TOKENS_PER_BLOCK,
        )
        self.vocab_size: int = info.pretrained["vocab_size"]
        self.iterations = 0
        self._samplers: dict[str, Sampler] = {}

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError for what this engine cannot serve; others in flight are untouched."""
        self.scheduler.add(request, self.vocab_size)
        self._samplers[request.request_id] = Sampler(request, self.vocab_size)

    def cancel(self, request_id: str) -> Output | None:
        """Take a request out; its blocks are free at once. None when it is not (or no longer) open."""
        sequence = self.scheduler.find(request_id)
        if sequence is None:
            return None
        self._close(sequence)
        return Output(request_id, finish_reason="cancelled")

    @property
    def open_requests(self) -> int:
        return len(self.scheduler.active) + len(self.scheduler.waiting)

    def step(self) -> list[Output]:
        """Run one step and return what it produced; an empty list when nothing is open."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        batch = make_batch(chunks, self.scheduler.block_tokens)
        self.model.comm.announce(pack_batch(batch))
        self.model.forward(batch)
        self.iterations += 1
        logits = self.model.logits(batch.num_rows)
        outputs = []
        rows = iter(logits)
        for chunk in chunks:
            last = chunk.last
            chunk.sequence.computed += chunk.count
            if last:
                outputs.append(self._next_token(chunk.sequence, next(rows)))
        return outputs

    def generate(self, requests: list[Request]) -> dict[str, list[Output]]:
        """Run requests to their end, all in flight together; outputs by request id."""
        collected: dict[str, list[Output]] = {request.request_id: [] for request in requests}
        for request in requests:
            self.add(request)
        while self.open_requests:
            for output in self.step():
                collected[output.request_id].append(output)
        return collected

    def score(self, tokens: list[int]) -> NDArray[Any]:
        """Logits after every one of `tokens`, float32 [len(tokens), vocab_size], on blocks that are free now.

        Raises:
            RequestError: no tokens, more than the context or the free blocks hold, or ids outside the vocabulary.
        """
        needed, free = -(-len(tokens) // self.scheduler.block_tokens), self.scheduler.pool.free
        if not 0 < len(tokens) <= self.scheduler.max_seq_len or needed > free:
            raise RequestError(f"{len(tokens)} tokens cannot be scored at once: {needed} KV blocks needed, {free} free")
        if not all(0 <= token < self.vocab_size for token in tokens):
            raise RequestError(f"a token id is outside the vocabulary of {self.vocab_size}")
        blocks = self.scheduler.pool.take(needed)
        sequence = Sequence(Request("", tuple(tokens), 1), len(tokens), list(tokens), blocks=blocks)
        pieces = []
        try:
            for start in range(0, len(tokens), self.scheduler.max_num_tokens):
                chunk = Chunk(sequence, start, min(self.scheduler.max_num_tokens, len(tokens) - start))
                batch = make_batch([chunk], self.scheduler.block_tokens)
                batch.rows = torch.arange(chunk.count, dtype=torch.int32)
                self.model.comm.announce(pack_batch(batch))
                self.model.forward(batch)
                pieces.append(self.model.logits(batch.num_rows).copy())
        finally:
            self.scheduler.pool.give_back(blocks)
        return np.concatenate(pieces)

    def stats(self) -> dict[str, int]:
        """Counters, named after TensorRT-LLM's metrics where it has them."""
        pool = self.scheduler.pool
        return {
            "kv_blocks_total": pool.total,
            "kv_blocks_used": pool.total - pool.free,
            "kv_blocks_free": pool.free,
            "tokens_per_block": self.scheduler.block_tokens,
            "active_requests": len(self.scheduler.active),
            "queued_requests": len(self.scheduler.waiting),
            "max_batch_size": self.scheduler.max_batch_size,
            "iterations": self.iterations,
        }

    def close(self) -> None:
        """End the other ranks."""
        self.model.comm.announce(STOP)

    def _next_token(self, sequence: Sequence, logits: NDArray[Any]) -> Output:
        request = sequence.request
        try:
            token, log_prob = self._samplers[request.request_id].sample(logits, sequence.tokens)
        except ValueError as error:
            self._close(sequence)
            return Output(request.request_id, finish_reason="error", error=str(error))
        if token == request.end_id:
            self._close(sequence)
            return Output(request.request_id, finish_reason="end_id")
        sequence.tokens.append(token)
        if len(sequence.tokens) - 1 == self.model.program.features.rope_switch:
            # Long rope changes its table for the whole sequence, so all keys are made again, as transformers does.
            sequence.computed = 0
        reason = _finish_reason(sequence)
        if reason:
            self._close(sequence)
        return Output(request.request_id, [token], [] if log_prob is None else [log_prob], reason)

    def _close(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        del self._samplers[sequence.request.request_id]


@dataclass(frozen=True)
class Limits:
    max_batch_size: int
    kv_blocks: int


def load_rank(info: EngineInfo, rank: int, options: RuntimeOptions, world: MpiComm | None) -> tuple[RankModel, Limits]:
    """One rank's model. Rank 0 decides the limits, so that all ranks agree on block numbers."""
    engine_batch: int = info.build["max_batch_size"]
    batch_size = min(options.max_batch_size or engine_batch, engine_batch)
    blocks = default_kv_blocks(info, batch_size, options.max_tokens_in_paged_kv_cache)
    if world is not None:
        blocks = world.bcast(blocks, root=0)
    comm = Comm(info.mapping(rank), world)
    model = RankModel(info, comm, max_batch_size=batch_size, kv_blocks=blocks, executor=options.executor)
    return model, Limits(batch_size, blocks)


def follow(model: RankModel) -> None:
    """What every rank but 0 does: run the steps that rank 0 announces, until it says stop."""
    while len(message := model.comm.listen()):
        model.forward(unpack_batch(message))


def make_batch(chunks: list[Chunk], block_tokens: int) -> Batch:
    """The arrays of a step; sequences are numbered 0.. in the order of `chunks`."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    rows: list[int] = []
    width = max(-(-(chunk.start + chunk.count) // block_tokens) for chunk in chunks)
    tables = np.zeros((len(chunks), width), np.int32)
    for slot, chunk in enumerate(chunks):
        end = chunk.start + chunk.count
        ids += chunk.sequence.tokens[chunk.start : end]
        positions += range(chunk.start, end)
        slots += [slot] * chunk.count
        used = chunk.sequence.blocks[: -(-end // block_tokens)]
        tables[slot, : len(used)] = used
        if chunk.last:
            rows.append(len(ids) - 1)
    return Batch(
        token_ids=torch.tensor(ids, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.tensor(slots, dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
        rows=torch.tensor(rows, dtype=torch.int32),
        lengths=torch.tensor([len(chunk.sequence.tokens) for chunk in chunks], dtype=torch.int32),
    )


def pack_batch(batch: Batch) -> NDArray[Any]:
    """A step as one int32 message: T, R, table rows and width, then the six arrays."""
    sizes = torch.tensor([batch.num_tokens, batch.num_rows, *batch.block_tables.shape], dtype=torch.int32)
    arrays = (batch.token_ids, batch.positions, batch.slots, batch.rows, batch.block_tables.flatten(), batch.lengths)
    message: NDArray[Any] = torch.cat([sizes, *arrays]).numpy()
    return message


def unpack_batch(message: NDArray[Any]) -> Batch:
    tokens, rows, slots, width = message[:4].tolist()
    arrays = torch.from_numpy(message[4:]).split([tokens, tokens, tokens, rows, slots * width, slots])
    ids, positions, slot_of, wanted, tables, lengths = arrays
    return Batch(ids, positions, slot_of, tables.view(slots, width), wanted, lengths)


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    generated = len(sequence.tokens) - len(sequence.request.prompt_ids)
    for word in sequence.request.sampling.stop_words:
        if generated >= len(word) and tuple(sequence.tokens[-len(word) :]) == word:
            return "stop_words"
    return "length" if len(sequence.tokens) >= sequence.limit else None
