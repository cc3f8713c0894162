"""Bytes that one rank takes on its GPU, and the sequences that fit into what is left. PURE arithmetic.

    total = weights + activations + runtime buffers + decoder buffers + CUDA and libraries; the rest is for the KV cache

(engine-build 9.2). Only weights and KV cache follow from the model alone. The other formulas were read off public logs
of TensorRT-LLM 0.12 to 1.2.1, which tests/data/published_memory.json keeps with their sources; each function says how
far it is from them. T = max_num_tokens, B = max_batch_size, S = max_seq_len, h = hidden, i = intermediate,
V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass

from trtbuild.layout import DTYPE_BYTES, DTYPES, GROUP, Job, RankJobs
from trtbuild.mapping import Mapping
from trtbuild.mixed import Choices
from trtbuild.plan import Plan
from trtbuild.quantize.method import Method
from trtbuild.sizing.geometry import Geometry, geometry_of
from trtbuild.sizing.target import Limits

CONTEXT_BYTES = 800 << 20
"""CUDA context, cuBLAS, kernels. Logs: 209 MiB (RTX 3050) to 792 MiB (H100); 3.1 GiB once, with six profiles."""
NCCL_BYTES = 512 << 20
"""Added with tp > 1 for NCCL and the custom all-reduce; no public log gives it, so it is an assumption."""
_ROPE_BYTES = 4
_KV_BYTES = {"INT8": 1, "FP8": 1}


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the GPU of one rank. `kv_token_bytes`: KV cache of one token."""

    rank: int
    tp_rank: int
    pp_rank: int
    weights: int
    activations: int
    runtime: int
    decoder: int
    context: int
    kv_token_bytes: int

    @property
    def fixed(self) -> int:
        """All that is in place before the KV cache is made."""
        return self.weights + self.activations + self.runtime + self.decoder + self.context

    def kv_tokens(self, memory_bytes: int, limits: Limits) -> int:
        """Tokens that the KV cache of a GPU with so much memory holds, in whole blocks; 0 where nothing is left.

        fraction x free memory / bytes of a token (kvCacheManager.cpp; engine-build 9.2).
        """
        free = memory_bytes - self.fixed
        tokens = int(limits.kv_fraction * free) // self.kv_token_bytes if free > 0 else 0
        return tokens // limits.tokens_per_block * limits.tokens_per_block


def sequences(kv_tokens: int, length: int, tokens_per_block: int = 32) -> int:
    """How many sequences of so many tokens a cache holds at once; each takes whole blocks."""
    return kv_tokens // tokens_per_block // -(-length // tokens_per_block)


def is_fused(methods: Iterable[Method]) -> bool:
    """Whether fc and gate read the same input: factors of their own for the inputs keep them apart."""
    return not any(field.suffix == "prequant_scaling_factor" for method in methods for field in method.fields)


def rank_memories(plan: Plan, limits: Limits, *, only_first: bool = False) -> tuple[RankMemory, ...]:
    """Of every rank of a plan that has no problems; `only_first`: of the first rank of each stage only."""
    geometry, layout = geometry_of(plan.spec), Mapping(plan.options.tp_size, plan.options.pp_size)
    ranks = [
        (layout.at(rank.rank), len(rank.layers), engine_bytes(rank, plan.choices, plan.dtype) + rope_bytes(geometry))
        for rank in plan.ranks
        if not only_first or rank.tp_rank == 0
    ]
    element = DTYPE_BYTES[DTYPES[plan.dtype]]
    return memories_of(
        geometry, limits, ranks, element=element, kv_cache_algo=plan.options.kv_cache_algo, fused=is_fused(plan.methods)
    )


def memories_of(
    geometry: Geometry,
    limits: Limits,
    ranks: Sequence[tuple[Mapping, int, int]],
    *,
    element: int,
    kv_cache_algo: str | None,
    fused: bool,
) -> tuple[RankMemory, ...]:
    """Of `ranks`, each with its layers and the bytes of its weights. `element`: bytes of the dtype; `fused`: below."""
    tp = ranks[0][0].tp_size
    working = activation_bytes(geometry, limits, tp, element, fused=fused)
    runtime, decoder = runtime_bytes(geometry, limits), decoder_bytes(geometry, limits)
    context = CONTEXT_BYTES + (NCCL_BYTES if tp > 1 else 0)
    kv = kv_token_bytes_of_layer(geometry, tp, _KV_BYTES.get(kv_cache_algo or "", element))
    return tuple(
        RankMemory(
            rank=one.rank,
            tp_rank=one.tp_rank,
            pp_rank=one.pp_rank,
            weights=weights,
            activations=working,
            runtime=runtime,
            decoder=decoder,
            context=context,
            kv_token_bytes=kv * layers,
        )
        for one, layers, weights in ranks
    )


def engine_bytes(rank: RankJobs, choices: Choices, dtype: str) -> int:
    """Weights inside an engine: those of the rank file, int8 and int4 ones packed where the build quantizes them.

    Against ten published engines: within 0.1 %; those given in whole GB agree as far as they are exact.
    """
    element = DTYPE_BYTES[DTYPES[dtype]]
    return sum(_built_bytes(job, choices, element) for job in rank.jobs)


def _built_bytes(job: Job, choices: Choices, element: int) -> int:
    module, _, suffix = job.group.rpartition(".")
    choice = choices.get(module)
    if choice is None:
        return job.nbytes
    method = choice.method
    if method.weight_bits < 16 and not method.fields and suffix == "weight":
        outputs = job.elements // job.shape[-1]
        return job.elements * method.weight_bits // 8 + outputs * element
    # Scales of groups become the model's dtype when the checkpoint is loaded (checkpoint format 5).
    grouped = any(field.suffix == suffix and field.cols == GROUP for field in method.fields)
    return job.elements * min(element, DTYPE_BYTES[job.dtype]) if grouped else job.nbytes


def rope_bytes(geometry: Geometry) -> int:
    """The table of rotary positions, float32, which the build adds to every engine: max_position_embeddings x channels.

    64 MiB for 131072 positions (Llama 3.1 in TensorRT-LLM 0.18), 512 MiB for 1048576 (0.12).
    """
    return _ROPE_BYTES * geometry.rope_elements


def kv_token_bytes_of_layer(geometry: Geometry, tp: int, kv_element: int) -> int:
    """Keys and values of one token in one layer of one rank (engine-build 9.2); fewer kv heads than ranks repeat."""
    return 2 * Mapping(tp_size=tp).kv_heads(geometry.num_kv_heads) * geometry.head_size * kv_element


def activation_bytes(geometry: Geometry, limits: Limits, tp: int, element: int = 2, *, fused: bool = True) -> int:
    """TensorRT's device memory of one rank: T x (2 h + 2 i/tp) elements, and the logits of B rows beside them.

    The widest moment is inside an MLP: the residual, its norm, and gate and up (or one of them and the product).
    Methods that scale inputs (AWQ) keep gate, up and product apart: T x (h + 3 i/tp). Each of the
    `experts_per_token` has its own rows. Logits are gathered from the ranks: B x V x (1 + 1/tp).
    Against published logs of releases 0.12 to 1.2.1: within 0.1 % for Qwen2.5 (0.5B, 1.5B), 1 % for GPT-2, 5 to
    11 % off for tp 4, AWQ and fp8 (30 MB are missing where T is small); 0.9, which fused less, took 22 % more.
    Mixtures of experts are unconfirmed.
    """
    h, i = geometry.hidden_size, geometry.intermediate_size / tp
    rows = max(1, geometry.experts_per_token)
    inner = (2 * rows * h if geometry.experts_per_token else 0) + 2 * rows * i
    inner += 2 * geometry.shared_intermediate_size / tp
    per_token = 2 * h + inner if fused else max(2 * h + inner, h + 1.5 * inner)
    logits = limits.max_batch_size * geometry.vocab_size * (1 + (1 / tp if tp > 1 else 0))
    return int(element * (limits.max_num_tokens * per_token + logits))


def runtime_bytes(geometry: Geometry, limits: Limits) -> int:
    """Input and output tensors: B x (4 V + 24 S) bytes; float32 logits, and block and cache tables of each sequence.

    Against published logs: within 0.5 %.
    """
    return limits.max_batch_size * (4 * geometry.vocab_size + 24 * limits.max_seq_len)


def decoder_bytes(geometry: Geometry, limits: Limits) -> int:
    """Sampling: B x (16 V + 16 S) bytes; logits, bias, penalties and top-p's own, and four arrays of the tokens.

    Against published logs: 2 % less than one of November 2024, 25 % less than two of 0.12; 0.17 allocated a quarter
    (4 V) at once, and the whole of a GPU under 0.19 is 6 % below ours, so newer releases may leave some free.
    """
    return limits.max_batch_size * 16 * (geometry.vocab_size + limits.max_seq_len)


def smallest(memories: Dict[int, int]) -> int:
    """The rank that decides: the one whose KV cache holds the fewest tokens; the first of several."""
    return min(memories, key=lambda rank: (memories[rank], rank))
