"""Which TP x PP x quantization x KV cache x batch meets a target, and why every other one does not. PURE.

Every combination is planned by the planner itself, on a model of one layer a stage: layers are alike, so its bytes
multiply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trtbuild.errors import PlanError
from trtbuild.mapping import Mapping
from trtbuild.plan import ModelPlan, Plan, make_plan
from trtbuild.quantize.methods import METHODS
from trtbuild.sizing.described import described_index
from trtbuild.sizing.estimate import Verdict, judge, legal
from trtbuild.sizing.legality import Legality
from trtbuild.sizing.memory import RankMemory, engine_bytes, rank_memories
from trtbuild.sizing.target import Limits, Target
from trtbuild.spec import KV_CACHES, ModelSpec

QUANTS = ("none", "int8", "int8_sq_token", "fp8", "fp8_rowwise", "int8_sq", "w4a8_awq", "int4_awq", "int4")
"""All that trtbuild makes, from no loss to much: the order of perplexities measured by scripts/bench_quality.py;
fp8_rowwise and w4a8_awq by their parts (`quantize/README.md`).
"""
KVS = ("none", "fp8", "int8")
STEP_TOKENS = (8192, 4096, 2048)
"""max_num_tokens to try: TensorRT-LLM's default first, then less for more KV cache (engine-build 10)."""


@dataclass(frozen=True)
class Wanted:
    """What a search keeps to; None: whatever serves. `kv_fraction`: as of `Limits`."""

    tp: int | None = None
    pp: int | None = None
    quant: str | None = None
    kv_cache: str | None = None
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    kv_fraction: float = Limits.kv_fraction


@dataclass(frozen=True)
class Choice:
    """One combination and what became of it; `reasons` is empty where it meets the target."""

    tp: int
    pp: int
    quant: str
    kv_cache: str
    verdict: Verdict | None
    reasons: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        return self.tp * self.pp


@dataclass(frozen=True)
class Fit:
    """Both best first: fewest GPUs, chunked context, least loss, few pipeline stages."""

    target: Target
    fits: tuple[Choice, ...]
    rejected: tuple[Choice, ...]


def fit(plan: ModelPlan, target: Target, max_gpus: int, wanted: Wanted | None = None) -> Fit:
    """Search from a plan of the model, whose tp and pp do not count.

    A model that is quantized already keeps its method.

    Raises:
        PlanError: what is wanted takes more than `max_gpus`.
    """
    wanted = wanted or Wanted()
    base = plan.parts[0]
    quants = (wanted.quant or base.options.quant,) if plan.imported or wanted.quant else QUANTS
    least = (wanted.tp or 1) * (wanted.pp or 1)
    if least > max_gpus:
        named = " x ".join(f"{name} {size}" for name, size in (("tp", wanted.tp), ("pp", wanted.pp)) if size)
        raise PlanError((f"{named} takes {least} GPUs, and {max_gpus} may be used",), hint="Raise --gpus.")
    planned = _Planner(base, target, wanted)
    found = [
        planned.choice(tp, pp, name, kv)
        for tp, pp in layouts(base.spec, max_gpus, target.gpus_per_node, wanted)
        for name in quants
        for kv in ((wanted.kv_cache,) if wanted.kv_cache else KVS)
    ]
    fits = sorted((choice for choice in found if not choice.reasons), key=_preference)
    rejected = sorted((choice for choice in found if choice.reasons), key=_preference)
    return Fit(target, tuple(fits), tuple(rejected))


def layouts(spec: ModelSpec, max_gpus: int, gpus_per_node: int, wanted: Wanted) -> Iterator[tuple[int, int]]:
    """(tp, pp) of at most `max_gpus` ranks: tp inside a host, powers of two and what divides the heads."""
    tps = [t for t in range(1, min(max_gpus, gpus_per_node) + 1) if t in (1, 2, 4, 8) or spec.num_heads % t == 0]
    for tp in [wanted.tp] if wanted.tp else tps:
        pp = wanted.pp or 1
        while tp * pp <= max_gpus:
            yield tp, pp
            if wanted.pp:
                break
            pp *= 2


def _preference(choice: Choice) -> tuple[int, bool, int, int, int]:
    """Fewest GPUs; chunked context and reuse before none; then least loss, and few pipeline stages."""
    quants = QUANTS if choice.quant in QUANTS else tuple(METHODS)
    chunked = choice.verdict is None or choice.verdict.paged_context
    return choice.gpus, not chunked, quants.index(choice.quant), KVS.index(choice.kv_cache), choice.pp


class _Planner:
    """Plans thin models, each once: one layer a stage, and no more stages than a first and a last one.

    Stages between those hold no more than the first: as many layers at most, and no vocabulary.
    """

    def __init__(self, base: Plan, target: Target, wanted: Wanted) -> None:
        self._base, self._target, self._wanted = base, target, wanted
        self._plans: dict[tuple[int, int, str, bool], Plan] = {}

    def choice(self, tp: int, pp: int, quant: str, kv_cache: str) -> Choice:
        layers = self._base.spec.num_layers
        if pp > layers:
            return Choice(tp, pp, quant, kv_cache, None, (f"pp {pp} is more than the {layers} layers",))
        plan = self._plan(tp, min(pp, 2), quant, kv_cache)
        if plan.problems:
            return Choice(tp, pp, quant, kv_cache, None, plan.problems)
        law = legal(plan, self._target, KV_CACHES[kv_cache])
        if law.problems:
            return Choice(tp, pp, quant, kv_cache, None, law.problems)
        verdicts = [self._judged(plan, tp, pp, law, limits) for limits in _limits(self._target, pp, law, self._wanted)]
        best = next((verdict for verdict in verdicts if not verdict.problems), verdicts[-1])
        return Choice(tp, pp, quant, kv_cache, best, best.problems)

    def _plan(self, tp: int, stages: int, quant: str, kv_cache: str) -> Plan:
        key = (tp, stages, quant, KV_CACHES[kv_cache] is not None)
        if key not in self._plans:
            options = replace(
                self._base.options, tp_size=tp, pp_size=stages, quant=quant, kv_cache=kv_cache, target="tensorrt",
                sm=None, moe_tp_size=None, moe_ep_size=None,
            )  # fmt: skip
            family, spec = self._base.family, self._base.spec
            thin = replace(spec, config={**spec.config, "num_hidden_layers": stages})
            self._plans[key] = make_plan(family, thin, options, described_index([(family, thin)]))
        return self._plans[key]

    def _judged(self, thin: Plan, tp: int, pp: int, law: Legality, limits: Limits) -> Verdict:
        """By one rank of each stage: those of a stage hold as much as each other."""
        layers = self._base.spec.num_layers
        ranks = tuple(
            _grown(thin, memory, Mapping(tp, pp, 0 if memory.pp_rank == 0 else (pp - 1) * tp), layers)
            for memory in rank_memories(thin, limits, only_first=True)
        )
        return judge(ranks, self._target, limits, law, tp, pp, self._base.spec)


def _limits(target: Target, pp: int, law: Legality, wanted: Wanted) -> list[Limits]:
    """What to build with: the batch that the target needs, and steps as long as fit, where nothing else is wanted."""
    batch = wanted.max_batch_size or -(-target.concurrency // pp)
    least = max(batch, 1 if law.paged_context else target.context)
    steps = [step for step in STEP_TOKENS if step >= least] or [-(-least // 1024) * 1024]
    if wanted.max_num_tokens:
        steps = [wanted.max_num_tokens]
    longest = wanted.max_seq_len or target.context
    return [Limits(batch, step, longest, wanted.kv_fraction) for step in steps]


def _grown(thin: Plan, memory: RankMemory, real: Mapping, layers: int) -> RankMemory:
    """The memory of a rank with all layers of its stage, from one with a single layer."""
    own = len(real.layers(layers))
    rank = thin.ranks[memory.rank]
    jobs = tuple(job for job in rank.jobs if job.group.startswith("transformer.layers."))
    layer = engine_bytes(replace(rank, jobs=jobs), thin.choices, thin.dtype)
    return replace(
        memory,
        rank=real.rank,
        pp_rank=real.pp_rank,
        weights=memory.weights + (own - 1) * layer,
        kv_token_bytes=own * memory.kv_token_bytes,
    )
