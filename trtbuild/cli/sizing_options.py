"""The options of `trtbuild plan --gpu`, and which of them go together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.errors import PlanError
from trtbuild.sizing.gpus import GPUS, Gpu, find_gpu
from trtbuild.sizing.target import Limits, Target

if TYPE_CHECKING:
    from trtbuild.plan import ModelPlan
    from trtbuild.sizing.estimate import Estimate
    from trtbuild.sizing.fit import Wanted

_PANEL = "Sizing"
_NEED_GPU = (
    *("fit", "context", "concurrency", "gpus", "gpus_per_node", "max_batch_size", "max_num_tokens", "max_seq_len"),
    *("kv_fraction", "release"),
)
_NEED_FIT = ("gpus",)
_NOT_WITH_FIT = ("moe_tp", "moe_ep")
"""How the experts of one tp are shared; a search has several."""


def _gpu(value: str | None) -> str | None:
    if value is not None:
        try:
            find_gpu(value)
        except PlanError as error:
            raise typer.BadParameter(error.problems[0]) from error
    return value


GpuOpt = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        callback=_gpu,
        autocompletion=lambda: [gpu.name for gpu in GPUS],
        help=f"Estimate for this GPU: {', '.join(gpu.name for gpu in GPUS if not gpu.refused)}.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ContextOpt = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        metavar="N",
        help="Tokens of a sequence, prompt and answer.",
        rich_help_panel=_PANEL,
        show_default="the model's, at most 8192",
    ),
]
ConcurrencyOpt = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        min=1,
        metavar="N",
        help="Sequences that must fit at once.",
        rich_help_panel=_PANEL,
        show_default="1, or 64 with --fit",
    ),
]
FitOpt = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="Propose TP x PP x quantization x KV cache x batch for --gpu, --context and --concurrency; "
        "--tp, --pp, --quant, --kv-cache and the limits below narrow the search where they are given.",
        rich_help_panel=_PANEL,
    ),
]
GpusOpt = Annotated[
    int, typer.Option("--gpus", min=1, metavar="N", help="GPUs that --fit may use.", rich_help_panel=_PANEL)
]
GpusPerNodeOpt = Annotated[
    int, typer.Option("--gpus-per-node", min=1, metavar="N", help="GPUs of one host.", rich_help_panel=_PANEL)
]
MaxBatchOpt = Annotated[
    int | None,
    typer.Option(
        "--max-batch-size",
        min=1,
        metavar="N",
        help="Of the engine; each of the pp micro batches has it.",
        rich_help_panel=_PANEL,
        show_default="concurrency / pp, at least 64 without --fit",
    ),
]
MaxTokensOpt = Annotated[
    int | None,
    typer.Option(
        "--max-num-tokens",
        min=1,
        metavar="N",
        help="Tokens of one step.",
        rich_help_panel=_PANEL,
        show_default="8192; with --fit less where that fits",
    ),
]
MaxSeqOpt = Annotated[
    int | None,
    typer.Option(
        "--max-seq-len",
        min=1,
        metavar="N",
        help="Of the engine.",
        rich_help_panel=_PANEL,
        show_default="the context",
    ),
]
KvFractionOpt = Annotated[
    float,
    typer.Option("--kv-fraction", min=0.01, max=0.99, help="Of free memory for the KV cache.", rich_help_panel=_PANEL),
]
ReleaseOpt = Annotated[
    str, typer.Option("--release", metavar="VERSION", help="TensorRT-LLM's.", rich_help_panel=_PANEL)
]


def given_of(command_line: typer.Context) -> frozenset[str]:
    """The parameters of a command that have their value from its line or the environment, and not by default."""
    sources = {name: command_line.get_parameter_source(name) for name in command_line.params}
    return frozenset(name for name, source in sources.items() if source and not source.name.startswith("DEFAULT"))


@dataclass(frozen=True)
class Asked:
    """The options of sizing; None = not given. `given`: parameters of the command that were on its line."""

    gpu_name: str | None
    context: int | None
    concurrency: int | None
    gpus: int
    gpus_per_node: int
    max_batch_size: int | None
    max_num_tokens: int | None
    max_seq_len: int | None
    kv_fraction: float
    release: str
    given: Collection[str] = ()

    @property
    def gpu(self) -> Gpu | None:
        return find_gpu(self.gpu_name) if self.gpu_name else None

    def require(self, fit: bool, target: str, sm: int | None) -> None:
        """Refuse options that would be passed over; raises typer.BadParameter with all of them."""
        problems = []
        if self.gpu is None:
            problems.append(self._out_of_place(_NEED_GPU, "need", "--gpu NAME"))
        elif not fit:
            problems.append(self._out_of_place(_NEED_FIT, "need", "--fit"))
        else:
            problems.append(self._out_of_place(_NOT_WITH_FIT, "cannot go", "with --fit, which tries several tp"))
        if self.gpu is not None and "target" in self.given and target != "tensorrt":
            problems.append(f"--target {target} has no --gpu: sizes are those of TensorRT-LLM's engines")
        if self.gpu is not None and sm not in (None, self.gpu.sm):
            problems.append(f"--sm {sm} is not the {self.gpu.name}'s, which is {self.gpu.sm}; leave it out")
        if any(problems):
            raise typer.BadParameter("; ".join(filter(None, problems)))

    def _out_of_place(self, names: Collection[str], verb: str, what: str) -> str:
        found = [f"--{name.replace('_', '-')}" for name in names if name in self.given]
        one = verb == "need" and len(found) == 1
        return f"{' and '.join(found)} {verb}{'s' if one else ''} {what}" if found else ""

    def settled(self, fit: bool, tp: int, pp: int, target: str, sm: int | None) -> tuple[int, int, str, int | None]:
        """(tp, pp, target, sm) to plan with: a GPU means TensorRT-LLM, and a search starts from one rank."""
        if self.gpu is None:
            return tp, pp, target, sm
        return *((1, 1) if fit else (tp, pp)), "tensorrt", self.gpu.layout_sm or sm

    def wanted(self, tp: int, pp: int, quant: str | None, kv_cache: str) -> Wanted:
        """What a search keeps to: all that was given."""
        from trtbuild.sizing.fit import Wanted

        return Wanted(
            tp=tp if "tp" in self.given else None,
            pp=pp if "pp" in self.given else None,
            quant=quant,
            kv_cache=kv_cache if "kv_cache" in self.given else None,
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_num_tokens,
            max_seq_len=self.max_seq_len,
            kv_fraction=self.kv_fraction,
        )

    def target(self, plan: ModelPlan, concurrency: int) -> Target:
        from trtbuild.sizing.estimate import default_context, refusals

        if refused := refusals(plan):
            raise PlanError(refused)
        assert self.gpu is not None
        context = self.context or default_context(plan.parts[0].spec)
        return Target(self.gpu, context, self.concurrency or concurrency, self.release, self.gpus_per_node)

    def estimate(self, plan: ModelPlan) -> Estimate:
        from trtbuild.sizing.estimate import DEFAULT_CONCURRENCY, estimate

        target = self.target(plan, 1)
        batch = self.max_batch_size or -(-max(target.concurrency, DEFAULT_CONCURRENCY) // plan.options.pp_size)
        longest = self.max_seq_len or target.context
        step = self.max_num_tokens or Limits.max_num_tokens
        return estimate(plan, target, Limits(batch, step, longest, self.kv_fraction))
