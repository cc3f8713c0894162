"""One decoder layer at a time, in float32, over whole sequences: what calibration runs instead of the whole model.

The operations are those of the model's program, and the torch executor performs them; only the order differs: every
sequence passes a layer before the next layer's weights are read, so one block is in memory at a time. Hidden states
[sequences, T, H] between layers belong to the caller. A step is one sequence, which is ModelOpt's batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.alibi import position_bias
from trtbuild.runtime.architectures import require_seq_len
from trtbuild.runtime.executor import Batch, State, TorchExecutor
from trtbuild.runtime.features import Position
from trtbuild.runtime.forms import KV_ROUND
from trtbuild.runtime.info import TOKENS_PER_BLOCK, default_threads
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight
from trtbuild.runtime.program import build_program
from trtbuild.runtime.rope import rope_tables


class Tap(Protocol):
    """Hears what one step computes; `module` is an engine weight's name inside its layer ("attention.qkv").

    Tensors are buffers that the next operation overwrites: keep numbers, not views.
    """

    def linear(self, module: str, x: torch.Tensor) -> None:
        """x [T, in] enters a linear."""

    def experts(self, module: str, xs: Sequence[torch.Tensor]) -> None:
        """xs[e] [tokens routed to expert e, in] enters the linear of expert e."""

    def keys_values(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """k and v [T, kv features] as the qkv linear gives them."""


@dataclass(frozen=True)
class Linear:
    """A quantizable linear of a layer as the program has it: `modules` are the checkpoint's ("mlp.fc", "mlp.gate").

    `parts`: outputs of each part that lies stacked in the weight; `experts`: the weight is [experts, out, in].
    """

    name: str
    modules: tuple[str, ...]
    parts: tuple[int, ...]
    in_features: int
    experts: int = 0


class Blockwise:
    """The program of a model of one rank, cut into embedding, layers and head.

    `config` is a TensorRT-LLM checkpoint config, whose quantization is not looked at: weights are plain. `length` is T,
    the tokens of every sequence. The methods take weights by their checkpoint names (any float dtype; only those of the
    block).

    Raises:
        EngineError: the runtime cannot execute the model, or it has no position for the last token.
    """

    def __init__(self, config: dict[str, Any], length: int) -> None:
        self.length = length
        self.program = build_program({**config, "quantization": None}, Mapping())
        features, shapes = self.program.features, self.program.shapes
        require_seq_len(features, length)
        self.num_layers: int = config["num_hidden_layers"]
        self._embedding, self._layers, self._head = _cut(self.program.ops, self.num_layers)
        self._cos, self._sin = rope_tables(features.ropes, features.rotary_size, length)
        blocks = -(-length // TOKENS_PER_BLOCK)
        self._bias = None
        if features.position is Position.ALIBI:
            heads, whole = shapes.num_heads, blocks * TOKENS_PER_BLOCK
            self._bias = position_bias(
                heads, range(heads), whole, scale=features.alibi_scale, rounded=features.alibi_rounded
            )
        self._buffers: dict[Buffer, torch.Tensor] = {
            buffer: torch.zeros(length, width) for buffer, width in shapes.widths().items()
        }
        del self._buffers[Buffer.LOGITS]  # as wide as the vocabulary, and only `head` needs it
        cache = (1, blocks, shapes.num_kv_heads)
        self._keys = torch.zeros(*cache, shapes.head_size, TOKENS_PER_BLOCK)
        self._values = torch.zeros(*cache, TOKENS_PER_BLOCK, shapes.head_size)
        self._tables = torch.arange(blocks, dtype=torch.int32)[None]

    def linears(self, layer: int) -> tuple[Linear, ...]:
        """The quantizable linears of a layer, in the order in which they run."""
        base, s = f"transformer.layers.{layer}.", self.program.shapes
        found = []
        for weight in self._weights_of(base):
            if not weight.quantized:
                continue
            modules = tuple(_module(name, base) for name in weight.sources)
            *stack, out, in_ = weight.shape
            parts = tuple(out // len(modules) for _ in modules)
            if modules == ("attention.qkv",):
                parts = tuple(heads * s.head_size for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads))
            found.append(Linear(_module(weight.name, base), modules, parts, in_, *stack))
        return tuple(found)

    def embed(self, token_ids: torch.Tensor, weights: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states [T, H] before the first layer, of token ids [T]."""
        self._executor(self._stacked("transformer.", weights)).run(self._embedding, self._batch(token_ids))
        return self._buffers[Buffer.X].clone()

    def layer(self, layer: int, weights: Dict[str, torch.Tensor]) -> LayerRun:
        """A layer, ready to run on sequences; its float32 weights stay in memory until the result is dropped."""
        base = f"transformer.layers.{layer}."
        return LayerRun(self, self._stacked(base, weights), base, self._layers[layer])

    def head(self, hidden: torch.Tensor, weights: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [T, vocabulary] of hidden states [T, H] after the last layer."""
        self._buffers[Buffer.LOGITS] = torch.zeros(self.length, self.program.shapes.vocab_rows)
        self._buffers[Buffer.X].copy_(hidden)
        self._executor(self._stacked("", weights)).run(self._head, self._batch())
        return self._buffers.pop(Buffer.LOGITS)[:, : self.program.shapes.vocab_size]

    def head_input(self, hidden: torch.Tensor, weights: Dict[str, torch.Tensor]) -> torch.Tensor:
        """What enters lm_head, [T, H], of hidden states [T, H] after the last layer; a buffer. Needs the last norm."""
        stop = next(i for i, op in enumerate(self._head) if op.weight == "lm_head.weight")
        self._buffers[Buffer.X].copy_(hidden)
        self._executor(self._stacked("transformer.", weights)).run(self._head[:stop], self._batch())
        return self._buffers[self._head[stop].in_]

    def run(self, ops: Sequence[Op], weights: dict[str, torch.Tensor], hidden: torch.Tensor, tap: Tap | None,
            base: str) -> torch.Tensor:  # fmt: skip
        """Run operations from X = `hidden` [T, H] on; returns X, a buffer."""
        self._buffers[Buffer.X].copy_(hidden)
        self._executor(weights, tap, base).run(ops, self._batch())
        return self._buffers[Buffer.X]

    def _executor(self, weights: dict[str, torch.Tensor], tap: Tap | None = None, base: str = "") -> TorchExecutor:
        state = State(
            self.program,
            weights,
            self._buffers,
            self._keys,
            self._values,
            self._cos,
            self._sin,
            TOKENS_PER_BLOCK,
            self._bias,
        )
        return _Tapped(state, default_threads(1), tap, base) if tap else TorchExecutor(state, default_threads(1))

    def _batch(self, token_ids: torch.Tensor | None = None) -> Batch:
        positions = torch.arange(self.length, dtype=torch.int32)
        return Batch(
            token_ids=positions if token_ids is None else token_ids.to(torch.int32),
            positions=positions,
            slots=torch.zeros_like(positions),
            block_tables=self._tables,
            rows=positions,
            lengths=torch.tensor([self.length], dtype=torch.int32),
        )

    def _weights_of(self, base: str) -> list[Weight]:
        return [weight for weight in self.program.weights if weight.name.startswith(base)]

    def _stacked(self, base: str, weights: Dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Engine weights (float32) of what `weights` holds, of names that begin with `base`."""
        found = {}
        for weight in self._weights_of(base):
            if not all(name in weights for name in weight.sources):
                continue
            parts = [weights[name] for name in weight.sources]
            tensor = (parts[0] if len(parts) == 1 else torch.cat(parts)).float()
            if tuple(tensor.shape) != weight.shape:
                raise EngineError(f"{weight.name} has shape {tuple(tensor.shape)}, expected {weight.shape}")
            found[weight.name] = tensor
        return found


@dataclass(frozen=True)
class LayerRun:
    """One layer with its weights."""

    owner: Blockwise
    weights: dict[str, torch.Tensor]
    base: str
    ops: tuple[Op, ...]

    def run(self, hidden: torch.Tensor, tap: Tap | None = None) -> torch.Tensor:
        """Hidden states [T, H] of one sequence after this layer; a buffer, valid until the next run."""
        return self.owner.run(self.ops, self.weights, hidden, tap, self.base)

    def with_cache(self, algo: str, scale: torch.Tensor) -> LayerRun:
        """The layer with keys and values as a cache of `algo` INT8 or FP8 holds them; shares this one's weights."""
        name = f"{self.base}attention.kv_cache_scaling_factor"
        ops = (replace(op, weight=name, act=KV_ROUND[algo]) if op.kind is Kind.ROPE_CACHE else op for op in self.ops)
        return replace(self, weights={**self.weights, name: scale}, ops=tuple(ops))


class _Tapped(TorchExecutor):
    """The torch executor with an ear at every linear."""

    def __init__(self, state: State, num_threads: int, tap: Tap, base: str) -> None:
        super().__init__(state, num_threads)
        self._tap, self._base = tap, base

    def _linear(self, op: Op, batch: Batch) -> None:
        module = _module(op.weight, self._base)
        self._tap.linear(module, self._get(op.in_, batch.num_tokens))
        super()._linear(op, batch)
        if module == "attention.qkv":
            s, out = self._shapes, self._get(op.out, batch.num_tokens)
            sizes = [heads * s.head_size for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads)]
            _, k, v = out[:, : sum(sizes)].split(sizes, dim=1)
            self._tap.keys_values(k, v)

    def _expert_linear(self, op: Op, batch: Batch) -> None:
        tokens, _, counts = self._routes(op, batch)
        self._tap.experts(_module(op.weight, self._base), self._pairs(op.in_, len(tokens), op.k).split(counts))
        super()._expert_linear(op, batch)


def _module(weight: str, base: str) -> str:
    return weight.removeprefix(base).removesuffix(".weight")


def _cut(ops: tuple[Op, ...], num_layers: int) -> tuple[tuple[Op, ...], list[tuple[Op, ...]], tuple[Op, ...]]:
    """(embedding, layers, head). A layer ends with its summand added, so that X alone passes on to the next."""
    starts = [
        next(i for i, op in enumerate(ops) if op.weight.startswith(f"transformer.layers.{layer}."))
        for layer in range(num_layers)
    ]
    head = next(i for i, op in enumerate(ops) if op.kind is Kind.TAKE_ROWS)
    add = ops[head - 1]
    layers = []
    for start, stop in zip(starts, [*starts[1:], head - 1], strict=True):
        first = replace(ops[start], in2=None)
        layers.append(tuple(replace(op, layer=0) for op in (first, *ops[start + 1 : stop], add)))
    return ops[: starts[0]], layers, tuple(op for op in ops[head:] if op.kind < Kind.ALL_REDUCE)
