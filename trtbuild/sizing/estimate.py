"""All that one plan needs on one kind of GPU, and whether it meets a target. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtbuild.plan import ModelPlan, Plan
from trtbuild.sizing.gpus import GIB
from trtbuild.sizing.host import Stage, stages
from trtbuild.sizing.legality import Legality, legality
from trtbuild.sizing.memory import RankMemory, rank_memories, sequences, smallest
from trtbuild.sizing.target import Limits, Target
from trtbuild.spec import ModelSpec, deduced_seq_len

DEFAULT_CONTEXT = 8192
DEFAULT_CONCURRENCY = 64


@dataclass(frozen=True)
class Verdict:
    """Whether a rank layout meets a target.

    `deciding`: the rank whose KV cache holds the fewest tokens; `kv_tokens` by rank; `sequences` of the target's
    context that fit at once, before max_batch_size limits them.
    """

    limits: Limits
    ranks: tuple[RankMemory, ...]
    kv_tokens: dict[int, int]
    deciding: int
    sequences: int
    paged_context: bool
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    target: Target
    verdict: Verdict
    stages: tuple[Stage, ...]


def default_context(spec: ModelSpec) -> int:
    """The model's own length, and no more than 8192."""
    return min(int(spec.config.get("max_position_embeddings") or DEFAULT_CONTEXT), DEFAULT_CONTEXT)


def positions_of(spec: ModelSpec, length: int) -> tuple[list[str], list[str]]:
    """(problems, warnings) of sequences of so many tokens: what a model was made for, and what its table holds.

    Rotary positions go on beyond what it was trained with, where answers get worse; a table of learned ones ends.
    """
    kind = str(spec.config.get("position_embedding_type") or "")
    if not spec.config.get("max_position_embeddings") or not ("rope" in kind or kind.startswith("learned")):
        return [], []
    made_for = deduced_seq_len(spec.config)
    if length <= made_for:
        return [], []
    text = f"{length} tokens are beyond the {made_for} that the model was made for"
    return ([], [f"{text}: answers get worse there"]) if "rope" in kind else ([f"{text}: it has no more positions"], [])


def refusals(plan: ModelPlan) -> list[str]:
    """Why a model has no estimate, or nothing: sizes are those of decoder-only models."""
    part = plan.parts[0]
    if len(plan.parts) > 1 or not part.family.engine:
        return [f"sizing is for decoder-only models; {part.spec.architecture} is none"]
    return []


def estimate(plan: ModelPlan, target: Target, limits: Limits) -> Estimate:
    """What a plan without problems needs; `verdict.problems` says what does not fit."""
    part = plan.parts[0]
    ranks = rank_memories(part, limits)
    law = legal(part, target, part.options.kv_cache_algo)
    verdict = judge(ranks, target, limits, law, part.options.tp_size, part.options.pp_size, part.spec)
    return Estimate(target, verdict, stages(plan, tuple(rank.weights for rank in ranks), target.gpus_per_node))


def legal(plan: Plan, target: Target, kv_cache_algo: str | None) -> Legality:
    """What TensorRT-LLM says of the plan's precision, and of a KV cache, on the target's GPU."""
    algos = frozenset(method.quant_algo for method in plan.methods if method.quant_algo)
    return legality(target.gpu, target.version, algos, kv_cache_algo)


def judge(
    ranks: tuple[RankMemory, ...],
    target: Target,
    limits: Limits,
    law: Legality,
    tp: int,
    pp: int,
    spec: ModelSpec | None = None,
) -> Verdict:
    """Compare ranks with a GPU and a target; all problems at once (engine-build 9.2, 12).

    `spec`: the model, so that its positions are compared with the lengths.
    """
    memory = target.gpu.memory_bytes
    tokens = {rank.rank: rank.kv_tokens(memory, limits) for rank in ranks}
    deciding = smallest(tokens)
    fit = sequences(tokens[deciding], target.context, limits.tokens_per_block)
    problems = [*law.problems, *_limit_problems(target, limits, law, pp)]
    problems += room_problems(ranks, target.gpu.name, memory, target.context, target.concurrency, limits)
    too_long, beyond = positions_of(spec, max(target.context, limits.max_seq_len)) if spec else ([], [])
    problems += too_long
    warnings = [*law.warnings, *beyond]
    if tp > 1 and not target.gpu.nvlink:
        warnings.append(f"{target.gpu.name} has no NVLink: tp {tp} exchanges activations over PCIe, pp may be faster")
    elif tp > 2 and target.gpu.bridged:
        warnings.append(
            f"NVLink bridges join two {target.gpu.name} each: tp {tp} exchanges activations over PCIe between pairs, "
            "pp may be faster"
        )
    if tp > target.gpus_per_node:
        warnings.append(f"tp {tp} spans hosts of {target.gpus_per_node} GPUs; tp inside a host and pp across is faster")
    if not target.gpu.seen:
        warnings.append(f"the memory of {target.gpu.name} that a process sees ({_gib(memory)}) is an assumption")
    return Verdict(limits, ranks, tokens, deciding, fit, law.paged_context, tuple(problems), tuple(warnings))


def room_problems(
    ranks: Sequence[RankMemory], gpu: str, memory: int, context: int, concurrency: int, limits: Limits
) -> list[str]:
    """Why `concurrency` sequences of `context` tokens do not fit beside the rank that decides, or nothing.

    `gpu`: its name; `memory`: its bytes.
    """
    tokens = {rank.rank: rank.kv_tokens(memory, limits) for rank in ranks}
    worst = next(rank for rank in ranks if rank.rank == smallest(tokens))
    if worst.fixed >= memory:
        return [f"rank {worst.rank} needs {_gib(worst.fixed)} before any KV cache; {gpu} has {_gib(memory)}"]
    fit = sequences(tokens[worst.rank], context, limits.tokens_per_block)
    if fit >= concurrency:
        return []
    each = -(-context // limits.tokens_per_block) * limits.tokens_per_block * worst.kv_token_bytes
    left = tokens[worst.rank] * worst.kv_token_bytes
    return [
        f"{fit} of {concurrency} sequences of {context} tokens fit: rank {worst.rank} has "
        f"{_gib(left)} for its KV cache, and one sequence takes {_gib(each)}"
    ]


def _limit_problems(target: Target, limits: Limits, law: Legality, pp: int) -> list[str]:
    """What the limits themselves rule out; each of the pp micro batches has max_batch_size (engine-build 9.2)."""
    found = []
    if limits.max_seq_len < target.context:
        found.append(f"max_seq_len {limits.max_seq_len} is below the context of {target.context} tokens")
    if limits.max_batch_size * pp < target.concurrency:
        found.append(
            f"max_batch_size {limits.max_batch_size} x pp {pp} is below the {target.concurrency} concurrent sequences"
        )
    if limits.max_num_tokens < limits.max_batch_size:
        found.append(f"max_num_tokens {limits.max_num_tokens} is below max_batch_size {limits.max_batch_size}")
    if not law.paged_context and limits.max_num_tokens < target.context:
        found.append(
            f"prompts cannot be read in chunks (see the warning on the KV cache), so max_num_tokens "
            f"{limits.max_num_tokens} must be at least the context of {target.context} tokens"
        )
    return found


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
