"""Runs checkpoints of encoders and encoder-decoders, in float32, to prove their numbers. Not a server.

The cpu engine generates with decoder-only models; for BERT, RoBERTa and T5 this small executor runs the rank files
as they are: tensor parallel, and for T5 in pipeline stages, one process a rank, one sequence at a time and without a
cache. Row-parallel linears end in an all-reduce, and their bias, which every rank holds, is added once after it.

    mpirun -n 4 python -m trtbuild.runtime.encoder jobs.json

jobs.json is a list of {"checkpoint", "output", "input_ids", and where wanted "token_type_ids", "decoder_ids",
"new_tokens"}; a job runs on the first tp x pp of the ranks and writes `output`, an .npz file (`run` says what).

Shapes: T tokens, S tokens of the encoder, H hidden, h heads of this rank, d head size, V vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trtbuild.mapping import Mapping
from trtbuild.runtime.comm import Comm

# Hugging Face's meaning of each name; TensorRT-LLM has one gelu, the tanh form.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "gelu": functional.gelu,
    **{
        name: lambda x: functional.gelu(x, approximate="tanh")
        for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
    },
}


class Rank:
    """The tensors of one rank of a checkpoint folder, and the operations that need the other ranks."""

    def __init__(self, folder: Path, mapping: Mapping, comm: Comm) -> None:
        from safetensors.torch import load_file

        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.mapping, self.comm = mapping, comm
        self.weights = {name: t.float() for name, t in load_file(folder / f"rank{mapping.rank}.safetensors").items()}
        self.layers = len(mapping.layers(self.config["num_hidden_layers"]))
        self.heads = self.config["num_attention_heads"] // mapping.tp_size
        self.head_size = self.config["head_size"]
        self.act = ACTIVATIONS[self.config["hidden_act"]]

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.weights

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x [T, in] -> [T, out of this rank]."""
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def row_linear(self, x: Tensor, name: str) -> Tensor:
        """x [T, in of this rank] -> [T, out], summed over the tensor-parallel ranks."""
        total = self.all_reduce(x @ self.weights[f"{name}.weight"].T)
        return total + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else total

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self.comm.all_reduce(x.numpy())
        return x

    def embed(self, ids: Sequence[int], name: str) -> Tensor:
        """Rows of a table [T, H] that may be shared among the ranks, by rows or by columns."""
        table, index = self.weights[f"{name}.weight"], torch.tensor(ids)
        if not self.config["use_parallel_embedding"] or self.mapping.tp_size == 1:
            return table[index]
        x = torch.zeros(len(ids), self.config["hidden_size"])
        if self.config["embedding_sharding_dim"]:
            x.view(len(ids), self.mapping.tp_size, -1)[:, self.mapping.tp_rank] = table[index]
        else:
            local = index - self.mapping.tp_rank * len(table)
            mine = (local >= 0) & (local < len(table))
            x[mine] = table[local[mine]]
        return self.all_reduce(x)

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self.config["norm_epsilon"])

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return functional.rms_norm(x, weight.shape, weight, self.config["norm_epsilon"])

    def split_heads(self, x: Tensor) -> list[Tensor]:
        """Stacked projections [T, n h d] -> n x [T, h, d]."""
        return list(x.view(len(x), -1, self.heads, self.head_size).unbind(1))


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q [T, h, d], k and v [S, h, d], bias [h, T, S] -> [T, h d]."""
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).reshape(len(q), -1)


def buckets(queries: int, keys: int, count: int, max_distance: int, *, causal: bool) -> Tensor:
    """T5's bucket of each (query, key) distance, int64 [queries, keys].

    Half of the buckets are single distances, the others grow with the logarithm up to `max_distance`; an encoder has
    one half of all buckets for keys before the query and one for those after it (T5 paper, section 2.1).
    """
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    base: Tensor | int = 0
    if causal:
        distance = (-distance).clamp(min=0)
    else:
        count //= 2
        base = (distance > 0) * count
        distance = distance.abs()
    exact = count // 2
    grown = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (count - exact)
    far = (exact + grown.long()).clamp(max=count - 1)
    return torch.where(distance < exact, distance, far) + base


class Bert:
    """BERT and RoBERTa: what the checkpoint's head gives, or the hidden states where it has none."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._prefix = "bert." if rank.has("bert.embedding.vocab_embedding") else ""

    def __call__(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Tensor:
        """Hidden states [T, H], answer scores [T, labels], or class scores [labels]."""
        rank = self._rank
        x = self.hidden_states(ids, types or [0] * len(ids))
        if rank.has("qa_outputs"):
            return rank.linear(x, "qa_outputs")
        if rank.has("classifier.out_proj"):
            return rank.linear(rank.linear(x[:1], "classifier.dense").tanh(), "classifier.out_proj")[0]
        if rank.has("classifier"):
            return rank.linear(rank.linear(x[:1], "pooler.dense").tanh(), "classifier")[0]
        return x

    def hidden_states(self, ids: Sequence[int], types: Sequence[int]) -> Tensor:
        rank, into = self._rank, f"{self._prefix}embedding."
        # RoBERTa's positions start after that of the padding token.
        first = rank.config["pad_token_id"] + 1 if rank.config["is_roberta"] else 0
        positions = range(first, first + len(ids))
        x = rank.embed(ids, into + "vocab_embedding")
        x = x + rank.embed(positions, into + "position_embedding") + rank.embed(types, into + "token_embedding")
        x = rank.layer_norm(x, into + "embedding_ln")
        for layer in range(rank.layers):
            at = f"{self._prefix}layers.{layer}."
            q, k, v = rank.split_heads(rank.linear(x, at + "attention.qkv"))
            mixed = attention(q, k, v, rank.head_size**-0.5)
            x = rank.layer_norm(x + rank.row_linear(mixed, at + "attention.dense"), at + "input_layernorm")
            inner = rank.act(rank.linear(x, at + "mlp.fc"))
            x = rank.layer_norm(x + rank.row_linear(inner, at + "mlp.proj"), at + "post_layernorm")
        return x


class T5Stack:
    """One half of T5, with hidden states handed on from pipeline stage to pipeline stage."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._is_decoder = "rel_attn_table" in rank.weights
        # TensorRT-LLM divides scores by sqrt(head size) x q_scaling.
        self._scale = 1 / (math.sqrt(rank.head_size) * rank.config["q_scaling"])

    def __call__(self, ids: Sequence[int], encoded: Tensor | None = None) -> Tensor:
        """Hidden states [T, H] after this stage; normed on the last one. `encoded` [S, H] is the encoder's output."""
        rank, comm = self._rank, self._rank.comm
        if rank.mapping.is_first_stage:
            x = rank.embed(ids, "transformer.vocab_embedding")
        else:
            x = torch.empty(len(ids), rank.config["hidden_size"])
            comm.receive_hidden(x.numpy())
        for layer in range(rank.layers):
            x = self._layer(x, f"transformer.layers.{layer}.", encoded)
        if rank.mapping.is_last_stage:
            return rank.rms_norm(x, "transformer.ln_f")
        comm.send_hidden(x.numpy())
        return x

    def _layer(self, x: Tensor, at: str, encoded: Tensor | None) -> Tensor:
        rank, own = self._rank, "self_attention" if self._is_decoder else "attention"
        y = rank.rms_norm(x, f"{at}{own}_layernorm")
        q, k, v = rank.split_heads(rank.linear(y, f"{at}{own}.qkv"))
        mixed = attention(q, k, v, self._scale, self._bias(rank.weights[f"{at}{own}.rel_attn_table"], len(x)))
        x = x + rank.row_linear(mixed, f"{at}{own}.dense")
        if encoded is not None:
            y = rank.rms_norm(x, f"{at}cross_attention_layernorm")
            # One stacked weight, of which queries come from here, keys and values from the encoder.
            q = rank.split_heads(rank.linear(y, f"{at}cross_attention.qkv"))[0]
            _, k, v = rank.split_heads(rank.linear(encoded, f"{at}cross_attention.qkv"))
            x = x + rank.row_linear(attention(q, k, v, self._scale), f"{at}cross_attention.dense")
        y = rank.rms_norm(x, f"{at}mlp_layernorm")
        inner = rank.act(rank.linear(y, f"{at}mlp.fc"))
        if rank.has(f"{at}mlp.gate"):
            inner = inner * rank.linear(y, f"{at}mlp.gate")
        return x + rank.row_linear(inner, f"{at}mlp.proj")

    def _bias(self, table: Tensor, tokens: int) -> Tensor:
        """Relative attention bias [h, T, T] from a table [h, buckets]; a decoder sees no later token."""
        config = self._rank.config
        found = buckets(tokens, tokens, config["num_buckets"], config["max_distance"], causal=self._is_decoder)
        bias = table[:, found]
        future = torch.ones(tokens, tokens).triu(1).bool()
        return bias.masked_fill(future, -torch.inf) if self._is_decoder else bias


class T5:
    """Encoder and decoder of one rank."""

    def __init__(self, encoder: Rank, decoder: Rank) -> None:
        self._encoder, self._decoder = T5Stack(encoder), T5Stack(decoder)
        self._rank, self._comm = decoder, decoder.comm

    def encode(self, ids: Sequence[int]) -> Tensor:
        """The encoder's output [S, H], on every rank of every stage."""
        x = self._encoder(ids)
        self._comm.broadcast_hidden(x.numpy())
        return x

    def logits(self, ids: Sequence[int], encoded: Tensor, *, last_only: bool = False) -> Tensor:
        """Scores [T, V] (last_only: [1, V]) of the next token after each of `ids`; on rank 0, elsewhere empty."""
        rank, config = self._rank, self._rank.config
        x = self._decoder(ids, encoded)
        x = x[-1:] if last_only else x
        if rank.mapping.is_last_stage:
            scale = config["hidden_size"] ** -0.5 if config["rescale_before_lm_head"] else 1.0
            self._comm.gather_logits(rank.linear(x * scale, "lm_head").numpy())
        if rank.mapping.rank:
            return torch.empty(0)
        vocab = config["vocab_size"]
        return torch.from_numpy(self._comm.logits(len(x), -(-vocab // rank.mapping.tp_size)))[:, :vocab]

    def generate(self, encoded: Tensor, count: int) -> list[int]:
        """The most likely next token, `count` times or up to the end token; the start token is not in the answer."""
        config = self._rank.config
        ids = [int(config["decoder_start_token_id"])]
        while len(ids) <= count and not (len(ids) > 1 and ids[-1] == config["eos_token_id"]):
            logits = self.logits(ids, encoded, last_only=True)
            if self._rank.mapping.rank == 0:
                chosen = logits.argmax(-1).numpy().astype(np.int32)
                self._comm.announce(chosen)
            else:
                chosen = self._comm.listen()
            ids.append(int(chosen[0]))
        return ids[1:]


def run(job: dict[str, Any], world: Any) -> dict[str, NDArray[Any]]:
    """Do one job on the ranks of `world` (None: alone); the results are whole on rank 0.

    "output" of an encoder; of an encoder-decoder "encoded" [S, H], "logits" [T, V] after `decoder_ids` and greedy
    "tokens".
    """
    folder = Path(job["checkpoint"])
    halves = [folder / half for half in ("encoder", "decoder") if (folder / half).is_dir()]
    mapping = _mapping(folder, world.Get_rank() if world is not None else 0)
    comm = Comm(mapping, world)
    with torch.inference_mode():
        if not halves:
            model = Bert(Rank(folder, mapping, comm))
            return {"output": model(job["input_ids"], job.get("token_type_ids")).numpy()}
        encoder, decoder = (Rank(half, mapping, comm) for half in halves)
        t5 = T5(encoder, decoder)
        encoded = t5.encode(job["input_ids"])
        logits = t5.logits(job["decoder_ids"], encoded)
        tokens = t5.generate(encoded, job["new_tokens"])
        return {"encoded": encoded.numpy(), "logits": logits.numpy(), "tokens": np.array(tokens)}


def _mapping(folder: Path, rank: int) -> Mapping:
    """Where `rank` stands in the layout of a checkpoint, or of both halves of one."""
    path = next(path for path in (folder / "config.json", folder / "encoder" / "config.json") if path.is_file())
    return Mapping.of_config(json.loads(path.read_text())["mapping"], rank)


def main() -> None:
    """Every rank: do the jobs that need it, in order."""
    from mpi4py import MPI

    torch.set_num_threads(1)
    world, jobs = MPI.COMM_WORLD, json.loads(Path(sys.argv[1]).read_text())
    for job in jobs:
        size = _mapping(Path(job["checkpoint"]), 0).world_size
        if size > world.Get_size():
            raise SystemExit(f"{job['checkpoint']} needs {size} ranks; start mpirun with -n {size}")
        group = world.Split(0 if world.Get_rank() < size else MPI.UNDEFINED, world.Get_rank())
        if group == MPI.COMM_NULL:
            continue
        results = run(job, group)
        if group.Get_rank() == 0:
            np.savez(job["output"], **results)
        group.Free()


if __name__ == "__main__":
    from trtbuild.mpi import abort_on_error

    def _abort() -> None:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)

    abort_on_error(main, _abort)
